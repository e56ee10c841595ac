"""Reads YOLO label files: a line is `class x y width height` or the polygon `class x1 y1 x2 y2 ...`, in [0, 1].

The programs that write and read these files open pictures as viewers show them, so that coordinates are fractions of
the upright picture.
"""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath

import numpy as np

from vild_jax.data import pictures
from vild_jax.data.formats.converted import Collector, Converted, files_below, line
from vild_jax.data.formats.names import read_names
from vild_jax.data.schema import DataError
from vild_jax.runtime import progress

# How far beyond [0, 1] a coordinate may lie: rounding, and boxes that reach a pixel or two beyond a small picture.
_BEYOND = 0.01
_NO_LABELS = ('classes.txt',)  # what annotation tools write beside the labels


def read(labels: Path, images: Path, names_file: Path) -> Converted:
  """Reads the label file of every picture: that of the same name and place below `labels`.

  A picture without a label file shows nothing, as YOLO has it; it is counted. Boxes have no mask. Keypoints, if
  data.yaml announces them, are left out and counted.

  Raises DataError if a line cannot be read, if a label file belongs to no picture or to two, or if no picture has one.
  """
  names, keypoints = read_names(names_file)
  collector = Collector(labels)
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
      _read_one(labels, label, height, width, names, keypoints, collector)
    else:
      collector.notes['picture{s} without a label file: taken to show no object'] += 1
  for label in sorted(found - pictures_of.keys()):
    stem = images / PurePosixPath(label).with_suffix('')
    problems.add('labels', f'{label} belongs to no picture; expected {stem} with .jpg, .png or the like')
  if not len(problems) and not found:
    raise DataError(f'{labels} holds no label files for the pictures in {images}; expected a .txt for each')
  return collector.converted(names, upright=True)


def _read_one(
  labels: Path, name: str, height: int, width: int, names: list[str], keypoints: int, collector: Collector
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
      collector.problems.add('line', f'{line(name, number)}: {error}')
      continue
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
    raise ValueError(f'{" ".join(words)[:80]!r} are not all numbers; expected a class and its coordinates')
  category, columns = values[0], len(words)
  if category != int(category) or not 0 <= category < classes:
    raise ValueError(f'the class is {words[0]}; expected a whole number from 0 to {classes - 1}, as there are names')
  if keypoints:
    if columns != 5 + keypoints:
      raise ValueError(f'{columns} columns; expected {5 + keypoints}: class x y width height and the keypoints')
    values = values[:5]
  elif columns != 5 and (columns < 7 or columns % 2 == 0):
    raise ValueError(
      f'{columns} columns; expected 5 (class x y width height), or a class and the x y of three points or more'
    )
  coordinates = np.array(values[1:])
  wrong = coordinates[(coordinates < -_BEYOND) | (coordinates > 1 + _BEYOND)]
  if len(wrong):
    raise ValueError(f'the coordinate {wrong[0]:g} is not in [0, 1]; expected fractions of the width and the height')
  return int(category), coordinates
