"""Computes with boxes in absolute yxyx pixels, float32: area, IoU, regression coding, clipping (docs/method.md, 2).

Coding counts pixels: a box from y1 to y2 is y2 - y1 + 1 high ("the +1 convention"). Area and IoU do not add the 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

# The upper limit of dh and dw in `decode`: an anchor side of 16 pixels becomes at most a box side of 1000.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)


def area(boxes: Float[Array, '*n 4']) -> Float[Array, '*n']:
  """Returns areas in square pixels, without the +1; 0 for a box with a side that is not positive."""
  height = jnp.maximum(boxes[..., 2] - boxes[..., 0], 0.0)
  width = jnp.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
  return height * width


def iou(a: Float[Array, 'n 4'], b: Float[Array, 'm 4']) -> Float[Array, 'n m']:
  """Returns the intersection over union of every pair, without the +1; 0 where the union is empty."""
  # One array for each coordinate: a TPU would pad the last axis of [N, M, 2] to 128.
  (top, left, bottom, right), others = a.T[:, :, None], b.T[:, None, :]
  height = jnp.maximum(jnp.minimum(bottom, others[2]) - jnp.maximum(top, others[0]), 0.0)
  width = jnp.maximum(jnp.minimum(right, others[3]) - jnp.maximum(left, others[1]), 0.0)
  intersection = height * width
  union = area(a)[:, None] + area(b)[None, :] - intersection
  return jnp.where(union > 0.0, intersection / jnp.where(union > 0.0, union, 1.0), 0.0)


def _centres_and_sizes(boxes, extra):
  sizes = boxes[..., 2:] - boxes[..., :2] + extra
  return boxes[..., :2] + 0.5 * sizes, sizes


def encode(
  boxes: Float[Array, '*n 4'],
  anchors: Float[Array, '*n 4'],
  *,
  weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
  plus_one: bool = True,
) -> Float[Array, '*n 4']:
  """Returns the regression targets (dy, dx, dh, dw) from `anchors` to `boxes`, times `weights`; inverts `decode`.

  `plus_one=False` gives the reference's anchor targets: sides without the 1, plus 1e-8 (docs/departures.md, 5).
  """
  extra = 1.0 if plus_one else 1e-8
  centres, sizes = _centres_and_sizes(boxes, extra)
  anchor_centres, anchor_sizes = _centres_and_sizes(anchors, extra)
  deltas = jnp.concatenate([(centres - anchor_centres) / anchor_sizes, jnp.log(sizes / anchor_sizes)], axis=-1)
  return deltas * jnp.broadcast_to(jnp.asarray(weights, deltas.dtype), deltas.shape)


def decode(
  deltas: Float[Array, '*n 4'], anchors: Float[Array, '*n 4'], *, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
) -> Float[Array, '*n 4']:
  """Returns the boxes that `deltas` and `anchors` give: divides by `weights`, limits dh and dw, does not clip."""
  deltas = deltas / jnp.broadcast_to(jnp.asarray(weights, deltas.dtype), deltas.shape)
  anchor_centres, anchor_sizes = _centres_and_sizes(anchors, 1.0)
  centres = deltas[..., :2] * anchor_sizes + anchor_centres
  sizes = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE)) * anchor_sizes
  top_left = centres - 0.5 * sizes
  return jnp.concatenate([top_left, top_left + sizes - 1.0], axis=-1)


def clip(
  boxes: Float[Array, '*n 4'], image_size: tuple[int | float, int | float] | Shaped[Array, '2']
) -> Float[Array, '*n 4']:
  """Moves every corner into [0, height - 1] x [0, width - 1]; `image_size` is (height, width) in pixels."""
  last = jnp.asarray(image_size, boxes.dtype) - 1.0
  return jnp.clip(boxes, 0.0, jnp.broadcast_to(jnp.concatenate([last, last]), boxes.shape))
