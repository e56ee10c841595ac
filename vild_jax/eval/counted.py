"""Says which detections a protocol can count: only these need a mask, and a results file may leave out all others.

The rule is the same for all protocols of a family (LVIS's two, or those of COCO's kind), so that a file which was made
for one of them can be scored by each.
"""

from __future__ import annotations

import numpy as np

from vild_jax.config import defaults
from vild_jax.eval import truth as truth_lib
from vild_jax.eval.found import Found
from vild_jax.eval.truth import Truth


def best(group: np.ndarray, score: np.ndarray, count: int) -> np.ndarray:
  """Tells which detections are the `count` with the highest scores of their group; of equal ones, the first.

  Args:
    group: int [N], a number for each group.
    score: [N].
    count: of each group.

  Returns:
    bool [N].
  """
  order = np.lexsort((-score, group))
  ordered = group[order]
  chosen = np.empty(len(order), bool)
  chosen[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered) < count
  return chosen


def listed(truth: Truth, found: Found) -> np.ndarray:
  """Tells which detections are of a category that their picture is known to contain or to lack, bool [N].

  LVIS's protocols count no others.
  """
  pairs = _pairs(truth, found)
  if not len(truth.listed):
    return np.zeros(len(pairs), bool)
  return truth.listed[np.searchsorted(truth.listed, pairs).clip(max=len(truth.listed) - 1)] == pairs


def best_of_categories(truth: Truth, found: Found, count: int = defaults.COCO_MAX_DETECTIONS) -> np.ndarray:
  """Tells which detections are the best `count` of their picture and category, bool [N]; COCO's count no others."""
  return best(_pairs(truth, found), found.score, count)


def without_mask(truth: Truth, found: Found) -> np.ndarray:
  """Returns the rows of `found`, ascending, that lack a mask although a protocol for this ground truth can count them.

  Rows that one family alone can count may lack it if the ground truth is federated, which both families can score.
  """
  rows = np.flatnonzero(found.codes.absent)
  if truth_lib.is_federated(truth.images, truth.categories):
    rows = rows[listed(truth, found.take(rows))]
  return rows[best_of_categories(truth, found)[rows]] if len(rows) else rows


def of_picture(truth: Truth, image_id: int, category_ids: np.ndarray, scores: np.ndarray) -> Found:
  """Returns the detections of a picture, of known categories int [K] and with scores [K], as columns without boxes."""
  image = np.full(len(scores), np.searchsorted(truth.image_ids, image_id), np.int32)
  return Found(image, np.searchsorted(truth.category_ids, category_ids).astype(np.int32), scores, None, None)


def _pairs(truth: Truth, found: Found) -> np.ndarray:
  return found.image.astype(np.int64) * len(truth.categories) + found.category
