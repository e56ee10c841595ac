"""Compiles ways to compute RoIAlign with its gradient for TPUs that are not here; prints one JSON line for each way.

Regions and masks of a training step of `configs/vild_r50_lvis.py`, one picture of 1024² a chip, bfloat16, v5e:2x2,
effort -1. `corners` is the way of the package (`vild_jax/core/roi_align.py`). XLA counts the bytes of a loop's body
once: a turn of four for `corners`, a region of 812 or 128 for the copies of `windows`. Needs the extra [tpu].

Example: python benchmarks/roi_align_plan.py --way corners
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vild_jax.core import roi_align
from vild_jax.plan import topology
from vild_jax.runtime import compiler

TOPOLOGY, CHIPS, EFFORT = 'v5e:2x2', 4, -1.0
LEVELS, SIZE, CHANNELS = range(2, 7), 1024, 256
REGIONS, MASKS = (812, 7), (128, 14)  # number, bins along a side
WINDOW = 33  # cells: the side of a square region of the largest size of its level, and one more for the last corner


def corners(features, boxes, size):
  return roi_align.multilevel_roi_align(features, boxes, output_size=size)


def _rows(features, boxes, size):
  """All pixels [P, D], and for the four corners of all bins their rows and weights [4, R, size, size]."""
  levels = sorted(features)
  row = roi_align.roi_levels(boxes, levels[0], levels[-1]) - levels[0]
  shapes = np.asarray([features[level].shape[:2] for level in levels])
  starts = jnp.asarray(np.cumsum([0, *shapes.prod(1)])[:-1], jnp.int32)[row]
  heights, widths = jnp.asarray(shapes, jnp.int32)[row].T
  scaled = boxes / jnp.asarray([2.0**level for level in levels], jnp.float32)[row][:, None]
  y0, y1, wy = roi_align._corners(scaled[:, 0], scaled[:, 2] - scaled[:, 0], size, heights)
  x0, x1, wx = roi_align._corners(scaled[:, 1], scaled[:, 3] - scaled[:, 1], size, widths)
  pixels = jnp.concatenate([features[level].reshape(-1, features[level].shape[-1]) for level in levels])
  index, weight = [], []
  for y, v in ((y0, 1 - wy), (y1, wy)):
    for x, w in ((x0, 1 - wx), (x1, wx)):
      index.append(starts[:, None, None] + y[:, :, None] * widths[:, None, None] + x[:, None, :])
      weight.append(v[:, :, None] * w[:, None, :])
  return pixels, jnp.stack(index), jnp.stack(weight)


def _all_corners(add: Callable) -> Callable:
  """Reads all corners with one gather; `add(gradient, index, weight, count)` is its transpose."""

  @functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
  def read(pixels, index, weight, count):
    return (pixels[index].astype(jnp.float32) * weight[..., None]).sum(0)

  def forward(pixels, index, weight, count):
    return read(pixels, index, weight, count), (index, weight, pixels[:0])

  def backward(count, kept, gradient):
    index, weight, like = kept
    return add(gradient, index, weight, count).astype(like.dtype), None, None

  read.defvjp(forward, backward)

  def align(features, boxes, size):
    pixels, index, weight = _rows(features, boxes, size)
    return read(pixels, index, weight, len(pixels)).astype(pixels.dtype)

  return align


@_all_corners
def at_once(gradient, index, weight, count):
  nothing = jnp.zeros((count, gradient.shape[-1]), gradient.dtype)
  return nothing.at[index].add(gradient * weight[..., None], mode='promise_in_bounds')


@_all_corners
def sorted_segments(gradient, index, weight, count):
  order = jnp.argsort(index.reshape(-1))
  rows = gradient.reshape(-1, gradient.shape[-1])[order % index[0].size] * weight.reshape(-1)[order][:, None]
  return jax.ops.segment_sum(rows, index.reshape(-1)[order], count, indices_are_sorted=True)


def windows(features, boxes, size):
  """Copies a window of each region and reads it by two small products.

  It is right only for regions that the window holds: a level is chosen by area, so that a long region can be wider.
  """
  levels = sorted(features)
  row = roi_align.roi_levels(boxes, levels[0], levels[-1]) - levels[0]
  scaled = boxes / jnp.asarray([2.0**level for level in levels], jnp.float32)[row][:, None]
  columns = max(WINDOW, *(features[level].shape[1] for level in levels))
  padded = [
    jnp.pad(f, ((0, max(0, WINDOW - f.shape[0])), (0, columns - f.shape[1]), (0, 0)))
    for f in (features[level] for level in levels)
  ]
  starts = jnp.asarray(np.cumsum([0] + [len(f) for f in padded])[:-1], jnp.int32)[row]
  stack = jnp.concatenate(padded)
  weights, places = [], []
  for axis in (0, 1):
    limit = jnp.asarray([features[level].shape[axis] for level in levels], jnp.int32)[row]
    first = jnp.clip(jnp.floor(scaled[:, axis]).astype(jnp.int32), 0, jnp.maximum(limit - WINDOW, 0))
    bins = (jnp.arange(size) + 0.5) / size * (scaled[:, axis + 2] - scaled[:, axis])[:, None]
    position = jnp.clip(scaled[:, axis, None] + bins, 0, limit[:, None] - 1.0) - first[:, None]
    weights.append(jnp.maximum(1 - jnp.abs(position[:, :, None] - jnp.arange(WINDOW)), 0).astype(stack.dtype))
    places.append(first)
  cut = lambda y, x: jax.lax.dynamic_slice(stack, (y, x, 0), (WINDOW, WINDOW, stack.shape[-1]))
  window = jax.vmap(cut)(starts + places[0], places[1])
  half = jnp.einsum('rih,rhwd->riwd', weights[0], window, preferred_element_type=jnp.float32).astype(stack.dtype)
  return jnp.einsum('rjw,riwd->rijd', weights[1], half, preferred_element_type=jnp.float32).astype(stack.dtype)


WAYS = {way.__name__: way for way in (corners, windows)} | {'at_once': at_once, 'sorted_segments': sorted_segments}


def difference(way: Callable) -> float:
  """Returns the largest difference to `corners` of result and gradient, for small regions inside a small picture."""
  rng = np.random.default_rng(0)
  features = {level: jnp.asarray(rng.normal(size=(256 >> level, 256 >> level, 4)), jnp.float32) for level in LEVELS}
  corner, sides = rng.uniform(0, 150, (40, 2)), rng.uniform(20, 100, (40, 2))
  boxes = jnp.asarray(np.concatenate([corner, corner + sides], 1), jnp.float32)
  gradient = jnp.asarray(rng.normal(size=(40, 7, 7, 4)), jnp.float32)
  found = []
  for one in (corners, way):
    result, transpose = jax.vjp(lambda f, one=one: one(f, boxes, 7), features)
    found.append((result, transpose(gradient)))
  return max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, found), strict=True))


def cost(way: Callable) -> dict[str, float]:
  """Compiles a way with its gradient, for regions and for masks, and returns what XLA says of it."""
  mesh = Mesh(np.array(topology.devices(topology.target(TOPOLOGY))), ('data',))
  split = NamedSharding(mesh, PartitionSpec('data'))
  of = lambda dtype, *shape: jax.ShapeDtypeStruct((CHIPS, *shape), dtype, sharding=split)
  features = {level: of(jnp.bfloat16, SIZE >> level, SIZE >> level, CHANNELS) for level in LEVELS}
  boxes = [of(jnp.float32, count, 4) for count, _ in (REGIONS, MASKS)]
  gradients = [of(jnp.bfloat16, count, bins, bins, CHANNELS) for count, bins in (REGIONS, MASKS)]

  def step(features, boxes, gradients):
    read = lambda f: [
      jax.vmap(lambda x, b, n=n: way(x, b, n))(f, b) for b, (_, n) in zip(boxes, (REGIONS, MASKS), strict=True)
    ]
    result, transpose = jax.vjp(read, features)
    return result, transpose(gradients)

  start, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
  compiled = jax.jit(step).lower(features, boxes, gradients).compile(compiler_options=compiler.with_effort(EFFORT))
  counted = compiled.cost_analysis()
  return {
    'GiB accessed': round(counted['bytes accessed'] / 2**30, 2),
    'GFLOP': round(counted['flops'] / 1e9, 1),
    'temporary MiB': round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
    'seconds': round(time.monotonic() - start, 1),
    'CPU seconds': round(resource.getrusage(resource.RUSAGE_SELF).ru_utime - used, 1),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--way', choices=sorted(WAYS), action='append', help='can be repeated; by default all')
  parser.add_argument('--json', type=Path, help='also write the lines to this file')
  args = parser.parse_args()
  topology.devices(topology.target(TOPOLOGY))  # before JAX starts
  lines = []
  for name in args.way or WAYS:
    result = {'benchmark': 'roi_align_plan', 'way': name, 'difference': difference(WAYS[name]), **cost(WAYS[name])}
    lines.append(json.dumps(result))
    print(lines[-1], flush=True)
  if args.json:
    args.json.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
