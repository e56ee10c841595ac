"""Examples made up for the tests of batches: pictures, their objects, and a small config."""

from __future__ import annotations

import dataclasses
import io
import itertools

import numpy as np
from PIL import Image

from vild_jax.config import Config, Data
from vild_jax.data.schema import Category, Example, Objects

CATEGORIES = (Category(3, 'red_ball', 'f'), Category(5, 'ball (red)', 'c'), Category(9, 'zebra', 'r'))
NAMES = ['ball (red)', 'kite', 'zebra', 'red_ball']
IS_BASE = [True, True, False, True]
TINY = Data(image_size=64, max_instances=4, batch_size=4, workers=0)


def objects(*entries: tuple) -> Objects:
  """Entries are (category id, box yxyx, crowd or not), optionally with an RLE or polygons as the fourth."""
  boxes = np.array([e[1] for e in entries], np.float32).reshape(-1, 4)
  polygons = [[[x1, y1, x2, y1, x2, y2, x1, y2]] for y1, x1, y2, x2 in boxes.tolist()]
  return Objects(
    ids=np.arange(len(entries)),
    category_ids=np.array([e[0] for e in entries], np.int64),
    boxes=boxes,
    areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float64),
    is_crowd=np.array([e[2] for e in entries], bool),
    segmentations=tuple(e[3] if len(e) > 3 else p for e, p in zip(entries, polygons, strict=True)),
  )


def example(image: np.ndarray, found: Objects, image_id: int = 1) -> Example:
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'PNG')
  return Example(image_id, buffer.getvalue(), image.shape[0], image.shape[1], found)


def examples(count: int) -> list[Example]:
  rng = np.random.default_rng(0)
  shapes = [(20 + 3 * i, 45 - 2 * i) for i in range(count)]
  return [
    example(rng.integers(0, 256, (*shape, 3), np.uint8), objects((3, (2, 3, 15, 11 + i), False)), 100 + i)
    for i, shape in enumerate(shapes)
  ]


def configured(**data) -> Config:
  return Config(seed=7, data=dataclasses.replace(TINY, **data))


def take(stream, count: int) -> list[dict[str, np.ndarray]]:
  result = list(itertools.islice(stream, count))
  stream.close()
  return result


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
  return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a)
