"""Segmentations and masks: polygons and COCO run lengths to boolean pictures and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api

from vild_jax.data.schema import DataError


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
  """Polygons or a COCO RLE -> bool [height, width], by the rule of COCO's own mask code.

  Raises DataError where there is nothing to decode: data sets with boxes alone cannot train masks.
  """
  if not segmentation:
    raise DataError('an object without segmentation has no mask; expected polygons or an RLE')
  if isinstance(segmentation, dict):
    return mask_api.decode(segmentation).astype(bool)
  return mask_api.decode(mask_api.merge(mask_api.frPyObjects(segmentation, height, width))).astype(bool)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
  """bool [H, W] -> COCO RLE {'size': [H, W], 'counts': compressed str}."""
  encoded = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
  return {'size': [int(s) for s in mask.shape], 'counts': _text(encoded['counts'])}


def is_number(value: Any) -> bool:
  """Whether a value out of a JSON is a number that can be a coordinate or an area: finite and of sane size."""
  return type(value) in (int, float) and abs(value) < 1e15


def check_segmentation(segmentation: Any, height: int, width: int) -> tuple[Any, int]:
  """Brings a segmentation as found in the wild into the house's form.

  Returns (polygons or an RLE with compressed counts; or [] where there is none, number of polygons left out because
  they have fewer than three points beside others that have more). Raises DataError with what is wrong and what was
  expected; run lengths are counted here, since the C code that decodes them later does not check.
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
      raise DataError(f'a polygon that is no even number of finite coordinates; {expected}')
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
  """COCO's compressed counts: base 32 with a continuation bit, from the third run on the difference to two before."""
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
