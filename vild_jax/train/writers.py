"""Writes metrics into a TensorBoard file and a JSONL file, with the methods of clu's MetricWriter.

The training loop also takes another writer with these methods, such as clu's or Scenic's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vild_jax.runtime import files, reading

METRICS_FILE = 'metrics.jsonl'


class WorkdirWriter:
  """Writes metrics into one work directory; a resumed run drops the lines that it will write again.

  Args:
    workdir: the folder; TensorBoard files go to its `tensorboard/`.
    resume_step: lines of `metrics.jsonl` after this step are dropped.
  """

  def __init__(self, workdir: Path, *, resume_step: int = 0):
    from tensorboardX import SummaryWriter  # takes half a second, so it is imported only for training

    self._tensorboard = SummaryWriter(str(Path(workdir) / 'tensorboard'), purge_step=resume_step + 1)
    path = Path(workdir) / METRICS_FILE
    kept = [line for line in read_metrics(path) if line['step'] <= resume_step]
    files.write(path, ''.join(json.dumps(line) + '\n' for line in kept))
    self._jsonl = path.open('a', encoding='utf-8')

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes {name: value} of one step to both files."""
    values = {key: float(value) for key, value in scalars.items()}
    for key, value in values.items():
      self._tensorboard.add_scalar(key, value, step)
    self._jsonl.write(json.dumps({'step': step, **values}) + '\n')

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes {title: uint8 [N, H, W, 3] or [H, W, 3]} to the TensorBoard file."""
    for key, image in images.items():
      self._tensorboard.add_images(key, image if image.ndim == 4 else image[None], step, dataformats='NHWC')

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes {title: text} to the TensorBoard file."""
    for key, text in texts.items():
      self._tensorboard.add_text(key, text, step)

  def flush(self) -> None:
    """Flushes both files."""
    self._tensorboard.flush()
    self._jsonl.flush()

  def close(self) -> None:
    """Closes both files."""
    self._tensorboard.close()
    self._jsonl.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
  """Returns the lines of a `metrics.jsonl`; [] without the file.

  A line that is not {'step': whole number, name: number, ...} is left out, as the last one of a killed run may be; if
  there are others, stderr says how many.
  """
  if not Path(path).is_file():
    return []
  texts = Path(path).read_text(encoding='utf-8', errors='replace').splitlines()
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
