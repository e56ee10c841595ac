"""Measures `score` on a data set of the size of LVIS's validation split, beside the official evaluator; prints JSON.

Pictures are 480 x 640, objects ellipses, detections copies of objects that are moved, of another class, or elsewhere;
all have boxes and masks. Seconds are those of the whole command in a process of its own, with all checks of the input,
and `peak_gib` is the largest memory of that process. Numbers of 1,203 classes fall as LVIS's do.

With --peer, lvis-api (in PYTHON's environment) scores a sample of --peer-pictures, box and mask, and so do we, in
turns; `ratio` is its time divided by ours.

Example: python benchmarks/score.py --pictures 19809 --peer ~/lvis/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data import rle

HEIGHT, WIDTH, CLASSES, PER_PICTURE, SHAPES = 480, 640, 1203, 300, 3000
OBJECTS = 12.4  # of a picture, the mean of LVIS's validation split


def shapes(rng: np.random.Generator) -> tuple[list[list[float]], list[str], list[int]]:
  """Draws ellipses: boxes xywh, run-length codes and areas."""
  rows, columns = np.mgrid[:HEIGHT, :WIDTH]
  boxes, codes, areas = [], [], []
  for _ in range(SHAPES):
    h, w = np.exp(rng.uniform(np.log(6), np.log(150), 2))
    y, x = rng.uniform(h, HEIGHT - h), rng.uniform(w, WIDTH - w)
    mask = ((rows - y) / h) ** 2 + ((columns - x) / w) ** 2 < 1
    boxes.append([float(v) for v in np.float32([x - w, y - h, 2 * w, 2 * h])])
    codes.append(rle.encode_mask(mask)['counts'])
    areas.append(int(mask.sum()))
  return boxes, codes, areas


def write(folder: Path, pictures: int, seed: int = 0) -> tuple[Path, Path]:
  """Writes the annotations and the results of a data set with that many pictures; returns both paths."""
  rng = np.random.default_rng(seed)
  boxes, codes, areas = shapes(rng)
  share = 1 / np.arange(2, CLASSES + 2)
  share /= share.sum()
  size = [HEIGHT, WIDTH]
  images, annotations = [], []
  truth, results = folder / f'truth_{pictures}.json', folder / f'results_{pictures}.json'
  with results.open('w') as file:
    file.write('[')
    for i in range(pictures):
      count = min(1 + rng.poisson(OBJECTS - 1), PER_PICTURE)
      of_objects = rng.integers(0, SHAPES, count)
      classes = rng.choice(CLASSES, count, p=share)
      negative = rng.choice(CLASSES, 8, replace=False)
      images.append(
        {
          'id': 10 * i + 7,
          'height': HEIGHT,
          'width': WIDTH,
          'neg_category_ids': [int(k) + 1 for k in negative if k not in classes],
          'not_exhaustive_category_ids': [int(classes[0]) + 1] if i % 20 == 0 else [],
        }
      )
      annotations += [
        {
          'id': len(annotations) + n + 1,
          'image_id': 10 * i + 7,
          'category_id': int(k) + 1,
          'bbox': boxes[s],
          'area': areas[s],
          'segmentation': {'size': size, 'counts': codes[s]},
        }
        for n, (s, k) in enumerate(zip(of_objects, classes, strict=True))
      ]
      # A third of the detections lies on objects, half of these with the right class.
      on = rng.random(PER_PICTURE) < 1 / 3
      which = rng.integers(0, count, PER_PICTURE)
      found = np.where(on, of_objects[which], rng.integers(0, SHAPES, PER_PICTURE))
      named = np.where(on & (rng.random(PER_PICTURE) < 0.5), classes[which], rng.choice(CLASSES, PER_PICTURE, p=share))
      scores = np.sort(rng.random(PER_PICTURE).astype(np.float32))[::-1]
      lines = [
        json.dumps(
          {
            'image_id': 10 * i + 7,
            'category_id': k + 1,
            'bbox': boxes[s],
            'score': v,
            'segmentation': {'size': size, 'counts': codes[s]},
          }
        )
        for s, k, v in zip(found.tolist(), named.tolist(), scores.tolist(), strict=True)
      ]
      file.write(('\n' if i == 0 else ',\n') + ',\n'.join(lines))
    file.write('\n]\n')
  categories = [
    {'id': k + 1, 'name': f'class {k}', 'frequency': 'f' if k < 405 else 'c' if k < 866 else 'r'}
    for k in range(CLASSES)
  ]
  truth.write_text(json.dumps({'images': images, 'annotations': annotations, 'categories': categories}))
  return truth, results


def measured(command: list[str]) -> dict[str, float]:
  """Runs a command and returns its wall and CPU seconds and its peak memory in GiB."""
  start = time.perf_counter()
  done = subprocess.Popen(command, stdout=subprocess.DEVNULL)
  _, status, used = os.wait4(done.pid, 0)
  if status:
    raise SystemExit(f'{command[:3]} failed')
  return {
    'wall': round(time.perf_counter() - start, 2),
    'cpu': round(used.ru_utime + used.ru_stime, 2),
    'peak_gib': round(used.ru_maxrss / 2**20, 2),
  }


PEER = """
import sys
import numpy
numpy.float = float  # lvis-api is older than NumPy 1.24
from lvis import LVIS, LVISEval, LVISResults
truth, results = sys.argv[1:]
for kind in ('bbox', 'segm'):
  gt = LVIS(truth)
  LVISEval(gt, LVISResults(gt, results), kind).run()
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--pictures', type=int, default=2000)
  parser.add_argument('--protocol', default='lvis')
  parser.add_argument('--peer', metavar='PYTHON', help='an interpreter with lvis-api')
  parser.add_argument('--peer-pictures', type=int, default=500)
  parser.add_argument('--folder', help='where the files are kept (default: a temporary folder)')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(args.folder or temporary)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', 'vild_jax', 'score', '--protocol', args.protocol]
    ours = lambda truth, results: measured([*command, '--annotations', str(truth), '--results', str(results)])
    truth, results = folder / f'truth_{args.pictures}.json', folder / f'results_{args.pictures}.json'
    if not truth.is_file():
      write(folder, args.pictures)
    report: dict[str, Any] = {
      'pictures': args.pictures,
      'detections': args.pictures * PER_PICTURE,
      'results_gb': round(results.stat().st_size / 1e9, 2),
      'score': ours(truth, results),
    }
    if args.peer:
      sample = write(folder, args.peer_pictures, seed=1)
      turns = [(measured([args.peer, '-c', PEER, *map(str, sample)]), ours(*sample)) for _ in range(2)]
      theirs, mine = (min(turn[k]['wall'] for turn in turns) for k in (0, 1))
      report['sample'] = {'pictures': args.peer_pictures, 'lvis_api': theirs, 'ours': mine, 'ratio': theirs / mine}
    print(json.dumps(report))


if __name__ == '__main__':
  main()
