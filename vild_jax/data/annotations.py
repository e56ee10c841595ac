"""Reads LVIS- and COCO-format JSON into checked categories, pictures and objects; turns xywh boxes into yxyx."""

from __future__ import annotations

import collections
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data import rle, unique_keys
from vild_jax.data.entries import Known, Picture, check_categories, check_pictures, whole
from vild_jax.data.problems import Problems, in_words
from vild_jax.data.schema import Category, DataError, Objects, is_number, make_objects
from vild_jax.runtime import progress
from vild_jax.runtime.messages import shown

# LVIS and COCO round to two decimals: a box that exceeds the picture by no more than this is not reported as clipped.
_ROUNDING = 0.011
_DEEPEST = 100  # nested lists and objects in `info`, which is kept as it is


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


def read_annotations(
  path: str | Path,
  *,
  drop_unusable: bool = False,
  tree: dict[str, Any] | None = None,
  name: Callable[[int], str] | None = None,
) -> Annotations:
  """Reads and checks a LVIS- or COCO-format file; what passes can be trained on and evaluated.

  These are repaired and counted in `notes`: a repeated annotation (same id, same content) is dropped, and so is a
  repeated entry of `images`; an annotation without an id, or with the id of another one, gets a new id (ids only
  distinguish annotations, and files that were merged repeat them); a missing area is that of the segmentation, or else
  of the box; a box partly outside its picture is clipped; a polygon of fewer than three points is left out if the
  object has longer ones; CVAT's rotated boxes are left out; for names see `entries.check_categories`. An object without
  segmentation is kept, for evaluation by its box. An `iscrowd`, `frequency`, `synonyms` or `info` that is null means
  the same as none, and whole numbers may be written as 7.0.

  Args:
    path: the JSON file.
    drop_unusable: whether to leave out annotations whose segmentation cannot be decoded, or whose box has no size or
      lies wholly outside its picture, instead of refusing the file. (LVIS v1 and COCO 2017 have a few such boxes.)
    tree: the content, if it was loaded or converted already.
    name: what messages call the annotation of an id, if `path` is of another format: such annotations have no area.

  Raises:
    DataError: one line with the first problem and the number of others, after ALL annotations were checked.
  """
  tree = load(path) if tree is None else tree
  problems, counts = Problems(path), collections.Counter()
  try:
    categories = check_categories(tree, problems, counts)
    pictures = check_pictures(tree['images'], Known(tree['categories'], categories), problems, counts)
    known = Known(tree['images'], pictures), Known(tree['categories'], categories)
    reader = _Objects(pictures, *known, problems, counts, drop_unusable=drop_unusable, name=name)
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
  categories = check_categories(load(path, ('categories',)), problems, collections.Counter())
  problems.raise_if_any()
  return tuple(categories.values())


def load(path: str | Path, keys: tuple[str, ...] = ('images', 'annotations', 'categories')) -> dict[str, Any]:
  """Returns the content of a JSON file that has lists of objects at these keys; raises DataError if it has not.

  A key that stands twice in an object is an error too.
  """
  if not Path(path).is_file():
    raise DataError(f'{path} is not a file; expected a LVIS- or COCO-format JSON')
  try:
    tree = json.loads(Path(path).read_bytes(), object_pairs_hook=unique_keys.once)
  except unique_keys.RepeatedKey as error:
    raise DataError(f'{path}: {error}') from None
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
    self,
    pictures: dict[int, Picture],
    images: Known,
    categories: Known,
    problems: Problems,
    counts: collections.Counter[str],
    *,
    drop_unusable: bool,
    name: Callable[[int], str] | None,
  ):
    self._pictures, self._images, self._categories = pictures, images, categories
    self._problems, self._counts, self._drop = problems, counts, drop_unusable
    self._name, self._converted = name or 'annotation {}'.format, name is not None
    self._of: dict[int, list[tuple]] = collections.defaultdict(list)
    self._kept = self._crowds = 0
    self.clipped: set[int] = set()

  def read(self, entries: list[dict[str, Any]]) -> None:
    seen: dict[int, dict[str, Any]] = {}
    fresh = max((key for e in entries if (key := whole(e.get('id'))) is not None), default=0) + 1
    long = len(entries) > 20_000  # fewer take less than a second and need no bar
    for at, entry in enumerate(progress.track(entries, 'check annotations') if long else entries):
      given = entry.get('id')
      key = whole(given)
      if key is None and given is not None:
        self._problems.add('field', f'annotation entry {at} has id {shown(given)}; expected a whole number below 2^62')
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
        self._read_one(f'annotation entry {at}' if given is None else self._name(given), key, entry)
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
    if area is not None and (not is_number(area) or area < 0):
      raise _Refused('field', f'{who} has area {shown(area)}; expected a number of pixels')
    if crowd not in (None, 0, 1):
      raise _Refused('field', f'{who} has iscrowd {shown(crowd)}; expected 0 or 1')
    if image not in self._images or category not in self._categories:
      return  # the entry of its image or category was refused, and is counted already
    picture = self._pictures[whole(image)]
    box = self._box(who, entry.get('bbox'), picture)
    try:
      segmentation, short = rle.check_segmentation(entry.get('segmentation'), picture.height, picture.width)
    except DataError as error:
      left_out = 'annotation{s} with a segmentation that cannot be decoded dropped'
      raise _Refused('segmentation', f'{who} has {error}', left_out) from None
    if not segmentation and _is_rotated(entry.get('attributes')):
      self._counts['rotated box{es} left out'] += 1
      return
    if area is None:
      if not self._converted:
        self._counts['annotation{s} without an area: that of the segmentation taken, or else of the box'] += 1
      y1, x1, y2, x2 = box
      area = rle.area(segmentation, picture.height, picture.width) if segmentation else (y2 - y1) * (x2 - x1)
    self._counts['polygon{s} of fewer than three points left out'] += short
    if not segmentation:
      self._counts['object{s} without segmentation: boxes alone are trained and scored'] += not crowd
    elif rle.is_empty(segmentation, picture.height, picture.width):
      self._counts['object{s} whose segmentation covers no pixel: boxes alone are trained, and no mask can match'] += 1
    self._counts['object{s} marked ignore kept as ordinary ones'] += entry.get('ignore') == 1
    self._kept += 1
    self._crowds += bool(crowd)
    self._of[picture.id].append((key, whole(category), box, float(area), bool(crowd), segmentation))

  def _box(self, who: str, bbox: Any, picture: Picture) -> list[float]:
    """Turns xywh into yxyx inside the picture."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
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


def _is_rotated(attributes: Any) -> bool:
  """Tells whether attributes of CVAT, which always has both, say that the box is to be turned."""
  if not isinstance(attributes, dict) or 'occluded' not in attributes:
    return False
  return is_number(angle := attributes.get('rotation')) and angle != 0


def _depth(value: object) -> int:
  """Returns how many lists and objects of JSON stand in one another."""
  inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
  return 1 + max(map(_depth, inner), default=0)
