"""Reads YOLO label files: a line is `class x y width height` or the polygon `class x1 y1 x2 y2 ...`, in [0, 1].

The programs that write and read these files open pictures as viewers show them, so that coordinates are fractions of
the upright picture.
"""

from __future__ import annotations

import collections
import math
from pathlib import Path, PurePosixPath

import numpy as np

from vild_jax.data import pictures
from vild_jax.data.formats.converted import Collector, Converted, Unusable, files_below
from vild_jax.data.formats.names import read_names
from vild_jax.data.schema import DataError
from vild_jax.runtime import progress

# How far beyond [0, 1] a coordinate may lie: rounding, and boxes that reach a pixel or two beyond a small picture.
_BEYOND = 0.01
_ENOUGH = 20  # lines, to tell keypoints from polygons
_NO_LABELS = ('classes.txt',)  # what annotation tools write beside the labels


def read(labels: Path, images: Path, names_file: Path, *, drop_unusable: bool) -> Converted:
  """Reads the label file of every picture: that of the same name and place below `labels`.

  A picture without a label file shows nothing, as YOLO has it; it is counted. Boxes have no mask. Keypoints, if
  data.yaml announces them, are left out and counted. If all lines have the same number of columns, more than a box, a
  note says so: they may be oriented boxes, or keypoints that data.yaml does not announce; the latter are refused where
  the numbers show it.

  Raises DataError if a line cannot be read, if a label file belongs to no picture or to two, or if no picture has one.
  """
  names, keypoints = read_names(names_file)
  collector, shapes = Collector(labels, drop_unusable=drop_unusable), _Shapes()
  problems = collector.problems
  found = {path for path in files_below(labels, ('.txt',)) if PurePosixPath(path).name not in _NO_LABELS}
  found -= {path for path in found if path.endswith(names_file.name) and names_file.samefile(labels / path)}
  pictures_of: dict[str, str] = {}
  for file_name in progress.track(files_below(images, pictures.SUFFIXES), 'read labels', unit='img'):
    label = PurePosixPath(file_name).with_suffix('.txt').as_posix()
    if label in pictures_of:
      both = f'{pictures_of[label]} and {file_name}'
      problems.add('pictures', f'{label} belongs to two pictures, {both}; expected one of each name')
      continue
    pictures_of[label] = file_name
    try:
      height, width = pictures.size(images / file_name, upright=True)
    except DataError as error:
      problems.add('picture', str(error))
      continue
    collector.picture(file_name, height, width)
    if label in found:
      _read_one(labels, label, height, width, names, keypoints, collector, shapes)
    else:
      collector.notes['picture{s} without a label file: taken to show no object'] += 1
  for label in sorted(found - pictures_of.keys()):
    stem = images / PurePosixPath(label).with_suffix('')
    problems.add('labels', f'{label} belongs to no picture; expected {stem} with .jpg, .png or the like')
  if not len(problems) and not found:
    raise DataError(f'{labels} holds no label files for the pictures in {images}; expected a .txt for each')
  shapes.judge(collector, names_file)
  return collector.converted(names, upright=True)


class _Shapes:
  """Watches whether the lines that are read as polygons may be something else."""

  def __init__(self):
    self._columns: collections.Counter[int] = collections.Counter()
    self._keypoints = self._corners = True  # as far as all lines so far show

  def add(self, values: np.ndarray) -> None:
    """Takes the numbers of a line after its class."""
    self._columns[len(values) + 1] += 1
    if len(values) == 4 or len(self._columns) > 1:
      return
    centre, size, points = values[:2], values[2:4], values[4:].reshape(-1, 2)
    marked = points[points.any(axis=1)]  # (0, 0) is a keypoint that is not seen
    self._keypoints &= bool((np.abs(marked - centre) <= size / 2 + _BEYOND).all())
    a, b, c, d = values.reshape(-1, 2) if len(values) == 8 else np.eye(4)
    self._corners &= bool(np.allclose(a + c, b + d, atol=2e-3))

  def judge(self, collector: Collector, names_file: Path) -> None:
    """Adds a note, or a problem, if all lines are alike and no boxes."""
    if len(self._columns) != 1 or 5 in self._columns:
      return
    [(columns, lines)] = self._columns.items()
    if self._corners:
      collector.notes['oriented box{es} read as polygons: boxes stand upright around them'] += lines
    elif self._keypoints and lines >= _ENOUGH:
      n = (columns - 5) // 2
      collector.problems.add(
        'lines',
        f'all {lines} lines have {columns} columns, a box and {n} points inside it, as keypoints have; expected '
        f'"kpt_shape: [{n}, 2]" in {names_file} for keypoints, or polygons',
      )
    else:
      collector.notes[
        f'line{{s}}, all with {columns} columns, read as polygons; keypoints would need kpt_shape in data.yaml'
      ] += lines


def _read_one(
  labels: Path,
  name: str,
  height: int,
  width: int,
  names: list[str],
  keypoints: int,
  collector: Collector,
  shapes: _Shapes,
) -> None:
  try:
    rows = (labels / name).read_text(encoding='utf-8-sig').split('\n')
  except (OSError, UnicodeDecodeError) as error:
    collector.problems.add('labels', f'{name} cannot be read ({error}); expected lines of numbers')
    return
  seen: set[tuple[str, ...]] = set()
  for number, row in enumerate(rows, 1):
    words = row.split()
    if not words:
      continue
    if tuple(words) in seen:
      collector.notes['repeated line{s} left out'] += 1
      continue
    seen.add(tuple(words))
    try:
      category, values = _parse(words, len(names), keypoints)
    except ValueError as error:
      collector.bad_object((name, number), error)
      continue
    shapes.add(values)
    if len(values) == 4:
      x, y, w, h = values * (width, height, width, height)
      collector.box((name, number), category, float(x - w / 2), float(y - h / 2), float(w), float(h))
      collector.notes['object{s} whose keypoints are left out'] += bool(keypoints)
    else:
      points = np.clip(values.reshape(-1, 2), 0, 1) * (width, height)
      collector.polygon((name, number), category, points)


def _parse(words: list[str], classes: int, keypoints: int) -> tuple[int, np.ndarray]:
  """Returns (class, the four numbers of a box or the coordinates of a polygon). Raises ValueError: what is wrong."""
  try:
    values = [float(word) for word in words]
  except ValueError:
    values = [math.nan]
  if not all(map(math.isfinite, values)):
    raise Unusable(f'{" ".join(words)[:80]!r} are not all numbers; expected a class and its coordinates')
  category, columns = values[0], len(words)
  if category != int(category) or not 0 <= category < classes:
    raise ValueError(f'the class is {words[0]}; expected a whole number from 0 to {classes - 1}, as there are names')
  if keypoints:
    if columns != 5 + keypoints:
      raise ValueError(f'{columns} columns; expected {5 + keypoints}: class x y width height and the keypoints')
    values = values[:5]
  elif columns != 5 and (columns < 7 or columns % 2 == 0):
    raise Unusable(
      f'{columns} columns; expected 5 (class x y width height), or a class and the x y of three points or more'
    )
  coordinates = np.array(values[1:])
  wrong = coordinates[(coordinates < -_BEYOND) | (coordinates > 1 + _BEYOND)]
  if len(wrong):
    raise Unusable(f'the coordinate {wrong[0]:g} is not in [0, 1]; expected fractions of the width and the height')
  return int(category), coordinates
