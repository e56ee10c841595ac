"""Detects in tiles of a large picture, by the conventions of sahi, and in the whole picture, and merges the results.

The grid begins in the corner; where the last tile of a row or column would reach beyond the picture, it is shifted back
inside. Detections of all tiles and of the whole picture, which finds the objects that are larger than a tile, are
merged for each class by greedy non-maximum suppression. Overlap is the intersection over the area of the smaller box:
what a tile cuts off an object lies inside the box of the whole object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data import rle
from vild_jax.inference.detections import PictureDetections
from vild_jax.inference.detector import Detector
from vild_jax.runtime import progress
from vild_jax.vocabulary import VocabularyFile

MATCH = 0.5  # a box that shares this much with a better one of its class is dropped


def detect(
  detector: Detector,
  picture: np.ndarray,
  classes: Sequence[str] | VocabularyFile,
  *,
  tile: int,
  overlap: float,
  max_detections: int | None = None,
  path: str | Path = 'the picture',
  **how: Any,
) -> PictureDetections:
  """Detects classes in a picture by tiles; one that fits in a tile gives exactly what `Detector.detect` gives.

  Args:
    detector, classes: as in `Detector.detect`.
    picture: uint8 [H, W, 3] RGB.
    tile: side of a tile, pixels.
    overlap: the share of its side by which a tile overlaps the next.
    max_detections: of the whole picture, best first; None keeps all.
    path: what the bar of the progress says.
    how: further arguments of `Detector.detect`.
  """
  places = grid(*picture.shape[:2], tile, overlap)
  if len(places) == 1:
    if max_detections is not None:  # of many tiles there may be more than the detector gives of one
      max_detections = min(max_detections, detector.config.model.postprocess.max_detections)
    return detector.detect(picture, classes, max_detections=max_detections, **how)
  parts = [picture, *(picture[y1:y2, x1:x2] for y1, x1, y2, x2 in places)]
  found = detector.detect(progress.track(parts, f'tiles of {Path(path).name}', unit='tile'), classes, **how)
  return merge(found, np.concatenate([[[0, 0]], places[:, :2]]), max_detections)


def grid(height: int, width: int, tile: int, overlap: float) -> np.ndarray:
  """Returns the tiles of a picture, int [T, 4] yxyx, row by row; they cover it, and none reaches beyond it."""
  rows, columns = (_starts(side, tile, overlap) for side in (height, width))
  corners = np.array([(y, x) for y in rows for x in columns])
  return np.concatenate([corners, np.minimum(corners + tile, [height, width])], axis=1)


def _starts(side: int, tile: int, overlap: float) -> list[int]:
  step = max(tile - int(overlap * tile), 1)
  count = 1 + -(-max(side - tile, 0) // step)
  return [min(k * step, max(side - tile, 0)) for k in range(count)]


def merge(
  found: Sequence[PictureDetections], corners: np.ndarray, max_detections: int | None = None
) -> PictureDetections:
  """Joins the detections in a whole picture and in parts of it, best first.

  Args:
    found: those of the whole picture, then those of each part, of the same classes.
    corners: int [parts + 1, 2], the pixel (y, x) where each begins.
    max_detections: how many to keep; None keeps all.

  Returns:
    Detections in the whole picture; arrays with a row for each detection are joined alike.
  """
  whole = found[0]
  moved = [
    dataclasses.replace(part, boxes=part.boxes + np.tile(corner, 2).astype(np.float32))
    for part, corner in zip(found, corners, strict=True)
  ]
  joined = {
    field.name: np.concatenate([getattr(part, field.name) for part in moved])
    for field in dataclasses.fields(whole)
    if isinstance(getattr(whole, field.name), np.ndarray)
  }
  kept = suppress(joined['boxes'], joined['scores'], joined['labels'])[:max_detections]
  rles = None
  if whole.rles is not None:
    places = [(part, i) for part, of in enumerate(found) for i in range(len(of))]
    rles = tuple(_moved(found[part].rles[i], corners[part], whole.size) for part, i in (places[k] for k in kept))
  return dataclasses.replace(whole, **{name: rows[kept] for name, rows in joined.items()}, rles=rles)


def _moved(mask: dict[str, Any], corner: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
  """The RLE of a mask of a part, in the picture of `size` where the part begins at `corner`."""
  if tuple(mask['size']) == tuple(size):
    return mask
  window, y, x = rle.decode_window(mask)
  return rle.encode_window(window, y + int(corner[0]), x + int(corner[1]), *size)


def suppress(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns which boxes stay, int [K], best first: a kept box drops the worse ones of its class as `MATCH` says.

  Args:
    boxes: [N, 4] yxyx.
    scores: [N].
    labels: int [N].
  """
  areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
  kept = []
  order = np.argsort(-scores, kind='stable')
  for label in np.unique(labels):
    left = order[labels[order] == label]
    while len(left):
      best, left = left[0], left[1:]
      kept.append(best)
      sides = np.minimum(boxes[best, 2:], boxes[left, 2:]) - np.maximum(boxes[best, :2], boxes[left, :2])
      shared = np.prod(np.maximum(sides, 0), axis=1)
      left = left[(shared < MATCH * np.minimum(areas[best], areas[left])) | (shared == 0)]
  kept = np.array(kept, int)
  return kept[np.argsort(np.argsort(order)[kept], kind='stable')]
