"""Draws the picture of the README: ground truth above detections, of a finished `vild-jax demo`. Prints one JSON line.

The pictures are the first of the validation split with a novel object and at most `--objects` objects, whatever the
detector finds in them. Novel classes carry a star and a dashed box. Example:

  python benchmarks/readme_picture.py --demo workdir/demo --out docs/toy_detections.png
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import vild_jax
from vild_jax.data import sources
from vild_jax.data.schema import Example
from vild_jax.inference import evaluation
from vild_jax.runtime import files

BUNDLES = ('bundle_vild_ensemble', 'bundle_vild', 'bundle')  # the best method that a demo was run with comes first
TITLES = ('ground truth', 'detections')
LIMIT = 300_000  # bytes
COLOURS = (256, 128, 64, 32)  # of the palette: fewer where the file would be too large
GAP, TITLE = 10, 30  # pixels


def bundle_of(demo: Path) -> Path:
  """Returns the folder of the demo's bundle. ValueError if the demo has not exported one."""
  found = [demo / name for name in BUNDLES if (demo / name / 'bundle.json').is_file()]
  if not found:
    raise ValueError(f'{demo} holds no {" or ".join(BUNDLES)}; expected the work directory of a finished demo')
  return found[0]


def chosen(dataset: sources.PreparedDataset, count: int, objects: int) -> list[Example]:
  """Returns the first `count` pictures with a novel object and at most `objects` objects."""
  novel = {category.id for category in dataset.categories if category.frequency == 'r'}
  examples = []
  for i in range(len(dataset)):
    example = dataset[i]
    if len(example.objects.ids) <= objects and novel & set(example.objects.category_ids.tolist()):
      examples.append(example)
      if len(examples) == count:
        return examples
  raise ValueError(f'{dataset.folder} has {len(examples)} such pictures; expected at least {count}')


def sheet(rows: list[list[np.ndarray]], height: int) -> Image.Image:
  """Lays pictures uint8 [H, W, 3] out, a row under each title, each `height` pixels high, on white."""
  fitted = [
    [
      Image.fromarray(p).resize((round(p.shape[1] * height / p.shape[0]), height), Image.Resampling.LANCZOS)
      for p in row
    ]
    for row in rows
  ]
  width = max(sum(picture.width + GAP for picture in row) - GAP for row in fitted)
  page = Image.new('RGB', (width, len(fitted) * (TITLE + height)), 'white')
  pen, font = ImageDraw.Draw(page), ImageFont.load_default(20)
  for number, (title, row) in enumerate(zip(TITLES, fitted, strict=True)):
    x, top = 0, number * (TITLE + height)
    pen.text((2, top + TITLE / 2), title, font=font, fill=(32, 33, 36), anchor='lm')
    for picture in row:
      page.paste(picture, (x, top + TITLE))
      x += picture.width + GAP
  return page


def encoded(page: Image.Image, limit: int = LIMIT) -> bytes:
  """Returns a palette PNG of less than `limit` bytes. ValueError if 32 colours are too many for that."""
  for colours in COLOURS:
    buffer = io.BytesIO()
    page.quantize(colours, dither=Image.Dither.NONE).save(buffer, 'PNG', optimize=True)
    if buffer.tell() < limit:
      return buffer.getvalue()
  raise ValueError(f'the picture has {buffer.tell()} bytes with {colours} colours; expected less than {limit}')


def main() -> None:
  """Draws, writes, and prints what was drawn."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--demo', type=Path, required=True, help='work directory of a finished demo')
  parser.add_argument('--out', type=Path, required=True, help='the PNG file')
  parser.add_argument('--count', type=int, default=3, help='pictures')
  parser.add_argument('--objects', type=int, default=6, help='most objects of a picture')
  parser.add_argument('--height', type=int, default=360, help='pixels of a picture')
  parser.add_argument('--min-score', type=float, default=0.3, help='leaves out detections that score less')
  args = parser.parse_args()
  bundle = bundle_of(args.demo)
  detector, dataset = vild_jax.load(bundle), sources.open_dataset(args.demo / 'data' / 'toy', 'val')
  examples = chosen(dataset, args.count, args.objects)
  pairs = [
    evaluation.drawn_pair(detector, example, dataset, detector.vocabulary, min_score=args.min_score)
    for example in examples
  ]
  content = encoded(sheet([list(row) for row in zip(*pairs, strict=True)], args.height))
  files.write(args.out, content)
  images = [example.image_id for example in examples]
  print(json.dumps({'bundle': bundle.name, 'images': images, 'bytes': len(content), 'out': str(args.out)}))


if __name__ == '__main__':
  main()
