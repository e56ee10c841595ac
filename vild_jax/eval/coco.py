"""Scores by the COCO protocol, for exhaustive annotations: crowds ignored, the best 100 of a picture and class."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from vild_jax.config import defaults
from vild_jax.eval import results as results_lib
from vild_jax.eval import scoring

MAX_DETECTIONS = defaults.COCO_MAX_DETECTIONS


def evaluate(
  ground_truth: dict | str | Path,
  results: list[results_lib.Result] | str | Path,
  *,
  base_category_ids: Collection[int] | None = None,
  min_area: float = 0.0,
  min_instances: int = 1,
) -> scoring.Metrics:
  """Scores results by the COCO protocol.

  Arguments, result and errors are those of `lvis.evaluate`, but the ground truth need not be federated. If categories
  have no frequency, only `base_category_ids` can say which are base.
  """
  truth, found = scoring.read(ground_truth, results)
  return scoring.score(
    truth,
    found,
    federated=False,
    max_detections=MAX_DETECTIONS,
    base_category_ids=base_category_ids,
    min_area=min_area,
    min_instances=min_instances,
  )
