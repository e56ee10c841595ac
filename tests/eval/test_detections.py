"""Results become columns whole or in parts, and what cannot be scored is named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vild_jax.data import rle
from vild_jax.data.schema import DataError
from vild_jax.eval import detections, truth
from vild_jax.eval.found import restricted

BIG = 2**53  # the first number to whose right neighbour float64 is blind


def _truth(*, first=7, second=8):
  return truth.read(
    {
      'images': [{'id': first, 'height': 40, 'width': 50}, {'id': second, 'height': 30, 'width': 30}],
      'categories': [{'id': 1, 'name': 'cat'}, {'id': 5, 'name': 'dog'}],
      'annotations': [],
    }
  )


def _rows(count=40, seed=0):
  """Detections of both pictures with boxes and masks, in no order."""
  rng, rows = np.random.default_rng(seed), []
  for _ in range(count):
    image = int(rng.integers(7, 9))
    height, width = ((40, 50), (30, 30))[image - 7]
    y, x = int(rng.integers(0, height - 5)), int(rng.integers(0, width - 5))
    mask = np.zeros((height, width), bool)
    mask[y : y + 5, x : x + 4] = True
    rows.append(
      {
        'image_id': image,
        'category_id': int(rng.choice([1, 5])),
        'bbox': [x, y + 0.5, 4, 4.25],
        'score': float(rng.random()),
        'segmentation': rle.encode_mask(mask),
      }
    )
  return rows


def _assert_holds(found, rows):
  of = lambda key: [row[key] for row in rows]
  assert [7 + i for i in found.image] == of('image_id') and [(1, 5)[k] for k in found.category] == of('category_id')
  np.testing.assert_array_equal(found.score, of('score'))
  np.testing.assert_array_equal(found.boxes, of('bbox'))
  assert found.codes.strings() == [row['segmentation']['counts'] for row in rows]


@pytest.mark.parametrize('indent', [None, 1])
@pytest.mark.parametrize('part', [64, 700, 10**7])
def test_a_file_holds_what_a_list_holds_however_it_is_cut(tmp_path, part, indent):
  rows = _rows()
  (tmp_path / 'r.json').write_text(' \n' + json.dumps(rows, indent=indent) + '\n')
  _assert_holds(detections.read(tmp_path / 'r.json', _truth(), part=part), rows)
  _assert_holds(detections.read(rows, _truth()), rows)


def test_a_cut_inside_a_detection_is_mended(tmp_path):
  rows = [row | {'parts': [{'a': 1}, {'b': 2}, {'c': [{'d': 3}, {'e': 4}]}]} for row in _rows(20)]
  (tmp_path / 'r.json').write_text(json.dumps(rows))
  for part in (100, 333, 1000):
    _assert_holds(detections.read(tmp_path / 'r.json', _truth(), part=part), rows)


def test_rows_are_taken_sorted_and_restricted():
  rows = _rows()
  found = detections.read(rows, _truth())
  chosen = np.argsort(-found.score)[:10]
  _assert_holds(found.take(chosen), [rows[i] for i in chosen])
  part, of_dogs = restricted(_truth(), found, categories={5}, images={8})
  left = [row for row in rows if row['category_id'] == 5 and row['image_id'] == 8]
  assert [c['name'] for c in part.categories] == ['dog'] and part.image_ids.tolist() == [8]
  assert len(of_dogs) == len(left) and not of_dogs.image.any() and not of_dogs.category.any()
  np.testing.assert_array_equal(of_dogs.score, [row['score'] for row in left])


def test_ids_that_float64_cannot_tell_apart_stay_apart(tmp_path):
  rows = [row | {'image_id': BIG + row['image_id'] - 7} for row in _rows()]
  (tmp_path / 'r.json').write_text(json.dumps(rows))
  found = detections.read(tmp_path / 'r.json', _truth(first=BIG, second=BIG + 1))
  assert [BIG + i for i in found.image.tolist()] == [row['image_id'] for row in rows]
  with pytest.raises(DataError, match=r'image_id is 18446744073709551616; expected a whole number of 64 bits'):
    detections.read([_rows(1)[0] | {'image_id': 2**64}], _truth())


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'score': float('nan')}, 'score is nan; expected a finite number'),
    ({'score': 'high'}, "score is 'high'"),
    ({'image_id': '7'}, "image_id is '7'; expected a whole number"),
    ({'bbox': [1, 2, 3]}, 'expected four finite numbers'),
    ({'bbox': [1, 2, -3, 4]}, 'not negative'),
    ({'segmentation': {'size': [50, 40], 'counts': '0'}}, r'size \[50, 40\]; expected \[40, 50\]'),
    ({'segmentation': {'size': [40, 50], 'counts': 'PT\\o0'}}, 'broken run-length code'),
    ({'segmentation': [[1, 2, 3, 4, 5, 6]]}, 'expected a compressed run-length code'),
    ({'segmentation': {'size': [40, 50], 'counts': [2000]}}, 'expected a compressed run-length code'),
    ({'segmentation': {'size': 5, 'counts': '0'}}, r'size 5; expected \[height, width\]'),
    ({'image_id': 99, 'segmentation': {'size': ['a', None], 'counts': '0'}}, 'expected \\[height, width\\]'),
    ({'score': 2**2000}, 'expected a finite number'),
    ({'bbox': [0, 0, 1, 2**2000]}, 'expected four finite numbers'),
  ],
)
@pytest.mark.parametrize('from_file', [False, True])
def test_a_bad_detection_is_named(tmp_path, change, message, from_file):
  good = _rows(1)[0] | {'image_id': 7, 'segmentation': rle.encode_mask(np.zeros((40, 50), bool))}
  rows = [good, good | change]
  if from_file:
    (tmp_path / 'r.json').write_text(json.dumps(rows))
  with pytest.raises(DataError, match=f'detection 1: .*{message}') as error:
    detections.read(tmp_path / 'r.json' if from_file else rows, _truth())
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('{"a": ', 'is not JSON'),
    ('{"a": 1}', 'holds a dict; expected a results JSON'),
    ('[3]', 'detection 0: found 3'),
    ('[{"image_id": 7, "score": 1}]', 'expected image_id'),
    ('[{"image_id": 7, "category_id": 1, "score": 1}]', 'neither bbox nor segmentation'),
    (json.dumps(_rows(60))[:-300], 'is not JSON'),
    (json.dumps(_rows(60)).replace('}, {', '}] {', 30).replace('}] {', '}, {', 29), 'is not JSON'),
    ('', 'is not JSON'),
    ('[' * 200_000, 'is not JSON'),
    ('\ufeff[]', 'begins with a byte order mark'),
  ],
)
def test_files_that_hold_no_results_are_named(tmp_path, content, message):
  (tmp_path / 'r.json').write_text(content)
  for part in (256, 10**6):
    with pytest.raises(DataError, match=message) as error:
      detections.read(tmp_path / 'r.json', _truth(), part=part)
    assert 'r.json' in str(error.value) and '\n' not in str(error.value)
  with pytest.raises(DataError, match='is not a file'):
    detections.read(tmp_path / 'absent.json', _truth())


def test_boxes_and_masks_are_there_for_every_detection_or_for_none(tmp_path):
  boxes, masks = ([{k: v for k, v in row.items() if k != key} for row in _rows()] for key in ('segmentation', 'bbox'))
  assert detections.read(boxes, _truth()).codes is None and detections.read(masks, _truth()).boxes is None
  for rows in (boxes[:9] + masks, masks[:9] + boxes, _rows() + boxes):
    (tmp_path / 'r.json').write_text(json.dumps(rows))
    for part in (300, 10**6):
      with pytest.raises(DataError, match=r"detection \d+: no '(bbox|segmentation)'; expected one for every"):
        detections.read(tmp_path / 'r.json', _truth(), part=part)


def test_unknown_ids_are_counted_and_left_out_on_request():
  rows = _rows(10) + [_rows(1)[0] | {'image_id': 100 + i // 2} for i in range(16)] + [_rows(1)[0] | {'category_id': 3}]
  with pytest.raises(
    DataError,
    match=r'16 of 27 detections are of pictures .* \(image_id 100, 101, 102, 103, 104\); .* --ignore-unknown',
  ):
    detections.read(rows, _truth())
  with pytest.raises(DataError, match=r'1 of 11 detections are of categories .* \(category_id 3\)'):
    detections.read([*rows[:10], rows[-1]], _truth())
  found = detections.read(rows, _truth(), ignore_unknown=True)
  assert found.ignored == 17
  _assert_holds(found, rows[:10])
  assert len(detections.read(rows[:10] + rows[-1:], _truth(), classless=True)) == 11


def test_copies_are_counted():
  rows = _rows(30)
  assert detections.read(rows, _truth()).repeated == 0
  assert detections.read(rows + rows[:7], _truth()).repeated == 7
  masks = [{k: v for k, v in row.items() if k != 'bbox'} for row in rows]
  assert detections.read(masks + masks[:7], _truth()).repeated == 7


def test_corners_are_not_taken_for_sizes():
  rows = [{k: v for k, v in row.items() if k != 'segmentation'} for row in _rows(60)]
  corners = [row | {'bbox': [x, y, x + w, y + h]} for row in rows for x, y, w, h in [row['bbox']]]
  with pytest.raises(DataError, match=r'look like \[x1, y1, x2, y2\]'):
    detections.read(corners, _truth())
  assert len(detections.read(corners[:10], _truth())) == 10  # too few to judge


def test_nothing_found_has_no_rows(tmp_path):
  (tmp_path / 'r.json').write_text('[]')
  for found in (detections.read([], _truth()), detections.read(tmp_path / 'r.json', _truth())):
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.codes.strings() == []
