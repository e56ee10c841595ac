"""Reads and checks ground truth in LVIS or COCO format, and keeps what scoring needs of it.

Pictures and categories get places 0, 1, ... in the order of their ids, and the evaluator sees places alone: ids may be
larger than the numbers that a float64 holds exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np

from vild_jax.data import rle, unique_keys
from vild_jax.data.schema import DataError, is_number, is_size
from vild_jax.eval import jsonfile
from vild_jax.runtime.messages import shown

_FIELDS = {
  'images': ('id', 'height', 'width'),
  'categories': ('id', 'name'),
  'annotations': ('image_id', 'category_id', 'bbox'),
}
_EXPECTED = 'LVIS- or COCO-format ground truth'


@dataclass(frozen=True)
class Split:
  """Says which categories are base and which are novel, by id; a category may be neither."""

  base: frozenset[int]
  novel: frozenset[int]


@dataclass(frozen=True)
class Truth:
  """Holds ground truth whose lists are sorted by id.

  Attributes:
    name: the file, for messages.
    images: pictures, as in the file.
    categories: categories, as in the file.
    annotations: objects, with their fields of the file.
    digest: sha256 of the file, or of the JSON of a dictionary.
  """

  name: str
  images: Sequence[dict[str, Any]]
  categories: Sequence[dict[str, Any]]
  annotations: Sequence[dict[str, Any]]
  digest: str

  @cached_property
  def image_ids(self) -> np.ndarray:
    """Ids of the pictures, int64 [I], ascending."""
    return np.array([image['id'] for image in self.images], np.int64)

  @cached_property
  def category_ids(self) -> np.ndarray:
    """Ids of the categories, int64 [C], ascending."""
    return np.array([category['id'] for category in self.categories], np.int64)

  @cached_property
  def sizes(self) -> list[tuple[int, int]]:
    """Returns (height, width) of every picture, in pixels."""
    return [(image['height'], image['width']) for image in self.images]

  @cached_property
  def listed(self) -> np.ndarray:
    """Pairs of picture and category that are known to be there or to lack, as sorted int64 `image * C + category`."""
    place = {int(key): k for k, key in enumerate(self.category_ids)}
    picture = {int(key): i for i, key in enumerate(self.image_ids)}
    found = {picture[a['image_id']] * len(place) + place[a['category_id']] for a in self.annotations}
    for i, image in enumerate(self.images):
      found |= {i * len(place) + place[key] for key in image.get('neg_category_ids') or () if key in place}
    return np.array(sorted(found), np.int64)

  def objects(self, *, masks: bool) -> list[dict[str, Any]]:
    """Returns the objects for the evaluator: places for ids, numbers from 1, and the fields that it reads.

    Without `masks`, objects go without their segmentation.
    """
    picture = {int(key): i for i, key in enumerate(self.image_ids)}
    place = {int(key): k for k, key in enumerate(self.category_ids)}
    kept = ('bbox', 'area', 'iscrowd', 'ignore', *(('segmentation',) if masks else ()))
    # Files repeat the ids of annotations, and evaluators misread 0, so objects are numbered.
    return [
      {key: annotation[key] for key in kept if annotation.get(key) is not None}
      | {'id': number, 'image_id': picture[annotation['image_id']], 'category_id': place[annotation['category_id']]}
      for number, annotation in enumerate(self.annotations, 1)
    ]

  def images_by_place(self) -> list[dict[str, Any]]:
    """Returns the pictures for the evaluator: places for ids, also in the federated lists."""
    place = {int(key): k for k, key in enumerate(self.category_ids)}
    of = lambda image, key: [place[k] for k in image.get(key) or () if k in place]
    return [
      {'id': i, 'height': image['height'], 'width': image['width']}
      | {key: of(image, key) for key in ('neg_category_ids', 'not_exhaustive_category_ids')}
      for i, image in enumerate(self.images)
    ]

  def split(self, base_category_ids: Collection[int] | None) -> Split | None:
    """Returns the split in which these categories are base and all others novel; None for None."""
    if base_category_ids is None:
      return None
    base = frozenset(map(int, base_category_ids))
    return Split(base, frozenset(self.category_ids.tolist()) - base)

  def by_frequency(self) -> Split | None:
    """Returns the split in which rare categories are novel and all others base; None if no category has a frequency."""
    of = {c['id']: c.get('frequency') or '' for c in self.categories}
    if not any(of.values()):
      return None
    ids = lambda letters: frozenset(k for k, letter in of.items() if letter and letter in letters)
    return Split(ids('cf'), ids('r'))

  def counts(self) -> dict[str, int]:
    """Returns how many pictures, categories, categories with objects, and objects there are."""
    return {
      'images': len(self.images),
      'categories': len(self.categories),
      'categories_with_objects': len({annotation['category_id'] for annotation in self.annotations}),
      'objects': len(self.annotations),
    }

  def lack_of_masks(self) -> str:
    """Returns why masks cannot be scored, in words; '' if every object has one, crowds included.

    An object without one would count as missed, and detections inside a crowd without one as wrong.
    """
    lack = sum(not annotation.get('segmentation') for annotation in self.annotations)
    return f'{lack:,} of {len(self.annotations):,} objects have no mask' if lack else ''

  def restricted(self, *, categories: Collection[int] | None = None, images: Collection[int] | None = None) -> Truth:
    """Returns the part with these category ids and picture ids; None keeps all."""
    keep = lambda key, chosen: chosen is None or key in chosen
    return replace(
      self,
      images=[image for image in self.images if keep(image['id'], images)],
      categories=[category for category in self.categories if keep(category['id'], categories)],
      annotations=[a for a in self.annotations if keep(a['image_id'], images) and keep(a['category_id'], categories)],
    )


def read(source: dict[str, Any] | str | Path, name: str = 'the ground truth') -> Truth:
  """Reads ground truth from a file or a dictionary; `name` is what messages call a dictionary.

  As in `vild-jax prepare`, ids and sizes may be written as 7.0, and a missing area is that of the segmentation, or else
  of the box inside the picture.

  Raises:
    DataError: the file is not JSON, a field is missing, an id repeats, or an object names an unknown id; the message
      names the first one.
  """
  if isinstance(source, dict):
    tree, content = source, json.dumps(source, sort_keys=True, default=str).encode()
  else:
    content = jsonfile.content(source, _EXPECTED)
    tree, name = jsonfile.parsed(content, source, _EXPECTED), str(source)
    if any(content.count(b'"%s"' % key.encode()) > 1 for key in unique_keys.LISTS):  # it need not be a key
      try:
        json.loads(content, object_pairs_hook=unique_keys.once)
      except unique_keys.RepeatedKey as error:
        raise DataError(f'{name}: {error}') from None
  for key, expected in _FIELDS.items():
    if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
      raise DataError(f'{name} has no list {shown(key)}; expected {_EXPECTED}')
    for i, entry in enumerate(tree[key]):
      if not isinstance(entry, dict):
        raise DataError(f'{name}, {key}[{i}]: found {shown(entry)}; expected an object with {", ".join(expected)}')
      missing = [field for field in expected if field not in entry]
      if missing:
        raise DataError(f'{name}, {key}[{i}]: no {shown(min(missing))}; expected {", ".join(sorted(expected))}')
  images, categories = (_by_id(tree[key], key, name) for key in ('images', 'categories'))
  annotations = []
  for i, annotation in enumerate(tree['annotations']):
    where = f'{name}, annotations[{i}]'
    annotation = _in_whole_numbers(annotation, ('image_id', 'category_id'))
    for field, known in (('image_id', images), ('category_id', categories)):
      if not isinstance(annotation[field], int) or annotation[field] not in known:
        raise DataError(f'{where}: {field} {shown(annotation[field])} is unknown; expected one of {len(known)}')
    image = images[annotation['image_id']]
    if problem := _problem(annotation):
      raise DataError(f'{where}: {problem}')
    try:
      annotation = _with_checked_mask(annotation, image['height'], image['width'])
      annotations.append(_with_area(annotation, image['height'], image['width']))
    except DataError as error:
      raise DataError(f'{where}: {error}') from None
  by_id = lambda entry: entry['id']
  return Truth(
    name,
    sorted(images.values(), key=by_id),
    sorted(categories.values(), key=by_id),
    annotations,
    hashlib.sha256(content).hexdigest(),
  )


def is_federated(images: Sequence[dict[str, Any]], categories: Sequence[dict[str, Any]]) -> bool:
  """Tells whether some picture lists categories that it lacks, as LVIS's do, or there is only one category."""
  return len(categories) <= 1 or any(image.get('neg_category_ids') for image in images)


