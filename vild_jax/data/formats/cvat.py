"""Reads `CVAT for images 1.1`: one XML file with all pictures; boxes, polygons and masks."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from vild_jax.data import rle
from vild_jax.data.formats.converted import Collector, Converted, Unusable, line
from vild_jax.data.formats.xml_tree import line_of, parse
from vild_jax.data.schema import DataError, is_number
from vild_jax.runtime import progress

_LEFT_OUT = ('polyline', 'points', 'ellipse', 'cuboid', 'skeleton', 'tag')
_EXPECTED = "a file of the format 'CVAT for images 1.1'"


def read(path: Path, *, drop_unusable: bool) -> Converted:
  """Reads a file; categories are its labels, in their order.

  Rotated boxes, polylines, points, ellipses, cuboids, skeletons, tags and empty masks are left out and counted. CVAT
  shows pictures as viewers do, and its coordinates refer to that.

  Raises DataError if the file is not what CVAT writes for images.
  """
  tree = parse(path, 'annotations', _EXPECTED)
  track = tree.find('track')
  if track is not None:
    raise DataError(f'{path}: {line("", line_of(track))} is a <track> of a video; expected {_EXPECTED}')
  labels = [label for meta in tree.iterfind('meta') for label in meta.iterfind('.//labels/label')]
  names = [(label.findtext('name') or '').strip() for label in labels if not (label.findtext('parent') or '').strip()]
  index = {name: i for i, name in enumerate(dict.fromkeys(names))}
  if not index:
    raise DataError(f'{path} has no labels; expected {_EXPECTED}, which lists them in <meta>')
  collector = Collector(path, drop_unusable=drop_unusable)
  for image in progress.track(tree.findall('image'), 'read pictures', unit='img'):
    try:
      height, width = (int(image.get(side, '')) for side in ('height', 'width'))
    except ValueError:
      height = width = 0
    if not image.get('name') or min(height, width) <= 0 or height * width >= 2**31:
      found = ', '.join(f'{key} {image.get(key)!r}' for key in ('name', 'width', 'height'))
      where = line('', line_of(image))
      collector.problems.add('image', f'{where}: <image> has {found}; expected the name of a file and its size')
      continue
    collector.picture(image.get('name', ''), height, width)
    for shape in image:
      try:
        _shape(shape, ('', line_of(shape)), height, width, index, collector)
      except ValueError as error:
        collector.bad_object(('', line_of(shape)), error)
  return collector.converted(list(index), upright=True)


def _shape(
  shape: Element, place: tuple[str, int], height: int, width: int, index: dict[str, int], collector: Collector
) -> None:
  if shape.tag in _LEFT_OUT:
    collector.notes[f'shape{{s}} <{shape.tag}> left out'] += 1
    return
  if shape.tag not in ('box', 'polygon', 'mask'):
    raise ValueError(f'an unknown shape <{shape.tag}>; expected {_EXPECTED}')
  if shape.get('label') not in index:
    raise ValueError(f'the label {shape.get("label")!r} is unknown; expected one of the {len(index)} of <meta>')
  category = index[shape.get('label', '')]
  if shape.tag == 'box':
    left, top, right, bottom = _numbers([shape.get(side, '') for side in ('xtl', 'ytl', 'xbr', 'ybr')])
    if _numbers([shape.get('rotation') or '0']) != [0]:
      collector.notes['rotated box{es} left out'] += 1
      return
    collector.box(place, category, left, top, right - left, bottom - top)
  elif shape.tag == 'polygon':
    points = [_numbers(point.split(',')) for point in shape.get('points', '').split(';')]
    if len(points) < 3 or any(len(point) != 2 for point in points):
      raise Unusable(f'a polygon of {len(points)} points; expected "x,y;x,y;x,y", three points or more')
    collector.polygon(place, category, np.array(points))
  else:
    mask, left, top = _mask(shape, height, width)
    x, y = np.nonzero(mask.T)  # column by column, as COCO's runs go
    if not len(x):
      collector.notes['mask{s} without a pixel left out'] += 1
      return
    x, y = x + left, y + top
    at = x * height + y
    begins = np.flatnonzero(np.diff(at, prepend=-2) != 1)
    ends = np.append(begins[1:], len(at)) - 1
    bounds = np.stack([at[begins], at[ends] + 1], axis=1).reshape(-1)
    code = {'size': [height, width], 'counts': np.diff(bounds, prepend=0, append=height * width).tolist()}
    box = [float(v) for v in (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)]
    collector.mask(place, category, box, rle.check_segmentation(code, height, width)[0])


def _mask(shape: Element, height: int, width: int) -> tuple[np.ndarray, int, int]:
  """Returns (bool [h, w], left, top): the runs go along rows of the mask's own box and begin with background."""
  sides = {side: shape.get(side, '') for side in ('left', 'top', 'width', 'height')}
  try:
    left, top, w, h = map(int, sides.values())
    runs = np.array([int(word) for word in shape.get('rle', '').split(',')])
  except (ValueError, OverflowError):
    raise Unusable(f'a mask with {sides} and its rle; expected whole numbers') from None
  if min(left, top) < 0 or not (0 < w <= width - left and 0 < h <= height - top):
    raise Unusable(f'a mask with {sides}; expected a box inside the picture, {width} wide and {height} high')
  if (runs < 0).any() or (runs > w * h).any() or runs.sum() != w * h:
    raise Unusable(f'a mask whose rle does not add up; expected runs with the sum {w * h}')
  return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(h, w), left, top


def _numbers(words: list[str]) -> list[float]:
  try:
    values = [float(word) for word in words]
  except ValueError:
    values = [float('nan')]
  if not all(map(is_number, values)):
    raise Unusable(f'the coordinates {", ".join(words)[:80]!r}; expected finite numbers')
  return values
