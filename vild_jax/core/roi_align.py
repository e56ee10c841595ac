"""Samples the features of regions from the pyramid level that fits their size (docs/method.md, 2)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vild_jax.core import boxes as box_ops
from vild_jax.core.precision import at_least_float32

# A region of this side (pixels, the square root of its area) belongs to this level; twice the side is one level up.
_CANONICAL_SIDE = 224.0
_CANONICAL_LEVEL = 4


def roi_levels(boxes: Float[Array, 'r 4'], min_level: int, max_level: int) -> Int[Array, 'r']:
  """Returns floor(log2(sqrt(area) / 224)) + 4 of each box, limited to [min_level, max_level]; exact at the bounds."""
  # Compares areas with the squared bounds, because a logarithm in floats could round sides of 112, 224, ... wrongly.
  bounds = [(_CANONICAL_SIDE * 2.0 ** (level - _CANONICAL_LEVEL)) ** 2 for level in range(min_level + 1, max_level + 1)]
  above = box_ops.area(boxes)[:, None] >= jnp.asarray(bounds, jnp.float32)[None, :]
  return min_level + jnp.sum(above, axis=1, dtype=jnp.int32)


def _corners(start, length, output_size, size):
  """The two pixels [R, output_size] of one axis around the centre of each bin, and the weight of the second pixel."""
  bins = jnp.arange(output_size, dtype=jnp.float32) + 0.5
  position = start[:, None] + bins[None, :] * length[:, None] / output_size
  # The weight is measured from the clipped pixel. Before the first pixel it is negative, which extrapolates; after the
  # last pixel both pixels are the same.
  last = (size - 1)[:, None].astype(jnp.float32)
  first = jnp.clip(jnp.floor(position), 0.0, last)
  second = jnp.minimum(first + 1.0, last)
  return first.astype(jnp.int32), second.astype(jnp.int32), position - first


def multilevel_roi_align(
  features: dict[int, Float[Array, '_ _ d']], boxes: Float[Array, 'r 4'], *, output_size: int
) -> Float[Array, 'r {output_size} {output_size} d']:
  """Takes one bilinear sample at the centre of each of the output_size x output_size bins of each region.

  A position y / 2**level is a pixel index, without a half-pixel shift. After the last pixel its value repeats; before
  the first pixel the line through the first two is extended. Published weights expect both.

  Args:
    features: {level: [H_l, W_l, D]}; regions are assigned to these levels.
    boxes: yxyx pixels of the network input.
    output_size: bins along each side of a region.

  Returns:
    Features in the dtype of `features`. Positions, interpolation and the sums of its gradient are at least float32. No
    gradient flows into the boxes.
  """
  levels = sorted(features)
  row = roi_levels(boxes, levels[0], levels[-1]) - levels[0]
  sizes = [features[level].shape[:2] for level in levels]
  starts = jnp.asarray(np.cumsum([0] + [h * w for h, w in sizes])[:-1], jnp.int32)[row]
  heights, widths = jnp.asarray(sizes, jnp.int32)[row].T
  strides = jnp.asarray([2.0**level for level in levels], jnp.float32)[row]
  pixels = jnp.concatenate([features[level].reshape(-1, features[level].shape[-1]) for level in levels])

  scaled = boxes / strides[:, None]
  y0, y1, wy = _corners(scaled[:, 0], scaled[:, 2] - scaled[:, 0], output_size, heights)
  x0, x1, wx = _corners(scaled[:, 1], scaled[:, 3] - scaled[:, 1], output_size, widths)

  corners = (
    jnp.stack([y0, y0, y1, y1]),
    jnp.stack([x0, x1, x0, x1]),
    jnp.stack([1.0 - wy, 1.0 - wy, wy, wy]),
    jnp.stack([1.0 - wx, wx, 1.0 - wx, wx]),
  )
  return _read(pixels, (starts, widths, corners), pixels.shape[0]).astype(pixels.dtype)


def _place(starts, widths, corner):
  """Rows of the pixels, and their weights, [R, s, s] each, that one corner reads."""
  y, x, weight_y, weight_x = corner
  index = starts[:, None, None] + y[:, :, None] * widths[:, None, None] + x[:, None, :]
  return index, weight_y[:, :, None] * weight_x[:, None, :]


# Both directions loop over the four corners: that compiles one gather and one scatter instead of four of each, which
# take a compiler for TPUs seconds, and holds the features of only one corner in memory.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _read(pixels, where, count):
  """Sums [R, s, s, D], at least float32, of four weighted `pixels` [count, D] each."""
  starts, widths, corners = where

  def add_corner(total, corner):
    index, weight = _place(starts, widths, corner)
    read = at_least_float32(pixels.at[index].get(mode='promise_in_bounds'))
    return total + read * weight[..., None], None

  size = corners[0].shape[-1]
  dtype = jnp.result_type(at_least_float32(pixels[:0]), corners[2])
  nothing = jnp.zeros((starts.shape[0], size, size, pixels.shape[-1]), dtype)
  return jax.lax.scan(add_corner, nothing, corners)[0]


def _read_forward(pixels, where, count):
  return _read(pixels, where, count), (where, pixels[:0])


def _read_backward(count, kept, cotangent):
  """Adds up in float32, in one array: a pixel of a coarse level gets hundreds of small terms."""
  (starts, widths, corners), like = kept

  def add_corner(total, corner):
    index, weight = _place(starts, widths, corner)
    return total.at[index].add(cotangent * weight[..., None], mode='promise_in_bounds'), None

  nothing = jnp.zeros((count, like.shape[-1]), cotangent.dtype)
  return jax.lax.scan(add_corner, nothing, corners)[0].astype(like.dtype), None


_read.defvjp(_read_forward, _read_backward)
