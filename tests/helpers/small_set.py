"""A few pictures with LVIS annotations, made in a moment: the common input of the tests of preparation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZES = {11: (40, 60), 5: (33, 21), 7: (64, 64), 300: (20, 30)}  # image id -> height, width


def annotations(categories: list[dict[str, Any]] | None = None) -> dict[str, Any]:
  """LVIS-format: no file_name, a coco_url, federated lists; image 300 has no annotations."""
  categories = categories or [
    {'id': 3, 'name': 'red mug', 'frequency': 'f', 'synset': 'mug.n.01', 'synonyms': ['mug', 'red_mug'], 'def': 'x'},
    {'id': 1, 'name': 'ant', 'frequency': 'r', 'synset': 'ant.n.01', 'synonyms': ['ant']},
    {'id': 8, 'name': 'tree', 'frequency': 'c', 'synset': 'tree.n.01', 'synonyms': ['tree']},
  ]
  shapes = [  # annotation id, image, category, polygons
    (21, 11, 3, [[5.25, 4.5, 30.75, 4.5, 30.75, 22.25, 5.25, 22.25]]),
    (20, 11, 8, [[40.0, 10.0, 55.5, 10.5, 47.0, 35.5], [2.0, 30.0, 12.0, 30.0, 12.0, 38.5, 2.0, 38.5]]),
    (4, 5, 1, [[3.0, 3.0, 18.9, 4.2, 15.0, 30.1, 6.0, 28.0]]),
    (9, 7, 8, [[10.1, 10.2, 50.3, 10.4, 50.5, 60.6, 10.7, 60.8]]),
  ]
  return {
    'info': {'description': 'small set', 'year': 2020},
    'categories': categories,
    'images': [
      {
        'id': key,
        'height': h,
        'width': w,
        'coco_url': f'http://images/train2017/{key:012d}.jpg',
        'neg_category_ids': [3] if key == 5 else [],
        'not_exhaustive_category_ids': [8] if key == 7 else [],
      }
      for key, (h, w) in SIZES.items()
    ],
    'annotations': [_annotation(*shape) for shape in shapes],
  }


def _annotation(key: int, image: int, category: int, polygons: list[list[float]]) -> dict[str, Any]:
  points = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
  (x1, y1), (x2, y2) = points.min(0), points.max(0)
  area = round(sum(cv2.contourArea(np.reshape(p, (-1, 2)).astype(np.float32)) for p in polygons), 2)
  return {
    'id': key,
    'image_id': image,
    'category_id': category,
    'bbox': [x1, y1, x2 - x1, y2 - y1],
    'area': area,
    'segmentation': polygons,
  }


def picture(height: int, width: int, *, seed: int = 0, kind: str = '.jpg') -> bytes:
  pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
  return cv2.imencode(kind, pixels)[1].tobytes()


def many(folder: Path, widths: Sequence[int]) -> tuple[dict[str, Any], Path]:
  """Writes pictures 0, 1, ... of height 48 with these widths; returns annotations without objects, and their folder."""
  images = folder / 'images'
  images.mkdir()
  tree = {**annotations(), 'annotations': [], 'images': []}
  for i, width in enumerate(widths):
    (images / f'{i}.jpg').write_bytes(picture(48, width, seed=i))
    lists = {'neg_category_ids': [], 'not_exhaustive_category_ids': []}
    tree['images'].append({'id': i, 'height': 48, 'width': width, 'file_name': f'{i}.jpg', **lists})
  return tree, images


def write(folder: Path, tree: dict[str, Any] | None = None, *, stem: str = 'small_train') -> tuple[Path, Path]:
  """Writes the annotations and, under train2017/, the pictures; returns both paths."""
  tree = annotations() if tree is None else tree
  images = folder / 'images'
  (images / 'train2017').mkdir(parents=True, exist_ok=True)
  for key, (height, width) in SIZES.items():
    (images / 'train2017' / f'{key:012d}.jpg').write_bytes(picture(height, width, seed=key))
  path = folder / f'{stem}.json'
  path.write_text(json.dumps(tree), encoding='utf-8')
  return path, images
