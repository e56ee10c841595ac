"""Scores by the COCO protocol, for exhaustive annotations: crowds ignored, the best 100 of a picture and class."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from vild_jax.config import defaults
from vild_jax.eval import detections, scoring
from vild_jax.eval import truth as truth_lib
from vild_jax.eval.found import Found, restricted
from vild_jax.eval.truth import Split, Truth

MAX_DETECTIONS = defaults.COCO_MAX_DETECTIONS


def evaluate(
  ground_truth: dict | str | Path,
  results: list[dict[str, Any]] | str | Path,
  *,
  base_category_ids: Collection[int] | None = None,
  min_area: float = 0.0,
  min_instances: int = 1,
) -> scoring.Metrics:
  """Scores results by the COCO protocol.

  Arguments, result and errors are those of `lvis.evaluate`, but the ground truth need not be federated. If categories
  have no frequency, only `base_category_ids` can say which are base.
  """
  truth = truth_lib.read(ground_truth)
  found = detections.read(results, truth)
  return score(truth, found, truth.split(base_category_ids), min_area=min_area, min_instances=min_instances)


def score(truth: Truth, found: Found, base: Split | None = None, **settings: Any) -> scoring.Metrics:
  """Scores checked detections as `evaluate` does."""
  return scoring.score(**matching(truth, found), split=base, **settings)


def score_open(truth: Truth, found: Found, base: Split) -> scoring.Metrics:
  """Scores open-vocabulary COCO as it is published (Zareian et al. 2021, and ViLD).

  Categories that are neither base nor novel are taken out, and so are pictures without an object of the others; in
  COCO's validation split 65 categories and 4,836 pictures stay. 'box' and 'mask' are of the detector that chooses among
  base and novel classes ("generalized"). 'novel_only', if there are novel classes, is their AP50 on the pictures that
  show one: there pictures without novel objects give no wrong detections.
  """
  generalized = matching_open(truth, found, base)
  metrics = scoring.score(**generalized, split=base) | generalized['truth'].counts()
  if base.novel:
    novel = score(*_with_objects(truth, found, base.novel))
    only = {f'{kind}_AP50': None if novel[kind] is None else novel[kind]['AP50'] for kind in ('box', 'mask')}
    metrics['novel_only'] = {'images': novel['images'], **only}
  return metrics


def matching(truth: Truth, found: Found, base: Split | None = None) -> dict[str, Any]:
  """Returns what is matched by the COCO protocol: the first arguments of `scoring.score` and `diagnosis.diagnose`."""
  del base
  return {'truth': truth, 'found': found, 'federated': False, 'max_detections': MAX_DETECTIONS}


def matching_open(truth: Truth, found: Found, base: Split) -> dict[str, Any]:
  """Returns the same for `score_open`."""
  return matching(*_with_objects(truth, found, base.base | base.novel))


def _with_objects(truth: Truth, found: Found, categories: Collection[int]) -> tuple[Truth, Found]:
  """The part of these categories, on the pictures that show an object of one."""
  shown = {a['image_id'] for a in truth.annotations if a['category_id'] in categories}
  return restricted(truth, found, categories=categories, images=shown)
