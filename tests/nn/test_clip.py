from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.nn import clip, transformer

CONFIG = clip.ClipConfig(
  embedding_dim=16,
  image=clip.Transformer(24, 2, 3, 48),
  image_size=8,
  patch_size=4,
  text=clip.Transformer(16, 2, 2, 32),
  vocab_size=20,
  context_length=6,
)


@pytest.fixture(scope='module')
def variables():
  return jax.jit(clip.Clip(CONFIG).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 6), jnp.int32))


def text(variables, tokens, config=CONFIG):
  return jax.jit(clip.TextTower(config).apply)({'params': variables['params']['text']}, jnp.asarray(tokens))


def image(variables, pixels, dtype=jnp.float32):
  return jax.jit(clip.ImageTower(CONFIG, dtype).apply)({'params': variables['params']['image']}, pixels)


def test_attention_equals_a_plain_softmax_in_numpy():
  x = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
  mask = np.tril(np.ones((5, 5), bool))
  module = transformer.Attention(heads=2, dtype=jnp.float32)
  variables = module.init(jax.random.key(1), x, jnp.asarray(mask))
  p = jax.tree.map(np.asarray, variables['params'])
  expected = np.zeros_like(x)
  for b in range(2):
    q, k, v = (x[b] @ p[name]['kernel'] + p[name]['bias'] for name in ('query', 'key', 'value'))
    for h in (slice(0, 4), slice(4, 8)):
      for i in range(5):
        weights = np.exp(q[i, h] @ k[: i + 1, h].T / 2.0)
        expected[b, i, h] = weights / weights.sum() @ v[: i + 1, h]
  expected = expected @ p['out']['kernel'] + p['out']['bias']
  np.testing.assert_allclose(module.apply(variables, x, jnp.asarray(mask)), expected, atol=1e-5)


def test_text_ends_at_its_end_token(variables):
  short = np.array([[18, 3, 4, 19]])
  padded = np.array([[18, 3, 4, 19, 0, 0], [18, 3, 4, 19, 7, 5]])
  rows = text(variables, padded)
  np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
  np.testing.assert_allclose(rows[:1], text(variables, short), atol=1e-6)
  assert np.abs(rows[0] - text(variables, [[18, 4, 3, 19]])[0]).max() > 1e-3
  named = dataclasses.replace(CONFIG, end_id=4)
  assert np.abs(rows - text(variables, padded, named)).max() > 1e-3
  np.testing.assert_allclose(text(variables, padded, named)[0], text(variables, [[18, 3, 4, 1]], named)[0], atol=1e-6)


def test_image_embedding_depends_on_every_patch_and_its_place(variables):
  pixels = np.random.default_rng(1).normal(size=(1, 8, 8, 3)).astype(np.float32)
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(image(variables, x) ** 2)))(jnp.asarray(pixels))
  assert np.isfinite(gradient).all() and (np.abs(gradient).reshape(2, 4, 2, 4, 3).max((1, 3, 4)) > 1e-6).all()
  swapped = np.concatenate([pixels[:, 4:], pixels[:, :4]], axis=1)
  assert np.abs(image(variables, pixels) - image(variables, swapped)).max() > 1e-4


def test_half_precision_stays_close_and_parameters_stay_float32(variables):
  pixels = np.random.default_rng(2).normal(size=(3, 8, 8, 3)).astype(np.float32)
  full, half = (clip.normalize(image(variables, pixels, dtype)) for dtype in (jnp.float32, jnp.bfloat16))
  assert image(variables, pixels, jnp.bfloat16).dtype == jnp.bfloat16 and half.dtype == jnp.float32
  np.testing.assert_allclose(np.sum(full * half, -1), 1, atol=5e-3)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_both_towers_give_unit_rows_and_the_scale_of_clip(variables):
  rows, words, scale = jax.jit(clip.Clip(CONFIG).apply)(variables, jnp.ones((2, 8, 8, 3)), jnp.array([[18, 3, 19]]))
  np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(words, axis=1), 1, atol=1e-6)
  np.testing.assert_allclose(scale, 1 / 0.07, rtol=1e-5)


def test_wrong_sizes_are_one_line(variables):
  with pytest.raises(ValueError, match=r'images are \(1, 9, 8, 3\); expected \[B, 8, 8, 3\]'):
    image(variables, jnp.zeros((1, 9, 8, 3)))
  with pytest.raises(ValueError, match='texts of 7 tokens; expected at most 6'):
    text(variables, np.zeros((1, 7), np.int32))


def test_unit_rows_and_scale_give_the_probabilities_of_the_real_model(shared):
  """Embeddings of OpenAI's ViT-B/32, computed elsewhere, and the probabilities published with them."""
  folder = shared / 'data/clip'
  image, texts = (np.load(folder / f'{name}_features.npy') for name in ('image', 'text'))
  cosines = clip.normalize(jnp.asarray(image)) @ clip.normalize(jnp.asarray(texts)).T
  expected = json.loads((folder / 'reference.json').read_text())['NPCLIP']['probs']
  np.testing.assert_allclose(jax.nn.softmax(100 * cosines), expected, atol=1e-5)
