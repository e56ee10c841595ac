"""Reads an annotation file and its image folder as a source of examples, before anything is prepared."""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
from pathlib import Path
from typing import Any

from vild_jax.data import pictures
from vild_jax.data.annotations import load, read_annotations
from vild_jax.data.entries import Picture
from vild_jax.data.formats.converted import Converted
from vild_jax.data.picture_files import PictureFolder, picture_name
from vild_jax.data.problems import Problems, in_words
from vild_jax.data.schema import Category, DataError, Example
from vild_jax.runtime import progress
from vild_jax.runtime.messages import shown

_DECIDING = threading.Lock()  # `JsonSource.upright`: it reads all pictures, once is enough


class JsonSource:
  """Reads a LVIS- or COCO-format file and its image folder, as an indexable of `schema.Example`, ordered by image id.

  The constructor checks everything except the content of the pictures: see `annotations.read_annotations` for what is
  repaired (`notes`) and what raises DataError. An entry of `images` without a size gets that of its file. A picture
  that is not in the folder raises DataError too, and so do two entries with one file, unless both are links to a store
  of files outside the folder, in which equal pictures are one. The places to look for a picture are, in this order: its
  file_name; the last folder and the file name of its coco_url; the same percent-decoded; and where that is unambiguous
  without the folders of known layouts (`picture_files`). `converted` is the content of a file or folder of another
  format (`formats.read`).
  """

  def __init__(
    self,
    annotations: str | Path,
    images: str | Path,
    *,
    drop_unusable: bool = False,
    converted: Converted | None = None,
  ):
    if not Path(images).is_dir():
      raise DataError(f'{images} is not a folder; expected the folder of the pictures')
    counts: collections.Counter[str] = collections.Counter()
    if converted is None:
      tree = load(annotations)
      counts['picture{s} without a size in the annotations: that of the file taken'] = _add_sizes(tree, images)
      self._annotations = read_annotations(annotations, drop_unusable=drop_unusable, tree=tree)
    else:
      self._annotations = read_annotations(
        annotations, drop_unusable=drop_unusable, tree=converted.tree, name=converted.where
      )
    self.categories: tuple[Category, ...] = self._annotations.categories
    self.info: dict[str, Any] = self._annotations.info
    self.files: list[Path] = self._find(annotations, images, counts)
    self.notes: tuple[str, ...] = () if converted is None else converted.notes
    self.notes += (*self._annotations.notes, *in_words(counts))
    self.clipped = self._annotations.clipped
    if converted is not None and converted.upright:
      self.upright, self.clipped = True, frozenset()  # boxes need not show it

  def _find(self, annotations: str | Path, images: str | Path, counts: collections.Counter[str]) -> list[Path]:
    entries = self._annotations.pictures
    problems, folder = Problems(annotations), PictureFolder(images, (p.name for p in entries))
    files: list[Path] = []
    owners: dict[str, tuple[Picture, Path]] = {}
    for picture in entries:
      found = folder.locate(picture.name)
      who = f'image {picture.id} ({shown(picture.name.given)})'
      if isinstance(found, str):
        problems.add('file', f'{who} {found}')
        continue
      files.append(found)
      first, path = owners.setdefault(real := folder.real(found), (picture, found))
      if first is picture:
        continue
      stored_once = path != found and path.is_symlink() and found.is_symlink() and not folder.holds(real)
      if stored_once:
        counts[
          'picture name{s} beside another for one file outside the folder: links, kept as pictures of their own'
        ] += 1
        continue
      one = f'{who} and image {first.id} ({shown(first.name.given)}) are one file, {shown(str(found))}'
      problems.add('file', f'{one}; expected one entry of "images" for each')
    problems.raise_if_any()
    counts['picture{s} found by the last part of the name alone'] = folder.guessed
    return files

  @functools.cached_property
  def upright(self) -> bool:
    """Tells whether annotations refer to pictures as viewers show them, also where a picture fits both ways.

    They do if all pictures that fit one way only fit turned. It looks at all of them, so ask only where it matters.
    """
    with _DECIDING:
      if 'upright' not in self.__dict__:
        fits = [
          pictures.fits_turned(file, picture.height, picture.width)
          for file, picture in zip(
            progress.track(self.files, 'look for turned pictures', unit='img'), self._annotations.pictures, strict=True
          )
          if picture.id not in self.clipped
        ]
        self.__dict__['upright'] = True in fits and False not in fits
        if self.upright:
          self.notes += (
            'pictures with an EXIF orientation that fit the annotations both ways are turned too: all '
            f'{fits.count(True)} that fit one way only do so turned',
          )
      return self.__dict__['upright']

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> Example:
    picture = self._annotations.pictures[index]
    return Example(
      picture.id,
      self.files[index].read_bytes(),
      picture.height,
      picture.width,
      self._annotations.objects[index],
      picture.neg_category_ids,
      picture.not_exhaustive_category_ids,
    )

  def where(self, index: int) -> str:
    """Returns what messages call example `index`: the path of its picture."""
    name = str(self.files[index])
    return name if name.isprintable() else shown(name)


def _add_sizes(tree: dict[str, Any], images: str | Path) -> int:
  """Gives entries of `images` without height and width those of their files; returns how many."""
  lacking = [entry for entry in tree['images'] if entry.get('height') is None and entry.get('width') is None]
  if not lacking:
    return 0
  names = {}
  for entry in tree['images']:
    with contextlib.suppress(DataError):  # it is told when the entry is checked
      names[id(entry)] = picture_name(entry)
  folder, added = PictureFolder(images, names.values()), 0
  for entry in lacking:
    found = folder.locate(names[id(entry)]) if id(entry) in names else ''
    if isinstance(found, Path):
      with contextlib.suppress(DataError):
        entry['height'], entry['width'] = pictures.size(found)
        added += 1
  return added
