"""Measures class-wise NMS over shared boxes against one NMS for each class under `vmap`; prints one JSON line.

Example: python benchmarks/classwise_nms.py --boxes 1000 --classes 1203
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

from vild_jax.core import nms


def scene(num_boxes: int, num_classes: int, temperature: float) -> tuple[jax.Array, jax.Array]:
  """Makes proposals in 25 groups, one for each object, and softmax scores that are similar within a group."""
  rng = np.random.default_rng(0)
  heap = rng.integers(0, 25, num_boxes)
  centre, side = rng.uniform(0, 1000, (25, 2))[heap], rng.uniform(30, 300, (25, 2))[heap]
  centre, side = centre + rng.normal(0, 0.15, centre.shape) * side, side * rng.uniform(0.7, 1.4, side.shape)
  similarity = rng.normal(0.2, 0.04, (25, num_classes))[heap] + rng.normal(0, 0.01, (num_boxes, num_classes))
  scores = jax.nn.softmax(jnp.asarray(similarity / temperature, jnp.float32))
  return jnp.asarray(np.concatenate([centre - side / 2, centre + side / 2], -1), jnp.float32), scores


def ours(boxes, scores, max_outputs, iou_threshold):
  return nms.classwise_nms(
    boxes, scores, iou_threshold=iou_threshold, score_threshold=0.0, max_outputs=max_outputs, pre_nms_top_k=len(boxes)
  )[2]


def nms_for_each_class(boxes, scores, max_outputs, iou_threshold):
  one = functools.partial(nms.nms, iou_threshold=iou_threshold, max_outputs=max_outputs)
  kept = lambda s: (lambda index, valid: jnp.where(valid, s[index], 0.0))(*one(boxes, s, valid=s > 0.0))
  return jax.lax.top_k(jax.vmap(kept)(scores.T).reshape(-1), max_outputs)[0]


def seconds(compiled, *arguments, repeats: int) -> float:
  """Returns the time of the fastest of `repeats` runs, without compilation."""
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    times.append(time.perf_counter() - start)
  return min(times)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--boxes', type=int, default=1000)
  parser.add_argument('--classes', type=int, default=1203)
  parser.add_argument('--max-outputs', type=int, default=300)
  parser.add_argument('--iou-threshold', type=float, default=0.5)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--json', type=Path, help='also write the line to this file')
  args = parser.parse_args()

  result = {'benchmark': 'classwise_nms', 'device': jax.devices()[0].device_kind, **vars(args)}
  del result['json'], result['repeats']
  # 0.01 is the model's temperature; 10 makes all scores similar, as in the first steps of training.
  for name, temperature in (('trained', 0.01), ('untrained', 10.0)):
    boxes, scores = scene(args.boxes, args.classes, temperature)
    outputs = {}
    for method in (ours, nms_for_each_class):
      run = jax.jit(functools.partial(method, max_outputs=args.max_outputs, iou_threshold=args.iou_threshold))
      compiled = run.lower(boxes, scores).compile()
      outputs[method] = np.asarray(compiled(boxes, scores))
      result[f'{name}_{method.__name__}_seconds'] = round(seconds(compiled, boxes, scores, repeats=args.repeats), 4)
      memory = compiled.memory_analysis()
      result[f'{method.__name__}_temporary_mib'] = round(memory.temp_size_in_bytes / 2**20, 1)
    result[f'{name}_same_scores'] = bool((outputs[ours] == outputs[nms_for_each_class]).all())
    result[f'{name}_ratio'] = round(result[f'{name}_nms_for_each_class_seconds'] / result[f'{name}_ours_seconds'], 1)
  line = json.dumps(result)
  print(line)
  if args.json:
    args.json.write_text(line + '\n')


if __name__ == '__main__':
  main()
