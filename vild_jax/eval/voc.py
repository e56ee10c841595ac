"""Scores by the PASCAL VOC protocol: AP at IoU 0.5 and 0.75, by the area under the curve and by eleven points.

A detection belongs to the object that it overlaps most; if a better one has taken that object already, it is wrong.
Difficult objects (`difficult`, `ignore` or `iscrowd` in the annotations) count neither way. The devkit adds one pixel
to the sides of its boxes; here the width of a box is the number of its pixels, which is the same.
"""

from __future__ import annotations

from typing import Any

import hotcoco
import numpy as np

from vild_jax.eval import scoring
from vild_jax.eval.found import Found
from vild_jax.eval.truth import Split, Truth

THRESHOLDS = (0.5, 0.75)


def score(truth: Truth, found: Found, base: Split | None = None) -> dict[str, Any]:
  """Returns the box metrics, fractions: AP50, AP75 (area), AP50_11point, AP75_11point; of base and novel: AP50.

  They are means over the categories that have objects which are not difficult; None if there is none. 'per_category'
  has rows of id, name, base, instances and the four numbers.
  """
  place = {int(key): k for k, key in enumerate(truth.category_ids)}
  image = {int(key): i for i, key in enumerate(truth.image_ids)}
  objects: list[dict[int, list[tuple[list[float], bool]]]] = [{} for _ in truth.categories]
  for annotation in truth.annotations:
    difficult = any(annotation.get(key) for key in ('difficult', 'ignore', 'iscrowd'))
    of_class = objects[place[annotation['category_id']]]
    of_class.setdefault(image[annotation['image_id']], []).append((annotation['bbox'], difficult))
  rows = []
  order = np.argsort(found.category, kind='stable')
  bounds = np.searchsorted(found.category[order], np.arange(len(objects) + 1))
  for k, of_class in enumerate(objects):
    mine = found.take(order[bounds[k] : bounds[k + 1]])
    count = sum(not difficult for of_one in of_class.values() for _, difficult in of_one)
    key = int(truth.category_ids[k])
    row: dict[str, Any] = {
      'id': key,
      'name': truth.categories[k]['name'],
      'base': None if base is None or key not in base.base | base.novel else key in base.base,
      'instances': count,
    }
    for threshold in THRESHOLDS:
      name = f'box_AP{100 * threshold:.0f}'
      right, wrong = _matched(of_class, mine, threshold)
      row[name] = row[f'{name}_11point'] = None
      if count:
        recall, precision = np.cumsum(right) / count, np.cumsum(right) / np.maximum(np.cumsum(right | wrong), 1)
        row[name], row[f'{name}_11point'] = area(recall, precision), eleven_points(recall, precision)
    rows.append(row)
  mean = lambda key, keep=lambda _: True: scoring.mean(
    np.array([row[f'box_{key}'] for row in rows if keep(row)], float)
  )
  metrics = {key: mean(key) for key in ('AP50', 'AP75', 'AP50_11point', 'AP75_11point')}
  metrics['AP50_base'] = mean('AP50', lambda row: row['base'] is True)
  metrics['AP50_novel'] = mean('AP50', lambda row: row['base'] is False)
  return {'box': metrics, 'mask': None, 'per_category': rows}


def area(recall: np.ndarray, precision: np.ndarray) -> float:
  """Returns the area under the curve, with the precision made to fall: VOC 2010 and later.

  Both arrays [N] are in the order of falling scores.
  """
  recall = np.concatenate([[0.0], recall, [1.0]])
  falling = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
  return float(np.sum(np.diff(recall) * falling[1:]))


def eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
  """Returns the mean of the highest precision at recalls of at least 0, 0.1, ..., 1: VOC 2007."""
  points = [precision[recall >= least].max(initial=0.0) for least in np.arange(11) / 10]
  return float(np.mean(points))


def _matched(
  objects: dict[int, list[tuple[list[float], bool]]], found: Found, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
  """Says of the detections of a class, best first, which are right and which are wrong; some are neither."""
  order = np.argsort(-found.score, kind='stable')
  right, wrong = np.zeros(len(order), bool), np.zeros(len(order), bool)
  taken = {i: np.zeros(len(of_one), bool) for i, of_one in objects.items()}
  boxes = {i: np.array([box for box, _ in of_one], np.float64) for i, of_one in objects.items()}
  for n, row in enumerate(order):
    i = int(found.image[row])
    overlaps = (
      hotcoco.mask.bbox_iou(found.boxes[[row]], boxes[i], [0] * len(boxes[i]))[0] if i in objects else np.zeros(1)
    )
    best = int(overlaps.argmax())
    if i not in objects or overlaps[best] < threshold:
      wrong[n] = True
    elif not objects[i][best][1]:
      right[n], wrong[n] = not taken[i][best], taken[i][best]
      taken[i][best] = True
  return right, wrong
