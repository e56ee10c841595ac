"""Finds the pictures that an annotation file names in their folder; what could be two pictures is never guessed."""

from __future__ import annotations

import collections
import functools
import itertools
import os
import posixpath
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vild_jax.data.schema import DataError
from vild_jax.runtime.messages import shown

_SPLITS = ('train2017', 'val2017')  # folders of COCO, where a picture is looked for by the last part of its name
# Folders of a name that archives and tools leave out or add; any other may tell one picture from another.
_LAYOUT = (*_SPLITS, 'images', 'v1', 'v2')
_SHOWN = 3  # files that a message names


@dataclass(frozen=True)
class PictureName:
  """Holds what an entry of `images` says of its file.

  Attributes:
    given: the file_name, or else the URL, for messages.
    places: paths in the folder that the entry itself gives, best first.
    guesses: its file_name and URL without the folders of a layout: tried if nothing is at `places`. (Objects365 v2 says
      images/v1/patch0/NAME of a picture that its archives put into patch0/.)
    splits: COCO's folders where a guess may lie: all, unless the file_name has one. (Its val2017 holds pictures whose
      URL says train2017.)
    last: the last parts of its file_name and URL.
  """

  given: str
  places: tuple[str, ...]
  guesses: tuple[str, ...]
  splits: tuple[str, ...]
  last: tuple[str, ...]


def picture_name(entry: dict[str, Any]) -> PictureName:
  """Returns where to look for a picture: LVIS v1 has no file_name, but a URL of COCO.

  Backslashes separate folders, as Windows writes them, unless a file has them in its name. A file_name may be a URL, or
  percent-encoded. Raises DataError if there is no name, or if the file_name leaves the folder: the text ends a sentence
  about the entry.
  """
  name, url = (text if isinstance(text, str) else '' for text in (entry.get('file_name'), entry.get('coco_url')))
  given = name or url
  if re.match('[a-zA-Z][a-zA-Z0-9+.-]+://', name):
    name, url = '', name
  url = re.split('[?#]', url)[0]
  path = posixpath.normpath(name.replace('\\', '/')) if name else ''
  if _leaves(path):
    raise DataError(
      f'names the file {shown(name)}, outside the folder of the pictures; expected a path relative to it, such as '
      f'{shown(posixpath.basename(path))}'
    )
  in_url = '/'.join(part for part in url.split('/')[-2:] if part not in ('', '.', '..'))
  written = [posixpath.normpath(name) if name else '', path, in_url]
  decoded = [posixpath.normpath(urllib.parse.unquote(re.split('[?#]', p)[0])) if p else '' for p in (path, in_url)]
  places = [p for p in dict.fromkeys([*written, *decoded]) if p not in ('', '.') and not _leaves(p)]
  if not places:
    raise DataError('names no file; expected "file_name" or "coco_url"')
  # The folder in a URL says nothing of the folder on this disk.
  guesses = [p.rsplit('/', 1)[-1] if p in (in_url, decoded[1]) and p != path else _without_layout(p) for p in places]
  splits = tuple(split for split in _SPLITS if split in path.split('/')[:-1]) or _SPLITS
  last = dict.fromkeys(p.rsplit('/', 1)[-1] for p in places)
  return PictureName(given, tuple(places), tuple(dict.fromkeys(guesses)), splits, tuple(last))


def _leaves(path: str) -> bool:
  return path.startswith(('/', '../')) or path == '..' or re.match('[a-zA-Z]:/', path) is not None


def _without_layout(path: str) -> str:
  *folders, last = path.split('/')
  return '/'.join([*itertools.dropwhile(lambda folder: folder in _LAYOUT, folders), last])


