"""Looks for what is likely wrong in annotations that are well-formed: nothing here is refused, all of it is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from hotcoco import mask as mask_api

from vild_jax.data.contents import BASE, Classes, Contents
from vild_jax.data.schema import Example

_LEAVES = 0.1  # the share of boxes that leave their picture from which on they may be corners rather than sizes
_ENOUGH = 20  # boxes, to judge that
_GIANT, _SEVERAL = 2 / 3, 3  # the share of one category that is odd where there are so many categories
_TINY = 4.0  # pixels of the network's input: the shorter side of a box that shows next to nothing
_FITS_IOU, _FITS_PIXELS = 0.5, 2.0  # a mask fits its box by either
_NAMED = 5  # names that a line gives


@dataclass(frozen=True)
class Smell:
  """Says in a sentence what looks wrong; `grave` if training would most likely be useless."""

  kind: str
  text: str
  grave: bool = False


def share_of_corners(boxes: np.ndarray, limits: np.ndarray) -> float:
  """Returns which share of boxes would leave their picture if they look like x1 y1 x2 y2 rather than x y w h, else 0.

  They do if none is smaller than its corner, more than a tenth would leave their picture, and there are 20 or more.

  Args:
    boxes: [N, 4], meant as x, y, width, height, in pixels.
    limits: [N, 2], (width, height) of the picture of each.
  """
  if len(boxes) < _ENOUGH or not (boxes[:, 2:] >= boxes[:, :2]).all():
    return 0.0
  leaving = (boxes[:, :2] + boxes[:, 2:] > limits + 1).any(1).mean()
  return float(leaving) if leaving > _LEAVES else 0.0


def of_contents(
  contents: Contents,
  classes: Classes | None = None,
  image_size: int | None = None,
  max_instances: int | None = None,
) -> list[Smell]:
  """Returns what smells in the annotations of a data set, grave things first.

  Args:
    contents: what was counted.
    classes: the vocabulary of the training, or None.
    image_size: side of the network's input in pixels, or None.
    max_instances: the most objects of a picture that training uses, or None.
  """
  crowds = contents.is_crowd
  boxes, picture = contents.boxes[~crowds], contents.picture[~crowds]
  found = [_nothing(contents), _fractions(boxes), _corners(boxes, contents.sizes[picture])]
  if classes is not None:
    found += _base(contents, classes)
  if not len(boxes):
    return [smell for smell in found if smell]
  of = contents.objects_of()
  is_base = np.array([kind == BASE for kind in contents.kinds(classes)])
  absent = [contents.categories[row].name for row in np.flatnonzero((of == 0) & ~is_base)]  # `_base` names the others
  largest = int(of.argmax())
  if len(of) >= _SEVERAL and of[largest] > _GIANT * of.sum():
    share = 100 * of[largest] / of.sum()
    text = f'{share:.0f} % of all objects are of one category, {contents.categories[largest].name!r}'
    found.append(Smell('giant', text))
  if absent:
    which = 'categories' if classes is None else 'categories that are no base classes'
    found.append(
      Smell('categories', f'{len(absent):,} of {(~is_base).sum():,} {which} have no object: {_named(absent)}')
    )
  if empty := int((contents.objects_in() == 0).sum()):
    text = f'{empty:,} of {len(contents.sizes):,} pictures show no object; they train as background'
    found.append(Smell('empty', text))
  if max_instances is not None:
    trained = ~crowds & (True if classes is None else is_base[contents.category])
    many = int((np.bincount(contents.picture[trained], minlength=1) > max_instances).sum())
    if many:
      text = f'{many:,} of {len(contents.sizes):,} pictures have more than {max_instances} objects to train on '
      found.append(Smell('many', text + '(data.max_instances): the first ones inside the crop are used'))
  if image_size is not None:
    shorter = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) * (image_size / contents.sizes[picture].max(axis=1))
    if tiny := int((shorter < _TINY).sum()):
      found.append(
        Smell(
          'tiny',
          f'{tiny:,} of {len(boxes):,} objects ({100 * tiny / len(boxes):.1f} %) have a side below {_TINY:.0f} pixels '
          f'where the whole picture fits into {image_size} pixels; a larger data.image_size would show more of them',
        )
      )
  return [smell for smell in found if smell]


def _nothing(contents: Contents) -> Smell | None:
  if not contents.is_crowd.all():
    return None
  crowds = f': all {len(contents.is_crowd):,} annotations are crowds (iscrowd 1)' if len(contents.is_crowd) else ''
  return Smell('nothing', f'there is no object to learn from{crowds}', grave=True)


def _fractions(boxes: np.ndarray) -> Smell | None:
  # x + width of fractions is at most 2.
  if not len(boxes) or boxes.max() > 2:
    return None
  text = 'all boxes lie in the first two pixels of their picture: they look like fractions between 0 and 1'
  return Smell('fractions', f'{text}; expected pixels', grave=True)


def _corners(boxes: np.ndarray, sizes: np.ndarray) -> Smell | None:
  """Judges boxes that were cut at the edges of their pictures: for those the smallest that fits counts as given."""
  limits, given = sizes[:, ::-1], np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 3], boxes[:, 2]], axis=1)
  start, end = given[:, :2], given[:, 2:]
  cut = (end >= limits - 0.01) & (start > 1)
  sides = np.where(cut, np.maximum(limits + 2 - start, start), end - start)
  share = share_of_corners(np.concatenate([start, sides], axis=1), limits)
  if not share:
    return None
  text = (
    f'the boxes may be [x1, y1, x2, y2] read as [x, y, width, height]: {100 * share:.0f} % reach the right or lower '
    'edge of their picture, and none is smaller than its distance from the upper left corner'
  )
  return Smell('corners', text, grave=True)


def _base(contents: Contents, classes: Classes) -> list[Smell]:
  base = [str(name) for name, is_base in zip(classes.names, classes.is_base, strict=True) if is_base]
  shown = {name for name, n in zip(contents.known_as(classes), contents.objects_of(), strict=True) if n}
  absent = [name for name in base if name not in shown]
  if not absent:
    return []
  text = f'{len(absent):,} of {len(base):,} base classes have no object: {_named(absent)}'
  return [Smell('base', text, grave=len(absent) == len(base))]


def misfits(example: Example) -> list[int]:
  """Returns the ids of the objects whose mask does not fit their box: neither to two pixels nor with IoU 0.5."""
  found, limits = example.objects, np.array([example.width, example.height])
  ids = []
  for key, box, segmentation in zip(found.ids, found.boxes, found.segmentations, strict=True):
    if not segmentation:
      continue
    if isinstance(segmentation, dict):
      x, y, w, h = mask_api.toBbox(segmentation)
      start, end = np.array([x, y]), np.array([x + w, y + h])
    else:
      points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation]).clip(0, limits)
      start, end = points.min(axis=0), points.max(axis=0)
    low, high = box[[1, 0]], box[[3, 2]]
    shared = np.prod(np.maximum(np.minimum(end, high) - np.maximum(start, low), 0))
    union = np.prod(end - start) + np.prod(high - low) - shared
    near = max(np.abs(start - low).max(), np.abs(end - high).max()) <= _FITS_PIXELS
    if not near and shared < _FITS_IOU * union:
      ids.append(int(key))
  return ids


def of_misfits(misfitting: dict[int, list[int]], looked_at: int) -> list[Smell]:
  """Returns the line for {image id: what `misfits` found}, of `looked_at` objects with a mask."""
  total = sum(map(len, misfitting.values()))
  if not total:
    return []
  images = ', '.join(str(image) for image in list(misfitting)[:_NAMED])
  text = f'{total:,} of {looked_at:,} masks do not fit their box (IoU below {_FITS_IOU}), in image {images}'
  return [Smell('misfits', text + (' and others' if len(misfitting) > _NAMED else ''), grave=2 * total > looked_at)]


def _named(names: Sequence[str]) -> str:
  more = len(names) - _NAMED
  return ', '.join(names[:_NAMED]) + (f' and {more:,} more' if more > 0 else '')
