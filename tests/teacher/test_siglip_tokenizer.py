from __future__ import annotations

import json

import numpy as np
import pytest

from tests.teacher import siglip_golden
from vild_jax.teacher.tokenizer import Tokenizer, canonical_text


def test_ids_equal_those_of_transformers_padding_included():
  golden = json.loads(siglip_golden.GOLDEN.read_text(encoding='utf-8'))
  tokenizer = Tokenizer(json.dumps(golden['tokenizer']), 64)
  assert (tokenizer.start, tokenizer.end, tokenizer.pad) == (None, 1, 1)
  assert tuple(golden['texts']) == siglip_golden.TEXTS
  with pytest.warns(UserWarning, match=r"'photo of a .* tokens; only the first 63 are used"):
    rows = tokenizer(golden['texts'])
  assert rows.dtype == np.int32
  for text, row, ids in zip(golden['texts'], rows, golden['ids'], strict=True):
    assert row.tolist() == ids, text


def test_canonical_text():
  assert canonical_text('  A T-shirt,\n(red) it\'s  ') == 'a tshirt red its'


def gemma(**tokens):
  """A tokenizer.json of Gemma's kind: words of single letters, spaces as tokens."""
  vocab = {'<pad>': 0, '<eos>': 1, '<bos>': 2, '<unk>': 3, '\u2581': 4, 'a': 5, 'b': 6, '.': 7, 'A': 8, **tokens}
  return json.dumps({
    'version': '1.0', 'added_tokens': [], 'padding': {'strategy': {'Fixed': 9}, 'direction': 'Left',
                                                      'pad_to_multiple_of': None, 'pad_id': 0, 'pad_type_id': 0,
                                                      'pad_token': '<pad>'},
    'normalizer': {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\u2581'},
    'model': {'type': 'BPE', 'vocab': {k: v for k, v in vocab.items() if v is not None}, 'merges': [],
              'unk_token': '<unk>'}})


def test_siglip2_lowers_drops_nothing_and_pads_to_the_right():
  rows = Tokenizer(gemma(), 6)(['A b.', 'b', ''])
  assert rows.tolist() == [[5, 4, 6, 7, 1, 0], [6, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]


def test_a_tokenizer_without_padding_is_one_line():
  with pytest.raises(ValueError, match=r'lacks <pad>; expected a tokenizer of CLIP, SigLIP or SigLIP 2'):
    Tokenizer(gemma(**{'<pad>': None}), 6)
