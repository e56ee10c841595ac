"""Reads LVIS- and COCO-format JSON into checked categories, pictures and objects; turns xywh boxes into yxyx."""

from __future__ import annotations

import collections
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data import rle
from vild_jax.data.schema import Category, DataError, Objects
from vild_jax.runtime import progress

# LVIS and COCO round to two decimals: a box that exceeds the picture by no more than this is not reported as clipped.
_ROUNDING = 0.011


@dataclass(frozen=True)
class Picture:
  """Holds one entry of `images`: its size, LVIS's federated lists, and the file names to look for, best first."""

  id: int
  height: int
  width: int
  files: tuple[str, ...]
  neg_category_ids: tuple[int, ...]
  not_exhaustive_category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Annotations:
  """Holds a whole file after the checks.

  `objects[i]` belong to `pictures[i]`. Pictures are ordered by id, and so are the objects of a picture. Each of `notes`
  is one line that says what was repaired, and how often.
  """

  categories: tuple[Category, ...]
  pictures: tuple[Picture, ...]
  objects: tuple[Objects, ...]
  info: dict[str, Any]
  notes: tuple[str, ...]


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


def read_annotations(path: str | Path, *, drop_bad_boxes: bool = False) -> Annotations:
  """Reads and checks a LVIS- or COCO-format file.

  These are repaired and counted in `notes`: a repeated annotation (same id, same content) is dropped; an annotation
  with the id of another one gets a new id (ids only distinguish annotations, and files that were merged repeat them); a
  box partly outside its picture is clipped; a polygon of fewer than three points is left out if the object has longer
  ones. An object without segmentation is kept, for evaluation by its box.

  Args:
    path: the JSON file.
    drop_bad_boxes: whether to leave out annotations whose box has no size or lies wholly outside its picture, instead
      of refusing the file. (LVIS v1 and COCO 2017 have a few of them.)

  Raises:
    DataError: one line with the first problem and the number of others, after ALL annotations were checked.
  """
  tree = _load(path)
  problems = Problems(path)
  categories = _categories(tree['categories'], problems)
  pictures = _pictures(tree['images'], {c.id for c in categories}, problems)
  reader = _Objects(pictures, {c.id for c in categories}, problems, drop_bad_boxes)
  reader.read(tree['annotations'])
  problems.raise_if_any()
  if not pictures:
    raise DataError(f'{path} lists no pictures; expected at least one')
  info = tree.get('info')
  return Annotations(
    tuple(categories),
    tuple(pictures.values()),
    tuple(map(reader.objects, pictures)),
    info if isinstance(info, dict) else {},
    reader.notes(),
  )


def read_categories(path: str | Path) -> tuple[Category, ...]:
  """Returns the categories of a LVIS- or COCO-format file, by id. Raises DataError as `read_annotations` does."""
  problems = Problems(path)
  categories = _categories(_load(path, ('categories',))['categories'], problems)
  problems.raise_if_any()
  return tuple(categories)


def _load(path: str | Path, keys: tuple[str, ...] = ('images', 'annotations', 'categories')) -> dict[str, Any]:
  if not Path(path).is_file():
    raise DataError(f'{path} is not a file; expected a LVIS- or COCO-format JSON')
  try:
    tree = json.loads(Path(path).read_bytes())
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
    raise DataError(f'{path} is not JSON ({error}); expected a LVIS- or COCO-format JSON') from None
  expected = 'expected an object with the lists ' + ', '.join(repr(k) for k in keys)
  if not isinstance(tree, dict):
    raise DataError(f'{path} is not a LVIS- or COCO-format file: it holds a {type(tree).__name__}; {expected}')
  for key in keys:
    if not isinstance(tree.get(key), list) or not all(isinstance(entry, dict) for entry in tree[key]):
      found = f'{key!r} is not a list of objects' if key in tree else f'it has no {key!r}'
      raise DataError(f'{path} is not a LVIS- or COCO-format file: {found}; {expected}')
  return tree


