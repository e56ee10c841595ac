"""Ground truth that cannot be scored is refused in one line, before anything is computed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vild_jax.data import rle
from vild_jax.data.schema import DataError
from vild_jax.eval import coco, truth
from vild_jax.eval.truth import Split

NAN, INFINITY = float('nan'), float('inf')


def _tree():
  return {
    'images': [{'id': 7, 'height': 40, 'width': 50}, {'id': 3, 'height': 30, 'width': 30}],
    'categories': [{'id': 2, 'name': 'b', 'frequency': 'r'}, {'id': 1, 'name': 'a', 'frequency': 'f'}],
    'annotations': [
      {'id': 1, 'image_id': 7, 'category_id': 2, 'bbox': [1, 2, 3, 4], 'area': 12, 'segmentation': [[1, 2, 4, 2, 4, 6]]}
    ],
  }


@pytest.mark.parametrize(
  ('where', 'change', 'message'),
  [
    ('images', 3, r'images\[0\]: found 3; expected an object with'),
    ('images', {'id': '7'}, "id is '7'; expected a whole number"),
    ('images', {'id': 1.5}, 'id is 1.5'),
    ('images', {'id': []}, r'id is \[\]'),
    ('images', {'id': 2**64}, 'a whole number of 64 bits'),
    ('images', {'id': 3}, 'id 3 stands twice'),
    ('images', {'height': 0}, 'height is 0; expected a positive whole number'),
    ('images', {'height': 2**31}, '50 wide and 2147483648 high; expected fewer than 2'),
    ('images', {'neg_category_ids': 5}, 'neg_category_ids is 5; expected a list'),
    ('images', {'neg_category_ids': [[1]]}, r'neg_category_ids is \[\[1\]\]'),
    ('categories', {'id': None}, 'id is None'),
    ('categories', {'frequency': 'x'}, "frequency is 'x'; expected r, c, f or none"),
    ('annotations', {'image_id': '7'}, "image_id '7' is unknown"),
    ('annotations', {'category_id': [1]}, r'category_id \[1\] is unknown'),
    ('annotations', {'area': None}, 'area is None; expected a finite number'),
    ('annotations', {'area': NAN}, 'area is nan'),
    ('annotations', {'area': -5}, 'area is -5'),
    ('annotations', {'area': INFINITY}, 'area is inf'),
    ('images', {'id': 7.5}, 'id is 7.5; expected a whole number'),
    ('images', {'height': 40.5}, 'height is 40.5; expected a positive whole number'),
    ('annotations', {'image_id': 7.5}, 'image_id 7.5 is unknown'),
    ('annotations', {'bbox': [1, 2, NAN, 4]}, 'expected four finite numbers'),
    ('annotations', {'bbox': [1, 2, -3, 4]}, 'not negative'),
    ('annotations', {'bbox': 5}, 'bbox is 5'),
    ('annotations', {'iscrowd': 'yes'}, "iscrowd is 'yes'; expected 0, 1 or none"),
    ('annotations', {'iscrowd': 2}, 'iscrowd is 2'),
    ('annotations', {'segmentation': [[1, 2, 3.5e8, 4, 5, 6]]}, 'to reach outside by no more than that width'),
    ('annotations', {'segmentation': {'size': [40.0, 50.0], 'counts': '0'}}, 'no run-length code of size'),
    ('annotations', {'segmentation': {'size': [40, 50], 'counts': [5, 6]}}, 'counts do not add up'),
    ('annotations', {'segmentation': {'size': [50, 50], 'counts': '0'}}, r'no run-length code of size \[40, 50\]'),
    ('annotations', {'segmentation': {'size': [40, 50], 'counts': 'PT\\o0'}}, 'no run-length code'),
    ('annotations', {'segmentation': [[1, 2]]}, 'no polygon of three points'),
    ('annotations', {'segmentation': [[1, 2, NAN, 4, 5, 6]]}, 'not an even number of finite'),
    ('annotations', {'segmentation': 'abc'}, 'a segmentation of type str'),
  ],
)
def test_what_cannot_be_scored_is_named(tmp_path, where, change, message):
  tree = _tree()
  tree[where][0] = tree[where][0] | change if isinstance(change, dict) else change
  for source in (tree, tmp_path / 't.json'):
    (tmp_path / 't.json').write_text(json.dumps(tree))
    with pytest.raises(DataError, match=message) as error:
      truth.read(source)
    assert '\n' not in str(error.value)


def test_what_exports_leave_out_is_taken():
  tree = _tree()
  tree['annotations'] += [
    {'image_id': 3, 'category_id': 1, 'bbox': None, 'area': 0, 'segmentation': None, 'iscrowd': None},
    {
      'image_id': 3,
      'category_id': 1,
      'bbox': [0, 0, 1, 1],
      'area': 1,
      'segmentation': {'size': [30, 30], 'counts': [900]},
    },
  ]
  tree['categories'][0]['frequency'] = None
  of = truth.read(tree)
  assert of.image_ids.tolist() == [3, 7] and of.category_ids.tolist() == [1, 2] and len(of.annotations) == 3
  assert of.by_frequency() == Split(frozenset({1}), frozenset())
  assert truth.read(_tree()).by_frequency() == Split(frozenset({1}), frozenset({2}))
  assert of.digest != truth.read(_tree()).digest


def test_whole_numbers_may_be_written_with_a_point():
  tree, plain = _tree(), _tree()
  for each in (tree, plain):
    each['images'][0] |= {'neg_category_ids': [1], 'not_exhaustive_category_ids': [2]}
  tree['images'][0] |= {'id': 7.0, 'height': 40.0, 'width': 50.0, 'neg_category_ids': [1.0]}
  tree['categories'][0]['id'] = 2.0
  tree['annotations'][0] |= {'image_id': 7.0, 'category_id': 2.0}
  found, expected = truth.read(tree), truth.read(plain)
  assert json.dumps([found.images, found.categories, found.annotations]) == json.dumps(
    [expected.images, expected.categories, expected.annotations]
  )
  assert coco.evaluate(tree, [])['box'] == coco.evaluate(plain, [])['box']


@pytest.mark.parametrize(
  ('changes', 'area'),
  [
    ({'segmentation': [[10, 10, 20, 10, 20, 16, 10, 16]]}, 60),  # the box has 12
    ({'segmentation': rle.encode_mask(np.eye(40, 50, dtype=bool))}, 40),
    ({'segmentation': []}, 12),
    ({'segmentation': None, 'bbox': [-2, 30, 10, 20.5]}, 80),  # 8 x 10 of it lie in the picture
    ({'segmentation': None, 'bbox': [60, 3, 10, 2]}, 0),
  ],
)
def test_a_missing_area_is_that_of_the_segmentation_or_of_the_box(changes, area):
  tree = _tree()
  tree['annotations'][0] |= changes
  del tree['annotations'][0]['area']
  assert truth.read(tree).annotations[0]['area'] == area


def test_an_object_without_any_area_is_refused():
  tree = _tree()
  tree['annotations'][0] |= {'bbox': None, 'segmentation': None}
  del tree['annotations'][0]['area']
  with pytest.raises(DataError, match=r"annotations\[0\]: no 'area'; expected one, or a bbox"):
    truth.read(tree)


@pytest.mark.parametrize(
  ('given', 'taken'),
  [
    ([[]], []),
    ([[1, 2], [1, 2, 4, 2, 4, 6], []], [[1, 2, 4, 2, 4, 6]]),
    ({'size': [40.0, 50.0], 'counts': [0, 2000]}, rle.encode_mask(np.ones((40, 50), bool))),
  ],
)
def test_a_segmentation_is_brought_into_the_form_that_the_evaluator_takes(given, taken):
  tree = _tree()
  tree['annotations'][0]['segmentation'] = given
  found = truth.read(tree).annotations[0]
  assert found == _tree()['annotations'][0] | {'segmentation': taken}
  if not taken:
    assert coco.evaluate(tree, [])['mask'] is None
    return
  mask = rle.encode_mask(rle.decode_mask(taken, 40, 50))
  assert coco.evaluate(tree, [found | {'score': 0.5, 'segmentation': mask}])['mask']['AP'] == pytest.approx(1)


def test_nesting_that_no_parser_follows_is_one_line(tmp_path):
  (tmp_path / 't.json').write_text('[' * 200_000)
  with pytest.raises(DataError, match=r't\.json is not JSON'):
    truth.read(tmp_path / 't.json')


def test_a_list_that_stands_twice_is_refused_and_a_name_like_a_list_is_not(tmp_path):
  tree = {
    'images': [{'id': 1, 'height': 9, 'width': 9}],
    'categories': [{'id': 1, 'name': 'annotations'}],
    'annotations': [{'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 2, 2]}],
  }
  path = tmp_path / 't.json'
  path.write_text(json.dumps(tree))
  assert len(truth.read(path).annotations) == 1
  path.write_text(json.dumps(tree)[:-1] + ', "annotations": []}')
  with pytest.raises(DataError, match=rf"^{path}: 'annotations' stands twice in the outermost object"):
    truth.read(path)