class PictureFolder:
  """Finds files below a folder by their names in an annotation file. It lists each folder once, and follows links.

  Args:
    root: the folder.
    names: all names in the annotation file: a guess finds a file only if no other name has its last part.

  Attributes:
    guessed: how many pictures were found by a guess.
  """

  def __init__(self, root: str | Path, names: Iterable[PictureName]):
    self.root = str(root)
    self._sharing = collections.Counter(last for given in {(n.places, n.last) for n in names} for last in given[1])
    self._listings: dict[tuple[str, Callable[[str], str]], dict[str, list[str]]] = {}
    self._real: dict[str, str] = {}
    self._above = Path(os.path.abspath(self.root)).parts
    self.guessed = 0

  def locate(self, name: PictureName) -> Path | str:
    """Finds the file of an entry: at one of its places, or by a guess where that is unambiguous.

    That is where no other entry has a name with this last part, and only one file anywhere below the folder. A text in
    the place of a path ends the sentence "image 1 ..." and says why there is no file.
    """
    for place in name.places:
      if found := self.find(place) or self._find_below(place):
        return Path(found)
    lacks = f'is not in {self.root}; expected it there'
    alike = {self.real(Path(path)): path for last in name.last for path in self._namesakes.get(composed(last), ())}
    if not alike:
      folded = next((a for place in name.places if (a := self._find(place, _folded))), None)
      return lacks + (f'. There is {shown(folded)}, which differs in case alone' if folded else '')
    tried = (self.find(folder + guess) for guess in name.guesses for folder in ('', *(f'{s}/' for s in name.splits)))
    guess = next(filter(None, tried), None)
    others = max(self._sharing[last] for last in name.last) - 1
    if guess and not others and len(alike) == 1:
      self.guessed += 1
      return Path(guess)
    paths = sorted(alike.values())
    found = ' or '.join(map(shown, paths[:_SHOWN])) + (f' or {more} more' if (more := len(paths) - _SHOWN) > 0 else '')
    why = f', and {others} other name{"s" * (others != 1)} in the file end{"s" * (others == 1)} alike' if others else ''
    return f'{lacks}. By the last part of its name alone it could be {found}{why}'

  def find(self, place: str) -> str | None:
    """Returns the file at a path below the folder, in either form of accents; None if there is none."""
    return self._find(place, composed)

  def _find_below(self, place: str) -> str | None:
    """Returns the file of a path that begins with the end of the folder's own: images/a.jpg in .../images."""
    parts = tuple(place.split('/'))
    for n in range(1, len(parts)):
      if parts[:n] == self._above[-n:] and (found := self.find('/'.join(parts[n:]))):
        return found
    return None

  @functools.cached_property
  def _namesakes(self) -> dict[str, list[str]]:
    """Returns the files below the folder with the last part of any name, by it. Going through all takes a while."""
    found: dict[str, list[str]] = {}
    wanted = {composed(last) for last in self._sharing}
    for folder, names in walk(self.root):
      for name in names:
        if (last := composed(name)) in wanted:
          found.setdefault(last, []).append(os.path.join(folder, name))
    return found

  def real(self, path: Path) -> str:
    """Returns the path of a file behind all links: two names of one file have the same."""
    folder = str(path.parent)
    if folder not in self._real:
      self._real[folder] = os.path.realpath(folder)
    found = os.path.join(self._real[folder], path.name)
    return os.path.realpath(found) if os.path.islink(found) else found

  def holds(self, real: str) -> bool:
    """Tells whether a path behind all links lies below the folder."""
    root = os.path.realpath(self.root)
    return os.path.commonpath((root, real)) == root

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


def walk(root: str | Path, *, hidden: bool = True) -> Iterator[tuple[str, list[str]]]:
  """Yields (folder, names of its files) of a folder and of those below it, hidden ones too or not; follows links."""
  seen = set()
  for folder, folders, names in os.walk(root, followlinks=True):
    seen.add(os.path.realpath(folder))
    kept = [name for name in folders if hidden or not name.startswith('.')]
    folders[:] = [name for name in kept if os.path.realpath(os.path.join(folder, name)) not in seen]
    yield folder, names


def composed(name: str) -> str:
  """Returns one form for the two ways in which Unicode writes letters with accents: macOS writes them apart."""
  return unicodedata.normalize('NFC', name)


def _folded(name: str) -> str:
  return unicodedata.normalize('NFC', name).casefold()
