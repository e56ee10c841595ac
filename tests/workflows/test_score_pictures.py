"""Pictures on the page of scores: chosen by what was found, with boxes of the right colours."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vild_jax.data.schema import DataError
from vild_jax.eval import detections, protocols, truth
from vild_jax.report.shots import RIGHT, WRONG
from vild_jax.workflows import score_pictures, scoring

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
  shots = score_pictures.shots(arguments, other, score_pictures.Pictures(arguments['truth'], folder))
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
    score_pictures.Pictures(arguments['truth'], tmp_path)


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


def test_a_picture_is_turned_where_the_annotations_say_so(case, tmp_path):
  arguments, _, _ = case
  of = truth.read(
    {
      'images': [{'id': 3, 'height': 200, 'width': 100, 'file_name': 'a.png'}],
      'categories': list(arguments['truth'].categories),
      'annotations': [{'image_id': 3, 'category_id': 4, 'bbox': [0, 0, 50, 50], 'area': 2500}],
    }
  )
  exif = Image.Exif()
  exif[0x0112] = 6
  stored = np.zeros((100, 200, 3), np.uint8)
  stored[50:, :50] = 255  # at the bottom left; turned clockwise, at the top left
  Image.fromarray(stored).save(tmp_path / 'a.png', exif=exif)
  found = detections.read([], of)
  pictures = score_pictures.Pictures(of, tmp_path)
  (shot,) = score_pictures.shots({'truth': of, 'found': found, **ARGUMENTS}, None, pictures).best
  assert shot.drawn[0].shape == (480, 240, 3)
  assert (shot.drawn[0][30:90, 30:90] > 200).all() and (shot.drawn[0][300:] < 10).all()
  assert pictures.lacking == {}
  Image.fromarray(stored).save(tmp_path / 'a.png')
  (shot,) = score_pictures.shots({'truth': of, 'found': found, **ARGUMENTS}, None, pictures).best
  assert 'a.png is 200 wide and 100 high; expected 100 and 200 as the annotations say' in pictures.lacking[3]
  # In its place stands a grey one of the annotated shape, with the object that was missed.
  assert shot.drawn[0].shape == (480, 240, 3) and (shot.drawn[0][200:400] == 150).all()
  assert (shot.drawn[0][120, 10:110] > 200).all()


@pytest.mark.parametrize(
  ('how', 'named'), [('gone', 'image 9, which is not in'), ('damaged', 'b.png: no readable picture')]
)
def test_the_page_is_written_without_a_picture_that_cannot_be_read(case, tmp_path, capsys, how, named):
  arguments, _, folder = case
  of, images = arguments['truth'], tmp_path / 'images'
  images.mkdir()
  for name in ('a.png', 'b.png'):
    (images / name).write_bytes((folder / name).read_bytes())
  pictures = score_pictures.Pictures(of, images)
  (images / 'b.png').unlink() if how == 'gone' else (images / 'b.png').write_bytes(b'no picture')
  metrics = protocols.score('coco', of, arguments['found'])
  scoring.write_page(tmp_path, of, arguments['found'], metrics, None, pictures=pictures)
  assert (tmp_path / 'report.html').read_text().count('data:image/jpeg') == 2  # the best, and grey the worst
  said = capsys.readouterr().err
  assert said.startswith('pictures that the page cannot show: 1; ') and named in said and said.count('\n') == 1


def test_a_picture_whose_name_could_be_two_files_is_not_shown(case, tmp_path):
  """As `prepare` refuses it: both entries end alike, and there is one file."""
  arguments, _, folder = case
  of = truth.read(
    {
      'images': [{'id': i, 'height': 200, 'width': 100, 'file_name': f'cam{i}/a.png'} for i in (3, 9)],
      'categories': list(arguments['truth'].categories),
      'annotations': [],
    }
  )
  with pytest.raises(DataError, match=r'image 3, which is not in .* it could be .*a\.png'):
    score_pictures.Pictures(of, folder)
