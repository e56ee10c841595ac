"""Scores proposals: class-agnostic average recall, of all objects and of those of base and of novel classes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np

from vild_jax.data.regions.store import RegionStore
from vild_jax.data.schema import DataError
from vild_jax.eval import scoring
from vild_jax.eval.found import Found
from vild_jax.eval.lvis import best_of_pictures
from vild_jax.eval.truth import Split, Truth

COUNTS = (100, 300, 1000)  # proposals of a picture, best first
GROUPS = {'all': '', 'base': '_base', 'novel': '_novel'}  # of objects, with the ends of the metrics' names


def score(truth: Truth, found: Found, base: Split | None = None, *, counts: Sequence[int] = COUNTS) -> dict[str, Any]:
  """Returns the recall of boxes, a mean over IoU 0.5, 0.55, ..., 0.95, with the best `counts` proposals of a picture.

  'box' holds AR@100, AR@300, AR@1000, and for the largest count ARs, ARm and ARl; if base classes are known also
  AR_base@N and AR_novel@N, for which the objects of other classes are taken out: a proposal that finds one of them is
  neither right nor wrong, since recall has no wrong ones. None for groups without objects.
  """
  found = dataclasses.replace(best_of_pictures(found, max(counts)), codes=None)
  groups = {'': truth}
  if base is not None:
    for name, ids in ((GROUPS['base'], base.base), (GROUPS['novel'], base.novel)):
      groups[name] = dataclasses.replace(truth, annotations=[a for a in truth.annotations if a['category_id'] in ids])
  if not truth.categories:
    raise DataError(f'{truth.name} has no categories; expected one or more')
  metrics: dict[str, float | None] = {}
  for name, part in groups.items():
    matched = scoring.evaluator(part, found, 'box', federated=False, max_detections=counts, classless=True)
    table = np.asarray(matched.eval['recall'])[:, 0]  # [IoU, area, count]; -1 without objects
    table = np.where(table < 0, np.nan, table)
    for k, count in enumerate(counts):
      metrics[f'AR{name}@{count}'] = scoring.mean(table[:, 0, k])
    if not name:
      for k, size in enumerate('sml', 1):
        metrics[f'AR{size}@{max(counts)}'] = scoring.mean(table[:, k, -1])
  return {'box': metrics, 'mask': None}


def by_group(
  truth: Truth, found: Found, base: Split | None, counts: Sequence[int]
) -> dict[int, dict[str, float | None]]:
  """Returns {count: recall of the best boxes of a picture, of GROUPS}, as `score` computes it."""
  metrics = score(truth, found, base, counts=counts)['box']
  return {n: {name: metrics.get(f'AR{end}@{n}') for name, end in GROUPS.items()} for n in counts}


def named(matched: hotcoco.COCOeval, truth: Truth, base: Split | None) -> dict[str, float | None]:
  """Returns the share of objects that detections find under the right name, a mean over IoU 0.5, 0.55, ..., 0.95.

  It counts objects, as `score` does, and so compares with the recall of boxes; the evaluator's own recall is a mean
  over categories.

  Args:
    matched: from `scoring.evaluator`, with classes.
    truth: its ground truth.
    base: which categories are base and novel.

  Returns:
    {name in GROUPS: recall}; None for groups without objects, and for base and novel if they are not known.
  """
  table = np.asarray(matched.eval['recall'])[:, :, 0, -1]  # [IoU, C]; -1 without objects
  counts = Counter(a['category_id'] for a in truth.annotations if not a.get('iscrowd'))
  objects = np.array([counts[key] for key in truth.category_ids.tolist()], float)
  found = np.maximum(table, 0).mean(axis=0) * objects
  none = frozenset()
  members = (truth.category_ids, base.base if base else none, base.novel if base else none)
  groups = [np.isin(truth.category_ids, list(ids)) & (objects > 0) for ids in members]
  return {
    name: float(found[of].sum() / objects[of].sum()) if of.any() else None
    for name, of in zip(GROUPS, groups, strict=True)
  }


def from_store(path: str | Path, truth: Truth) -> Found:
  """Returns the boxes of a region store as detections without a class; pictures that the store lacks have none."""
  store = RegionStore(path)
  images, scores, boxes = [], [], []
  for i, image_id in enumerate(truth.image_ids.tolist()):
    if image_id in store:
      regions = store[image_id]
      images.append(np.full(len(regions.scores), i, np.int32))
      scores.append(regions.scores)
      boxes.append(regions.boxes)
  corners = np.concatenate([np.zeros((0, 4), np.float32), *boxes]).astype(np.float64)
  image = np.concatenate([np.zeros(0, np.int32), *images])
  return Found(
    image,
    np.zeros_like(image),
    np.concatenate([np.zeros(0, np.float32), *scores]).astype(np.float64),
    np.concatenate([corners[:, 1::-1], corners[:, 3:1:-1] - corners[:, 1::-1]], axis=1),
    None,
  )
