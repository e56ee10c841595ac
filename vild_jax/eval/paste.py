"""Pastes 28x28 masks into pictures, by the reference's rule bit for bit, and makes run-length codes.

A mask is padded by one zero pixel on each side, and its box grows about its centre by the same factor 30/28. The
corners are truncated towards zero, the mask is resized bilinearly to the pixels from corner to corner inclusive, and a
pixel is on where the mask exceeds one half. Only this window is computed; `paste_masks` alone makes whole pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from vild_jax.data import rle
from vild_jax.data.schema import DataError


def paste_masks(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
  """Pastes K masks of probabilities [K, M, M] into boxes [K, 4] yxyx (picture pixels) -> bool [K, height, width]."""
  pasted = np.zeros((len(masks), height, width), bool)
  for canvas, (window, y, x) in zip(pasted, _windows(masks, boxes, height, width), strict=True):
    canvas[y : y + window.shape[0], x : x + window.shape[1]] = window
  return pasted


def paste_to_rles(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[dict[str, Any]]:
  """Returns `rle.encode_mask` of every mask of `paste_masks`, from the same arguments, without making the pictures."""
  return [rle.encode_window(*window, height, width) for window in _windows(masks, boxes, height, width)]


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


def _windows(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> Iterator[tuple[np.ndarray, int, int]]:
  """Yields the part of each pasted mask inside the picture, bool [h, w], and the pixel (y, x) where it begins."""
  _check(masks, boxes)
  padded = np.zeros((len(masks), masks.shape[1] + 2, masks.shape[2] + 2), np.float32)
  padded[:, 1:-1, 1:-1] = masks
  for mask, (y1, x1, y2, x2) in zip(padded, _expand(boxes, masks.shape[1:]).tolist(), strict=True):
    window = cv2.resize(mask, (max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1))) > 0.5
    top, bottom = (min(max(y, 0), height) for y in (y1, y2 + 1))
    left, right = (min(max(x, 0), width) for x in (x1, x2 + 1))
    yield window[top - y1 : bottom - y1, left - x1 : right - x1], top, left
