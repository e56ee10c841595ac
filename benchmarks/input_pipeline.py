"""Measures how many training pictures a core of the host prepares, by stage, and the bytes of a picture.

Runs on a data set of `vild-jax prepare` with regions to distil that are made up, and prints one JSON line for each type
of `data.transfer`: milliseconds of a core for each stage of a picture, at the sizes that the jitter of training draws;
for each number of workers, how many pictures `train_batches` delivers for a second of processor time, of this process
and its workers together, and for a second of the clock; and the bytes of a picture that go to the devices. Processor
time hardly depends on what else the machine does. Example:

  OMP_NUM_THREADS=1 python benchmarks/input_pipeline.py --data data/photos --workers 0 1 2
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from vild_jax.config import Config, Data, Distillation
from vild_jax.data import batch, rle, sources, transforms
from vild_jax.data import pictures as pictures_lib
from vild_jax.data.regions import targets
from vild_jax.data.regions.records import EMBEDDINGS, Job, Regions
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.regions.writer import StoreWriter


def milliseconds(function: Callable, items: list[tuple], repeats: int = 3) -> float:
  """Returns the CPU time of one call: mean over items, best of `repeats` passes."""
  passes = []
  for _ in range(repeats):
    start = time.thread_time()
    for item in items:
      function(*item)
    passes.append((time.thread_time() - start) / len(items))
  return 1e3 * min(passes)


def cpu_seconds() -> float:
  """Returns the processor time of this process and its workers so far."""
  total = time.process_time()
  for worker in multiprocessing.active_children():
    fields = Path(f'/proc/{worker.pid}/stat').read_text().rpartition(')')[2].split()
    total += (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
  return total


def made_up_regions(folder: Path, dataset: sources.PreparedDataset, config: Config) -> RegionStore:
  """Writes a region store with boxes and embeddings at random."""
  rng, count, dim = np.random.default_rng(0), config.distillation.regions_per_image, config.model.embedding_dim

  def of(example) -> Regions:
    corners = np.sort(rng.random((count, 2, 2)), axis=1) * (example.height, example.width)
    scores = np.linspace(1, 0, count, dtype=np.float32)
    return Regions(
      corners.reshape(count, 4).astype(np.float32), scores, rng.normal(size=(count, dim)).astype(np.float16)
    )

  job = Job(
    EMBEDDINGS,
    dataset=dataset.identity,
    split=dataset.split,
    images=len(dataset),
    max_regions=count,
    teacher='none',
    image_teacher='none',
    embedding_dim=dim,
    proposals='none',
  )
  with StoreWriter(folder, job) as writer:
    for shard in writer.missing():
      writer.write(shard, ((dataset[i].image_id, of(dataset[i])) for i in job.examples(shard)))
    writer.finish()
  return RegionStore(folder)


def stages(
  dataset: sources.PreparedDataset, labels: batch.LabelMap, config: Config, regions: RegionStore, pictures: int
) -> dict[str, float]:
  """Returns milliseconds of a core for each stage of a picture, and the number of objects of one."""
  data, small = config.data, config.data.transfer == 'uint8'
  examples = [dataset[i % len(dataset)] for i in range(pictures)]
  draws = [transforms.draw_augmentation(np.random.default_rng(i), data.scale_range, data.flip) for i in range(pictures)]
  images = [pictures_lib.decode_example(e) for e in examples]

  def resize(image: np.ndarray, draw: transforms.Augmentation) -> transforms.ResizedImage:
    image = transforms.flip_image(image) if draw.flip else image
    options = {'scale': draw.scale, 'offset_draw': draw.offset_draw, 'normalized': not small}
    return transforms.resize_and_pad(image, data.image_size, **options)

  resized = list(map(resize, images, draws))

  def distil(index: int) -> None:
    draw = targets.draw_of(regions, config.distillation, examples[index].image_id, 0, index)
    dtype = np.float16 if small else np.float32
    targets.region_targets(draw, examples[index].width, draws[index].flip, resized[index], dtype)

  def whole(index: int) -> None:
    batch.stream_example(index, dataset[index % len(dataset)], labels=labels, config=config, regions=regions)

  segmented = [(s, e.height, e.width) for e in examples for s in e.objects.segmentations if s]
  boxes = [b for e in examples for b, s in zip(e.objects.boxes, e.objects.segmentations, strict=True) if s]
  masks = [(rle.decode_mask(*s), box) for s, box in zip(segmented, boxes, strict=True)]
  crop = transforms.mask_bits if small else lambda *of: np.round(255 * transforms.crop_mask(*of))
  objects = len(segmented) / pictures
  times = {
    'objects': objects,
    'read': milliseconds(dataset.__getitem__, [(i % len(dataset),) for i in range(pictures)]),
    'decode': milliseconds(lambda example: pictures_lib.decode_example(example, fast=small), [(e,) for e in examples]),
    'flip and resize': milliseconds(resize, list(zip(images, draws, strict=True))),
    'rasterise masks': objects * milliseconds(rle.decode_mask, segmented),
    'crop masks': objects * milliseconds(crop, masks),
    'regions': milliseconds(distil, [(i,) for i in range(pictures)]),
    'whole example': milliseconds(whole, [(i,) for i in range(pictures)]),
  }
  return {name: round(value, 2) for name, value in times.items()}


def throughput(
  dataset: sources.PreparedDataset, labels: batch.LabelMap, config: Config, regions: RegionStore, batches: int
) -> dict[str, float]:
  """Returns pictures for a second of processor time and of the clock, and the bytes of one."""
  stream = batch.train_batches(dataset, labels, config, regions=regions)
  for _ in range(2 + 2 * config.data.workers):  # skips the start and the batches that were made ahead
    arrays = next(stream)
  start, cpu = time.perf_counter(), cpu_seconds()
  for _ in range(batches):
    arrays = next(stream)
  cpu, seconds = cpu_seconds() - cpu, time.perf_counter() - start
  stream.close()
  count = batches * config.data.batch_size
  return {
    'pictures_a_core': round(count / cpu, 1),
    'pictures_per_second': round(count / seconds, 1),
    'bytes_a_picture': _bytes(arrays) // config.data.batch_size,
  }


def _bytes(arrays: dict) -> int:
  return sum(_bytes(value) if isinstance(value, dict) else value.nbytes for value in arrays.values())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--data', required=True, help='a data set of vild-jax prepare')
  parser.add_argument('--split', default='train')
  parser.add_argument('--image-size', type=int, default=1024)
  parser.add_argument('--batch-size', type=int, default=4)
  parser.add_argument('--batches', type=int, default=20)
  parser.add_argument(
    '--workers', type=int, nargs='+', default=[0], help='numbers of worker processes, one after another'
  )
  parser.add_argument('--transfer', nargs='+', default=['float32', 'uint8'], help='types of data.transfer')
  parser.add_argument('--pictures', type=int, default=64, help='number of pictures for the times of the stages')
  parser.add_argument('--json', type=Path, help='also write the lines to this file')
  args = parser.parse_args()
  cv2.setNumThreads(1)
  dataset = sources.open_dataset(args.data, args.split)
  labels = batch.label_map(dataset.categories, *zip(*((c.name, True) for c in dataset.categories), strict=True))
  data = Data(image_size=args.image_size, batch_size=args.batch_size)
  config = Config(data=data, distillation=Distillation(weight=1.0))
  lines = []
  with tempfile.TemporaryDirectory() as folder:
    regions = made_up_regions(Path(folder) / 'regions', dataset, config)
    for transfer in args.transfer:
      of = lambda workers, transfer=transfer: dataclasses.replace(
        config, data=dataclasses.replace(data, transfer=transfer, workers=workers)
      )
      times = stages(dataset, labels, of(0), regions, args.pictures)
      result = {
        'benchmark': 'input_pipeline',
        'transfer': transfer,
        'image_size': args.image_size,
        'objects_a_picture': times.pop('objects'),
        'cpu_milliseconds': times,
        'by_workers': {n: throughput(dataset, labels, of(n), regions, args.batches) for n in args.workers},
      }
      lines.append(json.dumps(result))
      print(lines[-1], flush=True)
  if args.json:
    args.json.write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main()
