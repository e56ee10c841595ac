"""Says how well a detector does in single pictures, which are best and worst, and where two detectors differ most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vild_jax.eval.found import Found
from vild_jax.eval.matches import match
from vild_jax.eval.truth import Truth

_OVERLAP = 0.5  # from which on a detection finds an object


@dataclass(frozen=True)
class Outcome:
  """Holds what a detector finds in each of I pictures, by the detections from one score on.

  Attributes:
    score: that score: with it F1 over all pictures is greatest. None if no detection is right.
    objects, found, wrong: int64 [I], objects, those found with the right class at IoU 0.5, and wrong detections.
    right_rows, wrong_rows: rows of the detections. Others from this score on are neither, see `Matches.ignored`.
  """

  score: float | None
  objects: np.ndarray
  found: np.ndarray
  wrong: np.ndarray
  right_rows: np.ndarray
  wrong_rows: np.ndarray

  @property
  def f1(self) -> np.ndarray:
    """Returns F1 of each picture, float64 [I]: 2 found / (objects + found + wrong); NaN without objects."""
    total = np.where(self.objects > 0, self.objects + self.found + self.wrong, np.nan)
    return 2 * self.found / total


def outcome(truth: Truth, found: Found, *, federated: bool, max_detections: int) -> Outcome:
  """Counts what is found in each picture; the arguments are those of `matches.match`."""
  done = match(truth, found, federated=federated, max_detections=max_detections, thresholds=[_OVERLAP])
  # Detections with higher scores choose their objects first: leaving out those with lower scores changes no match.
  counts = ~done.ignored[:, 0]
  row, right = done.row[counts], done.right[counts, 0]
  score = _best_score(found.score[row], right, len(done.object_image))
  sure = found.score[row] >= (np.inf if score is None else score)
  right_rows, wrong_rows = row[sure & right], row[sure & ~right]
  per_picture = lambda image: np.bincount(image, minlength=len(truth.images))
  return Outcome(
    score,
    per_picture(done.object_image),
    per_picture(found.image[right_rows]),
    per_picture(found.image[wrong_rows]),
    right_rows,
    wrong_rows,
  )


def _best_score(score: np.ndarray, right: np.ndarray, objects: int) -> float | None:
  """The score from which on F1 of all detections is greatest; None if none is right."""
  if not right.any():
    return None
  order = np.argsort(-score, kind='stable')
  ordered = score[order]
  f1 = 2 * np.cumsum(right[order]) / (objects + np.arange(1, len(order) + 1))
  f1[:-1][ordered[:-1] == ordered[1:]] = 0  # equal scores stay together
  return float(ordered[f1.argmax()])


def best_and_worst(of: Outcome, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns places of up to `count` pictures with the highest F1 and of as many with the lowest.

  Of pictures with equal F1, those with more objects come first. Pictures without objects are left out, and no picture
  is among both.
  """
  places = np.flatnonzero(of.objects)
  f1 = of.f1[places]
  best, worst = (places[np.lexsort((-of.objects[places], sign * f1))] for sign in (-1, 1))
  number = min(count, len(places) // 2)
  best = best[:count] if len(places) == 1 else best[:number]
  return best, worst[~np.isin(worst, best)][:number]


def most_different(one: Outcome, other: Outcome, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns places of up to `count` pictures where F1 of `one` is higher by most, and of those where it is lower.

  Of equal differences, those with more objects come first.
  """
  places = np.flatnonzero(one.objects)
  difference = one.f1[places] - other.f1[places]

  def ahead(sign: int) -> np.ndarray:
    order = np.lexsort((-one.objects[places], -sign * difference))
    return places[order[sign * difference[order] > 0][:count]]

  return ahead(1), ahead(-1)
