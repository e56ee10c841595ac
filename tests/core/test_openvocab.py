from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.core import openvocab


def _arrays(seed=0):
  rng = np.random.default_rng(seed)
  shapes = (6, 16), (5, 16), (16,)
  return [jnp.asarray(rng.normal(0, scale, s), jnp.float32) for s, scale in zip(shapes, (3, 1, 0.01), strict=True)]


def test_vectors_without_length_normalise_to_zero(golden):
  g = golden('divide_no_nan')
  lengths = g['in_y']
  # The reference divides by a given norm; here the vector is its own norm.
  expected = np.where((g['out'] == 0).all(-1, keepdims=True) & (g['in_x'] != 0).any(-1, keepdims=True), 0, 1)
  np.testing.assert_allclose(openvocab.normalize(jnp.abs(jnp.asarray(lengths))), expected, atol=1e-6)
  assert 0 < expected.sum() < len(expected)


def test_logits_are_cosines_over_the_temperature_with_the_background_last():
  region, classes, background = _arrays()
  actual = openvocab.cosine_logits(region, classes, background, temperature=0.01)
  unit = lambda x: np.asarray(x, np.float64) / np.linalg.norm(np.asarray(x, np.float64), axis=-1, keepdims=True)
  expected = unit(region) @ np.concatenate([unit(classes), unit(background)[None]]).T / 0.01
  np.testing.assert_allclose(actual, expected, atol=1e-4)
  scaled = openvocab.cosine_logits(5.0 * region, 2.0 * classes, 0.1 * background, temperature=jnp.float32(0.01))
  np.testing.assert_allclose(scaled, expected, atol=1e-4)
  half = openvocab.cosine_logits(region.astype(jnp.bfloat16), classes, background, temperature=0.01)
  assert half.dtype == jnp.float32


def test_padding_classes_get_minus_infinity_and_leave_the_softmax():
  region, classes, background = _arrays()
  valid = jnp.asarray([True, False, True, True, False])
  padded = openvocab.cosine_logits(region, classes, background, temperature=0.01, valid=valid)
  kept = openvocab.cosine_logits(region, classes[np.flatnonzero(valid)], background, temperature=0.01)
  assert np.isneginf(padded[:, ~np.append(valid, True)]).all()
  np.testing.assert_allclose(
    jax.nn.softmax(padded)[:, np.append(valid, True)], jax.nn.softmax(kept), rtol=1e-5, atol=1e-7
  )


@pytest.mark.parametrize('scale', [0.0, 1e-12, 1.0])
def test_gradients_are_finite_even_at_zero_vectors(scale):
  valid = jnp.asarray([True, True, False, True, True])

  def loss(region, classes, background):
    return jax.nn.logsumexp(openvocab.cosine_logits(region, classes, background, temperature=0.01, valid=valid))

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*(scale * x for x in _arrays()))
  for gradient in gradients:
    assert np.isfinite(gradient).all()
    assert np.any(gradient != 0) == (scale == 1.0)


def test_the_gradient_of_the_background_is_orthogonal_to_it():
  region, classes, background = _arrays()
  loss = jax.jit(lambda b: openvocab.cosine_logits(region, classes, b, temperature=0.01)[:, -1].sum())
  gradient = jax.grad(loss)(background)
  cosine = jnp.vdot(gradient, background) / jnp.linalg.norm(gradient) / jnp.linalg.norm(background)
  assert abs(cosine) < 1e-5
  step = 1e-4 * gradient / jnp.linalg.norm(gradient)
  slope = (loss(background + step) - loss(background - step)) / 2e-4
  np.testing.assert_allclose(slope, jnp.linalg.norm(gradient), rtol=1e-2)


def test_the_ensemble_trusts_text_on_base_and_image_on_novel_classes():
  text, image = jnp.asarray([[0.8, 0.8, 0.0]]), jnp.asarray([[0.1, 0.1, 0.5]])
  is_base = jnp.asarray([True, False, True])
  actual = openvocab.ensemble_scores(text, image, is_base)
  expected = [[0.8 ** (2 / 3) * 0.1 ** (1 / 3), 0.8 ** (1 / 3) * 0.1 ** (2 / 3), 0.0]]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize('name', ['detections_vanilla', 'detections_double_branch', 'detections_few'])
