"""Writes, reads and checks results JSON, the file of detections that COCO and LVIS evaluators read.

A detection is {'image_id', 'category_id', 'bbox': [x, y, width, height], 'score', 'segmentation': RLE}, in pixels of
the original picture and with the ids of the data set; those that cannot count by their mask have no 'segmentation'
(`counted`). Padding rows are never written (docs/departures.md, 10).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data.schema import DataError
from vild_jax.eval import paste
from vild_jax.runtime import files

Result = dict[str, Any]


def detections_to_results(
  image_id: int,
  boxes: np.ndarray,
  scores: np.ndarray,
  category_ids: np.ndarray,
  masks: np.ndarray | None,
  original_size: tuple[int, int],
  *,
  valid: np.ndarray | None = None,
  masked: np.ndarray | None = None,
) -> list[Result]:
  """Returns the K detections of one picture as results, in the order given.

  Args:
    image_id: the data set's id of the picture.
    boxes: [K, 4] yxyx, pixels of the original picture.
    scores: [K].
    category_ids: int [K], the data set's ids.
    masks: [K, 28, 28] probabilities (not logits) inside each box, or None for boxes alone; with `masked` of its rows
      alone.
    original_size: (height, width) of the original picture.
    valid: bool [K]; rows that are False are left out. None means all.
    masked: bool [K]; rows that are False get no mask. None means all.

  Raises:
    DataError: if a box or a score is not finite, or the arrays do not fit each other.
  """
  keep = np.ones(len(boxes), bool) if valid is None else np.asarray(valid, bool)
  masked = np.ones(len(boxes), bool) if masked is None else np.asarray(masked, bool)
  boxes, scores, category_ids, with_mask = (np.asarray(a)[keep] for a in (boxes, scores, category_ids, masked))
  if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
    raise DataError(f'picture {image_id}: a detection has a box or a score that is not finite; expected finite numbers')
  corner = boxes[:, 1::-1]
  bboxes = np.concatenate([corner, boxes[:, 3:1:-1] - corner], axis=1).tolist()
  results = [
    {'image_id': int(image_id), 'category_id': category, 'bbox': bbox, 'score': score}
    for category, bbox, score in zip(category_ids.tolist(), bboxes, scores.tolist(), strict=True)
  ]
  if masks is not None:
    rles = paste.paste_to_rles(np.asarray(masks)[keep[masked]], boxes[with_mask], *map(int, original_size))
    for row, rle in zip(np.flatnonzero(with_mask), rles, strict=True):
      results[row]['segmentation'] = rle
  return results


def of_picture(found: Sequence[dict[str, Any]]) -> tuple[int, list[list[Result]]]:
  """Returns the image id of a picture and its results by each method.

  `found` holds for each method the arguments of `detections_to_results`.
  """
  return int(found[0]['image_id']), [detections_to_results(**one) for one in found]


class ResultsWriter:
  """Streams results into a JSON file that appears, complete, when the `with` block ends without an error.

  with ResultsWriter('results.json') as writer:
    writer.write(image_id, detections_to_results(image_id, ...))
  """

  def __init__(self, path: str | Path):
    self._path = files.path(path)
    self._stack = contextlib.ExitStack()
    self.count = 0

  def __enter__(self) -> ResultsWriter:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    temporary = self._stack.enter_context(files.replacing(self._path))
    self._file = self._stack.enter_context(temporary.open('w', encoding='ascii'))
    self._stack.push(self._end)
    self._file.write('[')
    return self

  def write(self, image_id: int, results: Sequence[Result]) -> None:
    """Appends all results of one picture."""
    del image_id  # every result has it
    self.write_lines([json.dumps(result, allow_nan=False) for result in results])

  def write_lines(self, results: Sequence[str]) -> None:
    """Appends results that are JSON already."""
    for line in results:
      self._file.write(('\n' if self.count == 0 else ',\n') + line)
      self.count += 1

  def flush(self) -> None:
    """Hands what was written to the system, which says then whether the disk takes it."""
    self._file.flush()

  def __exit__(self, *error: Any) -> None:
    self._stack.__exit__(*error)

  def _end(self, kind: Any, *_: Any) -> None:
    if kind is None:
      self._file.write('\n]\n')
