"""What single pictures hold, counted by hand and against plain matching."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import small_scores
from vild_jax.eval import detections, matches, per_picture, protocols, truth

SETTINGS = {'federated': False, 'max_detections': 100}


def _case(objects, found):
  """Objects (picture, class, x) and detections (picture, class, x, score), squares of 40 pixels in pictures 1 to 5."""
  of = truth.read(
    {
      'images': [{'id': i, 'height': 100, 'width': 500} for i in range(1, 6)],
      'categories': [{'id': k, 'name': name} for k, name in ((4, 'cat'), (7, 'dog'))],
      'annotations': [
        {'image_id': i, 'category_id': k, 'bbox': [x, 10, 40, 40], 'area': 1600, 'iscrowd': int(bool(crowd))}
        for i, k, x, *crowd in objects
      ],
    }
  )
  rows = [{'image_id': i, 'category_id': k, 'bbox': [x, 10, 40, 40], 'score': s} for i, k, x, s in found]
  return of, detections.read(rows, of)


OBJECTS = [(1, 4, 0), (1, 7, 100), (2, 4, 0), (2, 4, 100), (2, 4, 200), (3, 7, 0), (4, 7, 0, True)]
FOUND = [
  (1, 4, 2, 0.9),
  (1, 7, 100, 0.8),
  (2, 4, 0, 0.7),
  (2, 7, 100, 0.7),  # wrong class
  (2, 4, 1, 0.7),  # a second time
  (3, 7, 0, 0.6),
  (4, 7, 0, 0.9),  # on a crowd: neither
  (5, 4, 0, 0.65),  # nothing there
  (3, 7, 200, 0.1),  # too unsure to count
  (3, 4, 200, 0.1),
]


def test_pictures_are_counted_from_the_score_of_the_best_f1():
  of = per_picture.outcome(*_case(OBJECTS, FOUND), **SETTINGS)
  # F1 is 2 * 3 / (6 + 5) from 0.7 on, 2 * 4 / (6 + 7) from 0.6 on, and lower elsewhere.
  assert of.score == 0.6
  assert of.objects.tolist() == [2, 3, 1, 0, 0]
  assert of.found.tolist() == [2, 1, 1, 0, 0]
  assert of.wrong.tolist() == [0, 2, 0, 0, 1]
  np.testing.assert_allclose(of.f1, [1, 2 / 6, 1, np.nan, np.nan])
  assert of.right_rows.tolist() == [0, 2, 1, 5] and sorted(of.wrong_rows.tolist()) == [3, 4, 7]
  best, worst = per_picture.best_and_worst(of, 4)
  assert best.tolist() == [0] and worst.tolist() == [1]


def test_two_detectors_differ_where_one_is_right():
  ground, one = _case(OBJECTS, FOUND)
  other = one.take(np.array([0, 2, 5]))
  outcomes = [per_picture.outcome(ground, of, **SETTINGS) for of in (one, other)]
  better, worse = per_picture.most_different(*outcomes, 3)
  assert better.tolist() == [0] and worse.tolist() == [1]  # F1 of 1 against 2/3, and of 2/6 against 2/4
  assert [part.tolist() for part in per_picture.most_different(*outcomes[::-1], 3)] == [[1], [0]]
  assert [part.tolist() for part in per_picture.most_different(outcomes[0], outcomes[0], 3)] == [[], []]


@pytest.mark.parametrize('found', [[], [(3, 4, 300, 0.9)]])
def test_without_a_right_detection_no_score_counts(found):
  of = per_picture.outcome(*_case(OBJECTS, found), **SETTINGS)
  assert of.score is None and of.found.sum() == of.wrong.sum() == 0
  best, worst = per_picture.best_and_worst(of, 4)
  assert best.tolist() == [1] and worst.tolist() == [0]


def test_pictures_without_objects_are_neither_best_nor_worst():
  for objects, expected in (([], []), ([(3, 4, 0)], [2])):
    of = per_picture.outcome(*_case(objects, [(3, 4, 0, 0.5)]), **SETTINGS)
    best, worst = per_picture.best_and_worst(of, 4)
    assert best.tolist() == expected and worst.tolist() == []


def _f1(objects, found, wrong):
  return 2 * found / max(objects + found + wrong, 1)


def test_no_other_score_has_a_higher_f1():
  checked = 0
  for seed in range(25):
    ground_truth, results = small_scores.case(seed)
    of = truth.read(ground_truth)
    arguments = protocols.PROTOCOLS['lvis'].matching(of, detections.read(results, of), None)
    whole = per_picture.outcome(**arguments)
    objects = whole.objects.sum()
    reached = _f1(objects, whole.found.sum(), whole.wrong.sum())
    for score in np.arange(0, 1.05, 0.1):
      kept = arguments | {'found': arguments['found'].take(arguments['found'].score >= score - 1e-9)}
      part = matches.match(**kept, thresholds=[0.5])
      right, wrong = part.right.sum(), (~part.right & ~part.ignored).sum()
      assert _f1(objects, right, wrong) <= reached + 1e-12
      checked += score == 0 or len(kept['found']) > 0
      if whole.score is not None and abs(score - whole.score) < 1e-6:
        assert (right, wrong) == (whole.found.sum(), whole.wrong.sum())
  assert checked > 50
