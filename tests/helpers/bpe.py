"""CLIP's byte-pair tokenizer.json from the published list of merges, in the way transformers writes it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path


def tokenizer_json(merges_path: Path) -> str:
  merges = gzip.decompress(merges_path.read_bytes()).decode('utf-8').splitlines()[1 : 49152 - 256 - 2 + 1]
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  characters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
  tokens = [*characters, *(c + '</w>' for c in characters), *(merge.replace(' ', '') for merge in merges)]
  special = ['<|startoftext|>', '<|endoftext|>']
  vocab = {token: i for i, token in enumerate(tokens + special)}
  pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
  return json.dumps(
    {
      'version': '1.0',
      'added_tokens': [
        {
          'id': vocab[token],
          'content': token,
          'single_word': False,
          'lstrip': False,
          'rstrip': False,
          'normalized': False,
          'special': True,
        }
        for token in special
      ],
      'normalizer': {
        'type': 'Sequence',
        'normalizers': [
          {'type': 'NFC'},
          {'type': 'Replace', 'pattern': {'Regex': r'\s+'}, 'content': ' '},
          {'type': 'Lowercase'},
        ],
      },
      'pre_tokenizer': {
        'type': 'Sequence',
        'pretokenizers': [
          {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Removed', 'invert': True},
          {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False},
        ],
      },
      'post_processor': {
        'type': 'RobertaProcessing',
        'sep': ['<|endoftext|>', 49407],
        'cls': ['<|startoftext|>', 49406],
        'trim_offsets': False,
        'add_prefix_space': False,
      },
      'truncation': {'max_length': 5, 'strategy': 'LongestFirst', 'stride': 0, 'direction': 'Right'},
      'padding': {
        'strategy': {'Fixed': 9},
        'direction': 'Right',
        'pad_to_multiple_of': None,
        'pad_id': 49407,
        'pad_type_id': 0,
        'pad_token': '<|endoftext|>',
      },
      'model': {
        'type': 'BPE',
        'continuing_subword_prefix': '',
        'end_of_word_suffix': '</w>',
        'fuse_unk': False,
        'unk_token': '<|endoftext|>',
        'vocab': vocab,
        'merges': merges,
      },
    }
  )
