from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.core import masks


def _oracle(mask, gt_box, box, size):
  """Bilinear reading of a mask, zero outside, at the centres of the bins of `box`: pixel by pixel, in float64."""
  side = mask.shape[0]
  padded = np.pad(mask.astype(np.float64), 1)
  gt_box, box = np.asarray(gt_box, np.float64), np.asarray(box, np.float64)
  out = np.zeros((size, size))
  for i in range(size):
    for j in range(size):
      fraction = (np.array([i, j]) + 0.5) / size
      point = box[:2] + fraction * (box[2:] - box[:2])
      y, x = (point - gt_box[:2]) * side / (gt_box[2:] - gt_box[:2]) + 1
      if not (0 <= y < side + 1 and 0 <= x < side + 1):
        continue
      top, left = int(y), int(x)
      wy, wx = np.array([1 - (y - top), y - top]), np.array([1 - (x - left), x - left])
      out[i, j] = wy @ padded[top : top + 2, left : left + 2] @ wx
  return out


def test_masks_equal_the_reference(golden):
  g = golden('crop_mask_in_target_box')
  for m, gt, box, expected in zip(g['in_masks_x2'], g['in_boxes'], g['in_target_boxes'], g['out'], strict=True):
    actual = masks.mask_targets(
      jnp.asarray(m / 2, jnp.float32), jnp.asarray(gt), jnp.asarray(box), jnp.arange(len(gt), dtype=jnp.int32)
    )
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_masks_equal_an_oracle():
  rng = np.random.default_rng(0)
  gt_masks = rng.random((3, 20, 20)).astype(np.float32)
  gt_boxes = np.array([[10, 10, 50, 30], [0, 0, 8, 64], [20, 30, 21, 33]], np.float32)
  boxes = np.array([[12, 5, 45, 33], [0, 0, 8, 64], [19, 20, 25, 60], [40, 20, 70, 50], [90, 90, 99, 99]], np.float32)
  matched = np.array([0, 1, 2, 0, 1], np.int32)
  actual = masks.mask_targets(*(jnp.asarray(x) for x in (gt_masks, gt_boxes, boxes, matched)), size=9)
  expected = [_oracle(gt_masks[m], gt_boxes[m], box, 9) for m, box in zip(matched, boxes, strict=True)]
  np.testing.assert_allclose(actual, expected, atol=2e-5)
  assert not np.any(actual[-1])


def test_padding_ground_truth_gives_finite_targets():
  actual = masks.mask_targets(
    jnp.ones((2, 16, 16)), jnp.zeros((2, 4)), jnp.asarray([[0, 0, 0, 0], [3, 3, 9, 9]], jnp.float32), jnp.arange(2)
  )
  assert np.isfinite(actual).all()


def test_selected_regions_and_their_masks_equal_the_reference(golden):
  g = golden('mask_targets')
  names = ('in_rois', 'in_gt_classes', 'in_gt_indices', 'in_gt_boxes', 'in_gt_masks_x2', 'out_masks', 'out_rois')
  for rois, classes, index, matched_gt, gt_masks, expected, expected_rois in zip(*(g[n] for n in names), strict=True):
    foreground, everyone = jnp.asarray(classes > 0), jnp.ones(len(classes), bool)
    slots, is_foreground, valid = masks.select_mask_regions(foreground, everyone, num=20)
    assert valid.all()
    np.testing.assert_array_equal(is_foreground, classes[np.asarray(slots)] > 0)
    np.testing.assert_array_equal(rois[np.asarray(slots)], expected_rois)
    # The golden gives the matched box of each foreground region, not the table of boxes.
    table = np.zeros((len(gt_masks), 4), np.float32)
    table[index[classes > 0]] = matched_gt[classes > 0]
    actual = masks.mask_targets(
      jnp.asarray(gt_masks / 2, jnp.float32), jnp.asarray(table), jnp.asarray(rois)[slots], jnp.asarray(index)[slots]
    )
    keep = np.asarray(is_foreground)
    np.testing.assert_allclose(np.asarray(actual)[keep], expected[keep], atol=2e-5)


@pytest.mark.parametrize(
  ('foreground', 'valid', 'expected'),
  [
    ([0, 1, 0, 1], [1, 1, 1, 1], ([1, 3, 0], [1, 1, 0], [1, 1, 1])),
    ([0, 1, 0, 1], [0, 1, 0, 0], ([1, 0, 0], [1, 0, 0], [1, 0, 0])),
    ([0, 0, 0, 0], [0, 0, 0, 0], ([0, 0, 0], [0, 0, 0], [0, 0, 0])),
    ([1, 1, 1, 1], [1, 1, 1, 1], ([0, 1, 2], [1, 1, 1], [1, 1, 1])),
    ([0, 1], [1, 1], ([1, 0, 0], [1, 0, 0], [1, 1, 0])),
  ],
)
def test_selection_prefers_foreground_and_never_takes_padding(foreground, valid, expected):
  actual = masks.select_mask_regions(jnp.asarray(foreground, bool), jnp.asarray(valid, bool), num=3)
  for a, e in zip(actual, expected, strict=True):
    np.testing.assert_array_equal(a, e)


def test_soft_masks_of_bits_are_those_of_numpy():
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 256, (3, 28, 224), np.uint8)
  weights = rng.random((3, 2, 112), np.float32)
  pixels = np.unpackbits(bits, axis=1).astype(np.float64).reshape(3, 2, 112, 2, 112)
  y, x = np.stack([1 - weights, weights], 1).transpose(2, 0, 1, 3).astype(np.float64)
  expected = np.einsum('gai,gbj,gaibj->gij', y, x, pixels)
  np.testing.assert_allclose(masks.soft_masks(jnp.asarray(bits), jnp.asarray(weights)), expected, atol=1e-6)
  assert masks.soft_masks(jnp.zeros((0, 28, 224), jnp.uint8), jnp.zeros((0, 2, 112))).shape == (0, 112, 112)
