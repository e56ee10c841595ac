"""Which detections are right, by hand and in parts."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.helpers import small_scores
from vild_jax.eval import detections, matches, truth

SETTINGS = {'federated': False, 'max_detections': 100}


def _case():
  """A cat in picture 5, found well, badly and as a dog; a crowd of dogs in picture 3, found once."""
  of = truth.read(
    {
      'images': [{'id': i, 'height': 100, 'width': 200} for i in (5, 3)],
      'categories': [{'id': k, 'name': name} for k, name in ((7, 'dog'), (4, 'cat'))],
      'annotations': [
        {'image_id': 5, 'category_id': 4, 'bbox': [0, 0, 40, 40], 'area': 1600},
        {'image_id': 3, 'category_id': 7, 'bbox': [0, 0, 40, 40], 'area': 1600, 'iscrowd': 1},
      ],
    }
  )
  row = lambda i, k, width, score: {'image_id': i, 'category_id': k, 'bbox': [0, 0, width, 40], 'score': score}
  return of, detections.read([row(3, 7, 40, 0.5), row(5, 7, 40, 0.9), row(5, 4, 28, 0.6), row(5, 4, 40, 0.7)], of)


def test_detections_are_right_wrong_or_ignored():
  done = matches.match(*_case(), **SETTINGS, thresholds=[0.5, 0.75])
  # By category, picture and score: the cats, then the dog on the crowd and the one on the cat.
  assert done.row.tolist() == [3, 2, 0, 1]
  assert done.right.tolist() == [[True, True], [False, False], [False, False], [False, False]]
  assert done.ignored.tolist() == [[False, False], [False, False], [True, True], [False, False]]
  assert (done.object_image.tolist(), done.object_category.tolist()) == ([1], [0])
  only = matches.match(*_case(), **SETTINGS, categories=np.array([1]))
  assert only.row.tolist() == [0, 1] and only.right.shape == (2, 10) and len(only.object_image) == 0


def test_a_loose_box_is_right_at_a_lower_overlap_only():
  of, found = _case()
  done = matches.match(of, found.take(np.array([2])), **SETTINGS)  # IoU 0.7
  assert done.right[0].tolist() == [True] * 5 + [False] * 5


def test_nothing_has_no_matches():
  of, found = _case()
  done = matches.match(of, found.take(np.zeros(0, int)), **SETTINGS)
  assert done.right.shape == (0, 10) and done.object_image.tolist() == [1]
  done = matches.match(of, found, **SETTINGS, categories=np.zeros(0, int))
  assert done.right.shape == (0, 10) and len(done.row) == len(done.object_image) == 0


def test_parts_change_nothing(monkeypatch):
  ground_truth, results = small_scores.case(13)
  of = truth.read(ground_truth)
  found = detections.read(results, of)
  assert len(matches.groups_of_categories(np.arange(4), found)) == 1
  whole = matches.match(of, found, **SETTINGS)
  monkeypatch.setattr(matches, '_AT_ONCE', 6)
  assert len(matches.groups_of_categories(np.arange(4), found)) > 2
  for name, column in dataclasses.asdict(matches.match(of, found, **SETTINGS)).items():
    np.testing.assert_array_equal(column, getattr(whole, name), err_msg=name)