def test_scores_equal_the_reference(golden, name):
  g = golden(name)
  text = jax.nn.softmax(jnp.asarray(g['in_class_outputs']))[..., 1:]  # the reference's background comes first
  if name == 'detections_double_branch':
    image = jax.nn.softmax(jnp.asarray(g['in_distill_class_outputs']))
    is_base = jnp.asarray(g['in_rare_mask'][1:] == 1)  # named "rare", but 1 is base
    text = jax.vmap(lambda t, i: openvocab.ensemble_scores(t, i, is_base))(text, image)
  np.testing.assert_allclose(text, g['out_raw_scores'], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('heads', ['text', 'image', 'ensemble', 'no region'])
def test_class_scores_of_one_head_and_of_two(heads):
  rng = np.random.default_rng(1)
  text, image = (rng.normal(0, 3, (0 if heads == 'no region' else 4, n)) for n in (6, 5))
  is_base = np.array([True, False, True, False, False])
  softmax = lambda x: np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)
  of_text, of_image = softmax(0.5 * text)[:, :-1], softmax(0.5 * image)
  expected, more = {
    'text': (of_text, {}),
    'image': (softmax(0.5 * text[:, :-1]), {'background': False}),  # one head, which has not learnt the background
  }.get(heads, (np.where(is_base, of_text**0.9 * of_image**0.1, of_text**0.6 * of_image**0.4), {}))
  found = openvocab.class_scores(
    jnp.asarray(text, jnp.float32),
    jnp.asarray(image, jnp.float32) if heads in ('ensemble', 'no region') else None,
    jnp.asarray(is_base),
    sharpness=0.5,
    base_weight=0.9,
    novel_weight=0.4,
    **more,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_one_weight_is_that_of_the_paper():
  rng = np.random.default_rng(2)
  text, image = (jnp.asarray(rng.uniform(0.1, 1, (3, 2)), jnp.float32) for _ in range(2))
  of = lambda **weights: openvocab.ensemble_scores(text, image, jnp.asarray([True, False]), **weights)
  np.testing.assert_array_equal(of(base_weight=0.8), of(base_weight=0.8, novel_weight=0.8))
  assert not np.allclose(of(base_weight=0.8), of(base_weight=0.8, novel_weight=0.5))


def test_attributes_have_the_softmax_of_their_cosines():
  region, attributes, _ = _arrays()
  cosine = np.array(
    [[np.dot(r, a) / np.linalg.norm(r) / np.linalg.norm(a) for a in np.float64(attributes)] for r in np.float64(region)]
  )
  power = np.exp(cosine / 0.1)
  expected = power / power.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(openvocab.attribute_scores(region, attributes, temperature=0.1), expected, rtol=1e-4)
  longer = openvocab.attribute_scores(3.0 * region, 0.2 * attributes, temperature=jnp.float32(0.1))
  np.testing.assert_allclose(longer, expected, rtol=1e-4)


def test_attributes_of_a_case_made_by_hand():
  """Cosines 1, 0 and -1 at temperature 1 / ln 2: the probabilities are as 2 to 1 to 1/2."""
  found = openvocab.attribute_scores(
    jnp.asarray([[2.0, 0.0]]), jnp.asarray([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]), temperature=1 / np.log(2)
  )
  np.testing.assert_allclose(found, [[4 / 7, 2 / 7, 1 / 7]], rtol=1e-6)


def test_padding_attributes_have_probability_0():
  region, attributes, _ = _arrays()
  valid = np.array([True, False, True, True, False])
  padded = openvocab.attribute_scores(region, attributes, temperature=0.1, valid=jnp.asarray(valid))
  kept = openvocab.attribute_scores(region, attributes[np.flatnonzero(valid)], temperature=0.1)
  np.testing.assert_array_equal(padded[:, ~valid], 0)
  np.testing.assert_allclose(padded[:, valid], kept, rtol=1e-6)


def test_no_attributes_or_no_regions_give_empty_scores():
  region, attributes, _ = _arrays()
  of = lambda region, attributes, **more: openvocab.attribute_scores(region, attributes, temperature=0.1, **more)
  assert of(region, attributes[:0]).shape == (6, 0) and of(region[:0], attributes).shape == (0, 5)
  np.testing.assert_array_equal(of(region, attributes, valid=jnp.zeros(5, bool)), np.zeros((6, 5)))


@pytest.mark.parametrize('scale', [0.0, 1.0])
def test_gradients_of_attributes_are_finite_even_at_zero_vectors(scale):
  valid = jnp.asarray([True, True, False, True, True])
  region, attributes, _ = _arrays()

  def loss(region, attributes):
    return jnp.sum(openvocab.attribute_scores(region, attributes, temperature=0.1, valid=valid)[:, 0])

  gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(scale * region, attributes)
  assert all(np.isfinite(gradient).all() for gradient in gradients)
  assert np.any(gradients[1] != 0) == (scale == 1.0)
