from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.core import roi_align


def _oracle(features, boxes, size):
  """Sample by sample, in float64: extrapolates before the first pixel, repeats the last one."""
  features = {level: np.asarray(f, np.float64) for level, f in features.items()}
  boxes = np.asarray(boxes, np.float64)
  out = np.zeros((len(boxes), size, size, features[min(features)].shape[-1]))
  for r, box in enumerate(boxes):
    side = np.sqrt(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))
    level = int(np.clip(np.floor(np.log2(max(side, 1e-9) / 224)) + 4, min(features), max(features)))
    f, scaled = features[level], box / 2**level
    for i, j in np.ndindex(size, size):
      y, x = scaled[:2] + (np.array([i, j]) + 0.5) / size * (scaled[2:] - scaled[:2])
      y0, x0 = (int(np.clip(np.floor(p), 0, n - 1)) for p, n in zip((y, x), f.shape[:2], strict=True))
      y1, x1 = min(y0 + 1, f.shape[0] - 1), min(x0 + 1, f.shape[1] - 1)
      top = f[y0, x0] * (1 - (x - x0)) + f[y0, x1] * (x - x0)
      bottom = f[y1, x0] * (1 - (x - x0)) + f[y1, x1] * (x - x0)
      out[r, i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
  return out


def _pyramid(seed=0, height=64, width=128, levels=(3, 4, 5), channels=3):
  rng = np.random.default_rng(seed)
  return {
    level: jnp.asarray(rng.normal(size=(height >> level, width >> level, channels)), jnp.float32) for level in levels
  }


_BOXES = np.array(
  [
    [3.3, 5.1, 40.2, 33.7], [0, 0, 63, 127], [-9, -30, 20, 11], [50, 100, 90, 170], [10, 10, 10, 10], [0, 0, 0, 0],
    [-40, -40, 300, 300], [-200, 5, 400, 700],
  ],
  np.float32,
)  # fmt: skip


def test_features_equal_the_reference(golden):
  g = golden('multilevel_crop_and_resize')
  for image in range(2):
    features = {level: jnp.asarray(g[f'in_p{level}'][image]) for level in range(2, 7)}
    boxes = jnp.asarray(g['in_boxes'][image])
    np.testing.assert_array_equal(roi_align.roi_levels(boxes, 2, 6), g['out_levels'][image])
    actual = _align(features, boxes, 7)
    # A box far before the first pixel extrapolates: weights of both signs far above 1, which rounding is multiplied by.
    np.testing.assert_allclose(actual, g['out_7'][image], rtol=1e-5, atol=5e-4)
    inside = g['in_boxes'][image].min(-1) >= 0
    assert inside.sum() > 10
    np.testing.assert_allclose(actual[inside], g['out_7'][image][inside], rtol=1e-5, atol=5e-5)
    np.testing.assert_allclose(_align(features, boxes[:8], 14), g['out_14'][image], rtol=1e-5, atol=5e-5)


@functools.partial(jax.jit, static_argnames='size')
def _align(features, boxes, size):
  return roi_align.multilevel_roi_align(features, boxes, output_size=size)


@pytest.mark.parametrize('size', [1, 7])
def test_features_equal_an_oracle(size):
  features = _pyramid()
  actual = _align(features, _BOXES, size)
  np.testing.assert_allclose(actual, _oracle(features, _BOXES, size), rtol=1e-5, atol=1e-4)


def test_levels_turn_at_exact_sizes():
  sides = np.array([0, 10, 55.99, 56, 111.99, 112, 223.9, 224, 447.9, 448, 895.9, 896, 5000], np.float32)
  boxes = jnp.asarray(np.stack([0 * sides, 0 * sides, sides, sides], -1))
  expected = [2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
  np.testing.assert_array_equal(roi_align.roi_levels(boxes, 2, 6), expected)
  np.testing.assert_array_equal(roi_align.roi_levels(boxes, 3, 4), np.clip(expected, 3, 4))
  assert roi_align.roi_levels(jnp.asarray([[9.0, 9.0, 3.0, 3.0]]), 2, 6)[0] == 2
  np.testing.assert_array_equal(roi_align.roi_levels(boxes, 4, 4), np.full(13, 4))


def test_coordinates_before_the_first_pixel_extrapolate():
  ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 8, 1))
  boxes = jnp.asarray([[-8.0, 0.0, 0.0, 4.0], [60.0, 0.0, 80.0, 4.0]])
  np.testing.assert_allclose(_align({2: ramp}, boxes, 1)[:, 0, 0, 0], [-1.0, 7.0], atol=1e-6)


