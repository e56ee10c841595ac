"""Converts segmentations, polygons and COCO run-length codes (RLE), to boolean masks and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from hotcoco import mask as mask_api

from vild_jax.data.schema import DataError


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
  """Turns polygons or a COCO RLE into bool [height, width], by the rule of COCO's own mask code.

  Raises DataError if there is no segmentation.
  """
  if not segmentation:
    raise DataError('an object without segmentation has no mask; expected polygons or an RLE')
  if isinstance(segmentation, dict):
    return mask_api.decode(segmentation).astype(bool)
  return mask_api.decode(mask_api.merge(mask_api.frPyObjects(segmentation, height, width))).astype(bool)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
  """Turns bool [H, W] into a COCO RLE {'size': [H, W], 'counts': compressed str}."""
  return plain(mask_api.encode(np.asfortranarray(mask, dtype=np.uint8)))


def plain(rle: dict[str, Any]) -> dict[str, Any]:
  """Turns an RLE of the mask library into values that JSON has: the size as two int, the compressed counts as str."""
  return {'size': [int(side) for side in rle['size']], 'counts': _text(rle['counts'])}


def is_number(value: Any) -> bool:
  """Tells whether a value from a JSON file can be a coordinate or an area: a finite number below 1e15."""
  return type(value) in (int, float) and abs(value) < 1e15


def check_segmentation(segmentation: Any, height: int, width: int) -> tuple[Any, int]:
  """Checks a segmentation of an annotation file and brings it into one form.

  Returns (polygons, or an RLE with compressed counts, or [] if there is none; the number of polygons left out, because
  they have fewer than three points and others have more). Raises DataError that says what is wrong and what was
  expected. The sum of run lengths is checked here, since the C code that decodes them later does not check it.
  """
  if segmentation is None or segmentation == [] or segmentation == {}:
    return [], 0
  if isinstance(segmentation, dict):
    return _check_rle(segmentation, height, width), 0
  expected = 'expected a list of polygons [x, y, x, y, ...] or an RLE'
  if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
    raise DataError(f'a segmentation of type {type(segmentation).__name__} without polygons; {expected}')
  for polygon in segmentation:
    if len(polygon) % 2 or not all(map(is_number, polygon)):
      raise DataError(f'a polygon that is not an even number of finite coordinates; {expected}')
  kept = [polygon for polygon in segmentation if len(polygon) >= 6]
  if not kept:
    raise DataError('no polygon of three points or more; expected at least one')
  return kept, len(segmentation) - len(kept)


def _check_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
  size, counts = rle.get('size'), rle.get('counts')
  if size != [height, width]:
    raise DataError(f'an RLE of size {size}; expected [{height}, {width}], the size of the picture')
  try:
    lengths = counts if isinstance(counts, list) else _run_lengths(counts)
    valid = all(type(n) is int and 0 <= n < 2**32 for n in lengths) and sum(lengths) == height * width
  except (TypeError, IndexError, AttributeError):
    valid = False
  if not valid:
    raise DataError(f'an RLE whose counts do not add up; expected run lengths with the sum {height * width}')
  if isinstance(counts, list):
    counts = mask_api.frPyObjects({'size': size, 'counts': counts}, height, width)['counts']
  return {'size': size, 'counts': _text(counts)}


def _run_lengths(text: str) -> list[int]:
  """Decodes COCO's compressed counts: base 32 with a continuation bit, from the fourth on less the one two before."""
  lengths, at = [], 0
  while at < len(text):
    value, shift, more = 0, 0, True
    while more:
      digit = ord(text[at]) - 48
      value |= (digit & 31) << shift
      more = bool(digit & 32)
      at, shift = at + 1, shift + 5
    if digit & 16:
      value -= 1 << shift
    lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
  return lengths


def _text(counts: bytes | str) -> str:
  return counts.decode('ascii') if isinstance(counts, bytes) else counts
