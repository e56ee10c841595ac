"""Collects pictures and objects of another format into the content of a COCO-format file."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data.picture_files import walk
from vild_jax.data.problems import Problems, in_words
from vild_jax.data.schema import DataError


@dataclass(frozen=True)
class Converted:
  """Holds annotations that were converted.

  Attributes:
    tree: the content of a COCO-format file, without areas: they are those of the objects as they are kept. Categories
      have the ids 1, 2, ... in the order of the names.
    notes: what was left out or taken for granted, one line each.
    where: from the id of an annotation to the place in the given files, for messages.
    upright: whether the annotations refer to pictures as viewers show them, rather than as stored.
  """

  tree: dict[str, Any]
  notes: tuple[str, ...]
  where: Callable[[int], str]
  upright: bool


class Unusable(ValueError):
  """Says why one object cannot be read, where the rest of its file is of use without it."""


class Collector:
  """Collects pictures, objects, notes and problems, and gives them their ids.

  Attributes:
    problems: of everything read.
    notes: how often something was left out or taken for granted; see `problems.in_words`.
  """

  def __init__(self, source: Path, *, drop_unusable: bool):
    self.problems, self._drop = Problems(source), drop_unusable
    self.notes: collections.Counter[str] = collections.Counter()
    self._images: list[dict[str, Any]] = []
    self._annotations: list[dict[str, Any]] = []
    self._places: list[tuple[str, int]] = []

  def bad_object(self, place: tuple[str, int], error: ValueError) -> None:
    """Adds a problem with an object, or counts it where unusable ones are left out and it is one."""
    unusable = isinstance(error, Unusable)
    if unusable and self._drop:
      self.notes['object{s} that cannot be read dropped'] += 1
      return
    self.problems.add('object', f'{line(*place)}: {error}' + (', or --drop-unusable to leave such out' * unusable))

  def picture(self, file_name: str, height: int, width: int) -> None:
    """Adds a picture; the objects that follow are its."""
    self._images.append({'id': len(self._images) + 1, 'file_name': file_name, 'height': height, 'width': width})

  def box(self, place: tuple[str, int], category: int, x: float, y: float, width: float, height: float) -> None:
    """Adds an object without a mask. `place` is file and line, see `line`; `category` counts from 0."""
    self._add(place, category, [x, y, width, height], [])

  def polygon(self, place: tuple[str, int], category: int, points: np.ndarray) -> None:
    """Adds an object with the outline `points`, float [n, 2] of (x, y) in pixels."""
    (left, top), (right, bottom) = points.min(0), points.max(0)
    box = [float(left), float(top), float(right - left), float(bottom - top)]
    self._add(place, category, box, [points.reshape(-1).tolist()])

  def mask(self, place: tuple[str, int], category: int, box: Sequence[float], code: dict[str, Any]) -> None:
    """Adds an object with a mask: its box (x, y, width, height) and its COCO RLE."""
    self._add(place, category, list(box), code)

  def _add(self, place: tuple[str, int], category: int, box: list[float], segmentation: Any) -> None:
    self._places.append(place)
    self._annotations.append(
      {
        'id': len(self._places),
        'image_id': len(self._images),
        'category_id': category + 1,
        'bbox': box,
        'iscrowd': 0,
        'segmentation': segmentation,
      }
    )

  def converted(self, names: Sequence[str], *, upright: bool = False) -> Converted:
    """Returns everything, with the categories `names`. Raises DataError if there were problems."""
    self.problems.raise_if_any()
    places = self._places
    tree = {
      'categories': [{'id': i + 1, 'name': name} for i, name in enumerate(names)],
      'images': self._images,
      'annotations': self._annotations,
    }
    return Converted(tree, in_words(self.notes), lambda key: line(*places[key - 1]), upright)


def line(name: str, number: int) -> str:
  """Returns how messages name a line of a file below the folder that they name already; '' is the file itself."""
  return f'{name}, line {number}' if name else f'line {number}'


def files_below(folder: Path, suffixes: Collection[str]) -> list[str]:
  """Returns the files with one of these endings in a folder and those below it, links followed: sorted, relative.

  Hidden ones are left out. The case of the ending does not matter. Raises DataError if there is no such folder.
  """
  if not folder.is_dir():
    raise DataError(f'{folder} is not a folder; expected the folder of the {"/".join(sorted(suffixes))} files')
  found = []
  for where, names in walk(folder, hidden=False):
    below = Path(where).relative_to(folder)
    found += [
      (below / name).as_posix()
      for name in names
      if not name.startswith('.') and os.path.splitext(name)[1].lower() in suffixes
    ]
  return sorted(found)
