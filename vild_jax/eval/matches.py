"""Says of every detection whether it is right, as the evaluator matched it: for resampling, and for single pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vild_jax.eval import scoring
from vild_jax.eval.found import Found
from vild_jax.eval.truth import Truth

_AT_ONCE = 200_000  # detections that are matched at once: the evaluator gives them as lists, some 100 MB


@dataclass(frozen=True)
class Matches:
  """Holds N matched detections at T thresholds of IoU, and the G objects that are to be found.

  Both are ordered by category, then by picture; detections then by score.

  Attributes:
    row: int64 [N], rows of the detections.
    right: bool [N, T].
    ignored: bool [N, T], neither right nor wrong: on a crowd, or of a category whose list is not exhaustive.
    object_image, object_category: int64 [G], places.
  """

  row: np.ndarray
  right: np.ndarray
  ignored: np.ndarray
  object_image: np.ndarray
  object_category: np.ndarray


def match(
  truth: Truth,
  found: Found,
  *,
  federated: bool,
  max_detections: int,
  thresholds: Sequence[float] | None = None,
  categories: np.ndarray | None = None,
) -> Matches:
  """Matches boxes.

  Args:
    truth: the ground truth.
    found: the detections that count, with boxes.
    federated, max_detections, thresholds: as in `scoring.evaluator`.
    categories: places of the categories to match, ascending; None: all.
  """
  if categories is None:
    categories = np.arange(len(truth.categories))
  settings = {'federated': federated, 'max_detections': max_detections, 'thresholds': thresholds}
  made = [_match(truth, found, part, **settings) for part in groups_of_categories(categories, found)]
  return Matches(
    **{field.name: np.concatenate([getattr(of, field.name) for of in made]) for field in dataclasses.fields(Matches)}
  )


def groups_of_categories(categories: np.ndarray, *detectors: Found) -> list[np.ndarray]:
  """Returns groups of these places of categories, with about as many detections as should be matched at once."""
  size = 1 + max(int(column.max(initial=-1)) for column in (categories, *(of.category for of in detectors)))
  counts = sum(np.bincount(of.category, minlength=size) for of in detectors)[categories]
  return np.split(categories, np.flatnonzero(np.diff(np.cumsum(counts) // _AT_ONCE)) + 1)


def _match(
  truth: Truth,
  found: Found,
  categories: np.ndarray,
  *,
  federated: bool,
  max_detections: int,
  thresholds: Sequence[float] | None,
) -> Matches:
  rows = np.flatnonzero(np.isin(found.category, categories))
  of = dataclasses.replace(found, codes=None).take(rows)
  of = dataclasses.replace(of, category=np.searchsorted(categories, of.category))
  matched = scoring.evaluator(
    truth.restricted(categories=set(truth.category_ids[categories].tolist())),
    of,
    'box',
    federated=federated,
    max_detections=[max_detections],
    thresholds=thresholds,
    by_size=False,
  )
  cases = sorted(filter(None, matched.eval_imgs), key=lambda case: (case['category_id'], case['image_id']))
  count = len(matched.params.iou_thrs)
  flags = lambda key: np.concatenate([np.zeros((count, 0), bool), *(np.array(c[key], bool) for c in cases)], axis=1).T
  numbers = lambda parts: np.concatenate([np.zeros(0, np.int64), *(np.array(part, np.int64) for part in parts)])
  right, ignored = flags('dtMatched'), flags('dtIgnore')
  objects = [sum(case['gtInDenominator']) for case in cases]
  return Matches(
    rows[numbers(case['dtIds'] for case in cases) - 1],  # the evaluator numbers detections from 1
    right & ~ignored,
    ignored,
    np.repeat(numbers([[case['image_id'] for case in cases]]), objects),
    categories[np.repeat(numbers([[case['category_id'] for case in cases]]), objects)],
  )
