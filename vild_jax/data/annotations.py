"""Reads LVIS- and COCO-format JSON into checked categories, pictures and objects; turns xywh boxes into yxyx."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data import rle
from vild_jax.data.picture_files import PictureName, picture_name
from vild_jax.data.schema import Category, DataError, Objects, shown
from vild_jax.runtime import progress

# LVIS and COCO round to two decimals: a box that exceeds the picture by no more than this is not reported as clipped.
_ROUNDING = 0.011
_DEEPEST = 100  # nested lists and objects in `info`, which is kept as it is


@dataclass(frozen=True)
class Picture:
  """Holds one entry of `images`: its size, the name of its file, and LVIS's federated lists."""

  id: int
  height: int
  width: int
  name: PictureName
  neg_category_ids: tuple[int, ...]
  not_exhaustive_category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Annotations:
  """Holds a whole file after the checks.

  `objects[i]` belong to `pictures[i]`. Pictures are ordered by id, and so are the objects of a picture. Each of `notes`
  is one line that says what was repaired, and how often. `clipped` are the ids of the pictures that boxes reach beyond.
  """

  categories: tuple[Category, ...]
  pictures: tuple[Picture, ...]
  objects: tuple[Objects, ...]
  info: dict[str, Any]
  notes: tuple[str, ...]
  clipped: frozenset[int]


class Problems:
  """Collects the problems of one input, so that one line can give the first and the number of all others."""

  def __init__(self, source: object):
    self._source = source
    self._first = ''
    self._counts: collections.Counter[str] = collections.Counter()

  def __len__(self) -> int:
    return self._counts.total()

  def add(self, kind: str, text: str) -> None:
    """Counts a problem of a kind; `text` says what was found and what was expected."""
    if not self._counts:
      self._first = text
    self._counts[kind] += 1

  def raise_if_any(self) -> None:
    """Raises DataError if there are problems: the first, how many more of its kind, and how many of other kinds."""
    if not self._counts:
      return
    same = next(iter(self._counts.values())) - 1
    other = len(self) - 1 - same
    more = [f'{same} more such problem{"s" * (same != 1)}'] if same else []
    more += [f'{other} of other kinds'] if other else []
    raise DataError(f'{self._source}: {self._first}' + (f' ({" and ".join(more)})' if more else ''))


def read_annotations(
  path: str | Path,
  *,
  drop_unusable: bool = False,
  tree: dict[str, Any] | None = None,
  name: Callable[[int], str] = 'annotation {}'.format,
) -> Annotations:
  """Reads and checks a LVIS- or COCO-format file; what passes can be trained on and evaluated.

  These are repaired and counted in `notes`: a repeated annotation (same id, same content) is dropped; an annotation
  without an id, or with the id of another one, gets a new id (ids only distinguish annotations, and files that were
  merged repeat them); a missing area is that of the segmentation, or else of the box; a box partly outside its picture
  is clipped; a polygon of fewer than three points is left out if the object has longer ones. An object without
  segmentation is kept, for evaluation by its box. An `iscrowd`, `frequency`, `synonyms` or `info` that is null means
  the same as none, and whole numbers may be written as 7.0.

  Args:
    path: the JSON file.
    drop_unusable: whether to leave out annotations whose segmentation cannot be decoded, or whose box has no size or
      lies wholly outside its picture, instead of refusing the file. (LVIS v1 and COCO 2017 have a few such boxes.)
    tree: the content, if `path` is of another format and was converted.
    name: what messages call the annotation of an id.

  Raises:
    DataError: one line with the first problem and the number of others, after ALL annotations were checked.
  """
  tree = _load(path) if tree is None else tree
  problems = Problems(path)
  try:
    categories = _categories(tree['categories'], problems)
    pictures = _pictures(tree['images'], _Known(tree['categories'], categories), problems)
    known = _Known(tree['images'], pictures), _Known(tree['categories'], categories)
    reader = _Objects(pictures, *known, problems, drop_unusable)
    reader.name = name
    reader.read(tree['annotations'])
    deep = _depth(tree.get('info')) > _DEEPEST
  except RecursionError:
    deep = True
  if deep:
    raise DataError(f'{path} nests lists and objects too deeply; expected a LVIS- or COCO-format JSON')
  problems.raise_if_any()
  if not pictures:
    raise DataError(f'{path} lists no pictures; expected at least one')
  info = tree.get('info')
  return Annotations(
    tuple(categories.values()),
    tuple(pictures.values()),
    tuple(map(reader.objects, pictures)),
    info if isinstance(info, dict) else {},
    reader.notes(),
    frozenset(reader.clipped),
  )