def test_the_gradient_is_the_transpose_of_the_reading():
  features, boxes = _pyramid(), jnp.asarray(_BOXES)
  read = lambda f: _align(f, boxes, 3)
  rng = np.random.default_rng(1)
  cotangent = rng.normal(size=(len(boxes), 3, 3, 3)).astype(np.float32)
  gradient = jax.grad(lambda f: jnp.vdot(read(f), cotangent))(features)
  zeros = {level: np.zeros(f.shape) for level, f in features.items()}
  for level, of_level in gradient.items():
    largest = np.unravel_index(np.argmax(np.abs(of_level)), of_level.shape)
    for pixel in (largest, (0, 0, 0), (1, 2, 1)):
      unit = {**zeros, level: zeros[level].copy()}
      unit[level][pixel] = 1.0
      expected = np.vdot(_oracle(unit, boxes, 3), cotangent)
      np.testing.assert_allclose(of_level[pixel], expected, rtol=1e-4, atol=1e-4)
    assert of_level[largest] != 0


def test_half_precision_features_are_interpolated_in_float32():
  features = {level: f.astype(jnp.bfloat16) for level, f in _pyramid().items()}
  inside = jnp.asarray(_BOXES[:2])
  actual = _align(features, inside, 7)
  assert actual.dtype == jnp.bfloat16
  exact = _oracle(features, inside, 7)
  np.testing.assert_allclose(actual.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)
  gradient = jax.grad(lambda f: _align(f, inside, 7).astype(jnp.float32).sum())
  assert {g.dtype for g in gradient(features).values()} == {jnp.dtype(jnp.bfloat16)}


def test_the_gradient_of_half_precision_features_is_summed_in_float32():
  """A coarse pixel gets a share of every region; a sum in bfloat16 stands still once it is 256 times a share."""
  features = {level: jnp.ones((4, 4, 1), jnp.bfloat16) for level in (2, 3)}
  boxes = jnp.tile(jnp.asarray([[0.0, 0.0, 12.0, 12.0]]), (700, 1))
  gradient = jax.grad(lambda f: _align(f, boxes, 2).astype(jnp.float32).sum())(features)
  assert sum(g.astype(jnp.float32).sum() for g in gradient.values()) == pytest.approx(4 * len(boxes), rel=2**-8)


def test_no_regions_and_a_batch():
  features = _pyramid()
  assert _align(features, jnp.zeros((0, 4)), 7).shape == (0, 7, 7, 3)
  batch = jax.tree.map(lambda *x: jnp.stack(x), features, _pyramid(seed=9))
  boxes = jnp.stack([jnp.asarray(_BOXES), jnp.asarray(_BOXES[::-1])])
  together = jax.vmap(lambda f, b: _align(f, b, 2))(batch, boxes)
  np.testing.assert_allclose(together[1], _oracle(_pyramid(seed=9), boxes[1], 2), rtol=1e-5, atol=1e-4)


def _both_directions(align, features, boxes, cotangent):
  pooled, back = jax.vjp(lambda f: align(f, boxes), features)
  return pooled, back(cotangent)[0]


def _gradient_oracle(features, boxes, cotangent):
  """The transpose of `_oracle`, a bin at a time, in float64."""
  gradient = {level: np.zeros(f.shape) for level, f in features.items()}
  for r, box in enumerate(np.asarray(boxes, np.float64)):
    side = np.sqrt(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))
    level = int(np.clip(np.floor(np.log2(max(side, 1e-9) / 224)) + 4, min(features), max(features)))
    of_level, scaled = gradient[level], box / 2**level
    for i, j in np.ndindex(cotangent.shape[1:3]):
      places = scaled[:2] + (np.array([i, j]) + 0.5) / cotangent.shape[1] * (scaled[2:] - scaled[:2])
      rows, columns = (
        ((first, 1 - (p - first)), (min(first + 1, size - 1), p - first))
        for p, size in zip(places, of_level.shape[:2], strict=True)
        for first in (int(np.clip(np.floor(p), 0, size - 1)),)
      )
      for (y, weight_y), (x, weight_x) in itertools.product(rows, columns):
        of_level[y, x] += weight_y * weight_x * np.asarray(cotangent[r, i, j], np.float64)
  return gradient


# Levels of 6 and 2 tiles of 32 x 32 pixels: long boxes, one over the whole picture, and the others at its far end.
_LARGE = {'height': 384, 'width': 512, 'levels': (3, 4)}
_FAR = np.array([[10, 20, 30, 500], [100, 3, 370, 30], [0, 0, 384, 512], [200, 240, 300, 330], [370, 500, 384, 512]])