def _by_id(entries: list[dict[str, Any]], key: str, name: str) -> dict[int, dict[str, Any]]:
  """{id: picture or category}; raises DataError for what cannot be used."""
  found: dict[int, dict[str, Any]] = {}
  for i, entry in enumerate(entries):
    where = f'{name}, {key}[{i}]'
    entry = _in_whole_numbers(entry, ('id', 'height', 'width'))
    if type(entry['id']) is not int or not -(2**63) <= entry['id'] < 2**63:
      raise DataError(f'{where}: id is {shown(entry["id"])}; expected a whole number of 64 bits')
    if entry['id'] in found:
      raise DataError(f'{where}: id {entry["id"]} stands twice in {shown(key)}; expected distinct ids')
    if key == 'images':
      for side in ('height', 'width'):
        if type(entry[side]) is not int or entry[side] <= 0:
          raise DataError(f'{where}: {side} is {shown(entry[side])}; expected a positive whole number')
      if not is_size(entry['height'], entry['width']):
        raise DataError(f'{where}: {entry["width"]} wide and {entry["height"]} high; expected fewer than 2^32 pixels')
      for field in ('neg_category_ids', 'not_exhaustive_category_ids'):
        ids = entry.get(field) or []
        if isinstance(ids, list) and any(type(k) is float for k in ids):
          ids = [_whole(k) for k in ids]
          entry = entry | {field: ids}
        if not isinstance(ids, list) or not all(type(k) is int for k in ids):
          raise DataError(f'{where}: {field} is {shown(ids)}; expected a list of category ids')
    elif entry.get('frequency') not in (None, '', 'r', 'c', 'f'):
      raise DataError(f'{where}: frequency is {shown(entry["frequency"])}; expected r, c, f or none')
    found[entry['id']] = entry
  return found


