"""Random small ground truth and results, with everything that makes protocols differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from vild_jax.data import rle

SIDE = 60


def case(seed: int, *, first_id: int = 1, crowds: bool = True) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """LVIS-format ground truth and results for a few pictures.

  There are ties of scores, empty pictures, classes that their picture does not list, lists that are not exhaustive,
  crowds, and detections of all sizes.
  """
  rng = np.random.default_rng(seed)
  pictures, classes = int(rng.integers(1, 6)), int(rng.integers(1, 5))
  ids = first_id + rng.permutation(pictures)
  images, annotations, results = [], [], []
  for image_id in ids.tolist():
    objects = int(rng.integers(0, 5))
    of_picture = [_thing(rng, image_id, classes) for _ in range(objects)]
    for thing in of_picture:
      annotations.append({**thing, 'id': len(annotations) + 1, 'iscrowd': int(rng.random() < 0.1 and crowds)})
    shown = {thing['category_id'] for thing in of_picture}
    negative = [k for k in range(1, classes + 1) if k not in shown and rng.random() < 0.5]
    images.append(
      {
        'id': image_id,
        'height': SIDE,
        'width': SIDE,
        'neg_category_ids': negative,
        'not_exhaustive_category_ids': [k for k in sorted(shown) if rng.random() < 0.2],
      }
    )
    for _ in range(int(rng.integers(0, 12))):
      if of_picture and rng.random() < 0.6:  # near an object, perhaps of another class
        thing = dict(of_picture[int(rng.integers(0, objects))])
        if rng.random() < 0.7:
          thing = _moved(rng, thing)
        if rng.random() < 0.2:
          thing['category_id'] = int(rng.integers(1, classes + 1))
      else:
        thing = _thing(rng, image_id, classes)
      results.append({k: v for k, v in thing.items() if k != 'area'} | {'score': round(float(rng.random()), 1)})
  names = [{'id': k, 'name': f'class {k}', 'frequency': 'rcf'[k % 3]} for k in range(1, classes + 1)]
  return {'images': images, 'annotations': annotations, 'categories': names}, results


def _thing(rng: np.random.Generator, image_id: int, classes: int) -> dict[str, Any]:
  h, w = (int(v) for v in rng.integers(3, SIDE // 2 if rng.random() < 0.7 else SIDE, 2))
  y, x = int(rng.integers(0, SIDE - h + 1)), int(rng.integers(0, SIDE - w + 1))
  return _of(image_id, int(rng.integers(1, classes + 1)), y, x, h, w)


def _moved(rng: np.random.Generator, thing: dict[str, Any]) -> dict[str, Any]:
  x, y, w, h = (int(v) for v in thing['bbox'])
  w, h = (max(2, v + int(rng.integers(-2, 3))) for v in (w, h))
  w, h = min(w, SIDE), min(h, SIDE)
  x, y = (int(np.clip(v + rng.integers(-3, 4), 0, SIDE - s)) for v, s in ((x, w), (y, h)))
  return _of(thing['image_id'], thing['category_id'], y, x, h, w)


def _of(image_id: int, category: int, y: int, x: int, h: int, w: int) -> dict[str, Any]:
  """A rectangle without a corner, so that the mask is not the box."""
  mask = np.zeros((SIDE, SIDE), bool)
  mask[y : y + h, x : x + w] = True
  mask[y : y + h // 3, x : x + w // 3] = False
  return {
    'image_id': image_id,
    'category_id': category,
    'bbox': [float(x), float(y), float(w), float(h)],
    'area': float(mask.sum()),
    'segmentation': rle.encode_mask(mask),
  }
