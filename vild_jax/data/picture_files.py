"""Finds the pictures that an annotation file names in their folder; what could be two pictures is never guessed."""

from __future__ import annotations

import collections
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vild_jax.data.schema import DataError, shown

_FOLDERS = ('', 'train2017/', 'val2017/')  # where a picture is looked for by the last part of its name


@dataclass(frozen=True)
class PictureName:
  """Holds what an entry of `images` says of its file.

  Attributes:
    given: the file_name, or else the URL, for messages.
    places: paths in the folder that the entry itself gives, best first.
    last: ends of its file_name and URL, of one or two parts: a guess, if nothing is at `places`. (Objects365 v2 says
      images/v1/patch0/NAME of a picture that its archives put into patch0/.)
  """

  given: str
  places: tuple[str, ...]
  last: tuple[str, ...]


def picture_name(entry: dict[str, Any]) -> PictureName:
  """Returns where to look for a picture: LVIS v1 has no file_name, but a URL of COCO.

  Backslashes separate folders, as Windows writes them, unless a file has them in its name. Raises DataError if there
  is no name, or if the file_name leaves the folder: the text ends a sentence about the entry.
  """
  name, url = (text if isinstance(text, str) else '' for text in (entry.get('file_name'), entry.get('coco_url')))
  path = posixpath.normpath(name.replace('\\', '/')) if name else ''
  if path.startswith(('/', '../')) or path == '..' or re.match('[a-zA-Z]:/', path):
    raise DataError(f'names the file {shown(name)}, outside the folder of the pictures; expected a path inside it')
  in_url = '/'.join(part for part in url.split('/')[-2:] if part not in ('', '.', '..'))
  places = dict.fromkeys(p for p in (posixpath.normpath(name) if name else '', path, in_url) if p not in ('', '.'))
  two = ['/'.join(path.split('/')[-2:])] if path.count('/') > 1 else []
  last = dict.fromkeys([*two, *(p.rsplit('/', 1)[-1] for p in (path, in_url) if p in places)])
  if not places:
    raise DataError('names no file; expected "file_name" or "coco_url"')
  return PictureName(name or url, tuple(places), tuple(last))


class PictureFolder:
  """Finds files below a folder by their names in an annotation file. It lists each folder once, and follows links.

  Args:
    root: the folder.
    names: all names in the annotation file: the last part of a name finds a file only if no other name has it.
  """

  def __init__(self, root: str | Path, names: Iterable[PictureName]):
    self.root = str(root)
    self._sharing = collections.Counter(last for given in {(n.places, n.last) for n in names} for last in given[1])
    self._listings: dict[tuple[str, Callable[[str], str]], dict[str, list[str]]] = {}
    self._real: dict[str, str] = {}

  def locate(self, name: PictureName) -> Path | str:
    """Finds the file of an entry: at one of its places, or by the last part of its name where that is unambiguous.

    That is where no other entry has a name with this last part, and only one file in the folder, in train2017/ and in
    val2017/. A text in the place of a path ends the sentence "image 1 ..." and says why there is no file.
    """
    for place in name.places:
      if found := self._find(place, _composed):
        return Path(found)
    lacks = f'is not in {self.root}; expected it there'
    tried = (self._find(folder + last, _composed) for last in name.last for folder in _FOLDERS)
    guesses: dict[str, str] = {}  # by the path behind links: folders may be links to one another
    for guess in filter(None, tried):
      guesses.setdefault(self.real(Path(guess)), guess)
    if not guesses:
      alike = next((a for place in name.places if (a := self._find(place, _folded))), None)
      return lacks + (f'. There is {shown(alike)}, which differs in case alone' if alike else '')
    others = max(self._sharing[last] for last in name.last) - 1
    if others or len(guesses) > 1:
      found = ' or '.join(shown(guess) for guess in sorted(guesses.values()))
      why = (
        f', and {others} other name{"s" * (others != 1)} in the file end{"s" * (others == 1)} alike' if others else ''
      )
      return f'{lacks}. By the last part of its name alone it could be {found}{why}'
    return Path(*guesses.values())

  def real(self, path: Path) -> str:
    """Returns the path of a file behind all links: two names of one file have the same."""
    folder = str(path.parent)
    if folder not in self._real:
      self._real[folder] = os.path.realpath(folder)
    found = os.path.join(self._real[folder], path.name)
    return os.path.realpath(found) if os.path.islink(found) else found

  def _find(self, place: str, alike: Callable[[str], str]) -> str | None:
    """Returns the file at a place: of exactly this name, or the only one whose name is the same after `alike`."""
    found = self.root
    for part in place.split('/'):
      exact = part in self._names(found, str)
      same = [part] if exact else self._names(found, alike).get(alike(part), [])
      if len(same) != 1:
        return None
      found = os.path.join(found, same[0])
    return found if os.path.isfile(found) else None

  def _names(self, folder: str, key: Callable[[str], str]) -> dict[str, list[str]]:
    if (folder, key) not in self._listings:
      try:
        names = os.listdir(folder)
      except OSError:  # no folder, or not readable: nothing is found there
        names = []
      listing = self._listings[folder, key] = {}
      for name in names:
        listing.setdefault(key(name), []).append(name)
    return self._listings[folder, key]


def _composed(name: str) -> str:
  """One form for the two ways in which Unicode writes letters with accents: macOS and others write them apart."""
  return unicodedata.normalize('NFC', name)


def _folded(name: str) -> str:
  return unicodedata.normalize('NFC', name).casefold()
