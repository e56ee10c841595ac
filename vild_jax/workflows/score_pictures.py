"""Chooses and draws the pictures on the page of `score`: confusions, best and worst, and where two detectors differ."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vild_jax.data import pictures as pictures_lib
from vild_jax.data.picture_files import PictureFolder, picture_name
from vild_jax.data.schema import DataError
from vild_jax.eval import per_picture
from vild_jax.eval.diagnosis import Confusion
from vild_jax.eval.found import Found
from vild_jax.eval.per_picture import Outcome
from vild_jax.eval.truth import Truth
from vild_jax.inference import drawing
from vild_jax.report import shots as report_lib
from vild_jax.report.shots import Shot, Shots

_PART, _WHOLE = 160, 480  # pixels of the longer side, of a part of a picture and of a whole one
_BEST, _DIFFERENT = 4, 4  # pictures at either end
_INK, _PAPER = (32, 33, 36), (255, 255, 255)
_ABSENT = 150  # the grey of a picture that cannot be shown


class Pictures:
  """Gives the pictures of a ground truth, from their folder; files are found as `vild-jax prepare` finds them.

  Raises DataError if the folder lacks the first picture: then it is likely another one. A picture that cannot be shown
  later is no error, since the scores are known by then.

  Attributes:
    lacking: {image id: why its picture cannot be shown}, of those that were asked for.
  """

  def __init__(self, truth: Truth, folder: Path):
    self.lacking: dict[int, str] = {}
    self._names = {}
    for entry in truth.images:
      with contextlib.suppress(DataError):  # it names no file that may be opened
        self._names[entry['id']] = picture_name(entry)
    self._folder = PictureFolder(folder, self._names.values())
    if truth.images:
      self._file(truth.images[0])

  def of(self, entry: dict[str, Any]) -> np.ndarray | None:
    """Returns a picture, uint8 [H, W, 3]; None if the folder lacks it, it is damaged, or it has another size."""
    try:
      return pictures_lib.decode_annotated(self._file(entry), entry['height'], entry['width'])
    except DataError as error:
      self.lacking[entry['id']] = str(error)
      return None

  def _file(self, entry: dict[str, Any]) -> Path:
    name = self._names.get(entry['id'])
    found = 'names no file' if name is None else self._folder.locate(name)
    if isinstance(found, str):
      raise DataError(
        f'{self._folder.root} holds no picture of image {entry["id"]}, which {found}; expected the folder of the '
        "annotations' pictures"
      )
    return found


def shots(arguments: dict[str, Any], other: Found | None, pictures: Pictures | None) -> Shots:
  """Returns the best and the worst pictures, and those on which two detectors differ most.

  Args:
    arguments: what `diagnosis.diagnose` matches.
    other: the detections of another detector that count, with boxes, or None.
    pictures: of the truth, or None: then they are only named. In the place of one that cannot be shown, boxes are drawn
      on a grey one.
  """
  truth, found = arguments['truth'], arguments['found']
  this = per_picture.outcome(**arguments)
  detectors = [(found, this)]
  made = lambda places, of: tuple(_shot(int(i), truth, of, pictures) for i in places)
  best, worst = per_picture.best_and_worst(this, _BEST)
  better = worse = ()
  if other is not None:
    second = per_picture.outcome(**arguments | {'found': other})
    detectors.append((other, second))
    better, worse = per_picture.most_different(this, second, _DIFFERENT)
  return Shots(
    tuple(of.score for _, of in detectors),
    *(made(places, detectors[:1]) for places in (best, worst)),
    *(made(places, detectors) for places in (better, worse)),
  )


def _shot(place: int, truth: Truth, detectors: Sequence[tuple[Found, Outcome]], pictures: Pictures | None) -> Shot:
  entry = truth.images[place]
  drawn: tuple[np.ndarray, ...] = ()
  if pictures is not None:
    scale = _WHOLE / max(entry['height'], entry['width'])
    found = pictures.of(entry)
    picture = _placeholder(entry, scale) if found is None else drawing.resized(found, _WHOLE)
    drawn = tuple(_drawn(picture, scale, place, truth, *detector) for detector in detectors)
  outcomes = [of for _, of in detectors]
  return Shot(
    int(entry['id']),
    _name(entry),
    int(outcomes[0].objects[place]),
    tuple((int(of.found[place]), int(of.wrong[place]), float(of.f1[place])) for of in outcomes),
    drawn,
  )


def _placeholder(entry: dict[str, Any], scale: float) -> np.ndarray:
  height, width = (max(1, round(scale * entry[side])) for side in ('height', 'width'))
  grey = np.full((height, width, 3), _ABSENT, np.uint8)
  return cv2.putText(grey, 'no picture', (12, height - 12), cv2.FONT_HERSHEY_SIMPLEX, 0.6, _PAPER, 1, cv2.LINE_AA)


def _name(entry: dict[str, Any]) -> str:
  try:
    return picture_name(entry).places[0]
  except DataError:
    return f'picture {entry["id"]}'


def _drawn(picture: np.ndarray, scale: float, place: int, truth: Truth, found: Found, of: Outcome) -> np.ndarray:
  """The picture with the objects, thin, and what was found."""
  outlined = picture.copy()
  image_id = truth.images[place]['id']
  for annotation in truth.annotations:
    if annotation['image_id'] == image_id and not annotation.get('iscrowd'):
      x, y, w, h = (round(scale * side) for side in annotation['bbox'])
      for color, width in ((_INK, 4), (_PAPER, 2)):
        cv2.rectangle(outlined, (x, y), (x + w, y + h), color, width)
  kinds = ((of.right_rows, report_lib.RIGHT), (of.wrong_rows, report_lib.WRONG))
  shown = [(rows[found.image[rows] == place], color) for rows, color in kinds]
  rows = np.concatenate([rows for rows, _ in shown])
  x, y, w, h = scale * found.boxes[rows].T
  return drawing.draw(
    cv2.addWeighted(outlined, 0.7, picture, 0.3, 0),
    np.stack([y, x, y + h, x + w], axis=1),
    found.category[rows],
    found.score[rows],
    None,
    [category['name'] for category in truth.categories],
    colors=[color for rows, color in shown for _ in rows],
    bold=True,
  )


def examples(confusion: Confusion, truth: Truth, pictures: Pictures | None) -> Sequence[np.ndarray]:
  """Returns the examples of a confusion, uint8 [H, W, 3], each cut out with half of its size around it.

  There are none without pictures, and none of a picture that cannot be shown.
  """
  if pictures is None:
    return ()
  by_id = {int(image['id']): image for image in truth.images}
  shown = []
  for image_id, (x, y, w, h), _ in confusion.examples:
    picture = pictures.of(by_id[image_id])
    if picture is None:
      continue
    margin = 0.5 * max(w, h, 8)
    top, left = max(int(y - margin), 0), max(int(x - margin), 0)
    part = picture[top : int(np.ceil(y + h + margin)), left : int(np.ceil(x + w + margin))].copy()
    corner = (int(x) - left, int(y) - top)
    cv2.rectangle(part, corner, (corner[0] + int(w), corner[1] + int(h)), (255, 179, 102), max(1, len(part) // 80))
    shown.append(drawing.resized(part, _PART))
  return shown
