"""Computes mask targets and selects the regions that go through the mask head (docs/method.md, 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from vild_jax.core import sampling


def _resampling(box_min, box_max, gt_min, gt_max, size, gt_size):
  """Bilinear weights [K, size, gt_size] that sample one axis of a ground-truth mask at the centres of a box's bins.

  Triangle kernel: bilinear inside, zero outside. The centre of pixel p of the mask is at coordinate p.
  """
  gt_side = gt_max - gt_min + 1e-8
  start = (box_min - gt_min) * gt_size / gt_side
  length = (box_max - box_min) * gt_size / gt_side
  bins = jnp.arange(size, dtype=jnp.float32) + 0.5
  position = start[:, None] + bins[None, :] * length[:, None] / size
  pixels = jnp.arange(gt_size, dtype=jnp.float32)
  return jnp.maximum(1.0 - jnp.abs(position[:, :, None] - pixels[None, None, :]), 0.0)


def mask_targets(
  gt_masks: Float[Array, 'g s s'],
  gt_boxes: Float[Array, 'g 4'],
  boxes: Float[Array, 'k 4'],
  matched: Int[Array, 'k'],
  *,
  size: int = 28,
) -> Float[Array, 'k {size} {size}']:
  """Returns the part of each region's ground-truth mask that lies in the region, with soft values in [0, 1].

  Args:
    gt_masks: the mask inside each ground-truth box, in [0, 1].
    gt_boxes: yxyx pixels.
    boxes: the regions, yxyx pixels.
    matched: the row of the ground truth of each region.
    size: pixels along each side of a target.
  """
  gt_size = gt_masks.shape[1]
  gt = gt_boxes[matched]
  rows = _resampling(boxes[:, 0], boxes[:, 2], gt[:, 0], gt[:, 2], size, gt_size)
  columns = _resampling(boxes[:, 1], boxes[:, 3], gt[:, 1], gt[:, 3], size, gt_size)
  masks = gt_masks[matched].astype(jnp.float32)
  exact = jax.lax.Precision.HIGHEST
  return jnp.einsum('kih,khw,kjw->kij', rows, masks, columns, precision=exact)


def soft_masks(bits: UInt8[Array, 'g 28 224'], weights: Float[Array, 'g 2 112']) -> Float[Array, 'g 112 112']:
  """Returns soft masks in [0, 1] of the pixels between which their samples lie (`structs.MaskBits`)."""
  size = weights.shape[2]
  shifts = jnp.arange(7, -1, -1, dtype=jnp.uint8).reshape(1, 1, 8, 1)
  pixels = (bits[:, :, None, :] >> shifts) & jnp.uint8(1)
  pixels = pixels.reshape(-1, 2, size, 2, size).astype(jnp.float32)  # before or after, row, before or after, column
  y, x = weights[:, 0, :, None], weights[:, 1, None, None, :]
  left, right = pixels[:, :, :, 0], pixels[:, :, :, 1]
  across = left + (right - left) * x
  return across[:, 0] + (across[:, 1] - across[:, 0]) * y


def select_mask_regions(
  foreground: Bool[Array, 'r'], valid: Bool[Array, 'r'], *, num: int
) -> tuple[Int[Array, '{num}'], Bool[Array, '{num}'], Bool[Array, '{num}']]:
  """Selects the regions for the mask head: the first foreground regions, then other valid ones to fill up.

  Here `foreground` are the regions that learn a mask; those of an object without one are among the others, which take
  part in batch statistics alone.

  Returns:
    (indices [num], foreground [num], valid [num]); an unused slot holds index 0, False and False.
  """
  num_regions = foreground.shape[0]
  slots, taken = sampling.first_true(jnp.concatenate([foreground & valid, ~foreground & valid]), num)
  return slots % num_regions, taken & (slots < num_regions), taken