def _whole(value: Any) -> Any:
  """The int of a whole number that a file writes as 7.0, and any other value as it is."""
  return int(value) if type(value) is float and value.is_integer() and abs(value) < 2**53 else value


def _in_whole_numbers(entry: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
  changed = {field: _whole(entry[field]) for field in fields if type(entry.get(field)) is float}
  return entry | changed if changed else entry


def _problem(annotation: dict[str, Any]) -> str:
  """Why the numbers of an object cannot be scored; empty if they can."""
  box, area, crowd = annotation['bbox'], annotation.get('area', 0), annotation.get('iscrowd')
  if not is_number(area) or area < 0:
    return f'area is {shown(area)}; expected a finite number that is not negative'
  if crowd not in (None, 0, 1):
    return f'iscrowd is {shown(crowd)}; expected 0, 1 or none'
  if box is not None and not (
    isinstance(box, list | tuple) and len(box) == 4 and all(map(is_number, box)) and min(box[2:]) >= 0
  ):
    return f'bbox is {shown(box)}; expected four finite numbers [x, y, width, height], the last two not negative'
  return ''


def _with_checked_mask(annotation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
  """Returns an object whose segmentation the evaluator can take, without polygons of fewer than three points.

  Raises DataError if its segmentation cannot be decoded.
  """
  shape, size = annotation.get('segmentation'), [height, width]
  if not shape:
    return annotation
  if isinstance(shape, dict) and isinstance(shape.get('counts'), str):
    # `check_segmentation` takes compressed codes apart in Python: too slow for as many as these may be.
    try:
      whole = shape.get('size') == size and hotcoco.mask.area(shape) >= 0
    except (ValueError, TypeError):
      whole = False
    if not whole:
      raise DataError(f'segmentation is no run-length code of size {size}')
    return annotation
  checked, _ = rle.check_segmentation(shape, height, width)
  return annotation if checked == shape else annotation | {'segmentation': checked}


def _with_area(annotation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
  """Returns an object with an area, in pixels; raises DataError if nothing gives one."""
  if 'area' in annotation:
    return annotation
  if annotation.get('segmentation'):
    return annotation | {'area': rle.area(annotation['segmentation'], height, width)}
  if annotation['bbox'] is None:
    raise DataError("no 'area'; expected one, or a bbox or segmentation that has one")
  x, y, w, h = annotation['bbox']
  inside = [max(min(start + side, limit) - max(start, 0), 0) for start, side, limit in ((x, w, width), (y, h, height))]
  return annotation | {'area': float(inside[0] * inside[1])}
