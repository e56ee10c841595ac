"""Computes intervals of AP differences of single categories, by a paired bootstrap over pictures.

Detections are matched once. A sample of the pictures is a weight for each picture, how often it was drawn, and AP of a
sample follows from weighted counts: a picture that is drawn twice counts as two pictures with the same detections.
"""

from __future__ import annotations

import numpy as np

from vild_jax.eval.found import Found
from vild_jax.eval.matches import Matches, groups_of_categories, match
from vild_jax.eval.truth import Truth

_RECALLS = np.linspace(0, 1, 101)
_LEVELS = (2.5, 97.5)  # per cent: the ends of a 95 % interval
_CELLS = 20_000_000  # detections times samples that are counted together


def intervals(
  truth: Truth,
  found: Found,
  other: Found,
  categories: np.ndarray,
  *,
  federated: bool,
  max_detections: int,
  resamples: int,
) -> dict[int, tuple[float, float] | None]:
  """Returns 95 % intervals of the differences in box AP, of `found` less `other`.

  Args:
    truth: the ground truth.
    found, other: the detections of two detectors that count, with boxes.
    categories: places of categories, ascending.
    federated, max_detections: as in `scoring.evaluator`.
    resamples: of the pictures, the same ones for both detectors and all categories.

  Returns:
    {place of a category: (lower, upper)}; samples without an object of a category are left out, None if all are.
  """
  weights = samples(len(truth.images), resamples)
  ends = {}
  for part in groups_of_categories(categories, found, other):
    values = []
    for of in (found, other):
      matches = match(truth, of, federated=federated, max_detections=max_detections, categories=part)
      values.append(of_categories(matches, of, part, weights))
    for place, difference in zip(part.tolist(), values[0] - values[1], strict=True):
      known = difference[~np.isnan(difference)]
      ends[place] = tuple(np.percentile(known, _LEVELS).tolist()) if len(known) else None
  return ends


def samples(pictures: int, resamples: int) -> np.ndarray:
  """Returns how often each picture is drawn, int32 [pictures, resamples]; the same for the same arguments."""
  rng = np.random.default_rng(0)
  weights = np.zeros((pictures, resamples), np.int32)
  for b in range(resamples if pictures else 0):
    weights[:, b] = np.bincount(rng.integers(pictures, size=pictures), minlength=pictures)
  return weights


def of_categories(matches: Matches, found: Found, categories: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Returns box AP of K categories in B weighted sets of pictures, [K, B].

  Args:
    matches: of `found`, with these categories.
    found: the detections.
    categories: places of categories.
    weights: whole numbers [pictures, B], how often each picture counts.
  """
  bounds = lambda column: np.stack([np.searchsorted(column, categories, side) for side in ('left', 'right')], axis=1)
  rows = []
  for (a, b), (c, d) in zip(bounds(found.category[matches.row]), bounds(matches.object_category), strict=True):
    row = matches.row[a:b]
    # Equal scores keep the order of the pictures, as in the evaluator.
    order = np.argsort(-found.score[row], kind='stable')
    right, ignored = matches.right[a:b][order], matches.ignored[a:b][order]
    step = max(1, _CELLS // max(1, len(row)))
    rows.append(
      np.concatenate(
        [
          _average_precision(found.image[row][order], right, ignored, matches.object_image[c:d], part)
          for part in np.split(weights, range(step, weights.shape[1], step), axis=1)
        ]
      )
    )
  return np.array(rows).reshape(len(categories), weights.shape[1])


def _average_precision(
  image: np.ndarray, right: np.ndarray, ignored: np.ndarray, object_image: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """AP [B] of N detections in the order of their scores, by weights [I, B]; NaN where no object counts."""
  drawn, objects = weights[image], weights[object_image].sum(axis=0)
  values = np.zeros((right.shape[1], weights.shape[1]))
  counted = None
  for t in range(right.shape[1]):
    if t == 0 or (ignored[:, t] != ignored[:, t - 1]).any():
      counted = np.cumsum(drawn * ~ignored[:, t, None], axis=0, dtype=np.int64)
    # Precision is greatest at a right detection; the others lower it and find nothing.
    places = np.flatnonzero(right[:, t])
    hits = np.cumsum(drawn[places], axis=0, dtype=np.int64)
    precision = hits / np.maximum(counted[places], 1)
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    # Each level of recall takes the precision of the detection that reaches it first; a level not reached counts zero.
    levels = np.diff(np.searchsorted(_RECALLS, hits / np.maximum(objects, 1), side='right'), axis=0, prepend=0)
    values[t] = (precision * levels).sum(axis=0) / len(_RECALLS)
  return np.where(objects > 0, values.mean(axis=0), np.nan)