@pytest.mark.parametrize('count', [0, 8])
@pytest.mark.parametrize(
  ('pyramid', 'dtype', 'step'),
  # Positions up to 64 are float32 numbers, and so are weights off by up to 2^-19.
  [({}, 'float32', 2**-20), ({}, 'bfloat16', 2**-7), (_LARGE, 'float32', 2**-18), (_LARGE, 'bfloat16', 2**-7)],
)
def test_a_batch_on_a_tpu_equals_the_reading_and_its_transpose(pyramid, count, dtype, step, as_on):
  features = jax.tree.map(lambda *x: jnp.stack(x).astype(dtype), *(_pyramid(seed, **pyramid) for seed in (0, 9, 5)))
  rng = np.random.default_rng(2)
  known = np.concatenate([_FAR, _BOXES[:3]]).astype(np.float32) if pyramid else _BOXES
  boxes = jnp.stack([jnp.asarray(rng.permutation(known)[:count]) for _ in range(3)])
  cotangent = jnp.asarray(rng.normal(size=(3, count, 3, 3, 3)), dtype)
  pooled = jax.vmap(lambda f, b: _align(f, b, 3))(features, boxes)
  of_images = [_gradient_oracle({k: f[b] for k, f in features.items()}, boxes[b], cotangent[b]) for b in range(3)]
  gradient = jax.tree.map(lambda f, *of_level: np.stack(of_level).astype(f.dtype), features, *of_images)
  as_on('tpu')
  chosen = jax.vmap(lambda f, b: roi_align.multilevel_roi_align(f, b, output_size=3, by_platform=True))
  found = jax.jit(lambda f, c: _both_directions(chosen, f, boxes, c))(features, cotangent)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves((pooled, gradient)), strict=True):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    a, b = (np.asarray(value, np.float64) for value in (a, b))
    np.testing.assert_allclose(a, b, rtol=0, atol=step * np.abs(b).max(initial=0))


def test_images_that_share_their_features_add_their_gradients_up_on_a_tpu(as_on):
  features, boxes = _pyramid(), jnp.stack([jnp.asarray(_BOXES[:3]), jnp.asarray(_BOXES[3:6])])
  cotangent = jnp.asarray(np.random.default_rng(4).normal(size=(2, 3, 2, 2, 3)), jnp.float32)
  of_images = [_gradient_oracle(features, boxes[b], cotangent[b]) for b in range(2)]
  as_on('tpu')
  one = lambda f: lambda b: roi_align.multilevel_roi_align(f, b, output_size=2, by_platform=True)
  found = jax.jit(jax.grad(lambda f: jnp.vdot(jax.vmap(one(f))(boxes), cotangent)))(features)
  for level, gradient in found.items():
    expected = of_images[0][level] + of_images[1][level]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=2**-20 * np.abs(expected).max())


def test_only_a_tpu_does_a_batch_at_once():
  features = jax.tree.map(lambda *x: jnp.stack(x), _pyramid(), _pyramid(seed=9))
  boxes = jnp.stack([jnp.asarray(_BOXES), jnp.asarray(_BOXES[::-1])])
  cotangent = jnp.ones((2, len(_BOXES), 2, 2, 3))
  align = lambda by_platform: jax.vmap(
    lambda f, b: roi_align.multilevel_roi_align(f, b, output_size=2, by_platform=by_platform)
  )
  chosen, plain = (jax.jit(lambda f, c, on=on: _both_directions(align(on), f, boxes, c)) for on in (True, False))
  jax.tree.map(np.testing.assert_array_equal, chosen(features, cotangent), plain(features, cotangent))
  lowered = {of: chosen.trace(features, cotangent).lower(lowering_platforms=(of,)).as_text() for of in ('cpu', 'tpu')}
  assert 'while' in lowered['cpu'] and 'while' not in lowered['tpu']
  # The same features for all images are one argument, without an axis of images.
  one = {level: f[0] for level, f in features.items()}
  shared = jax.vmap(lambda b: roi_align.multilevel_roi_align(one, b, output_size=2, by_platform=True))(boxes)
  np.testing.assert_array_equal(shared[1], _align(one, boxes[1], 2))


def test_float64_takes_the_loop_and_the_way_of_a_tpu_can_be_traced():
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    features = {level: jnp.asarray(np.random.default_rng(level).normal(size=(1, 8, 8, 3))) for level in (3, 4)}
    boxes = jnp.asarray(_BOXES[None, :2], jnp.float64)
    cotangent = jnp.ones((1, 2, 2, 2, 3))
    align = lambda by_platform: jax.vmap(
      lambda f, b: roi_align.multilevel_roi_align(f, b, output_size=2, by_platform=by_platform)
    )
    chosen, plain = (jax.jit(lambda f, on=on: _both_directions(align(on), f, boxes, cotangent)) for on in (True, False))
    jax.tree.map(np.testing.assert_array_equal, chosen(features), plain(features))
    assert {x.dtype for x in jax.tree.leaves(chosen(features))} == {jnp.dtype('float64')}
