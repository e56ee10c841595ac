"""Features of regions from the pyramid level that fits their size (METHOD.md, section 2 "RoI features")."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vild_jax.core import boxes as box_ops
from vild_jax.core.precision import at_least_float32

# A region of this side (pixels, square root of its area) belongs to this level; each doubling is one level more.
_CANONICAL_SIDE = 224.0
_CANONICAL_LEVEL = 4


def roi_levels(boxes: Float[Array, 'r 4'], min_level: int, max_level: int) -> Int[Array, 'r']:
  """floor(log2(sqrt(area) / 224)) + 4 within [min_level, max_level]; sides of exactly 112, 224, ... go up."""
  # Areas are compared with the squared bounds: a float logarithm would round at the bounds.
  bounds = [(_CANONICAL_SIDE * 2.0 ** (level - _CANONICAL_LEVEL)) ** 2 for level in range(min_level + 1, max_level + 1)]
  above = box_ops.area(boxes)[:, None] >= jnp.asarray(bounds, jnp.float32)[None, :]
  return min_level + jnp.sum(above, axis=1, dtype=jnp.int32)


def _corners(start, length, output_size, size):
  """Sample positions of one axis: the two pixels [R, output_size] around each bin's centre, and the second's weight."""
  bins = jnp.arange(output_size, dtype=jnp.float32) + 0.5
  position = start[:, None] + bins[None, :] * length[:, None] / output_size
  # The weight is measured from the clipped pixel: it is negative before the first one (the line goes on), and behind
  # the last one both pixels are the same.
  last = (size - 1)[:, None].astype(jnp.float32)
  first = jnp.clip(jnp.floor(position), 0.0, last)
  second = jnp.minimum(first + 1.0, last)
  return first.astype(jnp.int32), second.astype(jnp.int32), position - first


def multilevel_roi_align(
  features: dict[int, Float[Array, '_ _ d']], boxes: Float[Array, 'r 4'], *, output_size: int
) -> Float[Array, 'r {output_size} {output_size} d']:
  """One bilinear sample at the centre of each of output_size x output_size bins of each region.

  A position y / 2**level is a pixel index, without a half-pixel shift. Beyond the far border the last pixel repeats;
  before the first pixel the line through the first two goes on (published weights expect both).

  Args:
    features: {level: [H_l, W_l, D]}; the levels present are the ones regions are assigned to.
    boxes: yxyx pixels of the network input.

  Returns:
    In the features' dtype; positions, interpolation and the sums of its gradient are at least float32.
  """
  levels = sorted(features)
  row = roi_levels(boxes, levels[0], levels[-1]) - levels[0]
  sizes = [features[level].shape[:2] for level in levels]
  starts = jnp.asarray(np.cumsum([0] + [h * w for h, w in sizes])[:-1], jnp.int32)[row]
  heights, widths = jnp.asarray(sizes, jnp.int32)[row].T
  strides = jnp.asarray([2.0**level for level in levels], jnp.float32)[row]
  dtype = features[levels[0]].dtype
  # Gathered in float32, so that the gradient is summed in it: coarse pixels get hundreds of small shares.
  pixels = at_least_float32(
    jnp.concatenate([features[level].reshape(-1, features[level].shape[-1]) for level in levels])
  )

  scaled = boxes / strides[:, None]
  y0, y1, wy = _corners(scaled[:, 0], scaled[:, 2] - scaled[:, 0], output_size, heights)
  x0, x1, wx = _corners(scaled[:, 1], scaled[:, 3] - scaled[:, 1], output_size, widths)

  # One corner after the other, as a loop: one gather and one scatter to compile in place of four of each, which a TPU's
  # compiler spends seconds on, and no more than one corner's features in memory.
  def add_corner(total, corner):
    y, x, weight_y, weight_x = corner
    index = starts[:, None, None] + y[:, :, None] * widths[:, None, None] + x[:, None, :]
    weight = weight_y[:, :, None] * weight_x[:, None, :]
    return total + pixels.at[index].get(mode='promise_in_bounds') * weight[..., None], None

  corners = (
    jnp.stack([y0, y0, y1, y1]),
    jnp.stack([x0, x1, x0, x1]),
    jnp.stack([1.0 - wy, 1.0 - wy, wy, wy]),
    jnp.stack([1.0 - wx, wx, 1.0 - wx, wx]),
  )
  nothing = jnp.zeros((*y0.shape, output_size, pixels.shape[-1]), jnp.result_type(pixels, wy))
  return jax.lax.scan(add_corner, nothing, corners)[0].astype(dtype)
