"""Computes average precision from results and ground truth, by hotcoco, for the protocols lvis and coco.

Everything is keyed by id, because names may repeat once they are cleaned. Metrics are fractions; a metric over no
category is None. The ground truth is LVIS- or COCO-format JSON.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np

from vild_jax.data.schema import DataError
from vild_jax.eval.counted import best_of_categories
from vild_jax.eval.found import Found
from vild_jax.eval.truth import Split, Truth

Metrics = dict[str, Any]
_AREAS = ('all', 'small', 'medium', 'large')
_KINDS = {'box': 'bbox', 'mask': 'segm'}  # the names of the evaluator


def score(
  truth: Truth,
  found: Found,
  *,
  federated: bool,
  max_detections: int,
  split: Split | None = None,
  min_area: float = 0.0,
  min_instances: int = 1,
) -> Metrics:
  """Scores checked results against checked ground truth.

  Args:
    truth: from `truth.read`.
    found: from `detections.read`.
    federated: score a category only in pictures known to contain it or to lack it (LVIS).
    max_detections: for each picture and category.
    split: which categories are base and novel; None: rare ones are novel, if the categories have a frequency.
    min_area: smaller ground truth (square pixels) is ignored, and so are smaller detections that match nothing.
    min_instances: categories with fewer instances (of at least `min_area`, without crowds) are left out of averages.

  Returns:
    'images' and 'detections': their numbers; 'masks_not_scored': why, in words, or ''; 'box' and 'mask' (None if a
    detection that counts or an object, crowds included, has none): AP, AP50, AP75, APs, APm, APl, APr, APc, APf,
    AP_base, AP_novel, AP50_base, AP50_novel; 'per_category': rows of id, name, frequency, base, instances, box_AP,
    box_AP50, mask_AP, mask_AP50; 'curves': {'recall' [101], 'box' [101], 'mask' [101]}, the precision at IoU 0.5,
    averaged over categories.

  Raises:
    DataError: if a category of the split is unknown.
  """
  categories = truth.categories
  frequencies = np.array([category.get('frequency') or '' for category in categories])
  is_base, is_novel = _groups(categories, truth.by_frequency() if split is None else split)
  counts = Counter(
    annotation['category_id']
    for annotation in truth.annotations
    if not annotation.get('iscrowd', 0) and annotation['area'] >= min_area
  )
  instances = np.array([counts[category['id']] for category in categories], int)
  counted = instances >= min_instances
  rows = [
    {
      'id': category['id'],
      'name': category['name'],
      'frequency': str(frequency),
      'base': bool(is_base[k]) if is_base[k] or is_novel[k] else None,
      'instances': int(instances[k]),
    }
    for k, (category, frequency) in enumerate(zip(categories, frequencies, strict=True))
  ]
  metrics: Metrics = {
    'images': len(truth.images),
    'detections': len(found),
    'per_category': rows,
    'curves': {'recall': np.linspace(0, 1, 101).tolist()},
  }
  boxes = found.boxes is not None and all(annotation.get('bbox') for annotation in truth.annotations)
  masked, metrics['masks_not_scored'] = _with_masks(truth, found, max_detections)
  for kind, part, scored in (('box', found, boxes), ('mask', masked, not metrics['masks_not_scored'])):
    if not scored:
      metrics[kind] = metrics['curves'][kind] = None
      for row in rows:
        row[f'{kind}_AP'] = row[f'{kind}_AP50'] = None
      continue
    table = precision(truth, part, kind, federated=federated, max_detections=max_detections, min_area=min_area)
    metrics[kind] = _summary(table, counted, frequencies, is_base, is_novel)
    metrics['curves'][kind] = _curve(table[0, :, counted, 0])
    for k, row in enumerate(rows):
      row[f'{kind}_AP'], row[f'{kind}_AP50'] = mean(table[:, :, k, 0]), mean(table[0, :, k, 0])
  return metrics


def _with_masks(truth: Truth, found: Found, max_detections: int) -> tuple[Found, str]:
  """The detections that count, if only some have masks, and why masks are not scored; '' if they are."""
  if found.codes is None:
    return found, truth.lack_of_masks() or 'the detections have none'
  if (why := truth.lack_of_masks()) or not found.codes.absent.any():
    return found, why
  best = found.take(best_of_categories(truth, found, max_detections))
  if best.codes.absent.any():
    return best, f'{int(found.codes.absent.sum()):,} detections have none, and the protocol counts some of them'
  return best, ''


def _groups(categories: Sequence[dict], split: Split | None) -> tuple[np.ndarray, np.ndarray]:
  """Which categories are base and which are novel, two bool [C]; none is either if that is not known."""
  if split is None:
    return np.zeros(len(categories), bool), np.zeros(len(categories), bool)
  unknown = (split.base | split.novel) - {category['id'] for category in categories}
  if unknown:
    raise DataError(f'base category {min(unknown)} is unknown; expected ids among the {len(categories)} categories')
  return tuple(np.array([c['id'] in ids for c in categories], bool) for ids in (split.base, split.novel))


def precision(
  truth: Truth, found: Found, kind: str, *, federated: bool, max_detections: int, min_area: float = 0.0
) -> np.ndarray:
  """Returns precision [10 IoU thresholds, 101 recalls, C, 4 areas]; NaN for a category without objects of that area."""
  table = evaluator(truth, found, kind, federated=federated, max_detections=[max_detections], min_area=min_area)
  values = np.array(table.eval['precision'])[..., 0]
  return np.where(values < 0, np.nan, values)


def evaluator(
  truth: Truth,
  found: Found,
  kind: str,
  *,
  federated: bool,
  max_detections: Sequence[int],
  min_area: float = 0.0,
  classless: bool = False,
  thresholds: Sequence[float] | None = None,
  by_size: bool = True,
) -> hotcoco.COCOeval:
  """Matches detections with objects and returns the evaluator, accumulated.

  Args:
    truth: the ground truth.
    found: the detections.
    kind: 'box' or 'mask'.
    federated: score a category only in pictures known to contain it or to lack it (LVIS).
    max_detections: numbers of detections of a picture and category, ascending.
    min_area: smaller ground truth (square pixels) is ignored, and so are smaller detections that match nothing.
    classless: take all categories for one.
    thresholds: of IoU; None: 0.5, 0.55, ..., 0.95.
    by_size: match small, medium and large objects too, beside all.
  """
  objects = truth.objects(masks=kind == 'mask')
  if classless:
    objects = [annotation | {'category_id': 0} for annotation in objects]
    found = dataclasses.replace(found, category=np.zeros_like(found.category))
  categories = truth.categories[:1] if classless else truth.categories
  ground = hotcoco.COCO(
    {
      'images': truth.images_by_place(),
      'categories': [{**category, 'id': k} for k, category in enumerate(categories)],
      'annotations': objects,
    }
  )
  matched = hotcoco.COCOeval(ground, _given(ground, truth, found, kind), _KINDS[kind], lvis_style=federated)
  settings = matched.params
  settings.max_dets = list(max_detections)
  settings.area_rng = [[min_area, 1e10], *(settings.area_rng[1:] if by_size else ())]
  if not by_size:
    settings.area_rng_lbl = settings.area_rng_lbl[:1]
  if thresholds is not None:
    settings.iou_thrs = list(thresholds)
  matched.params = settings
  matched.evaluate()
  matched.accumulate()
  return matched


def _given(ground: hotcoco.COCO, truth: Truth, found: Found, kind: str) -> hotcoco.COCO:
  """The detections as the evaluator takes them."""
  boxes = np.zeros((len(found), 4)) if found.boxes is None else found.boxes
  columns = np.column_stack([found.image, boxes, found.score, found.category]).astype(np.float64)
  # Without a limit of its own, the evaluator would take the best 300 of each picture in the style of LVIS.
  if kind == 'box' or not len(found):
    return ground.load_res(columns).cap_detections_per_image(None)
  sizes = truth.sizes
  codes = [
    {'size': sizes[i], 'counts': code} for i, code in zip(found.image.tolist(), found.codes.strings(), strict=True)
  ]
  given = ground.load_res(columns, segmentation=codes)
  # The evaluator would take the area of the box.
  given.update_anns(ids=np.arange(1, len(found) + 1), area=found.codes.areas)
  return given.cap_detections_per_image(None)


def _summary(
  table: np.ndarray, counted: np.ndarray, frequencies: np.ndarray, is_base: np.ndarray, is_novel: np.ndarray
) -> Metrics:
  """The metrics of one precision table; all reports have the order of these keys."""
  groups = {group: counted & (frequencies == group[-1]) for group in ('APr', 'APc', 'APf')}
  base, novel = counted & is_base, counted & is_novel
  return {
    'AP': mean(table[:, :, counted, 0]),
    'AP50': mean(table[0, :, counted, 0]),
    'AP75': mean(table[5, :, counted, 0]),
    **{f'AP{area[0]}': mean(table[:, :, counted, i]) for i, area in enumerate(_AREAS) if i},
    **{name: mean(table[:, :, group, 0]) for name, group in groups.items()},
    'AP_base': mean(table[:, :, base, 0]),
    'AP_novel': mean(table[:, :, novel, 0]),
    'AP50_base': mean(table[0, :, base, 0]),
    'AP50_novel': mean(table[0, :, novel, 0]),
  }


def mean(values: np.ndarray) -> float | None:
  """Returns the mean of the values that are not NaN; None if there is none."""
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else None


def _curve(precision: np.ndarray) -> list[float] | None:
  """The mean of precision [categories, 101] at one threshold, over the categories that have ground truth."""
  rows = precision[~np.isnan(precision).any(axis=1)]
  return rows.mean(axis=0).tolist() if len(rows) else None
