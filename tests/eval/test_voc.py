"""The VOC protocol against numbers worked out by hand, and against the definition of its two averages."""

from __future__ import annotations

import numpy as np
import pytest

from vild_jax.eval import detections, truth, voc
from vild_jax.eval.truth import Split


def _scored(objects, found, **more):
  """Objects (image, class, x[, difficult]) and detections (image, class, x, score), squares of 40 pixels."""
  of = truth.read(
    {
      'images': [{'id': i, 'height': 100, 'width': 500} for i in (1, 2)],
      'categories': [{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'b'}],
      'annotations': [
        {'image_id': i, 'category_id': k, 'bbox': [x, 10, 40, 40], 'area': 1600, 'difficult': int(bool(d))}
        for i, k, x, *d in objects
      ],
    }
  )
  rows = [{'image_id': i, 'category_id': k, 'bbox': [x, 10, 40, 40], 'score': s} for i, k, x, s in found]
  return voc.score(of, detections.read(rows, of), **more)


def test_by_hand():
  # Right, wrong, right of three objects: recall 1/3, 1/3, 2/3 with precision 1, 1/2, 2/3.
  metrics = _scored([(1, 1, 10), (1, 1, 100), (2, 1, 10)], [(1, 1, 10, 0.9), (2, 1, 300, 0.8), (2, 1, 10, 0.7)])
  row = metrics['per_category'][0]
  assert row['box_AP50'] == pytest.approx(1 / 3 + 2 / 9) and row['instances'] == 3
  assert row['box_AP50_11point'] == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)  # at 0 to 0.3, and at 0.4 to 0.6
  assert metrics['box']['AP50'] == row['box_AP50']  # class b has no objects
  assert metrics['per_category'][1]['box_AP50'] is None and metrics['mask'] is None


def test_an_object_is_found_once_and_by_the_one_that_overlaps_it_most():
  # Moved by 6 of 40 pixels: IoU 0.74. The second detection overlaps the first object more, which is taken; COCO would
  # give it the other object, 10 pixels away.
  metrics = _scored([(1, 1, 10), (1, 1, 20)], [(1, 1, 10, 0.9), (1, 1, 13, 0.8)])
  assert metrics['box']['AP50'] == pytest.approx(0.5)
  shifted = _scored([(1, 1, 10)], [(1, 1, 16, 0.9)])
  assert shifted['box']['AP50'] == 1 and shifted['box']['AP75'] == 0


def test_difficult_objects_count_neither_way():
  objects, hit = [(1, 1, 10), (1, 1, 100, True)], (1, 1, 10, 0.5)
  for found in ([hit], [hit, (1, 1, 100, 0.9)], [hit, (1, 1, 100, 0.9), (1, 1, 101, 0.8)]):
    metrics = _scored(objects, found)
    assert metrics['box']['AP50'] == 1 and metrics['per_category'][0]['instances'] == 1
  assert _scored([(1, 1, 10, True)], [hit])['box']['AP50'] is None


def test_base_and_novel_and_nothing_found():
  split = Split(frozenset({1}), frozenset({2}))
  metrics = _scored([(1, 1, 10), (2, 2, 10)], [(1, 1, 10, 0.9)], base=split)['box']
  assert (metrics['AP50'], metrics['AP50_base'], metrics['AP50_novel']) == (0.5, 1, 0)
  assert _scored([(1, 1, 10)], [])['box']['AP50_11point'] == 0


def test_averages_of_random_curves():
  rng = np.random.default_rng(0)
  for _ in range(50):
    right = rng.random(int(rng.integers(1, 30))) < 0.5
    count = int(right.sum() + rng.integers(1, 5))
    recall, precision = np.cumsum(right) / count, np.cumsum(right) / np.arange(1, len(right) + 1)
    highest = lambda least, p=precision, r=recall: max([q for q, s in zip(p, r, strict=True) if s >= least], default=0)
    steps = sum(highest(n / count) / count for n in range(1, count + 1))  # one step of recall for each object
    assert voc.area(recall, precision) == pytest.approx(steps)
    assert voc.eleven_points(recall, precision) == pytest.approx(np.mean([highest(n / 10) for n in range(11)]))
