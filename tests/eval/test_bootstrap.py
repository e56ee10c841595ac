"""Weighted AP is that of the evaluator, and intervals are those of samples whose pictures are really repeated."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from tests.helpers import small_scores
from vild_jax.eval import bootstrap, detections, matches, protocols, truth


def _case(seed, distinct=False):
  ground_truth, results = small_scores.case(seed)
  if distinct:
    # Equal scores would make AP depend on the order in which repeated pictures stand.
    order = np.random.default_rng(seed).permutation(len(results))
    results = [row | {'score': (1 + int(k)) / 100} for row, k in zip(results, order, strict=True)]
  return ground_truth, results


def _aps(name, ground_truth, results):
  """AP of each category by the evaluator, NaN where there is none."""
  of = truth.read(ground_truth)
  rows = protocols.PROTOCOLS[name].score(of, detections.read(results, of), None)['per_category']
  return np.array([np.nan if row['box_AP'] is None else row['box_AP'] for row in rows])


def _repeated(ground_truth, results, counts):
  """Ground truth and results in which each picture stands as often as `counts` says."""
  made = {'images': [], 'annotations': [], 'categories': ground_truth['categories']}, []
  for image, count in zip(sorted(ground_truth['images'], key=lambda image: image['id']), counts, strict=True):
    for _ in range(count):
      new = len(made[0]['images']) + 1
      made[0]['images'].append(image | {'id': new})
      made[0]['annotations'] += [
        a | {'image_id': new} for a in ground_truth['annotations'] if a['image_id'] == image['id']
      ]
      made[1].extend(copy.copy(row) | {'image_id': new} for row in results if row['image_id'] == image['id'])
  return made


@pytest.mark.parametrize('name', ['lvis', 'coco'])
def test_ap_of_pictures_that_count_once_is_that_of_the_evaluator(name):
  with_objects = 0
  for seed in range(40):
    ground_truth, results = small_scores.case(seed)
    of = truth.read(ground_truth)
    arguments = protocols.PROTOCOLS[name].matching(of, detections.read(results, of), None)
    done = matches.match(**arguments)
    places, once = np.arange(len(of.categories)), np.ones((len(of.images), 1), np.int32)
    ours = bootstrap.of_categories(done, arguments['found'], places, once)[:, 0]
    expected = _aps(name, ground_truth, results)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9, err_msg=f'seed {seed}')
    with_objects += np.isfinite(expected).sum()
  assert with_objects > 50


@pytest.mark.parametrize('name', ['lvis', 'coco'])
def test_intervals_are_those_of_pictures_that_are_repeated_and_scored_again(name):
  ground_truth, results = _case(13, distinct=True)
  of = truth.read(ground_truth)
  assert len(of.images) > 3 and len(of.categories) > 1
  rng = np.random.default_rng(3)
  worse = [row | {'score': row['score'] * float(rng.uniform(0.3, 1))} for row in results if rng.random() < 0.6]
  one, two = (protocols.PROTOCOLS[name].matching(of, detections.read(rows, of), None) for rows in (results, worse))
  places = np.arange(len(of.categories))
  ends = bootstrap.intervals(**one, other=two['found'], categories=places, resamples=12)
  drawn = bootstrap.samples(len(of.images), 12)
  np.testing.assert_array_equal(drawn.sum(axis=0), len(of.images))
  scored = [
    [_aps(name, *_repeated(ground_truth, rows, counts)) for counts in drawn.T.tolist()] for rows in (results, worse)
  ]
  expected = np.nanpercentile(np.array(scored[0]) - np.array(scored[1]), [2.5, 97.5], axis=0).T
  np.testing.assert_allclose([ends[k] for k in places.tolist()], expected, rtol=0, atol=1e-9)
  assert (expected[:, 0] < expected[:, 1]).any()


def test_a_category_without_objects_has_no_interval():
  ground_truth, results = small_scores.case(0)
  ground_truth['annotations'] = [a for a in ground_truth['annotations'] if a['category_id'] != 2]
  of = truth.read(ground_truth)
  found = detections.read(results, of)
  settings = {'federated': False, 'max_detections': 100, 'resamples': 5}
  ends = bootstrap.intervals(of, found, found, np.arange(3), **settings)
  assert ends == {0: (0, 0), 1: None, 2: (0, 0)}
  nothing = found.take(np.zeros(0, int))
  lower, upper = bootstrap.intervals(of, found, nothing, np.array([2]), **settings)[2]
  assert 0 <= lower < upper <= 1
  assert bootstrap.intervals(of, nothing, nothing, np.array([2]), **settings) == {2: (0, 0)}
  assert bootstrap.intervals(of, found, found, np.arange(0), **settings) == {}


def test_blocks_of_samples_change_nothing(monkeypatch):
  ground_truth, results = small_scores.case(13)
  of = truth.read(ground_truth)
  found = detections.read(results, of)
  other = found.take(np.arange(0, len(found), 2))
  settings = {'federated': False, 'max_detections': 100, 'resamples': 7}
  whole = bootstrap.intervals(of, found, other, np.arange(4), **settings)
  monkeypatch.setattr(bootstrap, '_CELLS', 11)
  again = bootstrap.intervals(of, found, other, np.arange(4), **settings)
  assert again == {place: pytest.approx(ends, abs=1e-12) for place, ends in whole.items()}
  assert sum(lower < upper for lower, upper in whole.values()) > 1