def _categories(entries: list[dict[str, Any]], problems: Problems) -> list[Category]:
  categories: dict[int, Category] = {}
  names: set[str] = set()
  for at, entry in enumerate(entries):
    key, name, frequency = entry.get('id'), entry.get('name'), entry.get('frequency', '')
    synonyms = entry.get('synonyms') or []
    if not _is_id(key) or not isinstance(name, str) or not name.strip():
      problems.add('category', f'category entry {at} has id {key!r} and name {name!r}; expected a number and text')
    elif key in categories:
      problems.add('category', f'category id {key} appears twice ({categories[key].name!r}, {name!r}); expected once')
    elif name in names:
      problems.add('category', f'category name {name!r} appears twice; expected each name once')
    elif not isinstance(synonyms, list):
      problems.add('category', f'category {name!r} has the synonyms {synonyms!r}; expected a list')
    elif frequency not in ('', 'r', 'c', 'f'):
      problems.add('category', f'category {name!r} has frequency {frequency!r}; expected r, c or f')
    else:
      names.add(name)
      categories[key] = Category(key, name, frequency, str(entry.get('synset') or ''), tuple(map(str, synonyms)))
  if not entries:
    problems.add('category', 'the list of categories is empty; expected at least one')
  return [categories[key] for key in sorted(categories)]


def _pictures(entries: list[dict[str, Any]], known: set[int], problems: Problems) -> dict[int, Picture]:
  pictures: dict[int, Picture] = {}
  for at, entry in enumerate(entries):
    key, height, width = entry.get('id'), entry.get('height'), entry.get('width')
    files = picture_files(entry)
    lists = [entry.get(k) or [] for k in ('neg_category_ids', 'not_exhaustive_category_ids')]
    if not all(map(_is_id, (key, height, width))) or height <= 0 or width <= 0:
      problems.add(
        'image',
        f'image entry {at} has id {key!r}, height {height!r} and width {width!r}; expected whole '
        'numbers, and a positive size',
      )
    elif key in pictures:
      problems.add('image', f'image id {key} appears twice; expected once')
    elif not files:
      problems.add('image', f'image {key} names no file; expected "file_name" or "coco_url"')
    elif not all(isinstance(ids, list) for ids in lists):
      problems.add('image', f'image {key} has neg_ or not_exhaustive_category_ids that are not lists; expected lists')
    else:
      for unknown in [c for ids in lists for c in ids if not _is_id(c) or c not in known][:1]:
        problems.add('category', f'image {key} lists the unknown category {unknown!r}; expected an id of "categories"')
      pictures[key] = Picture(key, height, width, files, tuple(lists[0]), tuple(lists[1]))
  return dict(sorted(pictures.items()))


def picture_files(entry: dict[str, Any]) -> tuple[str, ...]:
  """Returns the places to look for a picture in the image folder: LVIS v1 has no file_name, but a URL of COCO."""
  name, url = entry.get('file_name'), entry.get('coco_url')
  places = [name] if isinstance(name, str) else []
  if isinstance(url, str):
    places.append('/'.join(url.split('/')[-2:]))
  for last in [p.rsplit('/', 1)[-1] for p in (name, url) if isinstance(p, str)]:
    places += [last, f'train2017/{last}', f'val2017/{last}']
  return tuple(dict.fromkeys(p for p in places if p and not p.endswith('/')))


