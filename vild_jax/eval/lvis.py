"""Scores by the LVIS protocol: federated ground truth, the best 300 detections of a picture, AP by frequency.

The metrics equal those of the official evaluator (tests/eval/test_lvis.py). `evaluate` needs neither JAX nor an
accelerator.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.config import defaults
from vild_jax.data.schema import DataError
from vild_jax.eval import counted, detections, scoring
from vild_jax.eval import truth as truth_lib
from vild_jax.eval.found import Found
from vild_jax.eval.truth import Split, Truth

MAX_DETECTIONS = defaults.MAX_DETECTIONS
FIXED = 10_000  # detections of a category, by the protocol of Dave et al.


def evaluate(
  ground_truth: dict | str | Path,
  results: list[dict[str, Any]] | str | Path,
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
  truth = truth_lib.read(ground_truth)
  check_federated(truth.images, truth.categories, truth.name)
  found = detections.read(results, truth)
  return score(truth, found, truth.split(base_category_ids), min_area=min_area, min_instances=min_instances)


def score(truth: Truth, found: Found, base: Split | None = None, **settings: Any) -> scoring.Metrics:
  """Scores checked detections as `evaluate` does; without `base`, rare categories are novel."""
  return scoring.score(**matching(truth, found), split=base, **settings) | {'detections': len(found)}


def score_fixed(truth: Truth, found: Found, base: Split | None = None, **settings: Any) -> scoring.Metrics:
  """Scores checked detections as Dave et al. 2021 propose: 10,000 of each category count, however many in a picture.

  A limit for each picture makes categories compete for places, so that AP depends on how scores of different
  categories compare ("Evaluating Large-Vocabulary Object Detectors: The Devil is in the Details").
  """
  return scoring.score(**matching_fixed(truth, found), split=base, **settings) | {'detections': len(found)}


def matching(truth: Truth, found: Found, base: Split | None = None) -> dict[str, Any]:
  """Returns what is matched by the LVIS protocol: the first arguments of `scoring.score` and `diagnosis.diagnose`."""
  del base
  return _matching(truth, best_of_pictures(found, MAX_DETECTIONS), MAX_DETECTIONS)


def matching_fixed(truth: Truth, found: Found, base: Split | None = None) -> dict[str, Any]:
  """Returns the same for `score_fixed`."""
  del base
  return _matching(truth, _best(found, found.category, FIXED), FIXED)


def _matching(truth: Truth, best: Found, limit: int) -> dict[str, Any]:
  # The official evaluator knows no crowds: it takes each for an object.
  objects = dataclasses.replace(truth, annotations=[{**a, 'iscrowd': 0} for a in truth.annotations])
  return {'truth': objects, 'found': listed(truth, best), 'federated': True, 'max_detections': limit}


def check_federated(
  images: Sequence[dict[str, Any]],
  categories: Sequence[dict[str, Any]],
  name: str | Path = 'the ground truth',
  *,
  instead: str = 'evaluation.protocol=coco',
) -> None:
  """Raises DataError unless some picture lists categories that it lacks, or there is only one category.

  A class is scored only in pictures known to contain it or to lack it. Without pictures known to lack it, no confusion
  with another class would count as an error.
  """
  if not truth_lib.is_federated(images, categories):
    raise DataError(
      f'{name}: none of the {len(images)} pictures lists categories that it lacks; expected '
      f"LVIS's neg_category_ids, or {instead} for exhaustive annotations"
    )


def best_of_pictures(found: Found, count: int) -> Found:
  """Returns the `count` detections of each picture with the highest scores; of equal ones, the first in the file."""
  return _best(found, found.image, count)


def _best(found: Found, group: np.ndarray, count: int) -> Found:
  if np.bincount(group, minlength=1).max() <= count:
    return found
  return found.take(counted.best(group, found.score, count))


def listed(truth: Truth, found: Found) -> Found:
  """Returns the detections of categories that their picture is known to contain or to lack; no others count."""
  return found.take(counted.listed(truth, found))
