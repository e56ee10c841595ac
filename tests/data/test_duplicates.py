"""Copies are found although they were scaled, compressed or brightened; other pictures are not."""

from __future__ import annotations

import cv2
import numpy as np

from vild_jax.data import duplicates


def scene(seed: int, height: int = 120, width: int = 180) -> np.ndarray:
  """A picture of soft blobs."""
  coarse = np.random.default_rng(seed).integers(0, 200, (6, 8, 3), dtype=np.uint8)
  return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def test_changed_copies_are_found():
  first, other = scene(1), scene(2)
  smaller = cv2.resize(first, (70, 50), interpolation=cv2.INTER_AREA)
  stored = cv2.imdecode(cv2.imencode('.jpg', first, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
  brighter = np.clip(first.astype(int) + 4, 0, 255).astype(np.uint8)
  copies = [duplicates.small_copy(picture) for picture in (first, other, smaller, stored, brighter)]
  assert duplicates.pairs(copies) == [(0, 2), (0, 3), (0, 4), (2, 3), (2, 4), (3, 4)]


def test_other_pictures_are_not():
  different = [scene(seed) for seed in range(30)]
  tinted = np.clip(different[0].astype(int) + np.array([60, 0, -60]), 0, 255).astype(np.uint8)  # its hash is near
  assert duplicates.pairs([duplicates.small_copy(picture) for picture in [*different, tinted]]) == []


def test_few_pictures_and_plain_ones():
  plain = duplicates.small_copy(np.zeros((1, 3, 3), np.uint8))
  assert plain.shape == (16, 16, 3)
  assert duplicates.pairs([]) == [] == duplicates.pairs([plain])
  assert duplicates.pairs([plain, plain, plain + np.uint8(40)]) == [(0, 1)]
