from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vild_jax.core import boxes


def test_iou_equals_the_reference(golden):
  g = golden('bbox_overlap')
  for b, gt, expected in zip(g['in_boxes'], g['in_gt_boxes'], g['out_iou'], strict=True):
    actual = np.asarray(boxes.iou(jnp.asarray(b), jnp.asarray(gt)))
    real = gt.max(-1) >= 0  # the reference marks padding by coordinates; ours carries a mask
    assert real.any() and not real.all()
    np.testing.assert_allclose(actual[:, real], expected[:, real], atol=1e-6)


def test_iou_of_boxes_without_area_is_zero():
  empty = jnp.asarray([[0, 0, 0, 0], [5, 5, 5, 9], [7, 7, 3, 3]], jnp.float32)
  np.testing.assert_array_equal(boxes.iou(empty, empty), np.zeros((3, 3)))
  np.testing.assert_array_equal(boxes.area(empty), np.zeros(3))
  assert np.isfinite(jax.jit(jax.grad(lambda b: boxes.iou(b, b).sum()))(empty)).all()
  assert boxes.iou(jnp.zeros((0, 4)), empty).shape == (0, 3)


def test_coding_and_clipping_equal_the_reference(golden):
  g = golden('box_coding')
  b, a, d = (jnp.asarray(g[f'in_{name}']) for name in ('boxes', 'anchors', 'deltas'))
  weights = (10.0, 10.0, 5.0, 5.0)
  np.testing.assert_allclose(boxes.encode(b, a), g['out_encode_none'], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(boxes.encode(b, a, weights=weights), g['out_encode_w'], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(boxes.decode(d, a), g['out_decode_none'], rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(boxes.decode(d, a, weights=weights), g['out_decode_w'], rtol=1e-5, atol=1e-4)
  np.testing.assert_array_equal(boxes.clip(b, (150, 120)), g['out_clip'])
  np.testing.assert_array_equal(jax.jit(boxes.clip)(b, jnp.asarray([150, 120])), g['out_clip'])


def test_decode_undoes_encode_and_caps_growth():
  rng = np.random.default_rng(0)
  corners = rng.uniform(0, 100, (2, 50, 2))
  sizes = rng.uniform(1, 80, (2, 50, 2))
  b, a = (jnp.asarray(np.concatenate([c, c + s], -1), jnp.float32) for c, s in zip(corners, sizes, strict=True))
  weights = (10.0, 10.0, 5.0, 5.0)
  np.testing.assert_allclose(boxes.decode(boxes.encode(b, a, weights=weights), a, weights=weights), b, atol=1e-3)
  grown = boxes.decode(jnp.asarray([[0.0, 0.0, 50.0, 50.0]]), jnp.asarray([[0.0, 0.0, 15.0, 15.0]]))
  np.testing.assert_allclose(grown[0, 2:] - grown[0, :2] + 1, 1000.0, rtol=1e-5)


def test_coding_without_the_plus_one_measures_plain_sides():
  b = jnp.asarray([[10.0, 10.0, 30.0, 50.0]])
  a = jnp.asarray([[0.0, 0.0, 10.0, 20.0]])
  expected = [(20 - 5) / 10, (30 - 10) / 20, np.log(2), np.log(2)]
  np.testing.assert_allclose(boxes.encode(b, a, plus_one=False)[0], expected, rtol=1e-6)
  assert np.isfinite(boxes.encode(jnp.zeros((1, 4)), a, plus_one=False)).all()
