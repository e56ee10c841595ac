"""Finds pictures that are nearly the same: by a hash of differences, then by small copies of those whose hash is near.

Copies that were scaled, stored anew or brightened a little are found; those that were cut or mirrored are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_SIDE = 16  # pixels of the small copy
_BITS = 12  # of 144, by which the hashes of two such pictures may differ
_LEVELS = 6.0  # of 255, by which their small copies may differ on average


def small_copy(picture: np.ndarray) -> np.ndarray:
  """Returns a picture, uint8 [H, W, 3], shrunk to uint8 [16, 16, 3] whatever its shape."""
  return cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)


def pairs(copies: Sequence[np.ndarray]) -> list[tuple[int, int]]:
  """Returns (i, j), i < j, of each two small copies that are nearly the same, in order."""
  if len(copies) < 2:
    return []
  small = np.stack(copies)
  hashes = np.stack([_hash(copy) for copy in small])
  found = []
  for i in range(len(hashes) - 1):
    near = i + 1 + np.flatnonzero((hashes[i + 1 :] != hashes[i]).sum(axis=1) <= _BITS)
    apart = np.abs(small[near].astype(np.int16) - small[i]).mean(axis=(1, 2, 3))
    found += [(i, int(j)) for j in near[apart <= _LEVELS]]
  return found


def _hash(copy: np.ndarray) -> np.ndarray:
  """Says, bool [144], where a 9 x 9 copy in grey grows brighter to the right and downwards, on 8 x 9 steps each."""
  grey = cv2.resize(cv2.cvtColor(copy, cv2.COLOR_RGB2GRAY), (9, 9), interpolation=cv2.INTER_AREA).astype(np.int16)
  return np.concatenate([(np.diff(grey, axis=axis) > 0).ravel() for axis in (0, 1)])