def read_categories(path: str | Path) -> tuple[Category, ...]:
  """Returns the categories of a LVIS- or COCO-format file, by id. Raises DataError as `read_annotations` does."""
  problems = Problems(path)
  categories = _categories(_load(path, ('categories',))['categories'], problems)
  problems.raise_if_any()
  return tuple(categories.values())


class _Known:
  """Tells ids that no entry of a list has from those of refused entries, whose problem is counted already."""

  def __init__(self, entries: list[dict[str, Any]], usable: Collection[int]):
    self._usable = usable
    self._declared = {key for entry in entries if type(key := entry.get('id')) in (int, float, str)}

  def __contains__(self, key: object) -> bool:
    return _whole(key) in self._usable

  def declares(self, key: object) -> bool:
    """Tells whether an entry has this id, usable or not."""
    return type(key) in (int, float, str) and key in self._declared

  def __len__(self) -> int:
    return len(self._declared)


def _load(path: str | Path, keys: tuple[str, ...] = ('images', 'annotations', 'categories')) -> dict[str, Any]:
  if not Path(path).is_file():
    raise DataError(f'{path} is not a file; expected a LVIS- or COCO-format JSON')
  try:
    tree = json.loads(Path(path).read_bytes())
  except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
    raise DataError(f'{path} is not JSON ({error}); expected a LVIS- or COCO-format JSON') from None
  expected = 'expected an object with the lists ' + ', '.join(repr(k) for k in keys)
  if not isinstance(tree, dict):
    raise DataError(f'{path} is not a LVIS- or COCO-format file: it holds a {type(tree).__name__}; {expected}')
  for key in keys:
    if not isinstance(tree.get(key), list) or not all(isinstance(entry, dict) for entry in tree[key]):
      found = f'{key!r} is not a list of objects' if key in tree else f'it has no {key!r}'
      raise DataError(f'{path} is not a LVIS- or COCO-format file: {found}; {expected}')
  return tree


def _categories(entries: list[dict[str, Any]], problems: Problems) -> dict[int, Category]:
  categories: dict[int, Category] = {}
  names: set[str] = set()
  for at, entry in enumerate(entries):
    key, name, frequency = _whole(entry.get('id')), entry.get('name'), entry.get('frequency')
    synonyms = entry.get('synonyms') or []
    if key is None or not isinstance(name, str) or not name.strip():
      found = f'id {shown(entry.get("id"))} and name {shown(name)}'
      problems.add('category', f'category entry {at} has {found}; expected a number and text')
    elif key in categories:
      both = f'{shown(categories[key].name)}, {shown(name)}'
      problems.add('category', f'category id {key} appears twice ({both}); expected once')
    elif name in names:
      problems.add('category', f'category name {shown(name)} appears twice; expected each name once')
    elif not isinstance(synonyms, list):
      problems.add('category', f'category {shown(name)} has the synonyms {shown(synonyms)}; expected a list')
    elif not _is_unicode(texts := (name, str(entry.get('synset') or ''), *map(str, synonyms))):
      problems.add('category', f'category {shown(name)} has half a surrogate pair in {shown(texts)}; expected Unicode')
    elif frequency not in (None, '', 'r', 'c', 'f'):
      problems.add('category', f'category {shown(name)} has frequency {shown(frequency)}; expected r, c or f')
    else:
      names.add(name)
      categories[key] = Category(key, name, frequency or '', texts[1], texts[2:])
  if not entries:
    problems.add('category', 'the list of categories is empty; expected at least one')
  return dict(sorted(categories.items()))


