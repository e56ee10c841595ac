"""Pictures on the page of scores: chosen by what was found, with boxes of the right colours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from vild_jax.data.schema import DataError
from vild_jax.eval import detections, truth
from vild_jax.report.shots import RIGHT, WRONG
from vild_jax.workflows import score_pictures

ARGUMENTS = {'federated': False, 'max_detections': 100}


@pytest.fixture(scope='module')
def case(tmp_path_factory):
  """Two grey pictures with a cat each, one detector that finds the first and one that finds the second; the folder."""
  folder = tmp_path_factory.mktemp('pictures')
  for name in ('a.png', 'b.png'):
    Image.fromarray(np.full((240, 240, 3), 128, np.uint8)).save(folder / name)
  box = [40, 60, 80, 100]
  of = truth.read(
    {
      'images': [{'id': i, 'height': 240, 'width': 240, 'file_name': name} for i, name in ((3, 'a.png'), (9, 'b.png'))],
      'categories': [{'id': 4, 'name': 'cat'}, {'id': 7, 'name': 'dog'}],
      'annotations': [{'image_id': i, 'category_id': 4, 'bbox': box, 'area': 8000} for i in (3, 9)],
    }
  )
  row = lambda i, k, x: {'image_id': i, 'category_id': k, 'bbox': [x, *box[1:]], 'score': 0.8}
  one = detections.read([row(3, 4, 40), row(9, 7, 140)], of)
  two = detections.read([row(9, 4, 40), row(3, 7, 140)], of)
  return {'truth': of, 'found': one, **ARGUMENTS}, two, folder


def _has(picture, color):
  return bool((picture == color).all(-1).sum() > 100)


def test_boxes_are_drawn_in_the_colours_of_right_and_wrong(case):
  arguments, other, folder = case
  shots = score_pictures.shots(arguments, other, folder)
  assert [[shot.name for shot in part] for part in (shots.best, shots.worst)] == [['a.png'], ['b.png']]
  assert [[shot.image_id for shot in part] for part in (shots.better, shots.worse)] == [[3], [9]]
  (best,), (worst,) = shots.best[0].drawn, shots.worst[0].drawn
  assert best.shape == (480, 480, 3) and (best[120, 80:240] == RIGHT).all()  # twice as large: the top of the box
  assert not _has(best, WRONG) and _has(worst, WRONG) and not _has(worst, RIGHT)
  assert (worst[121, 90:230] > 200).all()  # the object that was missed
  left, right = shots.better[0].drawn
  assert _has(left, RIGHT) and not _has(left, WRONG) and _has(right, WRONG) and not _has(right, RIGHT)
  assert shots.better[0].detectors == ((1, 0, 1.0), (0, 1, 0.0)) and shots.scores == (0.8, 0.8)


def test_without_a_folder_pictures_are_named(case):
  arguments, _, _ = case
  shots = score_pictures.shots(arguments, None, None)
  assert shots.best[0].drawn == () and shots.best[0].name == 'a.png' and shots.better == () and len(shots.scores) == 1


def test_a_missing_picture_is_named(case, tmp_path):
  arguments, _, _ = case
  with pytest.raises(DataError, match='no picture of image 3'):
    score_pictures.shots(arguments, None, tmp_path)


def test_a_truth_without_file_names_is_shown_by_id(case):
  arguments, _, _ = case
  of = arguments['truth']
  plain = truth.read(
    {
      'images': [{k: v for k, v in image.items() if k != 'file_name'} for image in of.images],
      'categories': list(of.categories),
      'annotations': list(of.annotations),
    }
  )
  shots = score_pictures.shots(arguments | {'truth': plain}, None, None)
  assert shots.best[0].name == 'picture 3'


def test_a_picture_is_not_guessed_by_the_last_part_of_its_name(case, tmp_path):
  arguments, _, folder = case
  of = arguments['truth']
  images = [image | {'file_name': f'cam{image["id"]}/1.png'} for image in of.images]
  (tmp_path / '1.png').write_bytes((folder / 'a.png').read_bytes())
  with pytest.raises(
    DataError, match=r'holds no picture of image 3: it is not in .* and 1 other name in the file ends'
  ):
    score_pictures.shots(arguments | {'truth': dataclasses.replace(of, images=images)}, None, tmp_path)
