"""Computes average precision from results and ground truth, by faster-coco-eval, for the protocols lvis and coco.

Everything is keyed by id, because names may repeat once they are cleaned. Metrics are fractions; a metric over no
category is None. The ground truth is LVIS- or COCO-format JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from vild_jax.data.schema import DataError
from vild_jax.eval import results as results_lib

Metrics = dict[str, Any]
_AREAS = ('all', 'small', 'medium', 'large')


def read(
  ground_truth: dict | str | Path, results: list[results_lib.Result] | str | Path
) -> tuple[dict[str, Any], list[results_lib.Result]]:
  """Reads and checks ground truth and the results that belong to it.

  Raises:
    DataError: if a file is not JSON, a field is missing, or a picture or category is unknown; it names the first one.
  """
  truth = _read_ground_truth(ground_truth)
  sizes = {image['id']: (image['height'], image['width']) for image in truth['images']}
  return truth, results_lib.read_results(results, sizes, {category['id'] for category in truth['categories']})


def _read_ground_truth(source: dict | str | Path) -> dict[str, Any]:
  """Reads LVIS- or COCO-format JSON and numbers annotations 1, 2, ...: files repeat ids, the evaluator misreads 0."""
  tree = results_lib.read_json(source, 'LVIS- or COCO-format ground truth')
  name = source if isinstance(source, str | Path) else 'the ground truth'
  fields = {
    'images': {'id', 'height', 'width'},
    'categories': {'id', 'name'},
    'annotations': {'image_id', 'category_id', 'bbox', 'area'},
  }
  for key, expected in fields.items():
    if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
      raise DataError(f'{name} has no list {key!r}; expected LVIS- or COCO-format ground truth')
    for i, entry in enumerate(tree[key]):
      missing = expected - entry.keys()
      if missing:
        raise DataError(f'{name}, {key}[{i}]: no {min(missing)!r}; expected {", ".join(sorted(expected))}')
  image_ids = {image['id'] for image in tree['images']}
  category_ids = {category['id'] for category in tree['categories']}
  annotations = []
  for i, annotation in enumerate(tree['annotations']):
    for key, known in (('image_id', image_ids), ('category_id', category_ids)):
      if annotation[key] not in known:
        raise DataError(f'{name}, annotations[{i}]: {key} {annotation[key]!r} is unknown; expected one of {len(known)}')
    annotations.append({**annotation, 'id': i + 1})
  return {'images': tree['images'], 'annotations': annotations, 'categories': tree['categories']}


def score(
  ground_truth: dict[str, Any],
  results: list[results_lib.Result],
  *,
  federated: bool,
  max_detections: int,
  base_category_ids: Collection[int] | None,
  min_area: float,
  min_instances: int,
) -> Metrics:
  """Scores checked results against checked ground truth.

  Args:
    ground_truth: from `read`.
    results: from `read`.
    federated: score a category only in pictures known to contain it or to lack it (LVIS).
    max_detections: for each picture and category.
    base_category_ids: None means all that are not rare, if the categories have a frequency.
    min_area: smaller ground truth (square pixels) is ignored, and so are smaller detections that match nothing.
    min_instances: categories with fewer instances (of at least `min_area`, without crowds) are left out of averages.

  Returns:
    'images' and 'detections': their numbers; 'box' and 'mask' (None if a detection or an object, crowds included, has
    none): AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AP_base, AP_novel, AP50_base, AP50_novel; 'per_category': rows
    of id, name, frequency, base, instances, box_AP, box_AP50, mask_AP, mask_AP50; 'curves': {'recall' [101], 'box'
    [101], 'mask' [101]}, the precision at IoU 0.5, averaged over categories.

  Raises:
    DataError: if a base category is unknown.
  """
  categories = sorted(ground_truth['categories'], key=lambda category: category['id'])
  frequencies = np.array([category.get('frequency', '') for category in categories])
  is_base = _base(categories, frequencies, base_category_ids)
  counts = Counter(
    annotation['category_id']
    for annotation in ground_truth['annotations']
    if not annotation.get('iscrowd', 0) and annotation['area'] >= min_area
  )
  instances = np.array([counts[category['id']] for category in categories], int)
  counted = instances >= min_instances
  rows = [
    {
      'id': category['id'],
      'name': category['name'],
      'frequency': str(frequency),
      'base': None if is_base is None else bool(is_base[k]),
      'instances': int(instances[k]),
    }
    for k, (category, frequency) in enumerate(zip(categories, frequencies, strict=True))
  ]
  metrics: Metrics = {
    'images': len(ground_truth['images']),
    'detections': len(results),
    'per_category': rows,
    'curves': {'recall': np.linspace(0, 1, 101).tolist()},
  }
  for kind, key in (('box', 'bbox'), ('mask', 'segmentation')):
    # Even one object without a mask makes the result None: it would count as missed, and if it is a crowd, detections
    # inside it would count as wrong.
    if not (
      all(annotation.get(key) for annotation in ground_truth['annotations'])
      and all(result.get(key) is not None for result in results)
    ):
      metrics[kind] = metrics['curves'][kind] = None
      for row in rows:
        row[f'{kind}_AP'] = row[f'{kind}_AP50'] = None
      continue
    table = _precision(ground_truth, results, key, federated, max_detections, min_area)
    metrics[kind] = _summary(table, counted, frequencies, is_base)
    metrics['curves'][kind] = _curve(table[0, :, counted, 0])
    for k, row in enumerate(rows):
      row[f'{kind}_AP'], row[f'{kind}_AP50'] = _mean(table[:, :, k, 0]), _mean(table[0, :, k, 0])
  return metrics


def _base(
  categories: list[dict], frequencies: np.ndarray, base_category_ids: Collection[int] | None
) -> np.ndarray | None:
  """Which categories are base, bool [C]; None if that is not known."""
  if base_category_ids is None:
    return None if (frequencies == '').all() else frequencies != 'r'
  base = {int(category_id) for category_id in base_category_ids}
  unknown = base - {category['id'] for category in categories}
  if unknown:
    raise DataError(f'base category {min(unknown)} is unknown; expected ids among the {len(categories)} categories')
  return np.array([category['id'] in base for category in categories], bool)


def _precision(
  ground_truth: dict[str, Any],
  results: list[results_lib.Result],
  key: str,
  federated: bool,
  max_detections: int,
  min_area: float,
) -> np.ndarray:
  """Precision [10 IoU thresholds, 101 recalls, C, 4 areas]; NaN for a category without ground truth of that area."""
  # The evaluator changes its input, needs a frequency for every category, and uses the area of the box for a mask if a
  # detection has a bbox. So it gets copies with only the keys that it needs.
  keys = ('image_id', 'category_id', 'score', key)
  truth = COCO(
    {
      **ground_truth,
      'annotations': [dict(annotation) for annotation in ground_truth['annotations']],
      'categories': [{**c, 'frequency': c.get('frequency') or 'f'} for c in ground_truth['categories']],
    }
  )
  found = truth.loadRes([{k: result[k] for k in keys} for result in results])
  evaluator = COCOeval_faster(truth, found, 'bbox' if key == 'bbox' else 'segm', lvis_style=federated)
  evaluator.params.maxDets = [max_detections]
  evaluator.params.areaRng[0] = [min_area, 1e10]
  evaluator.evaluate()
  evaluator.accumulate()
  table = np.array(evaluator.eval['precision'])[..., 0]
  return np.where(table < 0, np.nan, table)


def _summary(table: np.ndarray, counted: np.ndarray, frequencies: np.ndarray, is_base: np.ndarray | None) -> Metrics:
  """The metrics of one precision table; all reports have the order of these keys."""
  groups = {group: counted & (frequencies == group[-1]) for group in ('APr', 'APc', 'APf')}
  nowhere = np.zeros_like(counted)
  base, novel = (nowhere, nowhere) if is_base is None else (counted & is_base, counted & ~is_base)
  return {
    'AP': _mean(table[:, :, counted, 0]),
    'AP50': _mean(table[0, :, counted, 0]),
    'AP75': _mean(table[5, :, counted, 0]),
    **{f'AP{area[0]}': _mean(table[:, :, counted, i]) for i, area in enumerate(_AREAS) if i},
    **{name: _mean(table[:, :, group, 0]) for name, group in groups.items()},
    'AP_base': _mean(table[:, :, base, 0]),
    'AP_novel': _mean(table[:, :, novel, 0]),
    'AP50_base': _mean(table[0, :, base, 0]),
    'AP50_novel': _mean(table[0, :, novel, 0]),
  }


def _mean(values: np.ndarray) -> float | None:
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else None


def _curve(precision: np.ndarray) -> list[float] | None:
  """The mean of precision [categories, 101] at one threshold, over the categories that have ground truth."""
  rows = precision[~np.isnan(precision).any(axis=1)]
  return rows.mean(axis=0).tolist() if len(rows) else None
