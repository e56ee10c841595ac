"""Pasting against the reference's golden, and the window's run-length code against the whole picture's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api

from vild_jax.data import rle
from vild_jax.data.schema import DataError
from vild_jax.eval import paste


def _blobs(rng, count):
  rows, columns = np.mgrid[:28, :28]
  centre = rng.uniform(4, 24, (count, 2, 1, 1))
  distance = np.hypot(rows - centre[:, 0], columns - centre[:, 1])
  return (1 / (1 + np.exp(distance - rng.uniform(2, 16, (count, 1, 1))))).astype(np.float32)


def _boxes(rng, count, height, width):
  centre = rng.uniform(-0.1, 1.1, (count, 2)) * (height, width)
  half = np.exp(rng.uniform(-2, 5, (count, 2)))
  return np.concatenate([centre - half, centre + half], 1).astype(np.float32)


def test_equals_the_reference_bit_for_bit(golden):
  arrays = golden('paste_masks')
  x, y, w, h = arrays['in_boxes_xywh'].T
  boxes = np.stack([y, x, y + h, x + w], axis=1)
  pasted = paste.paste_masks(arrays['in_masks'], boxes, 100, 120)
  assert pasted.dtype == bool and pasted.any(axis=(1, 2)).sum() >= 6
  np.testing.assert_array_equal(pasted, arrays['out_segms'].astype(bool))
  np.testing.assert_array_equal(paste.paste_masks(arrays['in_masks'][2:3], boxes[2:3], 100, 120), pasted[2:3])


def test_window_code_equals_the_whole_pictures_code():
  rng = np.random.default_rng(0)
  masks, boxes = _blobs(rng, 150), _boxes(rng, 150, 61, 83)
  whole = paste.paste_masks(masks, boxes, 61, 83)
  codes = paste.paste_to_rles(masks, boxes, 61, 83)
  assert codes == [rle.encode_mask(mask) for mask in whole]
  for code, mask in zip(codes, whole, strict=True):
    np.testing.assert_array_equal(mask_api.decode(code), mask)
  assert json.loads(json.dumps(codes)) == codes


@pytest.mark.parametrize('box', [(0, 0, 40, 50), (-30, -30, 90, 90), (0, 10, 40, 20), (30, 0, 40, 50)])
def test_runs_join_from_column_to_column(box):
  masks, boxes = np.ones((1, 28, 28), np.float32), np.array([box], np.float32)
  assert paste.paste_to_rles(masks, boxes, 40, 50) == [rle.encode_mask(paste.paste_masks(masks, boxes, 40, 50)[0])]


def test_empty_masks_and_no_masks():
  boxes = np.array([[5, 5, 20, 20]], np.float32)
  (code,) = paste.paste_to_rles(np.zeros((1, 28, 28), np.float32), boxes, 40, 50)
  assert mask_api.area(code) == 0 and code['size'] == [40, 50]
  assert paste.paste_to_rles(np.zeros((0, 28, 28)), np.zeros((0, 4)), 40, 50) == []
  assert paste.paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), 40, 50).shape == (0, 40, 50)


@pytest.mark.parametrize('boxes', [np.zeros((2, 4)), np.full((1, 4), np.nan), np.full((1, 4), 1e12)])
def test_boxes_that_do_not_fit_are_refused(boxes):
  with pytest.raises(DataError, match='expected') as error:
    paste.paste_to_rles(np.zeros((1, 28, 28)), boxes, 40, 50)
  assert '\n' not in str(error.value)
