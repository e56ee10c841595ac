from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from tests.helpers import siglip_golden
from vild_jax.nn import clip
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher.text import TextTower
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
  assert canonical_text("  A T-shirt,\n(red) it's  ") == 'a tshirt red its'


def gemma(**tokens):
  """A tokenizer.json of Gemma's kind: words of single letters, spaces as tokens."""
  vocab = {'<pad>': 0, '<eos>': 1, '<bos>': 2, '<unk>': 3, '\u2581': 4, 'a': 5, 'b': 6, '.': 7, 'A': 8, **tokens}
  return json.dumps(
    {
      'version': '1.0',
      'added_tokens': [],
      'padding': {
        'strategy': {'Fixed': 9},
        'direction': 'Left',
        'pad_to_multiple_of': None,
        'pad_id': 0,
        'pad_type_id': 0,
        'pad_token': '<pad>',
      },
      'normalizer': {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\u2581'},
      'model': {
        'type': 'BPE',
        'vocab': {k: v for k, v in vocab.items() if v is not None},
        'merges': [],
        'unk_token': '<unk>',
      },
    }
  )


def test_siglip2_lowers_drops_nothing_and_pads_to_the_right():
  rows = Tokenizer(gemma(), 6)(['A b.', 'b', ''])
  assert rows.tolist() == [[5, 4, 6, 7, 1, 0], [6, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]


def test_a_tokenizer_without_padding_is_one_line():
  with pytest.raises(ValueError, match=r'lacks <pad>; expected a tokenizer of CLIP, SigLIP or SigLIP 2'):
    Tokenizer(gemma(**{'<pad>': None}), 6)


def test_texts_are_embedded_with_all_their_padding():
  golden = json.loads(siglip_golden.GOLDEN.read_text(encoding='utf-8'))
  tokenizer_json = json.dumps(golden['tokenizer'])
  config = clip.ClipConfig(
    embedding_dim=8,
    image=clip.Transformer(8, 1, 2, 16),
    image_size=4,
    patch_size=4,
    text=clip.Transformer(16, 1, 2, 32),
    vocab_size=85,
    context_length=64,
    sigmoid=True,
  )
  tower = clip.TextTower(config)
  params = jax.jit(tower.init)(jax.random.key(0), np.ones((1, 64), np.int32))['params']
  texts = ['a photo of a dog.', 'a photo of the large armadillo in the scene', 'cat']
  rows = TextTower(teacher_checkpoint.Teacher(config, {'text': params}, tokenizer_json)).embed_texts(texts)
  ids = Tokenizer(tokenizer_json, 64)(texts)
  np.testing.assert_allclose(rows, clip.normalize(jax.jit(tower.apply)({'params': params}, ids)), atol=1e-5)
