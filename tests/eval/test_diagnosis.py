"""Kinds of errors, confusions and calibration on cases that can be counted by hand."""

from __future__ import annotations

import json

import pytest

from tests.helpers import small_scores
from vild_jax.eval import detections, diagnosis, protocols, recall, scoring, truth

SETTINGS = {'federated': False, 'max_detections': 100}


def _case(objects, found):
  """Objects (picture, class, x) and detections (picture, class, x, score), squares of 40 pixels at y = 10."""
  of = truth.read(
    {
      'images': [{'id': i, 'height': 100, 'width': 500} for i in (1, 2, 3)],
      'categories': [{'id': k, 'name': name} for k, name in ((4, 'cat'), (7, 'dog'), (9, 'fox'))],
      'annotations': [
        {'image_id': i, 'category_id': k, 'bbox': [x, 10, 40, 40], 'area': 1600, 'iscrowd': int(bool(crowd))}
        for i, k, x, *crowd in objects
      ],
    }
  )
  rows = [{'image_id': i, 'category_id': k, 'bbox': [x, 10, 40, 40], 'score': s} for i, k, x, s in found]
  return of, detections.read(rows, of)


def _diagnosed(*case):
  of, found = _case(*case)
  return diagnosis.diagnose(of, found, scoring.score(of, found, **SETTINGS)['per_category'], **SETTINGS)


def test_an_object_is_confused_if_its_surest_box_names_another_category():
  objects = [(1, 4, 10), (1, 4, 100), (2, 4, 10), (2, 7, 100), (3, 9, 10), (3, 4, 100, True)]
  found = [
    (1, 7, 12, 0.9),  # a cat called dog, though
    (1, 4, 10, 0.8),  # found as a cat too, less surely
    (1, 4, 100, 0.7),
    (1, 7, 100, 0.6),
    (2, 7, 10, 0.5),  # another cat called dog
    (2, 9, 125, 0.99),  # overlaps the dog too little
    (3, 7, 100, 0.9),  # on a crowd
  ]
  (one,) = diagnosis.confusions(*_case(objects, found))
  assert (one.category, one.called, one.count) == ('cat', 'dog', 2) and one.share == pytest.approx(2 / 3)
  assert [(image, box[0], score) for image, box, score in one.examples] == [(1, 10.0, 0.9), (2, 10.0, 0.5)]
  assert diagnosis.confusions(*_case(objects, [])) == diagnosis.confusions(*_case([], found)) == ()


def test_each_kind_of_error_is_named():
  objects = [(1, 4, 10), (1, 4, 200), (2, 7, 10), (2, 7, 200), (3, 9, 10)]
  found = [
    (1, 4, 10, 0.95),  # right
    (1, 4, 11, 0.9),  # a duplicate
    (1, 7, 200, 0.8),  # another class
    (2, 7, 30, 0.7),  # imprecise: IoU 1/3
    (2, 4, 220, 0.6),  # both
    (3, 9, 300, 0.5),  # nothing there; the fox is missed
  ]
  of = _diagnosed(objects, found)
  assert {kind: count for kind, (_, count) in of.errors.items()} == {
    'Cls': 1, 'Loc': 1, 'Both': 1, 'Dupe': 1, 'Bkg': 1, 'Miss': 1 + 1
  }  # fmt: skip
  assert set(of.errors) == set(diagnosis.ERRORS) and of.errors['Cls'][0] > 0
  json.dumps(of.as_json(), allow_nan=False)


def test_a_detector_that_is_right_as_often_as_it_says_is_calibrated():
  objects = [(i, 4, 60 * n) for i in (1, 2, 3) for n in range(8)][:20]
  found = [(i, 4, x, 0.55) for i, _, x in objects[:11]] + [(1, 4, 480 - n, 0.55) for n in range(9)]
  of = _diagnosed(objects, found)
  assert of.calibration == ((pytest.approx(0.55), pytest.approx(11 / 20), 20),)
  assert of.calibration_error == pytest.approx(0, abs=1e-9)
  surer = _diagnosed(objects, [(i, k, x, 0.95) for i, k, x, _ in found])
  assert surer.calibration_error == pytest.approx(0.4)


def test_best_and_worst_categories_are_in_order():
  objects = [(i, k, 60 * n) for i in (1, 2) for k in (4, 7, 9) for n in [k // 2 - 2]]
  found = [(1, 4, 0, 0.9), (2, 4, 0, 0.9), (1, 7, 60, 0.9)]
  of = _diagnosed(objects, found)
  assert [row['name'] for row in of.best] == ['cat', 'dog', 'fox'] == [row['name'] for row in of.worst][::-1]


def test_scores_that_are_no_shares_have_no_calibration():
  of = _diagnosed([(1, 4, 10)], [(1, 4, 10, 5.0), (1, 7, 300, -2.0)])
  assert of.calibration == () and of.calibration_error is None and of.errors['Bkg'][1] == 1


def test_by_the_lvis_protocol_a_crowd_that_is_not_found_is_missed():
  of, found = _case([(1, 4, 10), (2, 4, 10, True)], [(1, 4, 10, 0.9)])
  arguments = protocols.PROTOCOLS['lvis'].matching(of, found, None)
  rows = protocols.score('coco', of, found)['per_category']
  assert diagnosis.diagnose(per_category=rows, **arguments).errors['Miss'][1] == 1


def test_what_a_protocol_counts_is_what_is_diagnosed():
  ground_truth, results = small_scores.case(3)
  of = truth.read(ground_truth)
  found = detections.read(results, of)
  for name in ('lvis', 'lvis-fixed', 'coco', 'objects365'):
    arguments = protocols.PROTOCOLS[name].matching(of, found, None)
    metrics = protocols.score(name, of, found)
    assert diagnosis.diagnose(per_category=metrics['per_category'], **arguments).errors
  assert protocols.PROTOCOLS['voc'].matching is protocols.PROTOCOLS['proposals'].matching is None


def test_recall_by_name_is_a_share_of_objects():
  objects = [(1, 4, 10), (2, 4, 10), (3, 4, 10), (1, 7, 200), (2, 7, 200, True)]
  of, found = _case(objects, [(1, 4, 10, 0.9), (2, 4, 10, 0.8), (3, 7, 10, 0.7), (1, 9, 300, 0.6)])
  rows = scoring.score(of, found, **SETTINGS)['per_category']
  split = truth.Split(frozenset({4}), frozenset({7, 9}))
  done = diagnosis.diagnose(of, found, rows, **SETTINGS, split=split).recall
  assert done == {'all': pytest.approx(2 / 4), 'base': pytest.approx(2 / 3), 'novel': 0}
  # Under any name the third cat is found too; the mean over categories would be 1/3.
  assert recall.by_group(of, found, split, [100])[100] == {'all': 3 / 4, 'base': 1, 'novel': 0}
  done = diagnosis.diagnose(of, found, rows, **SETTINGS).recall
  assert (done['base'], done['novel']) == (None, None)
