"""Says why a detector's AP is what it is: errors, calibration, confusions, recall, best and worst categories."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np

from vild_jax.eval import recall, scoring
from vild_jax.eval.found import Found
from vild_jax.eval.truth import Split, Truth

# TIDE's kinds of errors (Bolya et al. 2020), with what they mean.
ERRORS = {
  'Cls': 'right place, wrong class',
  'Loc': 'right class, imprecise place',
  'Both': 'wrong class and imprecise place',
  'Dupe': 'an object found twice',
  'Bkg': 'nothing is there',
  'Miss': 'an object not found at all',
}
_CATEGORIES = 10  # best and worst ones that are named
_CONFUSIONS = 12
_EXAMPLES = 4  # objects of a confusion that are kept, to be shown
_OVERLAP = 0.5  # from which on a detection is one of an object


@dataclass(frozen=True)
class Confusion:
  """Describes objects of one category that are called another.

  Attributes:
    category, called: names.
    count: how many objects.
    share: of the objects of `category` that were found under any name.
    examples: (image id, box xywh of the object, score), the surest ones first.
  """

  category: str
  called: str
  count: int
  share: float
  examples: tuple[tuple[int, tuple[float, ...], float], ...]


@dataclass(frozen=True)
class Diagnosis:
  """Holds what `diagnose` found.

  Attributes:
    errors: {kind of TIDE: (AP50 that it costs, number)}; the costs do not add up to what is missing.
    calibration: (mean score, share of right detections, number) in ten intervals of scores; empty ones are left out.
    calibration_error: mean of their differences, weighted by number; None if some scores are not from 0 to 1.
    confusions: the most frequent ones first.
    best, worst: rows of `per_category`, by box AP, of categories with at least three objects if there are enough.
    recall: of objects under their right names, see `recall.named`.
  """

  errors: dict[str, tuple[float, int]]
  calibration: tuple[tuple[float, float, int], ...]
  calibration_error: float | None
  confusions: tuple[Confusion, ...]
  best: tuple[dict[str, Any], ...]
  worst: tuple[dict[str, Any], ...]
  recall: dict[str, float | None]

  def as_json(self) -> dict[str, Any]:
    """Returns the numbers, for diagnosis.json."""
    return {
      'errors': {kind: {'AP50_cost': cost, 'count': count} for kind, (cost, count) in self.errors.items()},
      'calibration_error': self.calibration_error,
      'calibration': [dict(zip(('score', 'right', 'count'), row, strict=True)) for row in self.calibration],
      'confusions': [
        {'category': c.category, 'called': c.called, 'count': c.count, 'share': c.share} for c in self.confusions
      ],
      'best': [row['name'] for row in self.best],
      'worst': [row['name'] for row in self.worst],
    }


def diagnose(
  truth: Truth,
  found: Found,
  per_category: Sequence[dict[str, Any]],
  *,
  federated: bool,
  max_detections: int,
  split: Split | None = None,
) -> Diagnosis:
  """Diagnoses boxes.

  Args:
    truth: the ground truth.
    found: the detections that count, with boxes.
    per_category: rows of the metrics.
    federated, max_detections: as in `scoring.evaluator`.
    split: which categories are base and novel, for recall.
  """
  matched = scoring.evaluator(truth, found, 'box', federated=federated, max_detections=[max_detections])
  costs = matched.tide_errors()
  # Only AP's order is asked of scores: those of some detectors are no shares.
  shares = len(found) and found.score.min() >= 0 and found.score.max() <= 1
  reliability = matched.calibration() if shares else {'bins': (), 'ece': None}
  rows = [row for row in per_category if row['box_AP'] is not None]
  common = [row for row in rows if row['instances'] >= 3]
  ordered = sorted(common if len(common) >= _CATEGORIES else rows, key=lambda row: row['box_AP'])
  return Diagnosis(
    {kind: (float(costs['delta_ap'].get(kind, 0.0)), int(costs['counts'].get(kind, 0))) for kind in ERRORS},
    tuple(
      (float(b['avg_confidence']), float(b['avg_accuracy']), int(b['count'])) for b in reliability['bins'] if b['count']
    ),
    reliability['ece'],
    confusions(truth, found),
    tuple(ordered[::-1][:_CATEGORIES]),
    tuple(ordered[:_CATEGORIES]),
    recall.named(matched, truth, split),
  )


def confusions(truth: Truth, found: Found) -> tuple[Confusion, ...]:
  """Returns the most frequent confusions: objects whose surest detection, at IoU 0.5 or more, names another category.

  Crowds are left out.
  """
  place = {int(key): k for k, key in enumerate(truth.category_ids)}
  picture = {int(key): i for i, key in enumerate(truth.image_ids)}
  of_picture: dict[int, list[dict[str, Any]]] = defaultdict(list)
  for annotation in truth.annotations:
    if not annotation.get('iscrowd'):
      of_picture[picture[annotation['image_id']]].append(annotation)
  order = np.argsort(found.image, kind='stable')
  bounds = np.searchsorted(found.image[order], np.arange(len(truth.images) + 1))
  seen: Counter[int] = Counter()
  pairs: dict[tuple[int, int], list[tuple[float, int, tuple[float, ...]]]] = defaultdict(list)
  for i, objects in of_picture.items():
    rows = order[bounds[i] : bounds[i + 1]]
    if not len(rows):
      continue
    boxes = np.array([a['bbox'] for a in objects], np.float64)
    overlaps = hotcoco.mask.bbox_iou(found.boxes[rows], boxes, [0] * len(boxes))  # [D, G]
    scores = np.where(overlaps >= _OVERLAP, found.score[rows][:, None], -1.0)
    for g, annotation in enumerate(objects):
      surest = int(scores[:, g].argmax())
      if scores[surest, g] < 0:
        continue
      own, called = place[annotation['category_id']], int(found.category[rows[surest]])
      seen[own] += 1
      if own != called:
        pairs[own, called].append((float(scores[surest, g]), int(truth.image_ids[i]), tuple(map(float, boxes[g]))))
  name = lambda k: truth.categories[k]['name']
  frequent = sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0]))[:_CONFUSIONS]
  return tuple(
    Confusion(
      name(own),
      name(called),
      len(cases),
      len(cases) / seen[own],
      tuple((image, box, score) for score, image, box in sorted(cases, reverse=True)[:_EXAMPLES]),
    )
    for (own, called), cases in frequent
  )
