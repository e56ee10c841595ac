from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.core import anchors, boxes, matching, sampling

_LEVELS = range(2, 7)


def _all_anchors(side=256):
  levels = anchors.pyramid_anchors(
    (side, side), min_level=2, max_level=6, aspect_ratios=(1.0, 2.0, 0.5), num_scales=1, anchor_size=8.0
  )
  return jnp.concatenate([levels[level] for level in _LEVELS])


@jax.jit
def _match_anchors(a, gt, valid):
  return matching.match_anchors(a, gt, valid, positive_iou=0.7, negative_iou=0.3)


def _match(gt, valid):
  return _match_anchors(_all_anchors(), jnp.asarray(gt, jnp.float32), jnp.asarray(valid))


def _flat(g, kind):
  last = 4 if kind == 'box' else 1
  return np.concatenate([g[f'out_{kind}_{level}'].reshape(-1, last) for level in _LEVELS])


def test_anchor_labels_and_box_targets_equal_the_reference(golden):
  g = golden('rpn_labels')
  gt = g['in_gt_boxes']
  # Padding in the middle and at the end must change nothing: rows are found again through `rows`.
  rows = np.array([0, 1, 2, 4, 5, 6, 7, 8])
  padded, valid = np.zeros((11, 4), np.float32), np.zeros(11, bool)
  padded[rows], valid[rows] = gt, True
  labels, matched = _match(padded, valid)
  np.testing.assert_array_equal(labels, _flat(g, 'score')[:, 0])
  positive = np.asarray(labels) == 1
  np.testing.assert_array_equal(np.asarray(matched)[positive], rows[g['out_match'][positive]])
  np.testing.assert_array_equal(np.asarray(matched)[~positive], 0)
  targets = boxes.encode(jnp.asarray(padded)[matched], _all_anchors(), plus_one=False)
  targets = np.where(positive[:, None], targets, 0.0)
  np.testing.assert_allclose(targets, _flat(g, 'box'), atol=1e-5)


def test_without_ground_truth_all_anchors_are_background(golden):
  expected = _flat(golden('rpn_labels_empty'), 'score')[:, 0]
  for padding in (0.0, -1.0, 64.0):
    labels, matched = _match(np.full((3, 4), padding), np.zeros(3, bool))
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(matched, 0)


def test_a_box_that_touches_no_anchor_takes_the_first_and_padding_never_does():
  a = jnp.asarray([[0, 0, 8, 8], [8, 8, 16, 16]], jnp.float32)
  gt = jnp.asarray([[40, 40, 40, 40], [9, 9, 16, 16]], jnp.float32)
  match = lambda valid: _match_anchors(a, gt, jnp.asarray(valid))
  labels, matched = match([True, True])
  np.testing.assert_array_equal(labels, [1, 1])
  np.testing.assert_array_equal(matched, [0, 1])
  np.testing.assert_array_equal(match([False, True])[0], [0, 1])


def test_regions_match_as_in_the_reference(golden):
  g = golden('box_matching')
  for b, gt, iou, index in zip(
    g['in_boxes'], g['in_gt_boxes'], g['out_matched_iou'], g['out_matched_indices'], strict=True
  ):
    matched, best = jax.jit(matching.match_regions)(jnp.asarray(b), jnp.asarray(gt), jnp.asarray(gt.max(-1) >= 0))
    np.testing.assert_array_equal(matched, np.maximum(index, 0))
    np.testing.assert_allclose(best, np.where(index >= 0, iou, 0.0), atol=1e-6)
    assert (index < 0).any() and (index > 0).any()


def test_regions_without_ground_truth_match_nothing():
  matched, best = matching.match_regions(jnp.ones((5, 4)), jnp.ones((2, 4)), jnp.zeros(2, bool))
  np.testing.assert_array_equal(matched, np.zeros(5))
  np.testing.assert_array_equal(best, np.zeros(5))


def test_more_boxes_than_one_chunk_equal_an_oracle():
  rng = np.random.default_rng(0)
  corner, sides = rng.uniform(0, 200, (100, 2)), rng.uniform(5, 120, (100, 2))
  gt = np.concatenate([corner, corner + sides], -1).astype(np.float32)
  gt[70] = gt[3]  # a tie across chunks
  valid = rng.random(100) < 0.6
  valid[[3, 70]] = True
  labels, matched = _match(gt, valid)
  iou = np.array(jax.jit(boxes.iou)(_all_anchors(), jnp.asarray(gt)))
  iou[:, ~valid] = -1
  best = iou.max(1)
  expected = np.where(best >= 0.7, 1, np.where(best < 0.3, 0, -1))
  expected_gt = np.where(expected == 1, iou.argmax(1), 0)
  for row in np.flatnonzero(valid)[::-1]:
    # Anchors inside a box tie but for rounding, which differs between programs: the one that was taken will do.
    tied = np.flatnonzero(iou[:, row] >= iou[:, row].max() - 1e-6)
    taken = tied[(np.asarray(labels)[tied] == 1) & (np.asarray(matched)[tied] == row)]
    anchor = taken[0] if len(taken) else tied[0]
    expected[anchor], expected_gt[anchor] = 1, row
  np.testing.assert_array_equal(labels, expected)
  np.testing.assert_array_equal(matched, expected_gt)


def test_the_same_under_64_bits():
  rng = np.random.default_rng(1)
  corner = rng.uniform(0, 200, (5, 2))
  gt, valid = np.concatenate([corner, corner + 40], -1).astype(np.float32), np.array([True, True, False, True, True])
  expected = _match(gt, valid)
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    a, g, v = jnp.asarray(_all_anchors(), jnp.float64), jnp.asarray(gt, jnp.float64), jnp.asarray(valid)
    for found, e in zip(_match_anchors(a, g, v), expected, strict=True):
      np.testing.assert_array_equal(found, e)
    labels, priority = expected[0], -jnp.arange(len(expected[0]), dtype=jnp.float64)
    sampled = sampling.sample_labels(labels, priority, num_samples=64, positive_fraction=0.5)
    slots, drawn = sampling.sample_balanced(labels == 1, labels == 0, priority, num_samples=64, positive_fraction=0.5)
  assert drawn.all() and sampled.dtype == slots.dtype == jnp.int32
  np.testing.assert_array_equal(np.flatnonzero(sampled >= 0), slots)


@pytest.mark.parametrize(('num_boxes', 'num_rows'), [(1, 5), (32, 40), (70, 300), (3, 0)])
@pytest.mark.parametrize('platform', ['tpu', 'cpu'])
def test_boxes_that_are_taken_are_the_boxes_themselves(num_boxes, num_rows, platform, as_on, monkeypatch):
  as_on(platform)
  compared = []
  original = matching.take_by_comparison
  monkeypatch.setattr(matching, 'take_by_comparison', lambda *args: compared.append(1) or original(*args))
  rng = np.random.default_rng(num_boxes)
  gt_boxes = (rng.normal(size=(2, num_boxes, 4)) * 10.0 ** rng.integers(-30, 30, (2, num_boxes, 4))).astype(np.float32)
  rows = rng.integers(0, num_boxes, (2, num_rows)).astype(np.int32)
  gt_boxes[:, -1] = [np.inf, -np.inf, np.nan, 0]  # a row that nothing else may be changed by
  found = jax.jit(jax.vmap(matching.take_boxes))(gt_boxes, rows)
  np.testing.assert_array_equal(found, [b[r] for b, r in zip(gt_boxes, rows, strict=True)])
  assert bool(compared) == (platform == 'tpu')
