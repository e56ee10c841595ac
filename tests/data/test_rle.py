"""Masks as polygons and run-length codes."""

from __future__ import annotations

import json

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
