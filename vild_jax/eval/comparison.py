"""Says how the boxes of one detector differ from those of another: averages and categories, with intervals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

import hotcoco
import numpy as np

from vild_jax.eval import bootstrap, scoring
from vild_jax.eval.found import Found
from vild_jax.eval.truth import Truth


class Difference(NamedTuple):
  """Holds AP of a category by this detector and by the other, and a 95 % interval of the difference.

  `pictures` show the category. The ends are None if no sample of the pictures has an object of it.
  """

  name: str
  this: float
  other: float
  lower: float | None
  upper: float | None
  pictures: int


@dataclass(frozen=True)
class Comparison:
  """Holds how one detector differs from another.

  Attributes:
    metrics: {metric: (value of this one, of the other, difference, lower and upper end of its 95 % interval)}.
    per_category: categories whose AP differs, by the size of the difference.
    resamples: of the pictures, for the intervals.
  """

  metrics: dict[str, tuple[float, float, float, float, float]]
  per_category: tuple[Difference, ...]
  resamples: int

  def as_json(self) -> dict[str, Any]:
    """Returns the numbers, for the metrics and diagnosis.json."""
    keys = ('this', 'other', 'difference', 'lower', 'upper')
    return {
      'box': {name: dict(zip(keys, values, strict=True)) for name, values in self.metrics.items()},
      'per_category': [row._asdict() for row in self.per_category],
      'resamples': self.resamples,
    }


def compare(
  truth: Truth, found: Found, other: Found, *, federated: bool, max_detections: int, resamples: int = 100
) -> Comparison:
  """Compares boxes of two detectors; intervals are those of a paired bootstrap over pictures.

  Args:
    truth: the ground truth.
    found, other: the detections of both that count, with boxes.
    federated, max_detections: as in `scoring.evaluator`.
    resamples: of the pictures.
  """
  settings = {'federated': federated, 'max_detections': max_detections}
  one, two = (
    scoring.evaluator(truth, of, 'box', federated=federated, max_detections=[max_detections]) for of in (found, other)
  )
  done = hotcoco.compare(two, one, n_bootstrap=resamples)
  metrics = {
    key: (
      float(done['metrics_b'][key]),
      float(done['metrics_a'][key]),
      float(done['deltas'][key]),
      float(done['ci'][key]['lower']),
      float(done['ci'][key]['upper']),
    )
    for key in done['deltas']
    if key in done.get('ci', {}) and done['metrics_a'][key] >= 0 and done['metrics_b'][key] >= 0
  }
  # The evaluator's ids of categories are places.
  rows = {int(row['cat_id']): (float(row['ap_b']), float(row['ap_a'])) for row in done['per_category'] if row['delta']}
  ends = bootstrap.intervals(truth, found, other, np.array(sorted(rows), int), **settings, resamples=resamples)
  shown = {(a['category_id'], a['image_id']) for a in truth.annotations if not a.get('iscrowd')}
  pictures = Counter(category for category, _ in shown)
  differences = [
    Difference(category['name'], *rows[k], *(ends[k] or (None, None)), pictures[category['id']])
    for k, category in enumerate(truth.categories)
    if k in rows
  ]
  return Comparison(metrics, tuple(sorted(differences, key=lambda row: -abs(row.this - row.other))), resamples)
