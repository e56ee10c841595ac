"""Converts segmentations, polygons and COCO run-length codes (RLE), to boolean masks and back."""

from __future__ import annotations

import operator
from typing import Any

import cv2
import numpy as np
from hotcoco import mask as mask_api

from vild_jax.data.schema import DataError, is_number
from vild_jax.runtime.messages import shown

# The mask library walks along an outline in steps of a fifth of a pixel and takes about 40 bytes a pixel for that.
_LONGEST_OUTLINE = 5_000_000
_LONGEST_RUN = 7  # characters of one compressed run length: 7 · 5 bits


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
  """Turns polygons or a COCO RLE into bool [height, width], by the rule of COCO's own mask code.

  Raises DataError if there is no segmentation.
  """
  if not segmentation:
    raise DataError('an object without segmentation has no mask; expected polygons or an RLE')
  return mask_api.decode(_as_rle(segmentation, height, width)).view(bool)


def area(segmentation: Any, height: int, width: int) -> float:
  """Returns the number of pixels of polygons or of a COCO RLE, checked ones."""
  return float(mask_api.area(_as_rle(segmentation, height, width)))


def is_empty(segmentation: Any, height: int, width: int) -> bool:
  """Tells whether polygons or a COCO RLE, checked ones, cover no pixel.

  Drawing every polygon takes too long for a large data set. A shape inside the picture that is two pixels thick on
  average covers some pixel.
  """
  for polygon in segmentation if isinstance(segmentation, list) else ():
    x, y = polygon[::2], polygon[1::2]
    left, right, top, bottom = min(x), max(x), min(y), max(y)
    twice = sum(map(operator.mul, x, y[1:] + y[:1])) - sum(map(operator.mul, y, x[1:] + x[:1]))  # the surface
    inside = left >= 0 and top >= 0 and right <= width and bottom <= height
    if inside and abs(twice) >= 4 * max(right - left, bottom - top) > 0:
      return False
  return not area(segmentation, height, width)


def _as_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
  if isinstance(segmentation, dict):
    return segmentation
  return mask_api.merge(mask_api.frPyObjects(segmentation, height, width))


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
  """Turns bool [H, W] into a COCO RLE {'size': [H, W], 'counts': compressed str}."""
  return plain(mask_api.encode(np.asfortranarray(mask, dtype=np.uint8)))


def encode_window(window: np.ndarray, y: int, x: int, height: int, width: int) -> dict[str, Any]:
  """Returns the COCO RLE of a [height, width] mask that is off except in `window`, bool [h, w], which begins at (y, x).

  The window must lie inside the mask; time and memory grow with the window alone.
  """
  # The columns of the window with a pixel that is off before and after each.
  columns = np.zeros((window.shape[1], window.shape[0] + 2), bool)
  columns[:, 1:-1] = window.T
  flat = columns.reshape(-1)  # of two axes `nonzero` takes several times as long
  changes = np.flatnonzero(flat[1:] != flat[:-1])
  changes += changes // (window.shape[0] + 2) * (height - window.shape[0] - 2) + (x * height + y)
  # A run that goes on at the top of the next column does not change there.
  again = np.flatnonzero(changes[1:] == changes[:-1])
  if len(again):
    changes = np.delete(changes, np.concatenate([again, again + 1]))
  counts = np.empty(len(changes) + 1, np.int64)
  counts[:-1], counts[-1] = changes, height * width
  counts[1:] -= changes
  counts = counts.tolist()
  if counts[-1] == 0:
    counts.pop()
  return plain(mask_api.frPyObjects({'size': [height, width], 'counts': counts}, height, width))


def decode_window(rle: dict[str, Any]) -> tuple[np.ndarray, int, int]:
  """Returns the smallest part of a mask that holds all of it, bool [h, w], and the pixel (y, x) where it begins.

  It is [0, 0] of an empty mask. The inverse of `encode_window`: the rest of a large picture is never decoded.

  Args:
    rle: as `encode_mask` returns it.
  """
  height = rle['size'][0]
  ends = np.cumsum(_run_lengths(rle['counts']))
  firsts, lasts = ends[:-1:2], ends[1::2] - 1  # pixels of the runs that are on
  firsts, lasts = firsts[lasts >= firsts], lasts[lasts >= firsts]
  if not len(firsts):
    return np.zeros((0, 0), bool), 0, 0
  (from_column, from_row), (to_column, to_row) = (divmod(pixels, height) for pixels in (firsts, lasts))
  left, right = from_column[0], to_column[-1] + 1
  # A run over several columns has pixels in the first and the last row.
  top, bottom = (from_row.min(), to_row.max() + 1) if (from_column == to_column).all() else (0, height)
  side = bottom - top
  changes = np.zeros((right - left) * side + 1, np.int8)
  np.add.at(changes, (from_column - left) * side + from_row - top, 1)
  np.add.at(changes, (to_column - left) * side + to_row - top + 1, -1)
  columns = np.cumsum(changes[:-1], dtype=np.int8).view(bool).reshape(right - left, side)
  return columns.T, int(top), int(left)


