"""Writes metrics into a TensorBoard file and a JSONL file, with the methods of clu's MetricWriter.

The training loop also takes another writer with these methods, such as clu's or Scenic's.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.runtime import buckets, files, reading

METRICS_FILE = 'metrics.jsonl'


def _naming_folder(method: Callable) -> Callable:
  """Gives an error of TensorBoard's writer, which names no file, the folder to name."""

  @functools.wraps(method)
  def named(self: WorkdirWriter, *args: Any, **options: Any) -> Any:
    with files.naming(self._local):
      return method(self, *args, **options)

  return named


class WorkdirWriter:
  """Writes metrics into one work directory; a resumed run drops the lines that it will write again.

  Args:
    workdir: the folder; TensorBoard files go to its `tensorboard/`. In a bucket nothing grows: there the files of this
      process are written anew, at most every `buckets.PACE_SECONDS` and in `upload`.
    resume_step: lines of `metrics.jsonl` after this step are dropped.
  """

  def __init__(self, workdir: Path, *, resume_step: int = 0):
    from tensorboardX import SummaryWriter  # takes half a second, so it is imported only for training

    workdir, self._closing = files.path(workdir), contextlib.ExitStack()
    kept = [line for line in read_metrics(workdir / METRICS_FILE) if line['step'] <= resume_step]
    self._bucket, self._uploaded = None, time.monotonic()
    if files.is_remote(workdir):
      self._bucket = workdir
      workdir = self._closing.enter_context(buckets.scratch(workdir.name))
    self._local = workdir
    self._tensorboard = SummaryWriter(str(workdir / 'tensorboard'), purge_step=resume_step + 1)
    files.write(workdir / METRICS_FILE, ''.join(json.dumps(line) + '\n' for line in kept))
    self._jsonl = (workdir / METRICS_FILE).open('a', encoding='utf-8')

  @_naming_folder
  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes {name: value} of one step to both files."""
    values = {key: float(value) for key, value in scalars.items()}
    for key, value in values.items():
      self._tensorboard.add_scalar(key, value, step)
    self._jsonl.write(json.dumps({'step': step, **values}) + '\n')

  @_naming_folder
  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes {title: uint8 [N, H, W, 3] or [H, W, 3]} to the TensorBoard file."""
    for key, image in images.items():
      self._tensorboard.add_images(key, image if image.ndim == 4 else image[None], step, dataformats='NHWC')

  @_naming_folder
  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes {title: text} to the TensorBoard file."""
    for key, text in texts.items():
      self._tensorboard.add_text(key, text, step)

  @_naming_folder
  def flush(self) -> None:
    """Flushes both files."""
    self._tensorboard.flush()
    self._jsonl.flush()
    if time.monotonic() - self._uploaded >= buckets.PACE_SECONDS:
      try:
        self._copy()
      except OSError as error:  # the upload that comes with a checkpoint must succeed, this one need not
        print(f'warning: {error}; metrics are sent to the bucket again later', file=sys.stderr)
        self._uploaded = time.monotonic()

  @_naming_folder
  def upload(self) -> None:
    """Flushes both files, and writes them into the bucket of the work directory, if it is in one."""
    self._tensorboard.flush()
    self._jsonl.flush()
    self._copy()

  @_naming_folder
  def close(self) -> None:
    """Closes both files."""
    with self._closing:
      self._tensorboard.close()
      self._jsonl.close()
      self._copy()

  def _copy(self) -> None:
    if self._bucket is not None:
      names = (path.relative_to(self._local).as_posix() for path in self._local.rglob('*') if path.is_file())
      buckets.upload_all(self._local, self._bucket, names)
      self._uploaded = time.monotonic()


def read_metrics(path: Path) -> list[dict[str, float]]:
  """Returns the lines of a `metrics.jsonl`; [] without the file.

  A line that is not {'step': whole number, name: number, ...} is left out, as the last one of a killed run may be; if
  there are others, stderr says how many.
  """
  path = files.path(path)
  if not path.is_file():
    return []
  texts = path.read_bytes().decode(errors='replace').splitlines()
  lines = [line for line in map(_line, texts) if line is not None]
  left_out = len(texts) - len(lines)
  if left_out > 1 or (left_out and _line(texts[-1]) is not None):
    print(f'{path}: {left_out} of {len(texts)} lines are damaged and left out', file=sys.stderr)
  return lines


def _line(text: str) -> dict[str, float] | None:
  try:
    found = reading.json_text(text)
  except ValueError:
    return None
  whole = isinstance(found, dict) and type(found.get('step')) is int
  return found if whole and all(type(value) in (int, float) for value in found.values()) else None
