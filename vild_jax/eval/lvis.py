"""Scores by the LVIS protocol: federated ground truth, the best 300 detections of a picture, AP by frequency.

The metrics equal those of the official evaluator (tests/eval/test_lvis.py). `evaluate` needs neither JAX nor an
accelerator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vild_jax.config import defaults
from vild_jax.data.schema import DataError
from vild_jax.eval import results as results_lib
from vild_jax.eval import scoring

MAX_DETECTIONS = defaults.MAX_DETECTIONS


def evaluate(
  ground_truth: dict | str | Path,
  results: list[results_lib.Result] | str | Path,
  *,
  base_category_ids: Collection[int] | None = None,
  min_area: float = 0.0,
  min_instances: int = 1,
) -> scoring.Metrics:
  """Scores results by the LVIS protocol.

  Args:
    ground_truth: LVIS-format JSON or its path; some picture must list `neg_category_ids` (unless there is one class).
    results: results JSON (see `eval.results`) or its path; only the best 300 of each picture count.
    base_category_ids: ids of the base categories; None means all that are not rare.
    min_area: ground truth smaller than this (square pixels) is ignored.
    min_instances: categories with fewer instances are left out of the averages.

  Returns:
    The metrics of `scoring.score`: fractions, None for a group without categories.

  Raises:
    DataError: input that cannot be scored, or ground truth that is not federated.
  """
  truth, found = scoring.read(ground_truth, results)
  check_federated(truth, ground_truth if isinstance(ground_truth, str | Path) else 'the ground truth')
  metrics = scoring.score(
    truth,
    _listed(truth, _best(found)),
    federated=True,
    max_detections=MAX_DETECTIONS,
    base_category_ids=base_category_ids,
    min_area=min_area,
    min_instances=min_instances,
  )
  return {**metrics, 'detections': len(found)}


def check_federated(truth: dict[str, Any], name: str | Path = 'the ground truth') -> None:
  """Raises DataError unless some picture lists categories that it lacks, or there is only one category.

  A class is scored only in pictures known to contain it or to lack it. Without pictures known to lack it, no confusion
  with another class would count as an error.
  """
  if len(truth['categories']) > 1 and not any(image.get('neg_category_ids') for image in truth['images']):
    raise DataError(
      f'{name}: none of the {len(truth["images"])} pictures lists categories that it lacks; expected '
      "LVIS's neg_category_ids, or evaluation.protocol=coco for exhaustive annotations"
    )


def _best(results: list[results_lib.Result]) -> list[results_lib.Result]:
  """The best 300 of each picture; the library would keep 300 of each picture and category."""
  pictures: dict[int, list[Any]] = defaultdict(list)
  for result in results:
    pictures[result['image_id']].append(result)
  return [
    result
    for picture in pictures.values()
    for result in sorted(picture, key=lambda result: -result['score'])[:MAX_DETECTIONS]
  ]


def _listed(truth: dict[str, Any], results: list[results_lib.Result]) -> list[results_lib.Result]:
  """Detections of categories that their picture is known to contain or to lack; the library crashes on some others."""
  listed = {image['id']: set(image.get('neg_category_ids') or ()) for image in truth['images']}
  for annotation in truth['annotations']:
    listed[annotation['image_id']].add(annotation['category_id'])
  return [result for result in results if result['category_id'] in listed[result['image_id']]]
