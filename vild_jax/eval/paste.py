"""Pastes 28x28 masks into pictures, by the reference's rule bit for bit, and makes run-length codes.

A mask is padded by one zero pixel on each side, and its box grows about its centre by the same factor 30/28. The
corners are truncated towards zero, the mask is resized bilinearly to the pixels from corner to corner inclusive, and a
pixel is on where the mask exceeds one half. Only this window is computed; `paste_masks` alone makes whole pictures.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from hotcoco import mask as mask_api

from vild_jax.data import rle
from vild_jax.data.schema import DataError


def paste_masks(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
  """Pastes K masks of probabilities [K, M, M] into boxes [K, 4] yxyx (picture pixels) -> bool [K, height, width]."""
  _check(masks, boxes)
  pasted = np.zeros((len(masks), height, width), bool)
  for canvas, mask, corners in zip(pasted, masks, _expand(boxes, masks.shape[1:]), strict=True):
    window, y, x = _window(mask, corners, height, width)
    canvas[y : y + window.shape[0], x : x + window.shape[1]] = window
  return pasted


def paste_to_rles(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[dict[str, Any]]:
  """Returns `rle.encode_mask` of every mask of `paste_masks`, from the same arguments, without making the pictures."""
  _check(masks, boxes)
  return [
    _window_rle(*_window(mask, corners, height, width), height, width)
    for mask, corners in zip(masks, _expand(boxes, masks.shape[1:]), strict=True)
  ]


def _check(masks: np.ndarray, boxes: np.ndarray) -> None:
  if masks.ndim != 3 or boxes.shape != (len(masks), 4):
    raise DataError(f'masks {masks.shape} and boxes {boxes.shape} do not fit; expected [K, M, M] and [K, 4]')
  if not (np.isfinite(boxes).all() and np.abs(boxes).max(initial=0) < 2**24):
    raise DataError(f'boxes reach from {boxes.min()} to {boxes.max()}; expected finite pixels of the picture')


def _expand(boxes: np.ndarray, mask_size: tuple[int, int]) -> np.ndarray:
  """Boxes [K, 4] grown to hold the padded mask, as whole corner pixels int32 [K, 4] yxyx."""
  boxes = np.asarray(boxes, np.float32)
  half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5)
  centre = boxes[:, :2] + half
  half = half * np.float32(max((size + 2) / size for size in mask_size))
  return np.concatenate([centre - half, centre + half], axis=1).astype(np.int32)


def _window(mask: np.ndarray, corners: np.ndarray, height: int, width: int) -> tuple[np.ndarray, int, int]:
  """The part of the pasted mask inside the picture, bool [h, w], and the pixel (y, x) where it begins."""
  y1, x1, y2, x2 = (int(corner) for corner in corners)
  padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.float32)
  padded[1:-1, 1:-1] = mask
  resized = cv2.resize(padded, (max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1))) > 0.5
  top, bottom = np.clip((y1, y2 + 1), 0, height)
  left, right = np.clip((x1, x2 + 1), 0, width)
  return resized[top - y1 : bottom - y1, left - x1 : right - x1], int(top), int(left)


def _window_rle(window: np.ndarray, y: int, x: int, height: int, width: int) -> dict[str, Any]:
  """The run-length code of a [height, width] picture that is off except in a window at (y, x)."""
  columns = np.zeros((window.shape[1], window.shape[0] + 2), bool)
  columns[:, 1:-1] = window.T
  column, row = np.divmod(np.flatnonzero(columns[:, 1:] ^ columns[:, :-1]), window.shape[0] + 1)
  changes = (x + column) * height + y + row  # in column-major order: on, off, on, off, ...
  # A run that reaches the bottom of a column and continues at the top of the next one is a single run.
  joined = np.flatnonzero(changes[1:-1:2] == changes[2::2]) * 2 + 1
  changes = np.delete(changes, np.concatenate([joined, joined + 1]))
  counts = np.diff(changes, prepend=0, append=height * width).tolist()
  if counts[-1] == 0:
    counts.pop()
  return rle.plain(mask_api.frPyObjects({'size': [height, width], 'counts': counts}, height, width))
