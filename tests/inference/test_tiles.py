"""Tiles of large pictures: where they lie, what is dropped, and that masks arrive where they belong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vild_jax.config import Config
from vild_jax.data import rle
from vild_jax.inference import tiles
from vild_jax.inference.detections import PictureDetections


def _grid_of_sahi(height: int, width: int, tile: int, overlap: float) -> list[list[int]]:
  """The tiles as sahi goes through them: rows, then columns, the last of each shifted back."""
  found, bottom, top, shared = [], 0, 0, int(overlap * tile)
  while bottom < height:
    left, right = 0, 0
    bottom = top + tile
    while right < width:
      right = left + tile
      y2, x2 = min(bottom, height), min(right, width)
      found.append([max(y2 - tile, 0), max(x2 - tile, 0), y2, x2])
      left = right - shared
    top = bottom - shared
  return found


@pytest.mark.parametrize('overlap', [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize(
  'size', [(1, 1), (64, 64), (64, 65), (63, 200), (300, 64), (1000, 777), (115, 166), (116, 167), (9000, 12000)]
)
def test_the_grid_is_that_of_sahi(size, overlap):
  tile = 64 if max(size) < 9000 else 1024
  places = tiles.grid(*size, tile, overlap)
  assert places.tolist() == _grid_of_sahi(*size, tile, overlap)
  assert (places[:, 2:] <= size).all() and (places >= 0).all()


def _suppressed(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> list[int]:
  kept: list[int] = []
  for i in np.argsort(-scores, kind='stable'):
    for j in kept:
      height = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0])
      width = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1])
      smaller = min(np.prod(boxes[k, 2:] - boxes[k, :2]) for k in (i, j))
      if labels[i] == labels[j] and min(height, width) > 0 and height * width / smaller >= 0.5:
        break
    else:
      kept.append(int(i))
  return kept


def test_greedy_suppression_is_that_of_two_loops():
  rng = np.random.default_rng(0)
  for number in (0, 1, 2, 60):
    for _ in range(20):
      corners = rng.integers(0, 20, (number, 2)).astype(np.float32)
      boxes = np.concatenate([corners, corners + rng.integers(0, 9, (number, 2))], axis=1)
      scores, labels = np.round(rng.random(number), 1), rng.integers(0, 3, number)
      assert tiles.suppress(boxes, scores, labels).tolist() == _suppressed(boxes, scores, labels)


def test_what_a_tile_cuts_off_and_half_an_overlap_are_dropped_and_other_classes_stay():
  boxes = np.array([[0, 0, 100, 100], [0, 0, 100, 10], [0, 0, 100, 10], [0, 95, 100, 105], [0, 94, 100, 106.1]])
  kept = tiles.suppress(boxes, np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([0, 0, 1, 0, 0]))
  assert kept.tolist() == [0, 2, 4]  # 3 has exactly half of itself in 0, and 4 a little less


def _found(size, masks, scores, labels=None) -> PictureDetections:
  boxes = np.array(
    [[m.any(1).argmax(), m.any(0).argmax(), np.flatnonzero(m.any(1))[-1] + 1, np.flatnonzero(m.any(0))[-1] + 1]
     for m in masks], np.float32).reshape(-1, 4)  # fmt: skip
  labels = np.zeros(len(masks), np.int32) if labels is None else np.array(labels, np.int32)
  rles = tuple(rle.encode_mask(mask) for mask in masks)
  return PictureDetections(boxes, np.array(scores, np.float32), labels, ('tree', 'ant'), size, rles)


def test_masks_and_boxes_of_tiles_arrive_in_the_whole_picture():
  rng = np.random.default_rng(1)
  whole = np.zeros((3, 90, 120), bool)
  whole[0, 5:80, 5:110] = rng.random((75, 105)) < 0.7
  whole[1, 60:75, 70:90] = True
  whole[2, 40:90, 60:120] = True  # all of its tile
  corners = np.array([[0, 0], [40, 60], [0, 60]])
  parts = [
    _found((90, 120), whole[:1], [0.5]),
    _found((50, 60), whole[1:, 40:, 60:], [0.9, 0.3], [0, 1]),
    _found((50, 60), whole[:0, :50, 60:], []),
  ]
  merged = tiles.merge(parts, corners)
  assert merged.size == (90, 120) and merged.names == ('tree', 'ant')
  np.testing.assert_array_equal(merged.scores, np.array([0.9, 0.3], np.float32))  # the tree of 0.5 holds that of 0.9
  np.testing.assert_array_equal(merged.masks, whole[[1, 2]])
  np.testing.assert_array_equal(merged.boxes, [[60, 70, 75, 90], [40, 60, 90, 120]])
  assert len(tiles.merge(parts, corners, 1)) == 1
  boxes_alone = tiles.merge([dataclasses.replace(part, rles=None) for part in parts], corners)
  assert boxes_alone.rles is None and boxes_alone.labels.tolist() == [0, 1]
  assert len(tiles.merge([parts[2]] * 2, corners[:2])) == 0


class _Recorder:
  """Finds one pixel in the corner of everything, and remembers what it was given."""

  config = Config()

  def detect(self, images, classes, **how):
    self.classes, self.how = classes, how
    self.images = [images] if isinstance(images, np.ndarray) else list(images)
    found = [_found(image.shape[:2], np.eye(1, image[..., 0].size).reshape(1, *image.shape[:2]) > 0, [0.5])
             for image in self.images]  # fmt: skip
    return found[0] if isinstance(images, np.ndarray) else found


def test_one_tile_is_the_picture_itself_and_more_come_with_the_whole():
  detector, picture = _Recorder(), np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
  how = {'overlap': 0.0, 'max_detections': 3, 'min_score': 0.2}
  found = tiles.detect(detector, picture, ['tree'], tile=70, **how)
  assert detector.images[0] is picture and len(found) == 1
  assert detector.how == {'max_detections': 3, 'min_score': 0.2}
  found = tiles.detect(detector, picture, ['tree'], tile=40, **how)
  assert detector.how == {'min_score': 0.2}  # what is best in a tile may be dropped later
  assert [image.shape[:2] for image in detector.images] == [(50, 70)] + [(40, 40)] * 4
  np.testing.assert_array_equal(detector.images[-1], picture[10:, 30:])
  assert found.boxes.tolist() == [[0, 0, 1, 1], [0, 30, 1, 31], [10, 0, 11, 1]]


def test_more_detections_may_be_asked_of_tiles_than_the_detector_gives_of_one():
  detector, most = _Recorder(), Config().model.postprocess.max_detections
  for asked, given in ((most + 1, most), (most, most), (1, 1), (None, None)):
    tiles.detect(detector, np.zeros((50, 70, 3), np.uint8), ['tree'], tile=70, overlap=0.0, max_detections=asked)
    assert detector.how == {'max_detections': given}
