"""Reads results JSON into columns, with every check that scoring needs.

The usual file is decoded by types (msgspec), a part at a time. Where that fails, the part is read again as plain JSON,
to say which detection is wrong and why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hotcoco
import msgspec
import numpy as np

from vild_jax.data.schema import DataError
from vild_jax.eval import jsonfile
from vild_jax.eval.found import Codes, Found
from vild_jax.eval.truth import Truth

EXPECTED = 'a results JSON: a list of detections'
_SHOWN = 5  # unknown ids that a message names
_LEAVES = 0.1  # the share of boxes that leave their picture from which on they may be corners rather than sizes
_ENOUGH = 20  # boxes, to judge that


class _Row(msgspec.Struct, gc=False):
  image_id: int
  category_id: int
  score: float
  bbox: tuple[float, float, float, float] | None = None
  segmentation: dict[str, Any] | None = None


_ROWS = msgspec.json.Decoder(list[_Row])


def read(
  source: Sequence[dict[str, Any]] | str | Path,
  truth: Truth,
  *,
  ignore_unknown: bool = False,
  classless: bool = False,
  part: int = jsonfile.PART,
) -> Found:
  """Reads and checks results.

  Args:
    source: a results file, or a list of results as in one.
    truth: the ground truth that they belong to.
    ignore_unknown: leave out detections of pictures or categories that the ground truth lacks, rather than refuse.
    classless: take every detection for one of the first category; proposals have no class, or one of their own.
    part: bytes that are read at a time.

  Raises:
    DataError: names the first detection that cannot be scored and the reason; or how many are of unknown pictures or
      categories, and the first of these.
  """
  reader = _Reader(source, truth, ignore_unknown, classless)
  with without_collector():
    if isinstance(source, str | Path):
      for _ in jsonfile.lists(source, reader.add_text, EXPECTED, size=part):
        pass
    else:
      reader.add_plain(source)
  return reader.result()


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
  """Turns Python's garbage collector off: it would walk millions of new objects again and again."""
  was_on = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_on:
      gc.enable()