def _pictures(entries: list[dict[str, Any]], known: _Known, problems: Problems) -> dict[int, Picture]:
  pictures: dict[int, Picture] = {}
  for at, entry in enumerate(entries):
    key, height, width = numbers = [_whole(entry.get(k)) for k in ('id', 'height', 'width')]
    lists = [entry.get(k) or [] for k in ('neg_category_ids', 'not_exhaustive_category_ids')]
    if None in numbers or not rle.is_size(height, width):
      found = 'id {}, height {} and width {}'.format(*(shown(entry.get(k)) for k in ('id', 'height', 'width')))
      problems.add(
        'image', f'image entry {at} has {found}; expected whole numbers, and a positive size below 2^32 pixels'
      )
    elif key in pictures:
      problems.add('image', f'image id {key} appears twice; expected once')
    elif not all(isinstance(ids, list) for ids in lists):
      problems.add('image', f'image {key} has neg_ or not_exhaustive_category_ids that are not lists; expected lists')
    else:
      for unknown in [c for ids in lists for c in ids if not known.declares(c)][:1]:
        problems.add(
          'category', f'image {key} lists the unknown category {shown(unknown)}; expected an id of "categories"'
        )
      try:
        name = picture_name(entry)
      except DataError as error:
        problems.add('image', f'image {key} {error}')
        continue
      ids = (tuple(whole for c in ids if (whole := _whole(c)) is not None) for ids in lists)
      pictures[key] = Picture(key, height, width, name, *ids)
  return dict(sorted(pictures.items()))


class _Refused(Exception):
  """Says why an annotation cannot be used.

  `left_out` is the note that counts it where unusable annotations are left out; '' if the file is wrong all the same.
  """

  def __init__(self, kind: str, text: str, left_out: str = ''):
    super().__init__(text)
    self.kind, self.left_out = kind, left_out


