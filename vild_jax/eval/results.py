"""Writes, reads and checks results JSON, the file of detections that COCO and LVIS evaluators read.

A detection is {'image_id', 'category_id', 'bbox': [x, y, width, height], 'score', 'segmentation': RLE}, in pixels of
the original picture and with the ids of the data set. Padding rows are never written (docs/departures.md, 10).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as mask_api

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
) -> list[Result]:
  """Returns the K detections of one picture as results, in the order given.

  Args:
    image_id: the data set's id of the picture.
    boxes: [K, 4] yxyx, pixels of the original picture.
    scores: [K].
    category_ids: int [K], the data set's ids.
    masks: [K, 28, 28] probabilities (not logits) inside each box, or None for boxes alone.
    original_size: (height, width) of the original picture.
    valid: bool [K]; rows that are False are left out. None means all.

  Raises:
    DataError: if a box or a score is not finite, or the arrays do not fit each other.
  """
  keep = np.ones(len(boxes), bool) if valid is None else np.asarray(valid, bool)
  boxes, scores, category_ids = (np.asarray(a)[keep] for a in (boxes, scores, category_ids))
  if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
    raise DataError(f'picture {image_id}: a detection has a box or a score that is not finite; expected finite numbers')
  corner = boxes[:, 1::-1]
  bboxes = np.concatenate([corner, boxes[:, 3:1:-1] - corner], axis=1).tolist()
  results = [
    {'image_id': int(image_id), 'category_id': category, 'bbox': bbox, 'score': score}
    for category, bbox, score in zip(category_ids.tolist(), bboxes, scores.tolist(), strict=True)
  ]
  if masks is not None:
    rles = paste.paste_to_rles(np.asarray(masks)[keep], boxes, *map(int, original_size))
    for result, rle in zip(results, rles, strict=True):
      result['segmentation'] = rle
  return results


class ResultsWriter:
  """Streams results into a JSON file that appears, complete, when the `with` block ends without an error.

  with ResultsWriter('results.json') as writer:
    writer.write(image_id, detections_to_results(image_id, ...))
  """

  def __init__(self, path: str | Path):
    self._path = Path(path)
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
    for result in results:
      self._file.write(('\n' if self.count == 0 else ',\n') + json.dumps(result, allow_nan=False))
      self.count += 1

  def __exit__(self, *error: Any) -> None:
    self._stack.__exit__(*error)

  def _end(self, kind: Any, *_: Any) -> None:
    if kind is None:
      self._file.write('\n]\n')


def read_json(source: Any, what: str) -> Any:
  """Returns the content of a JSON file, or `source` itself if it is not a path.

  Raises:
    DataError: if the file cannot be read; `what` says in the message what was expected.
  """
  if not isinstance(source, str | Path):
    return source
  if not Path(source).is_file():
    raise DataError(f'{source} is not a file; expected {what}')
  try:
    return json.loads(Path(source).read_bytes())
  except ValueError as error:
    raise DataError(f'{source} is not JSON ({error}); expected {what}') from None


def read_results(source: Any, image_sizes: Mapping[int, tuple[int, int]], category_ids: set[int]) -> list[Result]:
  """Reads and checks results.

  Args:
    source: a path, or a list of results.
    image_sizes: {image id: (height, width)} of the ground truth.
    category_ids: the categories of the ground truth.

  Raises:
    DataError: names the first detection that cannot be scored, and the reason.
  """
  results = read_json(source, 'a results JSON: a list of detections')
  name = source if isinstance(source, str | Path) else 'results'
  if not isinstance(results, list):
    raise DataError(f'{name} holds a {type(results).__name__}; expected a list of detections')
  for i, result in enumerate(results):
    problem = _problem(result, image_sizes, category_ids)
    if problem:
      raise DataError(f'{name}, detection {i}: {problem}')
  for key in ('bbox', 'segmentation'):
    missing = next((i for i, result in enumerate(results) if key not in result), None)
    if missing is not None and any(key in result for result in results):
      raise DataError(f'{name}, detection {missing}: no {key!r}; expected one for every detection or for none')
  return results


def _problem(result: Any, image_sizes: Mapping[int, tuple[int, int]], category_ids: set[int]) -> str:
  """The reason why a result cannot be scored; empty if it can."""
  if not isinstance(result, dict) or not ({'image_id', 'category_id', 'score'} <= result.keys()):
    return f'found {str(result)[:80]}; expected image_id, category_id, score and bbox or segmentation'
  size = image_sizes.get(result['image_id'])
  if size is None:
    return f'image_id {result["image_id"]!r} is unknown; expected one of {len(image_sizes)} of the ground truth'
  if result['category_id'] not in category_ids:
    return f'category_id {result["category_id"]!r} is unknown; expected one of {len(category_ids)} of the ground truth'
  if not _finite(result['score']):
    return f'score is {result["score"]!r}; expected a finite number'
  box, rle = result.get('bbox'), result.get('segmentation')
  if box is None and rle is None:
    return 'neither bbox nor segmentation; expected one or both'
  if box is not None and not (len(box) == 4 and all(map(_finite, box)) and min(box[2:]) >= 0):
    return f'bbox is {box}; expected four finite numbers [x, y, width, height], the last two not negative'
  if rle is not None and not (isinstance(rle, dict) and isinstance(rle.get('counts'), str | bytes)):
    return f'segmentation is {str(rle)[:60]}; expected a compressed run-length code'
  if rle is not None and tuple(rle['size']) != size:
    return f"segmentation has size {list(rle['size'])}; expected {list(size)}, the picture's height and width"
  try:
    rle is not None and mask_api.area(rle)
  except ValueError as error:
    return f'segmentation is a broken run-length code ({error}); expected one of {size[0] * size[1]} pixels'
  return ''


def _finite(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
