"""Adds the gradients of many regions up, tile by tile of their pyramid: a Pallas kernel for TPUs.

A scatter sorts and fetches a row of D numbers for each of the four corners of every bin, some 260,000 rows an image,
and adds them one by one. Here a tile of 32 x 32 pixels stays in fast memory until the last region that touches it has
been added, by one product of matrices for each row of its bins (docs/measurements.md, "RoIAlign on a TPU").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

_TILE = 32  # pixels along a side
_MOST_VISITS = 2**17  # of one call: their list lies in a TPU's memory for scalars, 1 MiB
_USUAL_VISITS = 2  # of a region; only for the compiler's estimate of the cost


class Bins(NamedTuple):
  """What the bins of N regions read along one axis: the two pixels [N, s] and their weights [N, s]."""

  first: Int[Array, 'n s']
  second: Int[Array, 'n s']
  first_weight: Float[Array, 'n s']
  second_weight: Float[Array, 'n s']


def add_regions(
  gradient: Float[Array, 'b r s s d'],
  level: Int[Array, 'n'],
  rows: Bins,
  columns: Bins,
  sizes: Sequence[tuple[int, int]],
) -> list[Float[Array, 'b _ _ d']]:
  """Returns the gradient [B, H, W, D] of each level of the pyramids that B images' R regions have read.

  Sums are float32. In bfloat16 a weight is the sum of two numbers, and so within 2^-16 of its float32 value.

  Args:
    gradient: of what was read, s x s bins a region.
    level: index into `sizes` for each of the N = B·R regions; image by image, as in all that follows.
    rows: what the bins of a region read along y.
    columns: the same along x.
    sizes: (height, width) of the levels. Regions on all but the last have less than 28² pixels, and corners in order:
      the list of visits has no room for more tiles than such a region touches.
  """
  batch, count, *_, channels = gradient.shape
  if not count:
    return [jnp.zeros((batch, *size, channels), gradient.dtype) for size in sizes]
  grids = [_tiles(size) for size in sizes]
  visits_of_image = count * _most_tiles(grids) + sum(map(math.prod, grids))  # at most
  group = max(1, _MOST_VISITS // visits_of_image)  # images of one call
  parts = []
  for start in range(0, batch, group):
    images = gradient[start : start + group]
    cut = slice(start * count, (start + len(images)) * count)
    of_group = jax.tree.map(lambda x, cut=cut: x[cut], (level, rows, columns))
    parts.append(_add_group(images, *of_group, sizes))
  return [jnp.concatenate(of_level) for of_level in zip(*parts, strict=True)]


def _tiles(size):
  return tuple(-(-side // _TILE) for side in size)


def _most_tiles(grids):
  """How many tiles a region can touch at most, for `_tiles` of each level."""
  # Below the last level a region has less than 28² pixels: less than twice the side that belongs to a level, which is
  # 224 / 16 of its pixels. Three tiles along an axis take more than 31, so along one of both there are two at most.
  *inner, last = grids
  return max([math.prod(last), *(max(min(2, down) * right, down * min(2, right)) for down, right in inner)])


def _add_group(gradient, level, rows, columns, sizes):
  batch, count, bins, _, channels = gradient.shape
  grids = [_tiles(size) for size in sizes]
  starts = np.cumsum([0, *map(math.prod, grids)])
  tiles, regions = int(starts[-1]), batch * count
  bits = regions.bit_length()
  visits, number = _visits(level, rows, columns, grids, batch, bits)
  origins = np.concatenate([np.indices(grid).reshape(2, -1) for grid in grids], axis=1).astype(np.int32) * _TILE

  # bfloat16 holds a weight in two parts, each for its own copy of the gradient.
  copies = 2 if gradient.dtype == jnp.bfloat16 else 1
  depth = -(-copies * bins // 16) * 16
  x = [jnp.tile(v.astype(jnp.float32), copies) for v in columns]
  x = jnp.pad(jnp.stack(x, 1), ((0, 0), (0, 0), (0, depth - copies * bins)))
  y = jnp.concatenate(rows[:2], 1)[:, None]
  y_weight = jnp.concatenate(rows[2:], 1)[:, None].astype(jnp.float32)
  values = gradient.reshape(regions, bins, bins, channels)
  filler = jnp.zeros((regions, bins, depth - copies * bins, channels), gradient.dtype)
  values = jnp.concatenate([values] * copies + [filler], 2)

  def region(visit, visits, *_):
    """Returns the region of a visit; one that ends a tile keeps the region before, which needs no copy."""
    number = lambda visit: visits[visit] & ((1 << bits) - 1)
    before = number(jnp.maximum(visit - 1, 0))
    return jnp.minimum(jnp.where(number(visit) < regions, number(visit), before), regions - 1)

  of_region = lambda *shape, **where: pl.BlockSpec((1, *shape), lambda *at: (region(*at), *[0] * len(shape)), **where)
  block = (1, _TILE, _TILE, channels)
  usual = _USUAL_VISITS * regions
  out = pl.pallas_call(
    functools.partial(_kernel, tiles=tiles, regions=regions, bits=bits),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(number,),
      in_specs=[
        of_region(4, depth),
        of_region(1, 2 * bins, memory_space=pltpu.SMEM),
        of_region(1, 2 * bins, memory_space=pltpu.SMEM),
        of_region(bins, depth, channels),
      ],
      out_specs=pl.BlockSpec(block, lambda visit, visits, *_: (visits[visit] >> bits, 0, 0, 0)),
      scratch_shapes=[pltpu.VMEM(block[1:], jnp.float32)],
    ),
    out_shape=jax.ShapeDtypeStruct((batch * tiles, *block[1:]), gradient.dtype),
    compiler_params=pltpu.CompilerParams(dimension_semantics=('arbitrary',)),
    cost_estimate=pl.CostEstimate(
      flops=usual * 2 * _TILE * bins * channels * (depth + 2),
      bytes_accessed=(usual * bins * depth + batch * tiles * _TILE**2) * channels * gradient.dtype.itemsize,
      transcendentals=0,
    ),
    name='add_regions',
  )(visits, *jnp.asarray(origins), x, y, y_weight, values)

  out = out.reshape(batch, tiles, *block[1:])
  levels = []
  for size, (down, right), start in zip(sizes, grids, starts[:-1], strict=True):
    part = out[:, start : start + down * right].reshape(batch, down, right, *block[1:])
    part = part.transpose(0, 1, 3, 2, 4, 5).reshape(batch, down * _TILE, right * _TILE, channels)
    levels.append(part[:, : size[0], : size[1]])
  return levels


def _visits(level, rows, columns, grids, batch, bits):
  """Lists which regions touch which tiles: numbers tile << bits | region in rising order, and how many count.

  The last of each tile is no region, but the number of regions: it writes the tile.
  """
  regions = len(level)
  starts = np.cumsum([0, *map(math.prod, grids)])
  of_level = jnp.asarray(grids, jnp.int32)[level].T

  def span(bins, size):
    """Returns the first tile along an axis and how many: any that lay outside would be written to."""
    first = jnp.clip(jnp.min(bins.first, 1) // _TILE, 0, size - 1)
    last = jnp.clip(jnp.max(bins.second, 1) // _TILE, first, size - 1)
    return first, last - first + 1

  (top, down), (left, right) = span(rows, of_level[0]), span(columns, of_level[1])
  image = jnp.arange(regions, dtype=jnp.int32) // (regions // batch)
  first = image * int(starts[-1]) + jnp.asarray(starts[:-1], jnp.int32)[level] + top * of_level[1] + left

  step = jnp.arange(_most_tiles(grids), dtype=jnp.int32)
  below, beside = jnp.divmod(step[None], right[:, None])
  tile = first[:, None] + below * of_level[1][:, None] + beside
  touched = step[None] < (down * right)[:, None]
  region = jnp.arange(regions, dtype=jnp.int32)[:, None]
  visits = jnp.where(touched, tile << bits | region, jnp.iinfo(jnp.int32).max)
  ends = jnp.arange(batch * int(starts[-1]), dtype=jnp.int32) << bits | regions
  return jnp.sort(jnp.concatenate([visits.ravel(), ends])), jnp.sum(touched, dtype=jnp.int32) + len(ends)


def _kernel(visits, tops, lefts, x, y, y_weight, values, out, total, *, tiles, regions, bits):
  """Makes one visit: adds one region to the tile in `total`, or writes the tile.

  Of the region: `x` [1, 4, K] has, for each column of bins, the places of its first and second pixel and their weights;
  `y` and `y_weight` [1, 1, 2s] have the same for its rows; `values` [1, s, K, D] is its gradient. K is s, or 2s in
  bfloat16, filled up.
  """
  visit = pl.program_id(0)
  tile, region = visits[visit] >> bits, visits[visit] & ((1 << bits) - 1)
  place = jax.lax.rem(tile, jnp.int32(tiles))
  bins = values.shape[1]

  @pl.when((visit == 0) | (visits[jnp.maximum(visit - 1, 0)] >> bits != tile))
  def _():
    total[...] = jnp.zeros_like(total)

  @pl.when(region < regions)
  def _():
    shape = (_TILE, x.shape[-1])
    column = (jax.lax.broadcasted_iota(jnp.int32, shape, 0) + lefts[place]).astype(jnp.float32)
    first, second, first_weight, second_weight = (x[0, i : i + 1] for i in range(4))
    weight = jnp.where(column == first, first_weight, 0.0) + jnp.where(column == second, second_weight, 0.0)
    precision = jax.lax.Precision.HIGHEST
    if values.dtype == jnp.bfloat16:
      rounded = weight.astype(jnp.bfloat16).astype(jnp.float32)
      is_rest = jax.lax.broadcasted_iota(jnp.int32, shape, 1) >= bins
      weight = jnp.where(is_rest, weight - rounded, rounded).astype(jnp.bfloat16)
      precision = jax.lax.Precision.DEFAULT
    for i in range(bins):
      # A number that is not finite makes its whole line of the tile so.
      row = jnp.dot(weight, values[0, i], precision=precision, preferred_element_type=jnp.float32)
      for at in (i, bins + i):
        line = y[0, 0, at] - tops[place]

        @pl.when((line >= 0) & (line < _TILE))
        def _(at=at, line=line, row=row):
          total[line] += y_weight[0, 0, at] * row

  @pl.when(region == regions)
  def _():
    out[0] = total[...].astype(out.dtype)
