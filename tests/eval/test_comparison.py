"""Differences between two detectors, on a case that can be counted by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vild_jax.eval import comparison, detections, truth

SETTINGS = {'federated': False, 'max_detections': 100}


def test_a_comparison_has_signs_and_intervals():
  rng = np.random.default_rng(0)
  objects = [(i, 4, 60 * n) for i in (1, 2, 3) for n in range(6)]
  good = [(i, k, x, 0.5 + 0.4 * rng.random()) for i, k, x in objects]
  of = truth.read(
    {
      'images': [{'id': i, 'height': 100, 'width': 500} for i in (1, 2, 3)],
      'categories': [{'id': 2, 'name': 'owl'}, {'id': 4, 'name': 'cat'}],
      'annotations': [{'image_id': i, 'category_id': k, 'bbox': [x, 10, 40, 40], 'area': 1600} for i, k, x in objects],
    }
  )
  rows = [{'image_id': i, 'category_id': k, 'bbox': [x, 10, 40, 40], 'score': s} for i, k, x, s in good]
  found = detections.read(rows, of)
  worse = found.take(np.arange(len(found)) % 3 > 0)
  done = comparison.compare(of, found, worse, **SETTINGS, resamples=50)
  this, other, difference, low, high = done.metrics['AP50']
  assert this == pytest.approx(1) and difference == pytest.approx(this - other) and difference > 0.2
  assert 0 < low <= high and done.per_category[0][0] == 'cat' and done.per_category[0][1] > done.per_category[0][2]
  (row,) = done.per_category
  # Every picture loses as much, so every sample differs as much.
  assert row.pictures == 3 and (row.lower, row.upper) == pytest.approx((row.this - row.other,) * 2)
  made = done.as_json()
  assert made['per_category'][0]['name'] == 'cat' and made['box']['AP50']['lower'] == low
  json.dumps(made, allow_nan=False)
  same = comparison.compare(of, found, found, **SETTINGS, resamples=20)
  assert same.metrics['AP50'][2:] == (0, 0, 0) and same.per_category == ()