class _Objects:
  """Reads all annotations of a file in one pass."""

  def __init__(
    self, pictures: dict[int, Picture], images: _Known, categories: _Known, problems: Problems, drop_unusable: bool
  ):
    self._pictures, self._images, self._categories = pictures, images, categories
    self._problems, self._drop = problems, drop_unusable
    self._of: dict[int, list[tuple]] = collections.defaultdict(list)
    self._counts: collections.Counter[str] = collections.Counter()
    self._kept = self._crowds = 0
    self.name: Callable[[int], str] = str
    self.clipped: set[int] = set()

  def read(self, entries: list[dict[str, Any]]) -> None:
    seen: dict[int, dict[str, Any]] = {}
    fresh = max((key for e in entries if (key := _whole(e.get('id'))) is not None), default=0) + 1
    long = len(entries) > 20_000  # fewer take less than a second and need no bar
    for at, entry in enumerate(progress.track(entries, 'check annotations') if long else entries):
      given = entry.get('id')
      key = _whole(given)
      if key is None and given is not None:
        self._problems.add('field', f'annotation entry {at} has id {shown(given)}; expected a whole number')
        continue
      if key is None or key in seen:
        if key is not None and seen[key] == entry:
          self._counts['repeated annotation{s} dropped'] += 1
          continue
        what = 'without an id numbered' if key is None else 'with the id of another renumbered'
        self._counts[f'annotation{{s}} {what}'] += 1
        key, fresh = fresh, fresh + 1
      seen[key] = entry
      try:
        self._read_one(f'annotation entry {at}' if given is None else self.name(given), key, entry)
      except _Refused as refused:
        if refused.left_out and self._drop:
          self._counts[refused.left_out] += 1
        else:
          more = ', or --drop-unusable to leave such out' if refused.left_out else ''
          self._problems.add(refused.kind, f'{refused}{more}')

  def _read_one(self, who: str, key: int, entry: dict[str, Any]) -> None:
    """Keeps one annotation; raises _Refused with the first thing that is wrong with it."""
    image, category, area, crowd = (entry.get(k) for k in ('image_id', 'category_id', 'area', 'iscrowd'))
    if not self._images.declares(image):
      expected = f'expected one of the {len(self._images)} ids of "images"'
      raise _Refused('image', f'{who} belongs to the unknown image {shown(image)}; {expected}')
    if not self._categories.declares(category):
      expected = f'expected one of the {len(self._categories)} ids of "categories"'
      raise _Refused('category', f'{who} has the unknown category {shown(category)}; {expected}')
    if area is not None and (not rle.is_number(area) or area < 0):
      raise _Refused('field', f'{who} has area {shown(area)}; expected a number of pixels')
    if crowd not in (None, 0, 1):
      raise _Refused('field', f'{who} has iscrowd {shown(crowd)}; expected 0 or 1')
    if image not in self._images or category not in self._categories:
      return  # the entry of its image or category was refused, and is counted already
    picture = self._pictures[_whole(image)]
    box = self._box(who, entry.get('bbox'), picture)
    try:
      segmentation, short = rle.check_segmentation(entry.get('segmentation'), picture.height, picture.width)
    except DataError as error:
      left_out = 'annotation{s} with a segmentation that cannot be decoded dropped'
      raise _Refused('segmentation', f'{who} has {error}', left_out) from None
    if area is None:
      self._counts['annotation{s} without an area: that of the segmentation taken, or else of the box'] += 1
      y1, x1, y2, x2 = box
      area = rle.area(segmentation, picture.height, picture.width) if segmentation else (y2 - y1) * (x2 - x1)
    self._counts['polygon{s} of fewer than three points left out'] += short
    self._counts['object{s} without segmentation: boxes alone are trained and scored'] += not (segmentation or crowd)
    self._kept += 1
    self._crowds += bool(crowd)
    self._of[picture.id].append((key, _whole(category), box, float(area), bool(crowd), segmentation))

  def _box(self, who: str, bbox: Any, picture: Picture) -> list[float]:
    """Turns xywh into yxyx inside the picture."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(rle.is_number, bbox)):
      expected = 'expected four finite numbers [x, y, width, height]'
      left_out = 'annotation{s} with a bbox that is not four finite numbers dropped'
      raise _Refused('field', f'{who} has bbox {shown(bbox)}; {expected}', left_out)
    x, y, w, h = bbox
    limits = (picture.height, picture.width, picture.height, picture.width)
    box = [y, x, y + h, x + w]
    inside = [min(max(v, 0.0), limit) for v, limit in zip(box, limits, strict=True)]
    moved = max(abs(a - b) for a, b in zip(box, inside, strict=True)) > _ROUNDING
    if moved:
      self.clipped.add(picture.id)
    top, left, bottom, right = np.array(inside, np.float32).tolist()  # as they are stored
    if w <= 0 or h <= 0 or top >= bottom or left >= right:
      outside = x >= picture.width or y >= picture.height or x + w <= 0 or y + h <= 0
      what = 'wholly outside its picture' if outside and w > 0 and h > 0 else 'of no size'
      raise _Refused(
        'box',
        f'{who} has the box {shown(bbox)} {what} ({picture.width} wide, {picture.height} high); '
        'expected a positive size inside it',
        'annotation{s} with a box of no size or outside the picture dropped',
      )
    self._counts['box{es} partly outside the picture clipped'] += moved
    return inside

  def objects(self, image_id: int) -> Objects:
    return make_objects(self._of.pop(image_id, []))

  def notes(self) -> tuple[str, ...]:
    notes = in_words(self._counts)
    if self._kept == self._crowds:
      objects = f'no object but {self._crowds} crowd{"s" * (self._crowds != 1)}' if self._crowds else 'no object'
      notes = (*notes, f'{objects}: nothing to learn from this split')
    return notes


def in_words(counts: collections.Counter[str]) -> tuple[str, ...]:
  """Returns a line for each thing that was counted; {s} and {es} in its text become the ending of the plural."""
  return tuple(f'{n} ' + text.format(s='s' * (n != 1), es='es' * (n != 1)) for text, n in counts.items() if n)


def _is_unicode(texts: Iterable[str]) -> bool:
  """Tells whether texts can be written as UTF-8: JSON can hold one half of what takes two, and no file can."""
  try:
    return all(isinstance(text.encode(), bytes) for text in texts)
  except UnicodeEncodeError:
    return False


def _whole(value: object) -> int | None:
  """Returns a whole number, also one written as 7.0; None for anything else, and for what 64 bits do not hold."""
  if type(value) is float and value.is_integer() and abs(value) < 2**53:
    value = int(value)
  return value if type(value) is int and abs(value) < 2**62 else None


def _depth(value: object) -> int:
  """Returns how many lists and objects of JSON stand in one another."""
  inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  return 1 + max(map(_depth, inner), default=0)


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
