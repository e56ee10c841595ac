"""Measures RoIAlign by one gather for each corner against one-hot matmuls on all levels; prints one JSON line.

Example: python benchmarks/roi_align.py --rois 512 --size 512
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vild_jax.core import roi_align


def scene(num_rois: int, size: int, channels: int, dtype: str) -> tuple[dict[int, jax.Array], jax.Array]:
  """Makes a random pyramid P2-P6 and regions of all sizes, like proposals."""
  rng = np.random.default_rng(0)
  features = {
    level: jnp.asarray(rng.normal(size=(size >> level, size >> level, channels)), dtype) for level in range(2, 7)
  }
  corner = rng.uniform(0, 0.9 * size, (num_rois, 2))
  sides = size * np.exp(rng.uniform(np.log(0.02), np.log(0.9), (num_rois, 2)))
  boxes = np.clip(np.concatenate([corner, corner + sides], -1), 0, size - 1)
  return features, jnp.asarray(boxes, jnp.float32)


def ours(features, boxes, output_size):
  return roi_align.multilevel_roi_align(features, boxes, output_size=output_size)


def one_hot_matmuls(features, boxes, output_size):
  """Reads every region on every level by two dense matmuls; all levels except that of the region get weight 0."""
  levels = roi_align.roi_levels(boxes, min(features), max(features))
  bins = (jnp.arange(output_size) + 0.5) / output_size

  def weights(start, end, pixels):
    position = jnp.clip(start[:, None] + bins[None, :] * (end - start)[:, None], 0.0, pixels - 1.0)
    return jnp.maximum(1.0 - jnp.abs(position[:, :, None] - jnp.arange(pixels)[None, None, :]), 0.0)

  result = 0.0
  for level, feature in features.items():
    y0, x0, y1, x1 = (boxes / 2.0**level).T
    rows = weights(y0, y1, feature.shape[0]) * (levels == level)[:, None, None]
    part = jnp.einsum('rih,hwd->riwd', rows, feature.astype(jnp.float32))
    result += jnp.einsum('rjw,riwd->rijd', weights(x0, x1, feature.shape[1]), part)
  return result.astype(feature.dtype)


def seconds(compiled, *arguments, repeats: int) -> float:
  """Returns the time of the fastest of `repeats` runs, without compilation."""
  times = []
  for _ in range(repeats + 1):  # the first one warms up
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    times.append(time.perf_counter() - start)
  return min(times[1:])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rois', type=int, default=512)
  parser.add_argument('--size', type=int, default=512, help='side of the picture, pixels')
  parser.add_argument('--channels', type=int, default=256)
  parser.add_argument('--output-size', type=int, default=7)
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--json', type=Path, help='also write the line to this file')
  args = parser.parse_args()

  features, boxes = scene(args.rois, args.size, args.channels, args.dtype)
  result = {'benchmark': 'roi_align', 'device': jax.devices()[0].device_kind, **vars(args)}
  del result['json'], result['repeats']
  outputs = {}
  for method in (ours, one_hot_matmuls):
    read = functools.partial(method, boxes=boxes, output_size=args.output_size)
    forward = jax.jit(read).lower(features).compile()
    outputs[method] = forward(features)
    # The operation is linear, so its gradient needs no forward pass.
    backward = jax.jit(lambda f, g, read=read: jax.vjp(read, f)[1](g)[0]).lower(features, outputs[method]).compile()
    for name, compiled, arguments in (
      ('forward', forward, (features,)),
      ('backward', backward, (features, outputs[method])),
    ):
      result[f'{name}_{method.__name__}_seconds'] = round(seconds(compiled, *arguments, repeats=args.repeats), 4)
      mib = compiled.memory_analysis().temp_size_in_bytes / 2**20
      result[f'{name}_{method.__name__}_temporary_mib'] = round(mib, 1)
  for name in ('forward', 'backward'):
    ratio = result[f'{name}_one_hot_matmuls_seconds'] / result[f'{name}_ours_seconds']
    result[f'{name}_ratio'] = round(ratio, 1)
  difference = outputs[ours].astype(jnp.float32) - outputs[one_hot_matmuls].astype(jnp.float32)
  result['largest_difference'] = float(jnp.max(jnp.abs(difference)))
  line = json.dumps(result)
  print(line)
  if args.json:
    args.json.write_text(line + '\n')


if __name__ == '__main__':
  main()
