"""The results file: what is written, that it is whole or not there, and what is refused on reading."""

from __future__ import annotations

import json

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api

from tests.helpers.results import write_results
from vild_jax.data.schema import DataError
from vild_jax.eval import paste, results


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
  boxes_alone = results.detections_to_results(7, boxes, scores, categories, None, (40, 50))
  assert len(boxes_alone) == 3 and 'segmentation' not in boxes_alone[0]


def test_only_the_rows_that_are_named_get_a_mask():
  boxes, scores, categories, masks, _ = _detections()
  whole = results.detections_to_results(7, boxes, scores, categories, masks, (40, 50))
  masked, valid = np.array([False, True, True]), np.array([True, False, True])
  rows = results.detections_to_results(7, boxes, scores, categories, masks[masked], (40, 50), masked=masked)
  assert rows == [{k: v for k, v in whole[0].items() if k != 'segmentation'}, *whole[1:]]
  left = results.detections_to_results(
    7, boxes, scores, categories, masks[masked], (40, 50), valid=valid, masked=masked
  )
  assert left == [rows[0], rows[2]]
  none = results.detections_to_results(7, boxes, scores, categories, masks[:0], (40, 50), masked=np.zeros(3, bool))
  assert none == results.detections_to_results(7, boxes, scores, categories, None, (40, 50))


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
