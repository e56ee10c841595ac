"""The results file: what is written, that it is whole or not there, and what is refused on reading."""

from __future__ import annotations

import json

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api

from tests.helpers.results import write_results
from vild_jax.data.schema import DataError
from vild_jax.eval import paste, results

SIZES, CATEGORIES = {7: (40, 50), 8: (30, 30)}, {1, 5}


def _detections():
  boxes = np.array([[2, 4, 22.5, 34.25], [0, 0, 0, 0], [10, 5, 39, 49]], np.float32)
  masks = np.full((3, 28, 28), 0.9, np.float32)
  return boxes, np.array([0.75, 0.0, 0.5], np.float32), np.array([5, 1, 1]), masks, np.array([True, False, True])


def test_only_valid_rows_become_results_in_the_formats_own_terms(tmp_path):
  boxes, scores, categories, masks, valid = _detections()
  rows = results.detections_to_results(7, boxes, scores, categories, masks, (40, 50), valid=valid)
  assert [row['category_id'] for row in rows] == [5, 1] and [row['score'] for row in rows] == [0.75, 0.5]
  assert rows[0]['bbox'] == [4, 2, 30.25, 20.5] and rows[0]['image_id'] == 7
  pasted = paste.paste_masks(masks[:1], boxes[:1], 40, 50)[0]
  np.testing.assert_array_equal(mask_api.decode(rows[0]['segmentation']), pasted)
  path = tmp_path / 'sub' / 'results.json'
  write_results(path, rows)
  assert json.loads(path.read_text()) == rows
  assert results.read_results(path, SIZES, CATEGORIES) == rows
  boxes_alone = results.detections_to_results(7, boxes, scores, categories, None, (40, 50))
  assert len(boxes_alone) == 3 and 'segmentation' not in boxes_alone[0]


def test_no_detections_make_an_empty_list(tmp_path):
  empty = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros((0, 28, 28))
  rows = results.detections_to_results(7, *empty, (40, 50))
  write_results(tmp_path / 'r.json', rows)
  assert json.loads((tmp_path / 'r.json').read_text()) == []


def test_a_failure_leaves_the_good_file_and_nothing_else(tmp_path):
  path = tmp_path / 'results.json'
  boxes, scores, categories, _, _ = _detections()
  write_results(path, [])
  with pytest.raises(RuntimeError), results.ResultsWriter(path) as writer:
    writer.write(7, results.detections_to_results(7, boxes, scores, categories, None, (40, 50)))
    assert writer.count == 3
    raise RuntimeError('the power went')
  assert json.loads(path.read_text()) == [] and list(tmp_path.iterdir()) == [path]


def test_numbers_that_are_none_are_not_written():
  boxes, scores, categories, masks, _ = _detections()
  scores[1] = np.nan
  with pytest.raises(DataError, match='picture 7'):
    results.detections_to_results(7, boxes, scores, categories, masks, (40, 50))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'image_id': 9}, 'image_id 9 is unknown; expected one of 2'),
    ({'category_id': 2}, 'category_id 2 is unknown'),
    ({'score': float('nan')}, 'score is nan; expected a finite number'),
    ({'score': 'high'}, "score is 'high'"),
    ({'bbox': [1, 2, 3]}, 'expected four finite numbers'),
    ({'bbox': [1, 2, -3, 4]}, 'not negative'),
    ({'segmentation': {'size': [50, 40], 'counts': '0'}}, r'size \[50, 40\]; expected \[40, 50\]'),
    ({'segmentation': {'size': [40, 50], 'counts': 'PT\\o0'}}, 'broken run-length code'),
    ({'segmentation': [[1, 2, 3, 4, 5, 6]]}, 'expected a compressed run-length code'),
  ],
)
def test_a_bad_detection_is_named(change, message):
  good = {'image_id': 7, 'category_id': 5, 'bbox': [1, 2, 3, 4], 'score': 0.5}
  assert results.read_results([good], SIZES, CATEGORIES) == [good]
  with pytest.raises(DataError, match=f'detection 1: .*{message}') as error:
    results.read_results([good, good | change], SIZES, CATEGORIES)
  assert '\n' not in str(error.value)


def test_files_that_hold_no_results_are_named(tmp_path):
  for content, message in (
    ('{"a": ', 'is not JSON'),
    ('{"a": 1}', 'holds a dict; expected a list'),
    ('[3]', 'detection 0: found 3'),
    ('[{"image_id": 7, "score": 1}]', 'expected image_id'),
  ):
    (tmp_path / 'r.json').write_text(content)
    with pytest.raises(DataError, match=message) as error:
      results.read_results(tmp_path / 'r.json', SIZES, CATEGORIES)
    assert 'r.json' in str(error.value) and '\n' not in str(error.value)
  with pytest.raises(DataError, match='is not a file'):
    results.read_results(tmp_path / 'absent.json', SIZES, CATEGORIES)
  half = [
    {'image_id': 7, 'category_id': 5, 'score': 1, 'bbox': [0, 0, 1, 1]},
    {'image_id': 7, 'category_id': 5, 'score': 1, 'segmentation': {'size': [40, 50], 'counts': '`n1'}},
  ]
  with pytest.raises(DataError, match=r"no '(segmentation|bbox)'; expected one"):
    results.read_results(half, SIZES, CATEGORIES)
