"""Masks as polygons and run-length codes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from vild_jax.data import rle
from vild_jax.data.schema import DataError


def test_a_rectangle_is_the_pixels_it_covers():
  expected = np.zeros((8, 9), bool)
  expected[2:5, 3:7] = True
  np.testing.assert_array_equal(rle.decode_mask([[3, 2, 7, 2, 7, 5, 3, 5]], 8, 9), expected)
  assert rle.decode_mask([[3, 2, 7, 2, 7, 5, 3, 5]], 8, 9).dtype == np.bool_


def test_masks_survive_encoding():
  rng = np.random.default_rng(0)
  for height, width, density in ((7, 13, 0.5), (100, 80, 0.01), (3, 3, 0), (3, 3, 1), (300, 500, 0.5)):
    mask = rng.random((height, width)) < density
    encoded = rle.encode_mask(mask)
    np.testing.assert_array_equal(rle.decode_mask(encoded, height, width), mask)
    assert rle.check_segmentation(json.loads(json.dumps(encoded)), height, width) == (encoded, 0)


def test_a_shattered_rle_is_refused_before_c_code_sees_it():
  good = rle.encode_mask(np.random.default_rng(0).random((50, 50)) < 0.3)
  for counts in (good['counts'][:-3], good['counts'] + 'A', '', 'é' * 9):
    with pytest.raises(DataError, match='do not add up'):
      rle.check_segmentation({'size': [50, 50], 'counts': counts}, 50, 50)


def _run_lengths(text: str) -> list[int]:
  """COCO's compressed counts, digit by digit: five bits and one that says that more follow; the last bit is a sign."""
  lengths: list[int] = []
  value = shift = 0
  for digit in (ord(letter) - 48 for letter in text):
    value |= (digit & 31) << shift
    shift += 5
    if digit & 32:
      continue
    value -= (digit >> 4 & 1) << shift
    lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
    value = shift = 0
  return lengths


def test_the_run_lengths_of_any_text_are_those_of_a_loop():
  rng = np.random.default_rng(0)
  for last in (80, 112):  # without and with numbers of several digits
    for _ in range(100):
      text = ''.join(map(chr, rng.integers(48, last, 30))) + 'O'
      long = max(map(len, re.findall('[P-o]*[0-O]', text))) > 7
      read = rle._run_lengths(text)
      assert (read is None) if long else (read.tolist() == _run_lengths(text))


def test_a_mask_without_a_pixel_is_found_whatever_its_shape():
  rng = np.random.default_rng(0)
  found = set()
  for side in (0, 0.4, 1, 3, 20):
    for _ in range(60):
      start = rng.uniform(-20, 40, 2)
      polygon = (start + rng.uniform(0, side + 1e-9, (4, 2)) * rng.choice([[1, 1], [30, 0.01]])).ravel().tolist()
      empty = not rle.decode_mask([polygon], 30, 35).any()
      assert rle.is_empty([polygon], 30, 35) == empty
      assert rle.is_empty([polygon, [3, 3, 9, 3, 9, 9]], 30, 35) is False
      found.add((empty, side))
  assert {(True, 0), (False, 20), (True, 20)} <= found
  assert rle.is_empty({'size': [4, 5], 'counts': rle.encode_mask(np.zeros((4, 5), bool))['counts']}, 4, 5)


def test_a_window_is_encoded_as_the_whole_mask_is():
  """Also where it is as high as the mask, so that a run goes on in the next column, and where it is empty."""
  rng = np.random.default_rng(0)
  for number in range(300):
    height, width = map(int, rng.integers(1, 9, 2))
    h, w = height if number % 2 else int(rng.integers(1, height + 1)), int(rng.integers(0, width + 1))
    y, x = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    mask = np.zeros((height, width), bool)
    mask[y : y + h, x : x + w] = rng.random((h, w)) < rng.choice([0, 0.3, 0.7, 1])
    assert rle.encode_window(mask[y : y + h, x : x + w], y, x, height, width) == rle.encode_mask(mask)


def test_windows_of_masks_are_cut_out_and_put_back():
  rng = np.random.default_rng(0)
  shapes = [(1, 1), (7, 13), (40, 3), (30, 30)]
  masks = [rng.random(shape) < density for shape in shapes for density in (0, 0.02, 0.5, 1)]
  column, corner = np.zeros((9, 12), bool), np.zeros((9, 12), bool)
  column[:, 4:6] = True  # one run over two columns
  corner[8, 11] = True
  for mask in [*masks, column, corner]:
    window, y, x = rle.decode_window(rle.encode_mask(mask))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    expected = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else np.zeros((0, 0), bool)
    np.testing.assert_array_equal(window, expected)
    whole = np.zeros((50, 60), bool)
    whole[5 + y : 5 + y + window.shape[0], 8 + x : 8 + x + window.shape[1]] = window
    assert rle.encode_window(window, 5 + y, 8 + x, 50, 60) == rle.encode_mask(whole)


def test_outlines_are_exact_to_the_pixel_and_fill_holes():
  rng = np.random.default_rng(0)
  for _ in range(20):
    mask = np.zeros((30, 40), bool)
    for x in range(1, 39):  # every run touches the middle, so that nothing that is off is enclosed
      mask[rng.integers(0, 15) : rng.integers(16, 31), x] = True
    window, y, x = rle.decode_window(rle.encode_mask(mask))
    (polygon,), has_holes = rle.outlines(window, y, x)
    assert not has_holes
    np.testing.assert_array_equal(rle.decode_mask([polygon], 30, 40), mask)
  ring = np.zeros((9, 9), bool)
  ring[1:8, 1:8] = True
  filled = ring.copy()
  assert rle.outlines(ring[1:8, 1:8], 1, 1) == ([[1, 1, 1, 8, 8, 8, 8, 1]], False)
  ring[3:5, 3:6] = False
  polygons, has_holes = rle.outlines(ring[1:8, 1:8], 1, 1)
  assert has_holes and len(polygons) == 2
  np.testing.assert_array_equal(rle.decode_mask(polygons, 9, 9), filled)
  assert rle.outlines(np.zeros((0, 0), bool), 0, 0) == rle.outlines(np.zeros((3, 3), bool), 0, 0) == ([], False)