def outlines(window: np.ndarray, y: int, x: int) -> tuple[list[list[int]], bool]:
  """Returns the polygons [x, y, x, y, ...] around a mask, exact to the pixel, and whether it has holes.

  COCO's polygons cannot have holes: those are drawn as polygons too, which fills them.

  Args:
    window: bool [h, w], the part of the mask that begins at the pixel (y, x); outside of it the mask is off.
    y, x: where it begins.
  """
  # cv2's contours go through pixel centres. At twice the size they have different points for the two sides of every
  # pixel, so that these can be moved to the edges between pixels.
  double = np.repeat(np.repeat(window.astype(np.uint8), 2, 0), 2, 1)
  if not double.any():
    return [], False
  contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
  has_holes = bool((hierarchy[0, :, 3] >= 0).any())
  return [((c[:, 0] + 1) // 2 + (x, y)).ravel().tolist() for c in contours], has_holes


def plain(rle: dict[str, Any]) -> dict[str, Any]:
  """Turns an RLE of the mask library into values that JSON has: the size as two int, the compressed counts as str."""
  return {'size': [int(side) for side in rle['size']], 'counts': _text(rle['counts'])}


def check_segmentation(segmentation: Any, height: int, width: int) -> tuple[Any, int]:
  """Checks a segmentation of an annotation file and brings it into one form.

  Returns (polygons, or an RLE with compressed counts, or [] if there is none; the number of polygons left out, because
  they have fewer than three points and others have more). Parts without any number are none, as in [[]]. Raises
  DataError that says what is wrong and what was expected: what passes can be decoded. The library that decodes checks
  neither the sum of run lengths nor how long an outline is.
  """
  if segmentation is None or segmentation == {} or (type(segmentation) is list and all(p == [] for p in segmentation)):
    return [], 0
  if isinstance(segmentation, dict):
    return _check_rle(segmentation, height, width), 0
  expected = 'expected a list of polygons [x, y, x, y, ...] or an RLE'
  if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
    raise DataError(f'a segmentation of type {type(segmentation).__name__} without polygons; {expected}')
  for polygon in segmentation:
    if len(polygon) % 2 or not all(map(is_number, polygon)):
      raise DataError(f'a polygon that is not an even number of finite coordinates; {expected}')
    _check_extent(polygon, height, width)
  kept = [polygon for polygon in segmentation if len(polygon) >= 6]
  if not kept:
    raise DataError('no polygon of three points or more; expected at least one')
  return kept, len(segmentation) - len(kept)


def _check_extent(polygon: list[float], height: int, width: int) -> None:
  """Refuses a polygon that reaches far outside its picture, which is an error, or is too long for the memory."""
  xs, ys = polygon[::2], polygon[1::2]
  if not xs:
    return
  left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
  if left < -width or right > 2 * width or top < -height or bottom > 2 * height:
    raise DataError(
      f'a polygon from ({left:g}, {top:g}) to ({right:g}, {bottom:g}), in a picture {width} wide and {height} high; '
      'expected it to reach outside by no more than that width and height'
    )
  if len(xs) * 3 * max(height, width) <= _LONGEST_OUTLINE:  # no edge is longer than three pictures
    return
  points = np.array([xs, ys], np.float64)
  outline = np.abs(points - np.roll(points, 1, axis=1)).max(axis=0).sum()
  if outline > _LONGEST_OUTLINE:
    raise DataError(f'a polygon with an outline of {outline:.0f} pixels; expected at most {_LONGEST_OUTLINE}')


def _check_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
  size, counts = [height, width], rle.get('counts')
  if rle.get('size') != size:
    raise DataError(f'an RLE of size {shown(rle.get("size"))}; expected {size}, the size of the picture')
  if isinstance(counts, list):
    valid = all(type(n) is int and 0 <= n < 2**32 for n in counts) and sum(counts) == height * width
  else:
    lengths = _run_lengths(counts)
    valid = lengths is not None and bool((lengths >= 0).all()) and int(lengths.sum()) == height * width
  if not valid:
    raise DataError(f'an RLE whose counts do not add up; expected run lengths with the sum {height * width}')
  if isinstance(counts, list):
    counts = mask_api.frPyObjects({'size': size, 'counts': counts}, height, width)['counts']
  return {'size': size, 'counts': _text(counts)}


def _run_lengths(text: Any) -> np.ndarray | None:
  """Decodes COCO's compressed counts: base 32 with a continuation bit, from the fourth on less the one two before.

  Returns int64 [runs], or None if the text is none. Nothing overflows: a number has seven digits at most.
  """
  if not isinstance(text, str) or not text.isascii():
    return None
  digits = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
  ends = np.flatnonzero(digits & 32 == 0)
  if not len(digits) or ((digits < 0) | (digits >= 64)).any() or not len(ends) or ends[-1] != len(digits) - 1:
    return None
  sizes = np.diff(ends, prepend=-1)
  if sizes.max() > _LONGEST_RUN:
    return None
  starts = ends + 1 - sizes
  places = np.arange(len(digits)) - np.repeat(starts, sizes)
  lengths = np.add.reduceat((digits & 31) << (5 * places), starts)
  lengths -= np.where(digits[ends] & 16, 1 << (5 * sizes), 0)
  for chain in (lengths[1::2], lengths[2::2]):
    np.cumsum(chain, out=chain)
  return lengths


def _text(counts: bytes | str) -> str:
  return counts.decode('ascii') if isinstance(counts, bytes) else counts
