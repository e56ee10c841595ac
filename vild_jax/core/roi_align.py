"""Samples the features of regions from the pyramid level that fits their size (docs/method.md, 2)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vild_jax.core import boxes as box_ops
from vild_jax.core import roi_align_tiles
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
  features: dict[int, Float[Array, '_ _ d']], boxes: Float[Array, 'r 4'], *, output_size: int, by_platform: bool = False
) -> Float[Array, 'r {output_size} {output_size} d']:
  """Takes one bilinear sample at the centre of each of the output_size x output_size bins of each region.

  A position y / 2**level is a pixel index, without a half-pixel shift. After the last pixel its value repeats; before
  the first pixel the line through the first two is extended. Published weights expect both.

  Args:
    features: {level: [H_l, W_l, D]}; regions are assigned to these levels.
    boxes: yxyx pixels of the network input.
    output_size: bins along each side of a region.
    by_platform: under `jax.vmap` a TPU does it for all images together (`batch_at_once`, `gradient_by_tiles`); sums
      have another order, and weights of a bfloat16 gradient are within 2^-16.

  Returns:
    Features in the dtype of `features`. Positions, interpolation and the sums of its gradient are at least float32. No
    gradient flows into the boxes.
  """
  return (_by_platform if by_platform else _by_corners)(features, boxes, output_size)


def _regions(features, boxes, output_size):
  """Where each of the boxes [R, 4] reads: index, first pixel and width [R] of its level, four corners of its bins."""
  levels = sorted(features)
  row = roi_levels(boxes, levels[0], levels[-1]) - levels[0]
  sizes = [features[level].shape[-3:-1] for level in levels]
  starts = jnp.asarray(np.cumsum([0] + [h * w for h, w in sizes])[:-1], jnp.int32)[row]
  heights, widths = jnp.asarray(sizes, jnp.int32)[row].T
  strides = jnp.asarray([2.0**level for level in levels], jnp.float32)[row]

  scaled = boxes / strides[:, None]
  y0, y1, wy = _corners(scaled[:, 0], scaled[:, 2] - scaled[:, 0], output_size, heights)
  x0, x1, wx = _corners(scaled[:, 1], scaled[:, 3] - scaled[:, 1], output_size, widths)
  corners = (
    jnp.stack([y0, y0, y1, y1]),
    jnp.stack([x0, x1, x0, x1]),
    jnp.stack([1.0 - wy, 1.0 - wy, wy, wy]),
    jnp.stack([1.0 - wx, wx, 1.0 - wx, wx]),
  )
  return row, starts, widths, corners


def _place(starts, widths, corner):
  """Rows of the pixels, and their weights, [R, s, s] each, that one corner reads."""
  y, x, weight_y, weight_x = corner
  index = starts[:, None, None] + y[:, :, None] * widths[:, None, None] + x[:, None, :]
  return index, weight_y[:, :, None] * weight_x[:, None, :]


# --- one image, corner by corner: at inference, and in training elsewhere than on a TPU -----------------------------


def _by_corners(features, boxes, output_size):
  pixels = jnp.concatenate([features[level].reshape(-1, features[level].shape[-1]) for level in sorted(features)])
  return _read(pixels, _regions(features, boxes, output_size), pixels.shape[0]).astype(pixels.dtype)


# Both directions loop over the four corners: that compiles one gather and one scatter instead of four of each, which
# take a compiler for TPUs seconds, and holds the features of only one corner in memory.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _read(pixels, where, count):
  """Sums [R, s, s, D], at least float32, of four weighted `pixels` [count, D] each."""
  _, starts, widths, corners = where

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
  (_, starts, widths, corners), like = kept

  def add_corner(total, corner):
    index, weight = _place(starts, widths, corner)
    return total.at[index].add(cotangent * weight[..., None], mode='promise_in_bounds'), None

  nothing = jnp.zeros((count, like.shape[-1]), cotangent.dtype)
  return jax.lax.scan(add_corner, nothing, corners)[0].astype(like.dtype), None


_read.defvjp(_read_forward, _read_backward)


# --- a batch at once ------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_platform(features, boxes, output_size):
  one = lambda features, boxes: _by_corners(features, boxes, output_size)
  batch = lambda features, boxes: batch_at_once(features, boxes, output_size)
  return _of_batch(one, batch, features, boxes)


def _by_platform_forward(features, boxes, output_size):
  return _by_platform(features, boxes, output_size), (features, boxes)


def _by_platform_backward(output_size, kept, cotangent):
  def one(features, boxes, cotangent):
    return jax.vjp(lambda features: _by_corners(features, boxes, output_size), features)[1](cotangent)[0]

  batch = lambda *args: gradient_by_tiles(*args, output_size)
  return _of_batch(one, batch, *kept, cotangent), None


_by_platform.defvjp(_by_platform_forward, _by_platform_backward)


def _of_batch(one, batch, *args):
  """Calls `one` for an image; mapped over a batch by `jax.vmap`, a TPU calls `batch` instead."""

  def mapped(size, is_batched, *args):
    repeat = lambda x, has_axis: x if has_axis else jnp.broadcast_to(x, (size, *x.shape))
    result = jax.lax.platform_dependent(
      *jax.tree.map(repeat, args, tuple(is_batched)), tpu=batch, default=jax.vmap(one)
    )
    return result, jax.tree.map(lambda _: True, result)

  function = jax.custom_batching.custom_vmap(one)
  function.def_vmap(mapped)
  return function(*args)


# On a TPU the loop above takes more than twice the bytes (docs/measurements.md, "RoIAlign on a TPU"): each turn reads
# and writes sums, whose rows of 7 or 14 bins are padded to 8 or 16. Here images come last, before the channels, which
# is how the compiler lays out the pyramid and the heads' inputs, so that no array is copied to another form.
def batch_at_once(
  features: dict[int, Float[Array, 'b _ _ d']], boxes: Float[Array, 'b r 4'], output_size: int
) -> Float[Array, 'b r {output_size} {output_size} d']:
  """Returns `multilevel_roi_align` of a batch, by one gather."""
  index, weight = _places_of_batch(features, boxes, output_size)
  pixels = jnp.concatenate([_images_last(features[level]) for level in sorted(features)])
  # Without the barrier the compiler writes what was read once more, as float32, before it is weighted.
  read = jax.lax.optimization_barrier(pixels.at[index].get(mode='promise_in_bounds'))
  pooled = jnp.sum(at_least_float32(read) * weight[..., None], axis=0).astype(pixels.dtype)
  return pooled.reshape(output_size, output_size, *boxes.shape[:2], pooled.shape[-1]).transpose(2, 3, 0, 1, 4)


def gradient_by_tiles(
  features: dict[int, Float[Array, 'b _ _ d']], boxes: Float[Array, 'b r 4'], cotangent: Array, output_size: int
) -> dict[int, Array]:
  """Returns the gradient of `batch_at_once` for its result's `cotangent`, like `features`, by one kernel for TPUs."""
  level, _, _, (ys, xs, weight_ys, weight_xs) = _regions(features, boxes.reshape(-1, 4), output_size)
  rows = roi_align_tiles.Bins(ys[0], ys[2], weight_ys[0], weight_ys[2])
  columns = roi_align_tiles.Bins(xs[0], xs[1], weight_xs[0], weight_xs[1])
  sizes = [features[key].shape[1:3] for key in sorted(features)]
  of_levels = roi_align_tiles.add_regions(cotangent, level, rows, columns, sizes)
  return dict(zip(sorted(features), of_levels, strict=True))


def _images_last(x):
  """[B, H, W, D] as [H·W·B, D]."""
  return x.transpose(1, 2, 0, 3).reshape(-1, x.shape[-1])


def _places_of_batch(features, boxes, output_size):
  """Rows of the pixels, images last, and their weights, [4, s·s·B·R] each."""
  batch, count = boxes.shape[:2]
  _, starts, widths, corners = _regions(features, boxes.reshape(-1, 4), output_size)
  index, weight = jax.vmap(lambda *corner: _place(starts, widths, corner))(*corners)
  index = index * batch + jnp.repeat(jnp.arange(batch, dtype=jnp.int32), count)[None, :, None, None]
  return (x.transpose(0, 2, 3, 1).reshape(4, x[0].size) for x in (index, weight))
