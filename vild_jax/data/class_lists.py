"""Reads lists of classes: the names to embed or to detect, and which of them are base classes."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from vild_jax.config import defaults
from vild_jax.data.annotations import read_categories
from vild_jax.data.schema import Category, DataError
from vild_jax.data.sources import prepared_folder, read_metadata

BUILT_IN = defaults.CLASS_LISTS
_SUFFIXES = ('.txt', '.json', '.npz', '.csv')  # of what is meant as a file
_TABLES = Path(__file__).parent / 'categories'


@dataclass(frozen=True)
class ClassList:
  """Holds C classes in order.

  Attributes:
    names: of the classes.
    is_base: whether each is a base class.
    ids: of the classes in the data set; 1..C for a text file.
    synonyms: other words for each class; None if the list has none.
  """

  names: tuple[str, ...]
  is_base: tuple[bool, ...]
  ids: tuple[int, ...]
  synonyms: tuple[tuple[str, ...], ...] | None = None

  def __len__(self) -> int:
    return len(self.names)


def class_list(spec: str | Path, *, base: str | Path | None = None) -> ClassList:
  """Reads the list of classes that `spec` names.

  Args:
    spec: 'lvis' (1,203; base: frequent and common), 'coco' (80), 'coco-ovd' (48 base and 17 novel), 'voc' (20),
      'objects365' (365); or a text file with one name per line; or a LVIS- or COCO-format .json, or the folder of a
      prepared data set (both: the base classes are those that are frequent or common). Classes are ordered by id, those
      of a text file by line.
    base: a text file with the names of the base classes. Without it they are as above; in all other lists every class
      is novel.

  Raises:
    DataError: one line; `spec` is none of these, the list is empty, a name appears twice, or a base class is not in
      the list.
  """
  classes = _read(spec)
  if base is None:
    return classes
  names = _read_text(Path(base))
  for name in names:
    if name not in classes.names:
      near = difflib.get_close_matches(name, classes.names, n=1, cutoff=0.0)
      raise DataError(
        f'{base}: the base class {name!r} is not among the {len(classes)} classes of {spec}; the nearest is {near[0]!r}'
      )
  return ClassList(classes.names, tuple(name in set(names) for name in classes.names), classes.ids, classes.synonyms)


def lvis_categories() -> tuple[Category, ...]:
  """Returns the 1,203 categories of LVIS v1, by id."""
  return tuple(
    Category(key, name, frequency, synset, tuple(synonyms))
    for key, name, frequency, synset, synonyms in _table('lvis_v1')
  )


def coco_categories() -> tuple[Category, ...]:
  """Returns the 80 categories of COCO, by id (1..90 with gaps)."""
  return tuple(Category(key, name) for key, name, _ in _table('coco'))


def known_as(name: str, names: Collection[str]) -> str | None:
  """Returns which of `names` a category's raw name stands for, or None.

  It is the name itself, or the corrected one of the 13 categories that the official files of Objects365 misspell.
  """
  return next((known for known in (name, _corrected().get(name)) if known in names), None)


@functools.cache
def _corrected() -> dict[str, str]:
  return dict(json.loads((_TABLES / 'objects365.json').read_text(encoding='utf-8'))['misspelt'])


def names(classes: str, option: str = '--classes') -> list[str]:
  """Returns the class names that an option gives: those of a list of classes, or names separated by commas.

  A list is one of `BUILT_IN`, an existing file, whatever its suffix, or a folder with a slash at its end, which
  distinguishes it from a name. Raises ValueError, which calls the option by its name, if what looks like a path does
  not exist, if there is no name, a name appears twice or holds a line break or another control character.
  """
  if classes in BUILT_IN or classes.endswith('/') or is_file(classes, option):
    return check_names(class_list(classes).names, classes)
  names = [name.strip() for name in classes.split(',') if name.strip()]
  if not names:
    raise ValueError(f'{option} is {classes!r}; expected names separated by commas')
  twice = [name for name in names if names.count(name) > 1]
  if twice:
    raise ValueError(f'{option} has {twice[0]!r} more than once; expected each name once')
  return check_names(names, option)


def is_file(classes: str, option: str = '--classes') -> bool:
  """Tells whether an option of classes is the path of a file rather than names.

  Raises ValueError for one that looks like a path, of a file that does not exist.
  """
  with contextlib.suppress(OSError, ValueError):  # longer than a path may be, or with a zero byte
    if Path(classes).is_file():
      return True
  if classes.lower().endswith(_SUFFIXES) or (os.sep in classes and ',' not in classes):
    hint = '' if classes.lower().endswith(_SUFFIXES) else f'; a class of this name is {classes + ","!r}'
    if os.path.isdir(classes):
      hint = f'; a folder with a data set is {classes + "/"!r}'
    raise ValueError(f'{option} {classes!r} looks like a path, but there is no such file{hint}')
  return False


def check_names(names: Sequence[str], where: str) -> list[str]:
  """Returns the names. Raises ValueError for one with a line break, a control character or a broken one.

  Args:
    names: of classes.
    where: what the message begins with.
  """
  for name in names:
    if bad := [c for c in name if unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp')]:
      raise ValueError(
        f'{where}: the name {name!r} holds {bad[0]!r}; expected one line of text without such characters'
      )
  return list(names)


def _read(spec: str | Path) -> ClassList:
  if spec == 'lvis':
    return _from_categories(lvis_categories())
  if spec == 'coco-ovd':
    rows = [row for row in _table('coco') if row[2]]
    return ClassList(tuple(r[1] for r in rows), tuple(r[2] == 'base' for r in rows), tuple(r[0] for r in rows))
  if spec in BUILT_IN:
    rows = _table(str(spec))
    return ClassList(tuple(r[1] for r in rows), (False,) * len(rows), tuple(r[0] for r in rows))
  path = Path(spec)
  if path.is_dir():
    return _from_categories(read_metadata(prepared_folder(path))[0])
  if path.suffix.lower() == '.json':
    return _from_categories(read_categories(path))
  if not path.is_file():
    raise DataError(
      f'{spec} is not a list of classes; expected one of {", ".join(BUILT_IN)}, a text file with one name a '
      'line, a LVIS- or COCO-format .json, or a prepared data set'
    )
  names = _read_text(path)
  return ClassList(tuple(names), (False,) * len(names), tuple(range(1, len(names) + 1)))


def _from_categories(categories: Sequence[Category]) -> ClassList:
  synonyms = tuple(c.synonyms for c in categories)
  return ClassList(
    tuple(c.name for c in categories),
    tuple(c.frequency in ('c', 'f') for c in categories),
    tuple(c.id for c in categories),
    synonyms if any(synonyms) else None,
  )


def _read_text(path: Path) -> list[str]:
  try:
    lines = path.read_text(encoding='utf-8-sig').splitlines()
  except FileNotFoundError:
    raise DataError(f'{path} is not a file; expected a text file with one name a line') from None
  except UnicodeDecodeError as error:
    raise DataError(f'{path} is not UTF-8 text (byte {error.start}); expected one name a line') from None
  seen: dict[str, int] = {}
  for number, name in enumerate(map(str.strip, lines), start=1):
    if name in seen:
      raise DataError(f'{path}: line {number} names {name!r} again, after line {seen[name]}; expected each name once')
    if name:
      seen[name] = number
  if not seen:
    raise DataError(f'{path} names no class; expected one name a line')
  return list(seen)


def _table(name: str) -> list[list]:
  return json.loads((_TABLES / f'{name}.json').read_text(encoding='utf-8'))['rows']