class _Objects:
  """Reads all annotations of a file in one pass."""

  def __init__(self, pictures: dict[int, Picture], known: set[int], problems: Problems, drop_bad_boxes: bool):
    self._pictures, self._known, self._problems, self._drop = pictures, known, problems, drop_bad_boxes
    self._of: dict[int, list[tuple]] = collections.defaultdict(list)
    self._counts: collections.Counter[str] = collections.Counter()

  def read(self, entries: list[dict[str, Any]]) -> None:
    seen: dict[int, dict[str, Any]] = {}
    fresh = max((e['id'] for e in entries if _is_id(e.get('id'))), default=0) + 1
    long = len(entries) > 20_000  # fewer take less than a second and need no bar
    for at, entry in enumerate(progress.track(entries, 'check annotations') if long else entries):
      key = entry.get('id')
      if not _is_id(key):
        self._problems.add('field', f'annotation entry {at} has id {key!r}; expected a whole number')
        continue
      if key in seen:
        if seen[key] == entry:
          self._counts['repeated annotation{s} dropped'] += 1
          continue
        self._counts['annotation{s} with the id of another renumbered'] += 1
        key, fresh = fresh, fresh + 1
      seen[key] = entry
      self._read_one(key, entry)

  def _read_one(self, key: int, entry: dict[str, Any]) -> None:
    who = f'annotation {entry["id"]}'
    image_id = entry.get('image_id')
    picture = self._pictures.get(image_id) if _is_id(image_id) else None
    category, area, crowd = entry.get('category_id'), entry.get('area'), entry.get('iscrowd', 0)
    if picture is None:
      self._problems.add(
        'image',
        f'{who} belongs to the unknown image {image_id!r}; expected one of the {len(self._pictures)} ids of "images"',
      )
    if not _is_id(category) or category not in self._known:
      self._problems.add(
        'category',
        f'{who} has the unknown category {category!r}; expected one of the {len(self._known)} ids of "categories"',
      )
    if not rle.is_number(area) or area < 0:
      self._problems.add('field', f'{who} has area {area!r}; expected a number of pixels')
      return
    if crowd not in (0, 1):
      self._problems.add('field', f'{who} has iscrowd {crowd!r}; expected 0 or 1')
    if picture is None:
      return
    box = self._box(who, entry.get('bbox'), picture)
    try:
      segmentation, short = rle.check_segmentation(entry.get('segmentation'), picture.height, picture.width)
    except DataError as error:
      self._problems.add('segmentation', f'{who} has {error}')
      return
    if box is None:
      return
    self._counts['polygon{s} of fewer than three points left out'] += short
    self._counts[
      'object{s} without segmentation: to be evaluated by box, no use for training masks'
    ] += not segmentation
    self._of[picture.id].append((key, category, box, float(area), bool(crowd), segmentation))

  def _box(self, who: str, bbox: Any, picture: Picture) -> list[float] | None:
    """Turns xywh into yxyx inside the picture; None if there is a problem or the annotation is to be dropped."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(rle.is_number, bbox)):
      self._problems.add('field', f'{who} has bbox {bbox!r}; expected four finite numbers [x, y, width, height]')
      return None
    x, y, w, h = bbox
    limits = (picture.height, picture.width, picture.height, picture.width)
    box = [y, x, y + h, x + w]
    inside = [min(max(v, 0.0), limit) for v, limit in zip(box, limits, strict=True)]
    if w <= 0 or h <= 0 or inside[0] >= inside[2] or inside[1] >= inside[3]:
      if self._drop:
        self._counts['annotation{s} with a box of no size or outside the picture dropped'] += 1
      else:
        what = 'of no size' if w <= 0 or h <= 0 else 'wholly outside its picture'
        self._problems.add(
          'box',
          f'{who} has the box {bbox} {what} ({picture.width} wide, {picture.height} high); '
          'expected a positive size inside it, or --drop-bad-boxes to leave such out',
        )
      return None
    self._counts['box{es} partly outside the picture clipped'] += (
      max(abs(a - b) for a, b in zip(box, inside, strict=True)) > _ROUNDING
    )
    return inside

  def objects(self, image_id: int) -> Objects:
    return make_objects(self._of.pop(image_id, []))

  def notes(self) -> tuple[str, ...]:
    return tuple(f'{n} ' + text.format(s='s' * (n != 1), es='es' * (n != 1)) for text, n in self._counts.items() if n)


def _is_id(value: object) -> bool:
  return type(value) is int and abs(value) < 2**62


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
