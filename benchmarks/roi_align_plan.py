"""Compiles ways to compute RoIAlign with its gradient for TPUs that are not here; prints one JSON line for each way.

Regions and masks of a training step of `configs/vild_r50_lvis.py`, pictures of 1024², bfloat16, v5e:2x2, effort -1.
`tiles` is the way of the package in training on a TPU, `corners` its way elsewhere (`vild_jax/core/roi_align.py`).
"GiB accessed" is XLA's count, which has the body of a loop once: a turn of four for `corners`, a region of 816 or 128
for the copies of `windows`. "GiB with all turns" adds up operands and results of all instructions, with the padding of
tiles, as often as they run; of a kernel, operands and results once. Needs the extra [tpu].

With LIBTPU_INIT_ARGS="--xla_jf_dump_to=FOLDER --xla_jf_dump_llo_text=true" the compiler writes its schedules of
instructions, *final_bundles.txt, to a folder that is there (gigabytes).

Example: python benchmarks/roi_align_plan.py --pictures 8 --way tiles --way corners
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vild_jax.core import roi_align
from vild_jax.plan import hlo, topology
from vild_jax.runtime import compiler

TOPOLOGY, CHIPS, EFFORT = 'v5e:2x2', 4, -1.0
LEVELS, SIZE, CHANNELS = range(2, 7), 1024, 256
REGIONS, MASKS = (816, 7), (128, 14)  # number, filled up to a multiple of 8, and bins along a side
WINDOW = 33  # cells: the side of a square region of the largest size of its level, and one more for the last corner


def corners(features, boxes, size):
  return jax.vmap(lambda f, b: roi_align.multilevel_roi_align(f, b, output_size=size))(features, boxes)


def _read_at_once(gradient: Callable) -> Callable:
  """Makes the way that reads by one gather, and whose gradient is gradient(features, boxes, cotangent, size)."""
  way = jax.custom_vjp(roi_align.batch_at_once, nondiff_argnums=(2,))
  keep = lambda features, boxes, size: (way(features, boxes, size), (features, boxes))
  way.defvjp(keep, lambda size, kept, cotangent: (gradient(*kept, cotangent, size), None))
  return way


def _one_scatter(features, boxes, cotangent, size):
  index, weight = roi_align._places_of_batch(features, boxes, size)
  rows = cotangent.astype(jnp.float32).transpose(2, 3, 0, 1, 4).reshape(1, index.shape[1], -1) * weight[..., None]
  total = jnp.zeros((sum(f[..., 0].size for f in features.values()), rows.shape[-1]))
  return _levels(total.at[index].add(rows, mode='promise_in_bounds').astype(cotangent.dtype), features)


def _levels(total, features):
  """Splits rows of pixels, pictures last, into the levels [B, H, W, D]."""
  parts = jnp.split(total, np.cumsum([features[level][..., 0].size for level in sorted(features)])[:-1])
  of_level = lambda f, part: part.reshape(*f.shape[1:3], len(f), -1).transpose(2, 0, 1, 3)
  return {level: of_level(features[level], part) for level, part in zip(sorted(features), parts, strict=True)}


def _sorted_segments(features, boxes, cotangent, size):
  index, weight = roi_align._places_of_batch(features, boxes, size)
  order = jnp.argsort(index.reshape(-1))
  rows = cotangent.transpose(2, 3, 0, 1, 4).reshape(index.shape[1], -1)[order % index.shape[1]].astype(jnp.float32)
  count = sum(f[..., 0].size for f in features.values())
  rows *= weight.reshape(-1)[order][:, None]
  total = jax.ops.segment_sum(rows, index.reshape(-1)[order], count, indices_are_sorted=True).astype(cotangent.dtype)
  return _levels(total, features)


def windows(features, boxes, size):
  return jax.vmap(lambda f, b: _windows(f, b, size))(features, boxes)


def _windows(features, boxes, size):
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


WAYS = {
  'corners': corners,
  'tiles': _read_at_once(roi_align.gradient_by_tiles),
  'one_scatter': _read_at_once(_one_scatter),
  'sorted_segments': _read_at_once(_sorted_segments),
  'windows': windows,
}


def difference(way: Callable) -> float:
  """Returns the largest difference to `corners` of result and gradient, for small regions inside a small picture."""
  rng = np.random.default_rng(0)
  features = {level: jnp.asarray(rng.normal(size=(2, 256 >> level, 256 >> level, 4)), jnp.float32) for level in LEVELS}
  corner, sides = rng.uniform(0, 150, (2, 40, 2)), rng.uniform(20, 100, (2, 40, 2))
  boxes = jnp.asarray(np.concatenate([corner, corner + sides], 2), jnp.float32)
  gradient = jnp.asarray(rng.normal(size=(2, 40, 7, 7, 4)), jnp.float32)
  found = []
  for one in (corners, way):
    result, transpose = jax.vjp(lambda f, one=one: one(f, boxes, 7), features)
    with pltpu.force_tpu_interpret_mode():
      found.append((result, transpose(gradient)))
  return max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, found), strict=True))


def moved(text: str, turns: int) -> int:
  """Returns the bytes of operands and results of all instructions of a compiled program, as often as they run.

  A loop runs `turns` times, if the program does not say how often.
  """
  program = hlo.parse(text)
  of_fusions = {n for n, callers in program.callers.items() if any(c.opcode not in _CONTROL for c in callers)}
  size = lambda shape: sum(array.bytes for array in hlo.arrays(shape) if array.in_hbm)
  total = 0
  for name, instructions in program.computations.items():
    is_loop = any(caller.opcode == 'while' for caller in program.callers.get(name, []))
    often = max(hlo.times(program, name), turns if is_loop else 1)
    for instruction in instructions.values() if name not in of_fusions else ():
      if instruction.opcode not in _NO_BYTES:
        operands = (instructions[o].shape for o in instruction.operands if o in instructions)
        total += often * sum(map(size, (instruction.shape, *operands)))
  return total


_CONTROL = {'while', 'conditional', 'call'}
_NO_BYTES = _CONTROL | {'parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant', 'optimization-barrier'}


def cost(way: Callable, pictures: int, turns: int) -> dict[str, float]:
  """Compiles a way with its gradient, for regions and for masks, and returns what it takes a chip."""
  mesh = Mesh(np.array(topology.devices(topology.target(TOPOLOGY))), ('data',))
  split = NamedSharding(mesh, PartitionSpec('data'))
  of = lambda dtype, *shape: jax.ShapeDtypeStruct((CHIPS * pictures, *shape), dtype, sharding=split)
  features = {level: of(jnp.bfloat16, SIZE >> level, SIZE >> level, CHANNELS) for level in LEVELS}
  boxes = [of(jnp.float32, count, 4) for count, _ in (REGIONS, MASKS)]
  gradients = [of(jnp.bfloat16, count, bins, bins, CHANNELS) for count, bins in (REGIONS, MASKS)]

  def of_chip(features, boxes, gradients):
    read = lambda f: [way(f, b, bins) for b, (_, bins) in zip(boxes, (REGIONS, MASKS), strict=True)]
    result, transpose = jax.vjp(read, features)
    return result, transpose(gradients)

  shards = PartitionSpec('data')
  step = jax.jit(jax.shard_map(of_chip, mesh=mesh, in_specs=shards, out_specs=shards, check_vma=False))
  start, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
  compiled = step.lower(features, boxes, gradients).compile(compiler_options=compiler.with_effort(EFFORT))
  seconds, used = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_utime - used
  counted = compiled.cost_analysis()
  return {
    'GiB accessed': round(counted['bytes accessed'] / 2**30, 2),
    'GiB with all turns': round(moved(compiled.as_text(), turns) / 2**30, 2),
    'GFLOP': round(counted['flops'] / 1e9, 1),
    'temporary MiB': round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
    'seconds': round(seconds, 1),
    'CPU seconds': round(used, 1),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--way', choices=sorted(WAYS), action='append', help='can be repeated; by default all')
  parser.add_argument('--pictures', type=int, default=8, help='a chip (default 8)')
  parser.add_argument('--json', type=Path, help='also write the lines to this file')
  args = parser.parse_args()
  topology.devices(topology.target(TOPOLOGY))  # before JAX starts
  lines = []
  for name in args.way or WAYS:
    result = {'benchmark': 'roi_align_plan', 'way': name, 'pictures': args.pictures}
    result |= {
      'difference': difference(WAYS[name]),
      **cost(WAYS[name], args.pictures, turns=4 if name == 'corners' else 1),
    }
    lines.append(json.dumps(result))
    print(lines[-1], flush=True)
  if args.json:
    args.json.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
