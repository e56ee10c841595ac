"""Measures the stages of `embed-regions`, a plain loop for comparison, and peak memory over the number of pictures.

Takes a folder of pictures and a ViT-B/32 with random weights, draws boxes, and prints one JSON line. The plain loop
crops, resizes (PIL) and normalises (NumPy) one crop after another, then encodes them by the same program in batches of
the same size. `crop_resize` is the time from the decoded picture to the input of the encoder: normalised floats in the
plain loop, bytes in ours, where the program normalises. It is also measured for 300 boxes per picture. `lowest_cosine`
compares the embeddings of the same region by both ways; `cosine_of_others` is the cosine of different regions of one
picture, for comparison. `alone_and_together` are crops per second in batches of --batch-size, of each picture alone and
of all pictures together, in turns. `bfloat16` are the lowest cosines to float32 of the resize in bfloat16 alone and of
resize and tower, on the device, for --rounding pictures. Peak memory is that of processes which embed n and 2 n
pictures, with one region each; --memory 0 leaves it out.

Example:
  python benchmarks/embed_regions.py --photos data/photos --regions 8
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # as the command sets it, before NumPy is imported

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vild_jax.config import defaults
from vild_jax.data import pictures as pictures_lib
from vild_jax.data.regions.records import Job, Regions
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.regions.writer import StoreWriter
from vild_jax.data.schema import Example, Objects
from vild_jax.demo import teacher as toy_teacher
from vild_jax.distill import embed as embed_lib
from vild_jax.nn import clip
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import crops
from vild_jax.teacher import image as image_lib

PREPROCESSOR = {
  'image_processor_type': 'CLIPImageProcessor',
  'size': {'shortest_edge': 224},
  'crop_size': 224,
  'resample': 3,
  'image_mean': [0.48, 0.46, 0.41],
  'image_std': [0.27, 0.26, 0.28],
}
NOTHING = Objects(
  np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, bool), ()
)


MANY, EVERY = 300, 8  # boxes per picture, on every EVERY-th picture, to time crops and resizes alone


class Pictures:
  """Presents a folder of pictures as a data set for `embed_regions`; with a larger `count` the pictures repeat."""

  identity, split = 'pictures', 'all'

  def __init__(self, folder: Path, count: int | None):
    self.folder = folder
    self.files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    if not self.files:
      raise SystemExit(f'{folder} has no pictures; expected .jpg or .png files')
    self.count = count or len(self.files)

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> Example:
    path = self.files[index % len(self.files)]
    with Image.open(path) as picture:
      width, height = picture.size
    return Example(index, path.read_bytes(), height, width, NOTHING)


def vit_b32() -> teacher_checkpoint.Teacher:
  """Makes a teacher with random weights; its text tower is tiny, because it is not used here."""
  tokenizer = toy_teacher.word_tokenizer(['a'])
  size = len(json.loads(tokenizer)['model']['vocab'])
  config = clip.ClipConfig(
    embedding_dim=512,
    image=clip.Transformer(768, 12, 12, 3072),
    image_size=224,
    patch_size=32,
    text=clip.Transformer(64, 1, 1, 64),
    vocab_size=size,
    context_length=8,
    end_id=size - 1,
  )
  shapes = jax.eval_shape(
    clip.Clip(config).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)), jnp.zeros((1, 8), jnp.int32)
  )['params']
  rng = np.random.default_rng(0)

  def draw(path: Any, leaf: Any) -> np.ndarray:
    noise = rng.standard_normal(leaf.shape, np.float32)
    fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 1
    return 1 + 0.1 * noise if path[-1].key == 'scale' else noise * (0.02 if leaf.ndim < 2 else fan_in**-0.5)

  return teacher_checkpoint.Teacher(config, jax.tree_util.tree_map_with_path(draw, shapes), tokenizer, PREPROCESSOR)


def draw_boxes(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
  """Draws boxes like proposals: as many small ones as large ones, with ratios up to 4."""
  side = np.exp(rng.uniform(np.log(16), np.log(0.9 * min(height, width)), count))
  ratio = np.exp(rng.uniform(-np.log(2), np.log(2), count))
  size = np.minimum(np.stack([side * ratio, side / ratio], axis=1), np.array([height, width]) - 1)
  start = rng.uniform(0, 1, (count, 2)) * (np.array([height, width]) - size)
  return np.concatenate([start, start + size], axis=1).astype(np.float32)


def write_proposals(path: Path, pictures: Pictures, count: int) -> RegionStore:
  rng = np.random.default_rng(1)
  job = Job(
    'proposals',
    dataset=pictures.identity,
    split=pictures.split,
    images=len(pictures),
    max_regions=count,
    images_per_shard=len(pictures),
  )
  with StoreWriter(path, job) as writer:
    examples = (pictures[i] for i in range(len(pictures)))
    scores = np.ones(count, np.float32)
    writer.write(0, ((e.image_id, Regions(draw_boxes(rng, e.height, e.width, count), scores)) for e in examples))
    writer.finish()
  return RegionStore(path)


class Clock:
  """Sums the seconds of each stage."""

  def __init__(self):
    self.seconds: dict[str, float] = {}

  def __call__(self, stage: str, function: Callable, *args: Any) -> Any:
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
    return result

  def rounded(self) -> dict[str, float]:
    return {stage: round(seconds, 2) for stage, seconds in self.seconds.items()}


def plain_pixels(preprocess: image_lib.Preprocessing, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  picture = Image.fromarray(image)
  return np.stack(
    [
      preprocess(picture.crop((left, top, right, bottom)))
      for top, left, bottom, right in crops.crop_bounds(boxes, *image.shape[:2]).reshape(-1, 4).tolist()
    ]
  )


def summed(rows: np.ndarray) -> np.ndarray:
  total = rows[: len(rows) // 2] + rows[len(rows) // 2 :]
  return total / np.linalg.norm(total, axis=1, keepdims=True)


def compare(folder: Path, scratch: Path, count: int | None, regions: int) -> dict[str, Any]:
  pictures, teacher = Pictures(folder, count), vit_b32()
  proposals = write_proposals(scratch / 'proposals', pictures, regions)
  batch = 2 * regions
  tower = crops.CropTower(teacher, batch_size=batch)
  preprocess = image_lib.parse_preprocessing(PREPROCESSOR, 224)
  params = jax.device_put(teacher.params['image'])
  rows_of = image_lib.unit_rows(teacher.config, jnp.float32)
  factor, mean, std = (np.array(v, np.float32) for v in (preprocess.factor, preprocess.mean, preprocess.std))
  encode = jax.jit(rows_of)
  encode_bytes = jax.jit(lambda params, squares: rows_of(params, (squares.astype(jnp.float32) * factor - mean) / std))

  first = pictures_lib.decode(pictures[0].image)
  encode(params, plain_pixels(preprocess, first, proposals[0].boxes))  # compiles
  encode_bytes(params, tower.pixels(first, proposals[0].boxes))
  tower.embed(first, proposals[0].boxes)
  plain, ours, plain_rows = Clock(), Clock(), []
  plain_many, ours_many, rng = Clock(), Clock(), np.random.default_rng(2)
  for i in range(len(pictures)):
    image = plain('read', lambda i=i: pictures_lib.decode(pictures[i].image))
    pixels = plain('crop_resize', plain_pixels, preprocess, image, proposals[i].boxes)
    plain_rows.append(summed(np.asarray(plain('encode', encode, params, pixels))))
    pixels = ours('crop_resize', tower.pixels, image, proposals[i].boxes)  # now, so that both have the same machine
    ours('encode', encode_bytes, params, pixels)
    if i % EVERY == 0:
      many = draw_boxes(rng, *image.shape[:2], MANY)
      plain_many('crop_resize', plain_pixels, preprocess, image, many)
      ours_many('crop_resize', tower.pixels, image, many)
  start = time.perf_counter()
  made = embed_lib.embed_regions(teacher, pictures, proposals, scratch / 'store', max_regions=regions, batch_size=batch)
  total = time.perf_counter() - start
  store = RegionStore(scratch / 'store')
  rows = [store[i].embeddings.astype(np.float32) for i in range(len(pictures))]
  cosine = [(a * b).sum(axis=1) / np.linalg.norm(b, axis=1) for a, b in zip(plain_rows, rows, strict=True)]
  others = [(a[1:] * a[:-1]).sum(axis=1) for a in plain_rows]
  ours.seconds['read'] = plain.seconds['read']
  return {
    'pictures': len(pictures),
    'crops': made['crops'],
    'plain': plain.rounded(),
    'stages': ours.rounded(),
    'plain_total': round(sum(plain.seconds.values()), 2),
    'embed_regions_total': round(total, 2),
    'crop_resize_times_faster': round(plain.seconds['crop_resize'] / ours.seconds['crop_resize'], 2),
    f'crop_resize_of_{MANY}_times_faster': round(
      plain_many.seconds['crop_resize'] / ours_many.seconds['crop_resize'], 2
    ),
    f'crop_resize_of_{MANY}_ms_a_crop': [
      round(1e3 * clock.seconds['crop_resize'] / (2 * MANY * len(range(0, len(pictures), EVERY))), 3)
      for clock in (plain_many, ours_many)
    ],
    'times_faster_overall': round(sum(plain.seconds.values()) / total, 2),
    'images_per_second': round(len(pictures) / total, 2),
    'crops_per_second': round(made['crops'] / total, 1),
    'bytes': made['bytes'],
    'lowest_cosine': float(np.concatenate(cosine).min()),
    'cosine_of_others': round(float(np.concatenate(others).mean()), 4),
  }


def alone_and_together(teacher: Any, pictures: Pictures, proposals: RegionStore, batch: int) -> list[list[float]]:
  """Returns crops per second of both ways, in two turns: [[alone, together], [alone, together]]."""
  tower = crops.CropTower(teacher, batch_size=batch)
  plans = [tower.plan(pictures_lib.decode(pictures[i].image), proposals[i].boxes) for i in range(len(pictures))]
  list(tower.embed_many([[(None, plans[0])]]))  # compiles
  found = []
  for _ in range(2):
    found.append([])
    for groups in ([[[(None, plan)]] for plan in plans], [[[(None, plan) for plan in plans]]]):
      start = time.perf_counter()
      for group in groups:
        list(tower.embed_many(group))
      found[-1].append(round(sum(len(plan.bounds) for plan in plans) / (time.perf_counter() - start), 2))
  return found


def bfloat16_cosines(teacher: Any, pictures: Pictures, proposals: RegionStore, count: int) -> dict[str, float]:
  """Returns the lowest cosine to float32 of the resize in bfloat16 and of all in bfloat16, for `count` pictures."""
  boxes = [proposals[i].boxes for i in range(count)]
  exact, rough = (
    crops.CropTower(teacher, dtype, on_device=True, batch_size=2 * len(boxes[0]))
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  preprocess = image_lib.parse_preprocessing(PREPROCESSOR, 224)
  encode = image_lib.ImageTower(teacher, batch_size=2 * len(boxes[0])).embed_pixels
  lowest = {'resize': 1.0, 'resize_and_tower': 1.0}
  for i in range(count):
    image = pictures_lib.decode(pictures[i].image)
    bytes_of = (tower.pixels(image, boxes[i]) for tower in (exact, rough))
    rows, resized = (
      summed(encode((b * np.float32(preprocess.factor) - np.float32(preprocess.mean)) / np.float32(preprocess.std)))
      for b in bytes_of
    )
    for key, other in (('resize', resized), ('resize_and_tower', rough.embed(image, boxes[i]))):
      lowest[key] = min(lowest[key], float((rows * other).sum(axis=1).min()))
  return lowest


def peak_memory(folder: Path, count: int) -> float:
  """Returns the peak memory, in MB, of a process that embeds `count` pictures."""
  words = [sys.executable, __file__, '--photos', str(folder), '--memory-of', str(count)]
  return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--photos', type=Path, required=True, help='a folder of pictures')
  parser.add_argument('--pictures', type=int, help='number of pictures to use (default: all)')
  parser.add_argument('--regions', type=int, default=8, help='boxes per picture')
  parser.add_argument('--batch-size', type=int, default=defaults.CROP_BATCH, help='of `alone_and_together`')
  parser.add_argument('--rounding', type=int, default=2, help='pictures for `bfloat16`')
  parser.add_argument('--memory', type=int, default=60, metavar='N', help='measure peak memory with N and 2 N pictures')
  parser.add_argument('--memory-of', type=int, help=argparse.SUPPRESS)
  parser.add_argument('--json', type=Path, help='also write the line to this file')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as scratch:
    if args.memory_of:
      pictures = Pictures(args.photos, args.memory_of)
      proposals = write_proposals(Path(scratch) / 'proposals', pictures, 1)
      embed_lib.embed_regions(vit_b32(), pictures, proposals, Path(scratch) / 'store', batch_size=2)
      print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1))
      return
    found = compare(args.photos, Path(scratch), args.pictures, args.regions)
    of = vit_b32(), Pictures(args.photos, args.pictures), RegionStore(Path(scratch) / 'proposals')
    found['alone_and_together'] = alone_and_together(*of, args.batch_size)
    found['bfloat16'] = bfloat16_cosines(*of, args.rounding)
  memory = {str(n): peak_memory(args.photos, n) for n in (args.memory, 2 * args.memory) if n}
  line = json.dumps(
    {
      'benchmark': 'embed_regions',
      'device': jax.devices()[0].device_kind,
      'regions': args.regions,
      **found,
      'peak_memory_mb': memory,
    }
  )
  print(line)
  if args.json:
    args.json.write_text(line + '\n')


if __name__ == '__main__':
  main()
