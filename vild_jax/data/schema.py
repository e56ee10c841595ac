"""Defines what a prepared data set holds, in NumPy and plain Python; sources, transforms and evaluation share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


class DataError(ValueError):
  """Reports input that cannot be used, in one line: the file or field, what was found and what was expected."""


def counted(number: int, what: str) -> str:
  """Returns '1 object' or '2,000 objects' for a message; `what` is a noun that takes an s."""
  return f'{number:,} {what}{"s" * (number != 1)}'


def is_number(value: Any) -> bool:
  """Tells whether a value from a JSON file can be a coordinate or an area: a finite number below 1e15."""
  return type(value) in (int, float) and abs(value) < 1e15


def is_size(height: int, width: int) -> bool:
  """Tells whether whole numbers can be the size of a picture: positive, and fewer pixels than an RLE can count."""
  return height > 0 and width > 0 and height * width < 2**32


@dataclass(frozen=True)
class Category:
  """Describes one category of a data set. `frequency` is 'r', 'c' or 'f' (LVIS), or '' if the data set has none."""

  id: int
  name: str
  frequency: str = ''
  synset: str = ''
  synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Objects:
  """Holds the N annotated objects of one picture.

  Attributes:
    ids: int64 [N], annotation ids.
    category_ids: int64 [N], the data set's own ids.
    boxes: float32 [N, 4] yxyx, absolute pixels of the original picture.
    areas: float64 [N], pixels squared, of the segmentation.
    is_crowd: bool [N].
    segmentations: N entries: a list of polygons [x, y, x, y, ...] or a COCO RLE {'size': [h, w], 'counts': ...}
      (compressed counts as str); [] for an object with a box alone.
  """

  ids: np.ndarray
  category_ids: np.ndarray
  boxes: np.ndarray
  areas: np.ndarray
  is_crowd: np.ndarray
  segmentations: tuple[Any, ...]


@dataclass(frozen=True)
class Example:
  """Holds one picture: its encoded bytes (JPEG or PNG), size in pixels and objects, and LVIS's federated lists."""

  image_id: int
  image: bytes
  height: int
  width: int
  objects: Objects
  neg_category_ids: tuple[int, ...] = ()
  not_exhaustive_category_ids: tuple[int, ...] = ()


def make_objects(rows: list[tuple]) -> Objects:
  """Turns rows (id, category id, box yxyx, area, is crowd, segmentation) into Objects, ordered by id."""
  rows = sorted(rows, key=lambda row: row[0])
  ids, categories, boxes, areas, crowds, segmentations = zip(*rows, strict=True) if rows else ((),) * 6
  return Objects(
    np.array(ids, np.int64),
    np.array(categories, np.int64),
    np.array(boxes, np.float32).reshape(-1, 4),
    np.array(areas, np.float64),
    np.array(crowds, np.bool_),
    tuple(segmentations),
  )
