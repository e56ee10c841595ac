"""Counts what is in a data set, from its annotations alone: pictures, objects, their sizes, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from vild_jax.data import class_lists
from vild_jax.data.schema import Category, Example

_MEDIUM, _LARGE = 32**2, 96**2  # square pixels from which on COCO calls an object medium, and large
_AT_ONCE = 4096  # pictures whose columns are joined, since small arrays take more memory than their numbers
_COUNTS = (0, 1, 2, 3, 5, 9, 17, 33, 65, 129)  # where the bars of a histogram begin: of objects a picture
_SIDES = (0, 8, 16, 32, 64, 96, 192, 384, 768)  # of sides of objects, pixels
_LENGTHS = (0, 128, 256, 512, 768, 1024, 2048, 4096)  # of longer sides of pictures, pixels
BASE, NOVEL, UNKNOWN = 'base', 'novel', 'not in the vocabulary'


class Classes(Protocol):
  """Names C classes and says which are base: `vocabulary.VocabularyFile`, or a list of classes."""

  @property
  def names(self) -> Sequence[str]: ...

  @property
  def is_base(self) -> Sequence[bool] | np.ndarray: ...


@dataclass(frozen=True)
class Contents:
  """Holds the annotations of P pictures with M objects, crowds among them, as columns.

  Attributes:
    categories: of the data set, by id.
    image_ids: int64 [P].
    sizes: int64 [P, 2], (height, width) in pixels.
    picture: int64 [M], the row of an object's picture.
    category: int64 [M], the row of its category.
    boxes: float32 [M, 4] yxyx, pixels of the picture.
    areas: float64 [M], square pixels.
    is_crowd: bool [M].
    has_mask: bool [M].
  """

  categories: tuple[Category, ...]
  image_ids: np.ndarray
  sizes: np.ndarray
  picture: np.ndarray
  category: np.ndarray
  boxes: np.ndarray
  areas: np.ndarray
  is_crowd: np.ndarray
  has_mask: np.ndarray

  def objects_of(self) -> np.ndarray:
    """Returns int64 [categories], the number of objects of each, without crowds."""
    return np.bincount(self.category[~self.is_crowd], minlength=len(self.categories))

  def objects_in(self) -> np.ndarray:
    """Returns int64 [P], the number of objects in each picture, without crowds."""
    return np.bincount(self.picture[~self.is_crowd], minlength=len(self.image_ids))

  def known_as(self, classes: Classes) -> tuple[str | None, ...]:
    """Returns which class each category is; None for one that is none of them."""
    names = set(map(str, classes.names))
    return tuple(class_lists.known_as(category.name, names) for category in self.categories)

  def kinds(self, classes: Classes | None) -> tuple[str, ...]:
    """Returns whether each category is BASE, NOVEL or UNKNOWN; all are '' without classes."""
    if classes is None:
      return ('',) * len(self.categories)
    base = dict(zip(map(str, classes.names), map(bool, classes.is_base), strict=True))
    known = self.known_as(classes)
    return tuple(UNKNOWN if name is None else BASE if base[name] else NOVEL for name in known)


def rows(categories: Sequence[Category]) -> dict[int, int]:
  """Returns {id: place in the list} of categories."""
  return {category.id: row for row, category in enumerate(categories)}


class Counter:
  """Collects the annotations of examples one by one; their pictures are not kept."""

  def __init__(self, categories: Sequence[Category]):
    self._categories = tuple(categories)
    self._rows = rows(self._categories)
    self._count = 0
    self._parts: list[_Columns] = [_NOTHING]
    self._recent: list[_Columns] = []

  def add(self, example: Example) -> None:
    """Takes the annotations of one picture."""
    found = example.objects
    self._recent.append(
      (
        np.array([[example.image_id, example.height, example.width]], np.int64),
        np.full(len(found.ids), self._count, np.int64),
        np.array([self._rows[int(key)] for key in found.category_ids], np.int64),
        found.boxes,
        found.areas,
        found.is_crowd,
        np.array([bool(segmentation) for segmentation in found.segmentations], bool),
      )
    )
    self._count += 1
    if len(self._recent) == _AT_ONCE:
      self._parts.append(_joined(self._recent))
      self._recent.clear()

  def contents(self) -> Contents:
    """Returns what was counted so far."""
    pictures, *columns = _joined([*self._parts, *self._recent])
    return Contents(self._categories, pictures[:, 0], pictures[:, 1:], *columns)


_Columns = tuple[np.ndarray, ...]  # (id, height, width) of pictures; the columns of their objects, as in `Contents`
_NOTHING: _Columns = (
  np.zeros((0, 3), np.int64),
  *(
    np.zeros(shape, kind)
    for shape, kind in ((0, np.int64), (0, np.int64), ((0, 4), np.float32), (0, np.float64), (0, bool), (0, bool))
  ),
)


def _joined(parts: Sequence[_Columns]) -> _Columns:
  return tuple(map(np.concatenate, zip(*parts, strict=True)))


def count(categories: Sequence[Category], examples: Iterable[Example]) -> Contents:
  """Returns the annotations of `examples` as columns."""
  counter = Counter(categories)
  for example in examples:
    counter.add(example)
  return counter.contents()


def summary(contents: Contents, classes: Classes | None = None, notes: Sequence[str] = ()) -> dict[str, Any]:
  """Returns the numbers of a data set as JSON values; crowds are no objects here.

  Args:
    contents: what was counted.
    classes: tells base classes from novel ones.
    notes: what preparation repaired or left out, one line each.
  """
  objects, of, found = ~contents.is_crowd, contents.objects_of(), contents.objects_in()
  areas = contents.areas[objects]
  kinds = np.array(contents.kinds(classes))
  by_kind = {} if classes is None else {kind: int(of[kinds == kind].sum()) for kind in (BASE, NOVEL, UNKNOWN)}
  return {
    'pictures': len(found),
    'pictures_without_objects': int((found == 0).sum()),
    'picture_sizes': {
      side: [int(v) for v in (values.min(), np.median(values), values.max())] if len(values) else []
      for side, values in zip(('height', 'width'), contents.sizes.T, strict=True)
    },
    'objects': int(objects.sum()),
    'objects_without_mask': int((objects & ~contents.has_mask).sum()),
    'crowds': int(contents.is_crowd.sum()),
    'object_sizes': {
      'small': int((areas < _MEDIUM).sum()),
      'medium': int(((areas >= _MEDIUM) & (areas < _LARGE)).sum()),
      'large': int((areas >= _LARGE).sum()),
    },
    'categories': len(of),
    'categories_without_objects': int((of == 0).sum()),
    'objects_by_class': by_kind,
    'objects_by_category': {c.name: int(n) for c, n in zip(contents.categories, of, strict=True)},
    'notes': list(notes),
  }


def text(found: dict[str, Any]) -> str:
  """Returns the lines that say a `summary` to people."""
  rows = [
    ('pictures', f'{found["pictures"]:,}, {found["pictures_without_objects"]:,} of them without objects'),
    ('objects', f'{found["objects"]:,}, {found["objects_without_mask"]:,} of them without a mask'),
  ]
  if found['objects_by_class']:
    base, novel, unknown = (found['objects_by_class'][kind] for kind in (BASE, NOVEL, UNKNOWN))
    rows.append(('classes', f'{base:,} objects of base classes, {novel:,} of novel ones, {unknown:,} {UNKNOWN}'))
  rows += [
    ('sizes', ', '.join(f'{n:,} {size}' for size, n in found['object_sizes'].items()) + ' (below 32², 96² pixels)'),
    ('crowds', f'{found["crowds"]:,}'),
    ('categories', f'{found["categories"]:,}, {found["categories_without_objects"]:,} of them without objects'),
  ]
  for side, name in (('width', 'widths'), ('height', 'heights')):
    if values := found['picture_sizes'][side]:
      rows.append((name, '{} to {} pixels, median {}'.format(*(values[i] for i in (0, 2, 1)))))
  return '\n'.join(f'  {name:<11}{value}' for name, value in rows)


def histograms(contents: Contents) -> list[tuple[str, str, list[tuple[str, int]]]]:
  """Returns (title, what is counted, (interval, how many) of each that lies between filled ones); without crowds."""
  objects = contents.boxes[~contents.is_crowd]
  sides = np.sqrt(np.prod(objects[:, 2:] - objects[:, :2], axis=1))
  return [
    ('Side of the box, √(width · height), in pixels', 'objects', _histogram(sides, _SIDES)),
    ('Objects a picture', 'pictures', _histogram(contents.objects_in(), _COUNTS, whole=True)),
    ('Longer side of the picture, in pixels', 'pictures', _histogram(contents.sizes.max(axis=1), _LENGTHS)),
  ]


def _histogram(values: np.ndarray, starts: Sequence[int], *, whole: bool = False) -> list[tuple[str, int]]:
  """Counts values between successive starts; the last interval is open. Whole numbers name their last one."""
  counts = np.bincount(np.searchsorted(starts, values, side='right') - 1, minlength=len(starts))
  filled = np.flatnonzero(counts)
  if not len(filled):
    return []
  ends = [*(start - whole for start in starts[1:]), None]
  names = [
    f'{start} or more' if end is None else f'{start}' if end == start else f'{start}–{end}'
    for start, end in zip(starts, ends, strict=True)
  ]
  return [(names[i], int(counts[i])) for i in range(filled[0], filled[-1] + 1)]