class _Reader:
  """Collects columns from the parts of a file."""

  def __init__(self, source: Any, truth: Truth, ignore_unknown: bool, classless: bool):
    self._name = str(source) if isinstance(source, str | Path) else 'results'
    self._sizes, self._ignore = [*map(list, truth.sizes), []], ignore_unknown
    self._image_ids, self._category_ids = truth.image_ids, None if classless else truth.category_ids
    self._columns: list[tuple] = []
    self._count = 0
    self._unknown: dict[str, list[Any]] = {'image_id': [], 'category_id': []}
    self._unknown_count = {'image_id': 0, 'category_id': 0}
    self._ignored = 0
    self._has: tuple[bool, bool] | None = None  # boxes, masks

  def add_text(self, text: bytes) -> bool | None:
    """Adds the JSON text of a list; returns None if it is not JSON."""
    try:
      rows = _ROWS.decode(text)
    except msgspec.DecodeError:
      try:
        plain = jsonfile.parsed(text, self._name, EXPECTED)
      except DataError:
        return None
      self.add_plain(plain)
      return True
    if not self._add(rows):
      self.add_plain(jsonfile.parsed(text, self._name, EXPECTED))
    return True

  def add_plain(self, rows: Any) -> None:
    """Adds detections as dictionaries; raises DataError at the first that cannot be scored."""
    if not isinstance(rows, Sequence) or isinstance(rows, str):
      raise DataError(f'{self._name} holds a {type(rows).__name__}; expected {EXPECTED}')
    made = []
    for i, row in enumerate(rows, self._count):
      if problem := self._problem(row):
        raise DataError(f'{self._name}, detection {i}: {problem}')
      box, code = row.get('bbox'), row.get('segmentation')
      made.append(
        _Row(
          row['image_id'],
          row['category_id'],
          float(row['score']),
          None if box is None else tuple(map(float, box)),
          None if code is None else {'size': list(code['size']), 'counts': _text(code['counts'])},
        )
      )
    if not self._add(made):
      raise AssertionError('a check of detections without words')

  def _add(self, rows: list[_Row]) -> bool:
    """Adds rows; returns False, with nothing added, if one of them cannot be scored."""
    if not rows:
      return True
    # Comparing whole lists and arrays is several times faster than a loop over the rows.
    image = _places(self._image_ids, [row.image_id for row in rows])
    category = _places(self._category_ids, [row.category_id for row in rows])
    score = np.array([row.score for row in rows], np.float64)
    boxes, codes = [row.bbox for row in rows], [row.segmentation for row in rows]
    has = self._has or (boxes[0] is not None, codes[0] is not None)
    for which, key, values in ((0, 'bbox', boxes), (1, 'segmentation', codes)):
      if has[which] and None in values:
        self._refuse_half(key, values.index(None))
      if not has[which] and values.count(None) < len(values):
        self._refuse_half(key, 0 if self._count == 0 else -self._count)
    if image is None or category is None or not np.isfinite(score).all() or not any(has):
      return False
    corners = texts = None
    if has[0]:
      corners = np.array(boxes, np.float64)
      if not (np.isfinite(corners).all() and (corners[:, 2:] >= 0).all()):
        return False
    if has[1]:
      expected = [self._sizes[i] for i in image.tolist()]  # the last entry stands for unknown pictures
      given = [code.get('size') for code in codes]
      counts = [code.get('counts') for code in codes]
      if given != expected and any(a != b and i >= 0 for a, b, i in zip(given, expected, image, strict=True)):
        return False
      if set(map(type, counts)) != {str} or not _whole(codes):
        return False
      texts = Codes.of(counts)
    self._has = has
    known = (image >= 0) & (category >= 0)
    if not known.all():
      self._note_unknown(rows, image, category)
    keep = slice(None) if known.all() else known
    column = lambda values: None if values is None else values[keep]
    self._columns.append(tuple(map(column, (image, category, score, corners, texts))))
    self._count += len(rows)
    self._ignored += int((~known).sum())
    return True

  def _refuse_half(self, key: str, at: int) -> None:
    raise DataError(
      f'{self._name}, detection {self._count + at}: no {key!r}; expected one for every detection or for none'
    )

  def _note_unknown(self, rows: list[_Row], image: np.ndarray, category: np.ndarray) -> None:
    for key, places in (('image_id', image), ('category_id', category)):
      strange = np.flatnonzero(places < 0)
      self._unknown_count[key] += len(strange)
      seen = self._unknown[key]
      for i in strange:
        if len(seen) >= _SHOWN:
          break
        if (value := getattr(rows[i], key)) not in seen:
          seen.append(value)

  def result(self) -> Found:
    """Returns the columns of all parts."""
    if self._ignored and not self._ignore:
      for key, what, known in (
        ('image_id', 'pictures', self._image_ids),
        ('category_id', 'categories', self._category_ids),
      ):
        if number := self._unknown_count[key]:
          ids = ', '.join(map(str, self._unknown[key]))
          raise DataError(
            f'{self._name}: {number} of {self._count} detections are of {what} that the ground truth lacks ({key} '
            f'{ids}); expected ids among its {len(known)}, or --ignore-unknown to leave such detections out'
          )
    has = self._has or (True, True)  # an empty file is scored, as nothing found
    parts = [part for part in self._columns if len(part[0])]
    joined = lambda column, empty: np.concatenate([empty, *(part[column] for part in parts)])
    found = Found(
      joined(0, np.zeros(0, np.int32)),
      joined(1, np.zeros(0, np.int32)),
      joined(2, np.zeros(0)),
      joined(3, np.zeros((0, 4))) if has[0] else None,
      Codes.joined([part[4] for part in parts]) if has[1] else None,
      self._ignored,
    )
    _refuse_corners(found, self._sizes[:-1], self._name)
    return dataclasses.replace(found, repeated=_repeated(found))

  def _problem(self, row: Any) -> str:
    """Returns why a detection cannot be scored; empty if it can, or if only its picture or category is unknown."""
    if not isinstance(row, dict) or not ({'image_id', 'category_id', 'score'} <= row.keys()):
      return f'found {str(row)[:80]}; expected image_id, category_id, score and bbox or segmentation'
    for key in ('image_id', 'category_id'):
      if type(row[key]) is not int or not -(2**63) <= row[key] < 2**63:
        return f'{key} is {row[key]!r}; expected a whole number of 64 bits'
    if not _finite(row['score']):
      return f'score is {row["score"]!r}; expected a finite number'
    box, code = row.get('bbox'), row.get('segmentation')
    if box is None and code is None:
      return 'neither bbox nor segmentation; expected one or both'
    if box is not None and not (
      isinstance(box, list | tuple) and len(box) == 4 and all(map(_finite, box)) and min(box[2:]) >= 0
    ):
      return f'bbox is {box}; expected four finite numbers [x, y, width, height], the last two not negative'
    if code is None:
      return ''
    if not (isinstance(code, dict) and isinstance(code.get('counts'), str | bytes)):
      return f'segmentation is {str(code)[:60]}; expected a compressed run-length code'
    given = list(code.get('size') or ())
    place = _places(self._image_ids, [row['image_id']])
    size = given if place is None or place[0] < 0 else self._sizes[place[0]]
    if given != size:
      return f"segmentation has size {code.get('size')}; expected {size}, the picture's height and width"
    if not _whole([{'size': size, 'counts': _text(code['counts'])}]):
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


def _whole(codes: list[dict[str, Any]]) -> bool:
  """Tells whether run-length codes can be decoded to the size that they state."""
  try:
    hotcoco.mask.area(codes)
  except ValueError:
    return False
  return True


def _refuse_corners(found: Found, sizes: list[tuple[int, int]], name: str) -> None:
  """Raises DataError for boxes that are x1 y1 x2 y2: none is smaller than its corner, and many leave their picture."""
  boxes = found.boxes
  if boxes is None or len(boxes) < _ENOUGH or not (boxes[:, 2:] >= boxes[:, :2]).all():
    return
  limits = np.array(sizes, np.float64)[found.image][:, ::-1]
  leaving = (boxes[:, :2] + boxes[:, 2:] > limits + 1).any(1).mean()
  if leaving > _LEAVES:
    raise DataError(
      f'{name}: the boxes look like [x1, y1, x2, y2] ({100 * leaving:.0f} % of them would leave their picture); '
      'expected [x, y, width, height]'
    )


def _repeated(found: Found) -> int:
  """Returns how many detections are copies of another one."""
  if not len(found):
    return 0
  order = np.lexsort((found.score, found.category, found.image))
  same = np.ones(len(order) - 1, bool)
  for column in (found.image, found.category, found.score):
    same &= column[order][1:] == column[order][:-1]
  rows = np.flatnonzero(same)
  if found.boxes is not None:
    return int((found.boxes[order[rows]] == found.boxes[order[rows + 1]]).all(1).sum())
  one, other = (found.codes[order[at]].strings() for at in (rows, rows + 1))
  return sum(a == b for a, b in zip(one, other, strict=True))


def _finite(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(counts: bytes | str) -> str:
  return counts.decode('ascii') if isinstance(counts, bytes) else counts
