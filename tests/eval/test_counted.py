"""Which detections count, against loops over them; and that leaving out the masks of the others changes no number."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.helpers import small_scores
from vild_jax.data import rle
from vild_jax.data.schema import DataError
from vild_jax.eval import counted, detections, protocols, truth
from vild_jax.eval.truth import Split

FAMILIES = (('lvis', 'lvis-fixed'), ('coco', 'coco-ovd', 'objects365'))
SPLIT = Split(frozenset({1}), frozenset({2}))


def _cases(count, *, federated):
  """Ground truth that lists two classes or more, and results with masks."""
  for seed in range(count):
    tree, results = small_scores.case(seed, crowds=not federated)
    negative = any(image['neg_category_ids'] for image in tree['images'])
    if len(tree['categories']) > 1 and tree['annotations'] and results and negative is federated:
      yield truth.read(tree), results


def _crowded(*, federated):
  """150 detections of each of two classes in one picture, in no order and with many ties; the picture lists class 1."""
  rng = np.random.default_rng(0)
  tree, _ = small_scores.case(1)
  mask = lambda x: np.pad(np.ones((20, 20), bool), ((10, 30), (x, 40 - x)))
  image = tree['images'][0]['id']
  of = lambda k, x: {
    'image_id': image,
    'category_id': k,
    'bbox': [x, 10, 20, 20],
    'segmentation': rle.encode_mask(mask(x)),
  }
  tree['images'] = [tree['images'][0] | {'neg_category_ids': [3] if federated else []}]
  tree['categories'] = [{'id': k, 'name': f'class {k}', 'frequency': 'f'} for k in (1, 2, 3)]
  tree['annotations'] = [of(1, x) | {'id': x, 'area': 400, 'iscrowd': 0} for x in (2, 30)]
  if not federated:
    tree['annotations'].append(of(2, 5) | {'id': 9, 'area': 400, 'iscrowd': 0})
  results = [
    of(int(k), int(rng.integers(0, 40))) | {'score': float(np.round(rng.random(), 1))}
    for k in rng.permutation(np.repeat([1, 2], 150))
  ]
  return truth.read(tree), results


def _without(results, of, rule):
  """The results without the masks that need not be there, and how many these are."""
  need = rule(detections.read(results, of))
  assert need.shape == (len(results),) and need.dtype == bool
  bare = [{k: v for k, v in row.items() if k != 'segmentation'} for row in results]
  return [row if keep else other for row, other, keep in zip(results, bare, need, strict=True)], (~need).sum()


@pytest.mark.parametrize('count', [1, 3, 100])
def test_the_best_of_each_group_are_those_of_a_stable_sort(count):
  rng = np.random.default_rng(0)
  group, score = rng.integers(0, 7, 200), np.round(rng.random(200), 1)
  expected = np.zeros(200, bool)
  for g in range(7):
    expected[sorted(np.flatnonzero(group == g), key=lambda i: -score[i])[:count]] = True
  np.testing.assert_array_equal(counted.best(group, score, count), expected)
  assert counted.best(group[:0], score[:0], count).shape == (0,)


def test_listed_are_the_classes_that_a_picture_shows_or_is_known_to_lack():
  seen = set()
  for of, results in _cases(30, federated=True):
    lists = {image['id']: set(image['neg_category_ids']) for image in of.images}
    for annotation in of.annotations:
      lists[annotation['image_id']].add(annotation['category_id'])
    expected = [row['category_id'] in lists[row['image_id']] for row in results]
    assert counted.listed(of, detections.read(results, of)).tolist() == expected
    for image_id in lists:
      rows = [i for i, row in enumerate(results) if row['image_id'] == image_id]
      one = counted.of_picture(
        of, image_id, *(np.array([results[i][k] for i in rows]) for k in ('category_id', 'score'))
      )
      assert counted.listed(of, one).tolist() == [expected[i] for i in rows]
    seen |= set(expected)
  assert seen == {True, False}
  none = truth.read({'images': [{'id': 5, 'height': 9, 'width': 9}], 'categories': [], 'annotations': []})
  assert not counted.listed(none, counted.of_picture(none, 5, np.array([1]), np.array([0.5]))).any()


@pytest.mark.parametrize('family', FAMILIES)
def test_without_the_masks_of_the_others_a_protocol_and_its_family_give_the_same_numbers(family):
  federated, left_out = family[0] == 'lvis', 0
  for of, results in [*_cases(20, federated=federated), _crowded(federated=federated)]:
    whole = {name: protocols.score(name, of, detections.read(results, of), base=SPLIT) for name in family}
    assert whole[family[0]]['mask'] is not None
    for made_for in family:
      rows, count = _without(results, of, protocols.masks(made_for, of))
      left_out += count
      found = detections.read(rows, of)
      assert {name: protocols.score(name, of, found, base=SPLIT) for name in family} == whole, made_for
  assert left_out > 100


def test_boxes_are_all_there_for_any_other_protocol():
  of, results = _crowded(federated=True)
  rows, _ = _without(results, of, protocols.masks('lvis', of))
  for name in ('voc', 'coco', 'proposals'):
    whole, part = (detections.read(given, of, classless=name == 'proposals') for given in (results, rows))
    assert protocols.score(name, of, part)['box'] == protocols.score(name, of, whole)['box']


def test_coco_scores_no_masks_where_a_detection_that_it_counts_has_none():
  of, results = _crowded(federated=True)
  rows, _ = _without(results, of, protocols.masks('lvis', of))
  metrics = protocols.score('coco', of, detections.read(rows, of))
  assert metrics['mask'] is None and metrics['box']['AP50'] > 0
  assert protocols.score('lvis', of, detections.read(rows, of))['mask']['AP50'] > 0


@pytest.mark.parametrize('part', [300, 10**6])
@pytest.mark.parametrize('protocol', ['lvis', 'coco'])
def test_a_detection_that_can_count_must_have_a_mask_if_others_have_one(tmp_path, protocol, part):
  of, results = _crowded(federated=protocol == 'lvis')
  rule = protocols.masks(protocol, of)
  rows, _ = _without(results, of, rule)
  path = tmp_path / 'r.json'
  path.write_text(json.dumps(rows))
  found = detections.read(path, of, part=part)
  need = rule(found)
  assert found.codes.absent.tolist() == (~need).tolist()
  codes = [row['segmentation']['counts'] if 'segmentation' in row else '' for row in rows]
  assert found.codes.strings() == codes
  np.testing.assert_array_equal(found.codes.areas, np.where(need, 400, np.nan))
  number = int(np.flatnonzero(need)[7])
  del rows[number]['segmentation']
  path.write_text(json.dumps([rows[0] | {'image_id': 999}, *rows]))
  with pytest.raises(
    DataError, match=f"detection {number + 1}: no 'segmentation'; expected one for every .* can count"
  ):
    detections.read(path, of, part=part, ignore_unknown=True)


def test_boxes_alone_are_detected_for_a_protocol_of_boxes_or_for_objects_without_masks():
  of, _ = _crowded(federated=True)
  assert protocols.masks('voc', of) is None and protocols.masks('coco', of) is not None
  bare = truth.Truth('t', of.images, of.categories, [{**a, 'segmentation': None} for a in of.annotations], '')
  assert protocols.masks('coco', bare) is None and protocols.masks('lvis', bare) is None
  nothing = truth.Truth('t', of.images, of.categories, [], '')
  assert protocols.masks('lvis', nothing) is not None
