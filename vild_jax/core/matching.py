"""Matches anchors and regions with ground truth (docs/method.md, 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vild_jax.core import boxes as box_ops

_CHUNK = 32  # ground-truth boxes that are compared with all anchors at a time


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
  """Labels anchors 1 (object), 0 (background) or -1 (ignored), and matches the positive ones with ground truth.

  Positive: best IoU >= positive_iou. Background: best IoU < negative_iou. In addition, the best anchor of every valid
  ground-truth box is positive whatever their IoU. If several anchors tie, the first counts, so a box that overlaps no
  anchor gets anchor 0; if several boxes have the same best anchor, it goes to the box with the lowest row. Without
  ground truth all anchors are background.

  Returns:
    labels int32 [N], and matched int32 [N]: the row of gt_boxes where the label is 1, else 0.
  """
  num_anchors = anchors.shape[0]
  # In chunks up to the last valid box: [N, G] at 1024 pixels would take 300 MB for each image, mostly for padding.
  padding = max(-gt_boxes.shape[0] % _CHUNK, _CHUNK - gt_boxes.shape[0])
  gt_boxes, gt_valid = jnp.pad(gt_boxes, ((0, padding), (0, 0))), jnp.pad(gt_valid, (0, padding))
  rows = jnp.arange(gt_boxes.shape[0], dtype=jnp.int32)
  num_chunks = (jnp.max(jnp.where(gt_valid, rows + 1, 0)) + _CHUNK - 1) // _CHUNK

  def take_chunk(number, state):
    best_iou, best_gt, best_anchor = state
    start = number * _CHUNK
    part = lambda x: jax.lax.dynamic_slice_in_dim(x, start, _CHUNK)
    iou = _iou_of_valid(anchors, part(gt_boxes), part(gt_valid))
    chunk_iou, chunk_gt = jnp.max(iou, axis=1), jnp.argmax(iou, axis=1).astype(jnp.int32) + start
    best_gt = jnp.where(chunk_iou > best_iou, chunk_gt, best_gt)
    first = jnp.argmax(iou, axis=0).astype(jnp.int32)
    return jnp.maximum(chunk_iou, best_iou), best_gt, jax.lax.dynamic_update_slice_in_dim(best_anchor, first, start, 0)

  dtype = jnp.promote_types(anchors.dtype, gt_boxes.dtype)
  state = jnp.full((num_anchors,), -1.0, dtype), jnp.zeros((num_anchors,), jnp.int32), jnp.zeros_like(rows)
  best_iou, best_gt, best_anchor = jax.lax.fori_loop(0, num_chunks, take_chunk, state)

  best_anchor = jnp.where(gt_valid, best_anchor, num_anchors)
  nobody = rows.shape[0]
  forced_gt = jnp.full((num_anchors,), nobody, jnp.int32).at[best_anchor].min(rows, mode='drop')
  forced = forced_gt < nobody

  labels = jnp.where(best_iou >= positive_iou, 1, jnp.where(best_iou < negative_iou, 0, -1))
  labels = jnp.where(forced, 1, labels).astype(jnp.int32)
  matched = jnp.where(forced, forced_gt, best_gt)
  return labels, jnp.where(labels == 1, matched, 0)


def take_boxes(gt_boxes: Float[Array, 'g 4'], rows: Int[Array, 'n']) -> Float[Array, 'n 4']:
  """Returns gt_boxes[rows], exactly, for many more rows than there are boxes; each row is in 0 .. G - 1.

  A TPU reads the rows one after another, and pads each to 128 numbers: a GiB for the anchors of eight pictures of
  1024². There the coordinates are selected by comparison, from as many boxes as the rows reach, in chunks.
  """
  return jax.lax.platform_dependent(gt_boxes, rows, tpu=take_by_comparison, default=lambda boxes, rows: boxes[rows])


def take_by_comparison(gt_boxes: Float[Array, 'g 4'], rows: Int[Array, 'n']) -> Float[Array, 'n 4']:
  """Returns what `take_boxes` returns, without a gather of single rows."""
  coordinates = jnp.pad(gt_boxes, ((0, -gt_boxes.shape[0] % _CHUNK), (0, 0))).T

  def take_chunk(number, taken):
    start = number * _CHUNK
    chunk = jax.lax.dynamic_slice_in_dim(coordinates, start, _CHUNK, axis=1)
    chosen = rows[:, None] - start == jnp.arange(_CHUNK, dtype=rows.dtype)[None, :]
    # Of each row, one chunk has one term that is not zero.
    return tuple(t + jnp.sum(jnp.where(chosen, c[None, :], 0), axis=1) for t, c in zip(taken, chunk, strict=True))

  nothing = (jnp.zeros(rows.shape, gt_boxes.dtype),) * 4
  return jnp.stack(jax.lax.fori_loop(0, jnp.max(rows, initial=0) // _CHUNK + 1, take_chunk, nothing), axis=-1)


def match_regions(
  boxes: Float[Array, 'r 4'], gt_boxes: Float[Array, 'g 4'], gt_valid: Bool[Array, 'g']
) -> tuple[Int[Array, 'r'], Float[Array, 'r']]:
  """Returns the best ground truth of each region (ties: the lower row) and its IoU; both 0 without any overlap."""
  iou = _iou_of_valid(boxes, gt_boxes, gt_valid)
  max_iou = jnp.maximum(jnp.max(iou, axis=1), 0.0)
  return jnp.where(max_iou > 0.0, jnp.argmax(iou, axis=1), 0).astype(jnp.int32), max_iou
