"""Which ground truth an anchor or a region belongs to (METHOD.md, section 3 "RPN targets", "RoI sampling")."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vild_jax.core import boxes as box_ops


def _iou_of_valid(boxes, gt_boxes, gt_valid):
  """IoU [N, G]; -1 in the columns of padding, so that it can neither win a maximum nor reach a threshold."""
  return jnp.where(gt_valid[None, :], box_ops.iou(boxes, gt_boxes), -1.0)


def match_anchors(
  anchors: Float[Array, 'n 4'],
  gt_boxes: Float[Array, 'g 4'],
  gt_valid: Bool[Array, 'g'],
  *,
  positive_iou: float,
  negative_iou: float,
) -> tuple[Int[Array, 'n'], Int[Array, 'n']]:
  """Labels anchors 1 (object), 0 (background) or -1 (ignored), and names the ground truth of the positive ones.

  Positive: best IoU >= positive_iou. Background: best IoU < negative_iou. Besides, every valid ground truth takes its
  best anchor whatever their IoU (the first of tied anchors, hence anchor 0 for a box that touches none); if several
  want one anchor, the lowest has it. Without ground truth all anchors are background.

  Returns:
    labels int32 [N], and matched int32 [N]: the row of gt_boxes where the label is 1, else 0.
  """
  num_anchors, num_gt = anchors.shape[0], gt_boxes.shape[0]
  iou = _iou_of_valid(anchors, gt_boxes, gt_valid)
  best_iou, best_gt = jnp.max(iou, axis=1), jnp.argmax(iou, axis=1)

  best_anchor = jnp.where(gt_valid, jnp.argmax(iou, axis=0), num_anchors)
  rows = jnp.arange(num_gt, dtype=jnp.int32)
  forced_gt = jnp.full((num_anchors,), num_gt, jnp.int32).at[best_anchor].min(rows, mode='drop')
  forced = forced_gt < num_gt

  labels = jnp.where(best_iou >= positive_iou, 1, jnp.where(best_iou < negative_iou, 0, -1))
  labels = jnp.where(forced, 1, labels).astype(jnp.int32)
  matched = jnp.where(forced, forced_gt, best_gt.astype(jnp.int32))
  return labels, jnp.where(labels == 1, matched, 0)


def match_regions(
  boxes: Float[Array, 'r 4'], gt_boxes: Float[Array, 'g 4'], gt_valid: Bool[Array, 'g']
) -> tuple[Int[Array, 'r'], Float[Array, 'r']]:
  """The best ground truth of each region (ties to the lower row) and their IoU; both 0 where it overlaps none."""
  iou = _iou_of_valid(boxes, gt_boxes, gt_valid)
  max_iou = jnp.maximum(jnp.max(iou, axis=1), 0.0)
  return jnp.where(max_iou > 0.0, jnp.argmax(iou, axis=1), 0).astype(jnp.int32), max_iou
