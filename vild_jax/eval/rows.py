"""Turns the JSON text of a part of a results file into columns, with every check that scoring needs.

The usual part is decoded by types (msgspec) and checked as lists and arrays, which is several times faster than row by
row. If anything is wrong, the part is read again as plain JSON, to say which detection it is and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import msgspec
import numpy as np

from vild_jax.data.schema import DataError, is_number
from vild_jax.eval.found import Codes
from vild_jax.eval.truth import Truth
from vild_jax.runtime import collector
from vild_jax.runtime.messages import shown

EXPECTED = 'a results JSON: a list of detections'


class _Row(msgspec.Struct, gc=False):
  image_id: int
  category_id: int
  score: float
  bbox: tuple[float, float, float, float] | None = None
  segmentation: dict[str, Any] | None = None


_ROWS = msgspec.json.Decoder(list[_Row])


@dataclass(frozen=True)
class Known:
  """Holds what detections are checked against.

  Attributes:
    name: the file, for messages.
    image_ids: int64 [I], ascending.
    category_ids: int64 [C], ascending; None takes every detection for one of the first category.
    sizes: I times [height, width], and [] at the end for unknown pictures.
  """

  name: str
  image_ids: np.ndarray
  category_ids: np.ndarray | None
  sizes: list[list[int]]

  @classmethod
  def of(cls, truth: Truth, name: str, *, classless: bool) -> Known:
    """Takes it from the ground truth."""
    category_ids = None if classless else truth.category_ids
    return cls(name, truth.image_ids, category_ids, [*map(list, truth.sizes), []])


@dataclass(frozen=True)
class Part:
  """Holds some detections in the order of the file.

  In `image` and `category`, -1 stands for unknown ones, whose ids `ids` holds. `codes` is None if no detection has a
  mask.
  """

  image: np.ndarray
  category: np.ndarray
  score: np.ndarray
  boxes: np.ndarray | None
  codes: Codes | None
  ids: dict[str, np.ndarray]


def from_text(text: bytes, known: Known) -> Part | None:
  """Decodes the JSON text of a list of detections; returns None if a detection is wrong or the text is not JSON."""
  with collector.off():
    try:
      return _checked(_ROWS.decode(text), known)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
      return None


def from_plain(rows: Any, known: Known, first: int, has_boxes: bool | None = None) -> Part:
  """Takes detections from a list of dictionaries.

  Args:
    rows: the list.
    known: what they are checked against.
    first: the number of its first detection, for messages.
    has_boxes: whether the detections before these have boxes; None if there were none.

  Raises DataError at the first detection that cannot be scored.
  """
  if not isinstance(rows, Sequence) or isinstance(rows, str):
    raise DataError(f'{known.name} holds a {type(rows).__name__}; expected {EXPECTED}')
  made = []
  for i, row in enumerate(rows, first):
    if problem := _problem(row, known):
      raise DataError(f'{known.name}, detection {i}: {problem}')
    box, code = row.get('bbox'), row.get('segmentation')
    if has_boxes is None:
      has_boxes = box is not None
    if has_boxes != (box is not None):
      raise DataError(half(known.name, i if has_boxes else 0))
    made.append(
      _Row(
        row['image_id'],
        row['category_id'],
        float(row['score']),
        None if box is None else tuple(map(float, box)),
        None if code is None else {'size': list(code['size']), 'counts': _text(code['counts'])},
      )
    )
  if (part := _checked(made, known)) is None:
    raise AssertionError('a check of detections without words')
  return part


def half(name: str, number: int) -> str:
  """Returns the message for detections of which only some have a box; `number` is the first without."""
  return f"{name}, detection {number}: no 'bbox'; expected one for every detection or for none"


def _checked(rows: list[_Row], known: Known) -> Part | None:
  """The columns of rows; None if one of them cannot be scored."""
  ids = {key: [getattr(row, key) for row in rows] for key in ('image_id', 'category_id')}
  image, category = _places(known.image_ids, ids['image_id']), _places(known.category_ids, ids['category_id'])
  score = np.array([row.score for row in rows], np.float64)
  boxes, codes = [row.bbox for row in rows], [row.segmentation for row in rows]
  if image is None or category is None or not np.isfinite(score).all():
    return None
  there, boxless = np.array([code is not None for code in codes], bool), boxes.count(None)
  if boxless not in (0, len(rows)) or (boxless and not there.all()):
    return None
  corners = texts = None
  if rows and not boxless:
    corners = np.array(boxes, np.float64)
    if not (np.isfinite(corners).all() and (corners[:, 2:] >= 0).all()):
      return None
  if there.any():
    masks, places = [code for code in codes if code is not None], image[there].tolist()
    given, counts = [code.get('size') for code in masks], [code.get('counts') for code in masks]
    expected = [known.sizes[i] for i in places]
    if given != expected and any(a != b and i >= 0 for a, b, i in zip(given, expected, places, strict=True)):
      return None
    if set(map(type, counts)) != {str} or (of_masks := _areas(masks)) is None:
      return None
    areas = np.full(len(rows), np.nan)
    areas[there] = of_masks
    texts = Codes.of(['' if code is None else code['counts'] for code in codes], areas)
  strange = {
    key: np.array(ids[key], np.int64)[places < 0] if (places < 0).any() else np.zeros(0, np.int64)
    for key, places in (('image_id', image), ('category_id', category))
  }
  return Part(image, category, score, corners, texts, strange)


def _problem(row: Any, known: Known) -> str:
  """Returns why a detection cannot be scored; empty if it can, or if only its picture or category is unknown."""
  if not isinstance(row, dict) or not ({'image_id', 'category_id', 'score'} <= row.keys()):
    return f'found {shown(row)}; expected image_id, category_id, score and bbox or segmentation'
  for key in ('image_id', 'category_id'):
    if type(row[key]) is not int or not -(2**63) <= row[key] < 2**63:
      return f'{key} is {shown(row[key])}; expected a whole number of 64 bits'
  if not is_number(row['score']):
    return f'score is {shown(row["score"])}; expected a finite number'
  box, code = row.get('bbox'), row.get('segmentation')
  if box is None and code is None:
    return 'neither bbox nor segmentation; expected one or both'
  if box is not None and not (
    isinstance(box, list | tuple) and len(box) == 4 and all(map(is_number, box)) and min(box[2:]) >= 0
  ):
    return f'bbox is {shown(box)}; expected four finite numbers [x, y, width, height], the last two not negative'
  if code is None:
    return ''
  if not (isinstance(code, dict) and isinstance(code.get('counts'), str | bytes)):
    return f'segmentation is {shown(code)}; expected a compressed run-length code'
  given = code.get('size')
  if not (isinstance(given, list | tuple) and len(given) == 2 and all(type(side) is int for side in given)):
    return f'segmentation has size {shown(given)}; expected [height, width]'
  given = list(given)
  place = _places(known.image_ids, [row['image_id']])
  size = given if place is None or place[0] < 0 else known.sizes[place[0]]
  if given != size:
    return f"segmentation has size {shown(code.get('size'))}; expected {size}, the picture's height and width"
  if _areas([{'size': size, 'counts': _text(code['counts'])}]) is None:
    return f'segmentation is a broken run-length code; expected one of {size[0] * size[1]} pixels'
  return ''


def _places(known: np.ndarray | None, ids: list[int]) -> np.ndarray | None:
  """Returns the places int32 of ids among known ones, which ascend; -1 for others, None if one is no int64.

  Without known ones, all are in place 0.
  """
  if known is None or not len(known):
    return np.full(len(ids), 0 if known is None else -1, np.int32)
  try:
    wanted = np.array(ids, np.int64)
  except (OverflowError, TypeError):
    return None
  place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
  return np.where(known[place] == wanted, place, -1).astype(np.int32)


def _areas(codes: list[dict[str, Any]]) -> np.ndarray | None:
  """The pixels of masks; None if a code cannot be decoded to the size that it states."""
  try:
    return hotcoco.mask.area(codes)
  except (ValueError, TypeError, KeyError):
    return None


def _text(counts: bytes | str) -> str:
  return counts.decode('ascii') if isinstance(counts, bytes) else counts
