"""Compares portable models (`vild-jax export --format stablehlo|onnx|savedmodel`) with the live detector; prints JSON.

`live` runs the detector of a bundle on pictures and keeps what it gives, in an environment with this package.
`portable` then runs the folder of an export, in an environment that has nothing but its runtime, and prints for each
vocabulary and each number of pictures at a time the largest differences:

  boxes, scores, logits   before suppression, relative to the largest value, of regions that both have; `regions` counts
                          those that only one has, since proposals that overlap by the threshold go either way
  final                   score, box (pixels of the square), mask logit of detections that both have; `unmatched` counts
                          the others, and `unexplained` those of them that are not within 1e-4 of the lowest score or of
                          the IoU threshold, nor of a region that only one has

Example: python benchmarks/portable.py live bundle/ --vocabularies a.npz b.npz --pictures 1.jpg 2.jpg --out live.npz
         runtime/bin/python benchmarks/portable.py portable export/ --live live.npz
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

NEAR = 1e-4  # of a score or an IoU to its threshold
BOX, SCORE = 0.05, 1e-4  # two detections or regions are the same if they differ less; pixels of the square
_REGIONS = ('boxes', 'valid', 'scores', 'logits', 'image_logits')


def live(args: argparse.Namespace) -> None:
  """Keeps the outputs of the live detector, a picture at a time."""
  import jax

  import vild_jax
  from vild_jax import vocabulary
  from vild_jax.data import pictures, transforms
  from vild_jax.portable import program
  from vild_jax.runtime import compiler

  start = time.monotonic()
  detector = vild_jax.load(args.bundle)
  loading = time.monotonic() - start
  source = lambda suppress: program.Source(
    detector.config, detector.variables, detector.vocabulary.background, suppress
  )
  of_regions = program.programs(source(False))[0]
  final = program.programs(source(True))[0]
  run_regions, run_final = compiler.jit(of_regions.call), compiler.jit(final.call)
  kept: dict[str, Any] = {'pictures': np.array(args.pictures), 'vocabularies': np.array(args.vocabularies)}
  seconds = []
  for v, path in enumerate(args.vocabularies):
    words = detector.classes(vocabulary.load(path))
    for p, picture in enumerate(args.pictures):
      placed = transforms.resize_and_pad(pictures.as_rgb(picture), detector.config.data.image_size)
      inputs = placed.image[None], placed.size[None], words.embeddings, words.is_base, words.valid
      for one, run in ((of_regions, run_regions), (final, run_final)):
        start = time.monotonic()
        outputs = jax.device_get(run(*inputs))
        if p and one is final:  # the first compiles
          seconds.append(time.monotonic() - start)
        for name, value in zip(one.outputs, outputs, strict=True):
          if one is final or name in _REGIONS:
            kept[f'{v}/{p}/{"final" if one is final else "regions"}/{name}'] = value[0]
  kept |= {'seconds': np.median(seconds), 'loading': loading}
  np.savez(args.out, **kept)
  print(json.dumps({'seconds_per_picture': float(np.median(seconds)), 'load_seconds': loading}))


def matched(a: dict[str, np.ndarray], b: dict[str, np.ndarray], final: bool) -> tuple[np.ndarray, np.ndarray]:
  """Returns rows of `a`, and for each the row of `b` that is the same region, or detection if `final`."""
  free, found = b['valid'].copy(), []
  for i in np.flatnonzero(a['valid']):
    distance = np.where(free, np.abs(b['boxes'] - a['boxes'][i]).max(-1), np.inf)
    if final:
      same = (b['labels'] == a['labels'][i]) & (np.abs(b['scores'] - a['scores'][i]) <= SCORE)
      distance = np.where(same, distance, np.inf)
    best = int(np.argmin(distance))
    if distance[best] <= BOX:
      free[best] = False
      found.append((i, best))
  pairs = np.array(found, int).reshape(-1, 2)
  return pairs[:, 0], pairs[:, 1]


def of_regions(expected: dict[str, np.ndarray], found: dict[str, np.ndarray], classes: int) -> dict[str, float]:
  """Returns the differences before suppression, relative to the largest value."""
  a, b = matched(expected, found, final=False)

  def unpadded(name: str, array: np.ndarray) -> np.ndarray:
    if name == 'boxes':
      return array
    background = [array[:, -1:]] if name == 'logits' else []  # its column is the last one
    return np.concatenate([array[:, :classes], *background], 1)

  worst = {}
  for name in set(_REGIONS) & set(found) - {'valid'}:
    there, here = unpadded(name, expected[name])[a], unpadded(name, found[name])[b]
    worst[name] = float(np.abs(there - here).max(initial=0) / np.abs(there).max(initial=1e-30))
  return worst | {'regions': int(expected['valid'].sum() + found['valid'].sum() - 2 * len(a))}


def of_final(
  expected: dict[str, np.ndarray], found: dict[str, np.ndarray], lost: np.ndarray, how: dict[str, Any], overlap: Any
) -> dict[str, float]:
  """Returns the differences of detections; `lost` [L, 4] are the boxes of regions that only one of both has."""
  a, b = matched(expected, found, final=True)
  worst = {
    'score': float(np.abs(expected['scores'][a] - found['scores'][b]).max(initial=0)),
    'box': float(np.abs(expected['boxes'][a] - found['boxes'][b]).max(initial=0)),
    'detections': int(expected['valid'].sum()),
  }
  if 'masks' in found:
    worst['mask_logit'] = float(np.abs(expected['masks'][a] - found['masks'][b]).max(initial=0))
  unmatched = unexplained = 0
  for of, rows in ((expected, a), (found, b)):
    for row in np.setdiff1d(np.flatnonzero(of['valid']), rows):
      unmatched += 1
      # Rows that the other side may have kept in its place, or that may have dropped it: those of its class, of both.
      same = np.concatenate([x['boxes'][x['valid'] & (x['labels'] == of['labels'][row])] for x in (expected, found)])
      ious = overlap(np.concatenate([of['boxes'][row][None], same, lost]))[0, 1:]
      lowest = min(x['scores'][x['valid']].min(initial=np.inf) for x in (expected, found))
      near = of['scores'][row] - lowest <= NEAR or (np.abs(ious - how['iou_threshold']) <= NEAR).any()
      unexplained += not (near or (ious[len(same) :] > how['iou_threshold']).any())
  return worst | {'unmatched': unmatched, 'unexplained': unexplained}


def portable(args: argparse.Namespace) -> None:
  """Runs a portable model on the pictures of `live` and prints the differences."""
  spec = importlib.util.spec_from_file_location('run', args.folder / 'run.py')
  run = importlib.util.module_from_spec(spec)
  sys.modules['run'] = run
  spec.loader.exec_module(run)
  start = time.monotonic()
  detector = run.Detector(args.folder)
  loading = time.monotonic() - start
  about, kept = detector.about, np.load(args.live, allow_pickle=False)
  images = [run.open_picture(path) for path in kept['pictures'].tolist()]
  worst: dict[str, Any] = {}
  seconds: dict[int, list[float]] = {count: [] for count in args.batches}
  first: list[float] = []
  for v, path in enumerate(kept['vocabularies'].tolist()):
    names, words = detector.words(run.read_vocabulary(path))
    for count in args.batches:
      entries = []
      for at in range(0, len(images), count):
        squares, sizes, _ = detector.prepare(images[at : at + count], count)
        start = time.monotonic()
        outputs = detector.run(squares, sizes, words)
        (seconds[count] if at else first).append(time.monotonic() - start)
        regions = {} if about['suppression']['done'] else detector.call('model', squares, sizes, *words)
        for row, picture in enumerate(range(at, min(at + count, len(images)))):
          expected = {
            kind: {
              name.rpartition('/')[2]: kept[name] for name in kept.files if name.startswith(f'{v}/{picture}/{kind}/')
            }
            for kind in ('regions', 'final')
          }
          entry, lost = {}, np.zeros((0, 4), np.float32)
          if regions:
            here = {name: np.asarray(value[row]) for name, value in regions.items() if name in _REGIONS}
            entry |= of_regions(expected['regions'], here, len(names))
            a, b = matched(expected['regions'], here, final=False)
            lost = np.concatenate(
              [
                of['boxes'][np.setdiff1d(np.flatnonzero(of['valid']), rows)]
                for of, rows in ((expected['regions'], a), (here, b))
              ]
            )
          here = {name: value[row] for name, value in outputs.items()}
          entries.append(entry | of_final(expected['final'], here, lost, about['suppression'], run.overlap))
      summed = ('regions', 'detections', 'unmatched', 'unexplained')
      worst[f'{len(names)} names, {count} at a time'] = {
        key: (sum if key in summed else max)(entry[key] for entry in entries) for key in entries[0]
      }
  print(
    json.dumps(
      {
        'folder': str(args.folder),
        'megabytes': sum(path.stat().st_size for path in args.folder.rglob('*') if path.is_file()) / 1e6,
        'load_seconds': loading,
        'first_seconds': float(np.median(first)),
        'seconds_per_picture': {str(count): float(np.median(of)) / count for count, of in seconds.items() if of},
        'live_seconds_per_picture': float(kept['seconds']),
        'differences': worst,
      },
      indent=2,
    )
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  modes = parser.add_subparsers(required=True)
  mode = modes.add_parser('live')
  mode.set_defaults(do=live)
  mode.add_argument('bundle', type=Path)
  mode.add_argument('--vocabularies', nargs='+', required=True)
  mode.add_argument('--pictures', nargs='+', required=True)
  mode.add_argument('--out', type=Path, required=True)
  mode = modes.add_parser('portable')
  mode.set_defaults(do=portable)
  mode.add_argument('folder', type=Path)
  mode.add_argument('--live', type=Path, required=True)
  mode.add_argument('--batches', type=int, nargs='+', default=[1, 3], help='pictures at a time')
  args = parser.parse_args()
  args.do(args)


if __name__ == '__main__':
  main()
