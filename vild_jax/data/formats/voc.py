"""Reads PASCAL VOC XML: one file a picture; boxes count pixels from 1 and include their last row and column."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

from vild_jax.data import pictures, rle
from vild_jax.data.formats.converted import Collector, Converted, files_below, line
from vild_jax.data.formats.xml_tree import line_of, parse
from vild_jax.data.schema import DataError
from vild_jax.runtime import progress


def read(folder: Path, images: Path, names: Sequence[str] | None) -> Converted:
  """Reads all XML files below a folder.

  A picture is the file that `filename` names, in `images` or in the XML's place below it, else the one with the name of
  the XML. Objects marked difficult are ordinary objects: they are counted, and trained on as other programs do. Boxes
  have no mask; parts of objects and polygons are left out. So are pictures without an XML file.

  Args:
    folder: of the XML files.
    images: the folder of the pictures.
    names: the categories in their order; None: the names that occur, sorted.

  Raises DataError if a file is not what VOC writes.
  """
  collector = Collector(folder)
  trees = []
  for name in progress.track(files_below(folder, ('.xml',)), 'read XML', unit='file'):
    try:
      trees.append((name, parse(folder / name, 'annotation', 'an annotation of PASCAL VOC')))
    except DataError as error:
      collector.problems.add('file', str(error).removeprefix(f'{folder}/'))  # which names the folder already
  if not trees and not len(collector.problems):
    raise DataError(f'{folder} holds no XML files; expected one for each picture')
  if names is None:
    names = sorted({_text(of, 'name') for _, tree in trees for of in tree.iterfind('object')} - {''})
  index = {name: i for i, name in enumerate(names)}
  named: set[str] = set()
  for name, tree in trees:
    try:
      file_name = _picture(tree, PurePosixPath(name), images)
      height, width = _size(tree, images / file_name, collector)
    except ValueError as error:
      collector.problems.add('file', f'{name}: {error}')
      continue
    collector.picture(file_name, height, width)
    named.add(_composed(file_name))
    for element in tree.iterfind('object'):
      try:
        _object(element, (name, line_of(element)), index, collector)
      except ValueError as error:
        collector.problems.add('object', f'{line(name, line_of(element))}: {error}')
  there = {_composed(name) for name in files_below(images, pictures.SUFFIXES)}
  elsewhere = {PurePosixPath(name).name for name in named - there}  # `PictureFolder` may find them by their last part
  alone = sum(PurePosixPath(name).name not in elsewhere for name in there - named)
  collector.notes['picture{s} without an XML file left out'] += alone
  return collector.converted(names)


def _composed(name: str) -> str:
  return unicodedata.normalize('NFC', name)


def _picture(tree: Element, name: PurePosixPath, images: Path) -> str:
  given = _text(tree, 'filename')
  places = [(name.parent / given).as_posix(), given] if given else []
  places += [name.with_suffix(suffix).as_posix() for end in pictures.SUFFIXES for suffix in (end, end.upper())]
  found = next((place for place in places if (images / place).is_file()), given)
  if not found:
    raise ValueError(f'names no file, and {images} holds no picture {name.with_suffix("")}; expected <filename>')
  return found


def _size(tree: Element, path: Path, collector: Collector) -> tuple[int, int]:
  """Returns (height, width) as written, or those of the picture where none are written or 0."""
  try:
    height, width = (int(tree.findtext(f'size/{side}') or 0) for side in ('height', 'width'))
  except ValueError as error:
    raise ValueError(f'<size> has {error}; expected whole numbers') from None
  if (height, width) == (0, 0) and path.is_file():
    collector.notes['picture{s} without a size in the XML: that of the file taken'] += 1
    return pictures.size(path)
  return height, width


def _object(element: Element, place: tuple[str, int], index: dict[str, int], collector: Collector) -> None:
  name = _text(element, 'name')
  if name not in index:
    raise ValueError(f'the object {name!r} is of no known class; expected one of the {len(index)} names')
  corners = []
  for side in ('xmin', 'ymin', 'xmax', 'ymax'):
    word = element.findtext(f'bndbox/{side}', '').strip()
    try:
      corners.append(float(word))
    except ValueError:
      corners.append(float('nan'))
    if not rle.is_number(corners[-1]):
      raise ValueError(f'the object {name!r} has {side} {word!r}; expected a <bndbox> of numbers')
  left, top, right, bottom = corners
  collector.box(place, index[name], left - 1, top - 1, right - left + 1, bottom - top + 1)
  difficult = element.findtext('difficult', '').strip() not in ('', '0')
  collector.notes['object{s} marked difficult kept as ordinary ones'] += difficult
  collector.notes['part{s} of objects left out'] += len(element.findall('part'))
  collector.notes['polygon{s} of objects left out, their boxes kept'] += len(element.findall('polygon'))


def _text(element: Element, tag: str) -> str:
  return (element.findtext(tag) or '').strip()
