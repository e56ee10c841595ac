"""Measures how many training pictures per second the input pipeline delivers, and the time of each stage.

Runs on a data set of `vild-jax prepare` and prints one JSON line: images per second of `train_batches`, milliseconds of
one core for each stage of a picture (scale 1, the given square), and for comparison the time of the bilinear resize of
PIL and OpenCV for the same picture. Those two follow other conventions (half-pixel centres; PIL also smooths), so they
show the possible speed but cannot replace ours. Example:

  python benchmarks/input_pipeline.py --data data/photos --split train --workers 0
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vild_jax.config import Config, Data
from vild_jax.data import batch, rle, sources, transforms
from vild_jax.data import pictures as pictures_lib


def milliseconds(function: Callable, items: list, repeats: int = 3) -> float:
  """Returns the CPU time of one call, which other load hardly changes: mean over items, best of `repeats` passes."""
  passes = []
  for _ in range(repeats):
    start = time.thread_time()
    for item in items:
      function(*item)
    passes.append((time.thread_time() - start) / len(items))
  return round(1e3 * min(passes), 2)


def with_pil(image: np.ndarray, size: int) -> np.ndarray:
  height, width = np.round(np.array(image.shape[:2]) * size / max(image.shape)).astype(int)
  return pad(np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)), size)


def with_opencv(image: np.ndarray, size: int) -> np.ndarray:
  height, width = np.round(np.array(image.shape[:2]) * size / max(image.shape)).astype(int)
  return pad(cv2.resize(image, (int(width), int(height)), interpolation=cv2.INTER_LINEAR), size)


def pad(image: np.ndarray, size: int) -> np.ndarray:
  square = np.zeros((size, size, 3), np.float32)
  square[: image.shape[0], : image.shape[1]] = transforms.normalize(image)
  return square


def stages(dataset: sources.PreparedDataset, size: int, pictures: int) -> dict[str, float]:
  examples = [dataset[i] for i in range(min(pictures, len(dataset)))]
  images = [(pictures_lib.decode(e.image), size) for e in examples]
  segmented = [(s, e.height, e.width) for e in examples for s in e.objects.segmentations]
  masks = [
    (rle.decode_mask(*s), b) for s, b in zip(segmented, (b for e in examples for b in e.objects.boxes), strict=True)
  ]
  objects = len(segmented) / len(examples)
  per_object = {
    'rasterise masks': milliseconds(rle.decode_mask, segmented),
    'crop masks': milliseconds(transforms.crop_mask, masks),
  }
  return {
    'objects': round(objects, 1),
    'read': milliseconds(dataset.__getitem__, [(i,) for i in range(len(examples))]),
    'decode': milliseconds(pictures_lib.decode, [(e.image,) for e in examples]),
    'resize': milliseconds(transforms.resize_and_pad, images),
    **{name: round(objects * value, 2) for name, value in per_object.items()},
    'resize with PIL': milliseconds(with_pil, images),
    'resize with OpenCV': milliseconds(with_opencv, images),
  }


def throughput(dataset: sources.PreparedDataset, config: Config, batches: int) -> float:
  everything = batch.label_map(dataset.categories, *zip(*((c.name, True) for c in dataset.categories), strict=True))
  stream = batch.train_batches(dataset, everything, config)
  for _ in range(2 + 2 * config.data.workers):  # skips the start and the batches that were made ahead
    next(stream)
  start = time.perf_counter()
  for _ in range(batches):
    next(stream)
  seconds = time.perf_counter() - start
  stream.close()
  return round(batches * config.data.batch_size / seconds, 2)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data', required=True, help='a data set of vild-jax prepare')
  parser.add_argument('--split', default='train')
  parser.add_argument('--image-size', type=int, default=1024)
  parser.add_argument('--batch-size', type=int, default=4)
  parser.add_argument('--batches', type=int, default=20)
  parser.add_argument('--workers', type=int, default=0)
  parser.add_argument('--pictures', type=int, default=32, help='number of pictures for the times of the stages')
  parser.add_argument('--json', type=Path, help='also write the line to this file')
  args = parser.parse_args()
  cv2.setNumThreads(1)
  dataset = sources.open_dataset(args.data, args.split)
  data = Data(image_size=args.image_size, batch_size=args.batch_size, workers=args.workers)
  times = stages(dataset, args.image_size, args.pictures)
  line = json.dumps(
    {
      'benchmark': 'input_pipeline',
      'image_size': args.image_size,
      'workers': args.workers,
      'images_per_second': throughput(dataset, Config(data=data), args.batches),
      'objects_per_image': times.pop('objects'),
      'cpu_milliseconds': times,
    }
  )
  print(line)
  if args.json:
    args.json.write_text(line + '\n')


if __name__ == '__main__':
  main()
