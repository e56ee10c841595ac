"""Reads PASCAL VOC XML: one file a picture; boxes count pixels from 1 and include their last row and column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

from vild_jax.data import pictures
from vild_jax.data.formats.converted import Collector, Converted, Unusable, files_below
from vild_jax.data.formats.xml_tree import line_of, parse
from vild_jax.data.picture_files import PictureFolder, composed
from vild_jax.data.schema import DataError, is_number
from vild_jax.runtime import progress

_FROM_0 = 'box{es} with a corner at 0: the files look 0-based; VOC counts from 1, and so all boxes are read'


def read(folder: Path, images: Path, names: Sequence[str] | None, *, drop_unusable: bool) -> Converted:
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
  collector, pictures_in = Collector(folder, drop_unusable=drop_unusable), PictureFolder(images, ())
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
      file_name, path = _picture(tree, PurePosixPath(name), pictures_in)
      height, width = _size(tree, path, collector)
    except ValueError as error:
      collector.problems.add('file', f'{name}: {error}')
      continue
    collector.picture(file_name, height, width)
    named.add(composed(file_name))
    for element in tree.iterfind('object'):
      try:
        _object(element, (name, line_of(element)), index, collector)
      except ValueError as error:
        collector.bad_object((name, line_of(element)), error)
  there = {composed(name) for name in files_below(images, pictures.SUFFIXES)}
  elsewhere = {PurePosixPath(name).name for name in named - there}  # `PictureFolder` may find them by their last part
  alone = sum(PurePosixPath(name).name not in elsewhere for name in there - named)
  collector.notes['picture{s} without an XML file left out'] += alone
  return collector.converted(names)


def _picture(tree: Element, name: PurePosixPath, images: PictureFolder) -> tuple[str, str | None]:
  """Returns the name of the picture below `images`, and its file there, or None if it is to be looked for."""
  given = _text(tree, 'filename')
  places = [(name.parent / given).as_posix(), given] if given else []
  places += [name.with_suffix(suffix).as_posix() for end in pictures.SUFFIXES for suffix in (end, end.upper())]
  for place in places:
    if found := images.find(place):
      return place, found
  if not given:
    raise ValueError(f'names no file, and {images.root} holds no picture {name.with_suffix("")}; expected <filename>')
  return given, None


def _size(tree: Element, path: str | None, collector: Collector) -> tuple[int, int]:
  """Returns (height, width) as written, or those of the picture where none are written or 0."""
  try:
    height, width = sides = [float(tree.findtext(f'size/{side}') or 0) for side in ('height', 'width')]
    if not all(map(float.is_integer, sides)):
      raise ValueError(f'{height:g} and {width:g}')
  except ValueError as error:
    raise ValueError(f'<size> has {error}; expected whole numbers') from None
  if sides == [0, 0] and path is not None:
    collector.notes['picture{s} without a size in the XML: that of the file taken'] += 1
    return pictures.size(Path(path))
  return int(height), int(width)


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
    if not is_number(corners[-1]):
      raise Unusable(f'the object {name!r} has {side} {word!r}; expected a <bndbox> of numbers')
  left, top, right, bottom = corners
  if min(left, top) == 0:
    collector.notes[_FROM_0] += 1
  collector.box(place, index[name], left - 1, top - 1, right - left + 1, bottom - top + 1)
  difficult = element.findtext('difficult', '').strip() not in ('', '0')
  collector.notes['object{s} marked difficult kept as ordinary ones'] += difficult
  collector.notes['part{s} of objects left out'] += len(element.findall('part'))
  collector.notes['polygon{s} of objects left out, their boxes kept'] += len(element.findall('polygon'))


def _text(element: Element, tag: str) -> str:
  return (element.findtext(tag) or '').strip()
