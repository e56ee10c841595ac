"""Checks the lists of categories and pictures of a LVIS- or COCO-format file."""

from __future__ import annotations

import collections
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from vild_jax.data.picture_files import PictureName, picture_name
from vild_jax.data.problems import Problems
from vild_jax.data.schema import Category, DataError, is_size
from vild_jax.runtime.messages import shown

_LISTS = ('neg_category_ids', 'not_exhaustive_category_ids')


@dataclass(frozen=True)
class Picture:
  """Holds one entry of `images`: its size, the name of its file, and LVIS's federated lists."""

  id: int
  height: int
  width: int
  name: PictureName
  neg_category_ids: tuple[int, ...]
  not_exhaustive_category_ids: tuple[int, ...]


class Known:
  """Tells ids that no entry of a list has from those of refused entries, whose problem is counted already."""

  def __init__(self, entries: list[dict[str, Any]], usable: Collection[int]):
    self._usable = usable
    self._declared = {key for entry in entries if type(key := entry.get('id')) in (int, float, str)}

  def __contains__(self, key: object) -> bool:
    return whole(key) in self._usable

  def declares(self, key: object) -> bool:
    """Tells whether an entry has this id, usable or not."""
    return type(key) in (int, float, str) and key in self._declared

  def __len__(self) -> int:
    return len(self._declared)


def check_categories(tree: dict[str, Any], problems: Problems, counts: collections.Counter[str]) -> dict[int, Category]:
  """Returns the usable entries of `categories` by id; adds to `problems` what is wrong with the others.

  Space around names is stripped. Of two entries with one name, one of which nothing in the file refers to, that one is
  left out: exports of Roboflow have it. Both are counted.
  """
  categories: dict[int, Category] = {}
  names: set[str] = set()
  spare = _spare(tree)
  counts['categor{ies} left out: another has the name, and no annotation this one'] += len(spare)
  for at, entry in enumerate(tree['categories']):
    if at in spare:
      continue
    key, given, frequency = whole(entry.get('id')), entry.get('name'), entry.get('frequency')
    name = given.strip() if isinstance(given, str) else ''
    synonyms = entry.get('synonyms') or []
    if key is None or not name:
      found = f'id {_shown_id(entry.get("id"))} and name {shown(given)}'
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
    elif any(unicodedata.category(letter) in ('Cc', 'Zl', 'Zp') for letter in name):
      problems.add('category', f'category {shown(name)} has control characters in its name; expected text of one line')
    elif frequency not in (None, '', 'r', 'c', 'f'):
      problems.add('category', f'category {shown(name)} has frequency {shown(frequency)}; expected r, c or f')
    else:
      names.add(name)
      counts['category name{s} without the space around'] += name != given
      categories[key] = Category(key, name, frequency or '', texts[1], texts[2:])
  if not tree['categories']:
    problems.add('category', 'the list of categories is empty; expected at least one')
  return dict(sorted(categories.items()))


def _spare(tree: dict[str, Any]) -> set[int]:
  """Returns the places of categories to which nothing refers while something does to another of the same name."""
  places: dict[str, list[int]] = collections.defaultdict(list)
  for at, entry in enumerate(tree['categories']):
    if isinstance(name := entry.get('name'), str):
      places[name.strip()].append(at)
  same = [some for some in places.values() if len(some) > 1]
  if not same:
    return set()
  entries = lambda key: [e for e in tree[key] if isinstance(e, dict)] if isinstance(tree.get(key), list) else []
  lists = [ids for image in entries('images') for key in _LISTS if isinstance(ids := image.get(key), list)]
  used = {whole(annotation.get('category_id')) for annotation in entries('annotations')}
  used |= {whole(key) for ids in lists for key in ids}
  spare: set[int] = set()
  for some in same:
    unused = {at for at in some if whole(tree['categories'][at].get('id')) not in used}
    spare |= unused if len(unused) < len(some) else set()
  return spare


def check_pictures(
  entries: list[dict[str, Any]], known: Known, problems: Problems, counts: collections.Counter[str]
) -> dict[int, Picture]:
  """Returns the usable entries of `images` by id; adds to `problems` what is wrong with the others.

  An entry that repeats another exactly is left out and counted. `known` are the ids of the categories.
  """
  pictures: dict[int, Picture] = {}
  first: dict[int, dict[str, Any]] = {}
  for at, entry in enumerate(entries):
    key, height, width = numbers = [whole(entry.get(k)) for k in ('id', 'height', 'width')]
    lists = [entry.get(k) or [] for k in _LISTS]
    if None in numbers or not is_size(height, width):
      sides = ' and '.join(f'{k} {shown(entry.get(k))}' for k in ('height', 'width'))
      problems.add(
        'image',
        f'image entry {at} has id {_shown_id(entry.get("id"))}, {sides}; expected whole numbers, and a positive size '
        'below 2^32 pixels',
      )
    elif key in first and entry == first[key]:
      counts['repeated entr{ies} of images dropped'] += 1
    elif key in pictures:
      problems.add('image', f'image id {key} appears twice; expected once')
    elif not all(isinstance(ids, list) for ids in lists):
      problems.add('image', f'image {key} has neg_ or not_exhaustive_category_ids that are not lists; expected lists')
    else:
      first[key] = entry
      for unknown in [c for ids in lists for c in ids if not known.declares(c)][:1]:
        problems.add(
          'category', f'image {key} lists the unknown category {shown(unknown)}; expected an id of "categories"'
        )
      try:
        name = picture_name(entry)
      except DataError as error:
        problems.add('image', f'image {key} {error}')
        continue
      ids = (tuple(number for c in ids if (number := whole(c)) is not None) for ids in lists)
      pictures[key] = Picture(key, height, width, name, *ids)
  return dict(sorted(pictures.items()))


def whole(value: object) -> int | None:
  """Returns a whole number, also one written as 7.0; None for anything else, and for 2^62 and beyond."""
  if type(value) is float and value.is_integer() and abs(value) < 2**53:
    value = int(value)
  return value if type(value) is int and abs(value) < 2**62 else None


def _shown_id(value: object) -> str:
  return shown(value) + (' (not below 2^62)' if type(value) is int and whole(value) is None else '')


def _is_unicode(texts: Iterable[str]) -> bool:
  """Tells whether texts can be written as UTF-8: JSON can hold one half of what takes two, and no file can."""
  try:
    return all(isinstance(text.encode(), bytes) for text in texts)
  except UnicodeEncodeError:
    return False
