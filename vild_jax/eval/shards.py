"""Keeps the detections of an evaluation that is not finished, so that it goes on where it was killed.

In `OUT/unfinished/`, `job.json` says what is evaluated, and a shard holds the detections in a fixed number of pictures,
in the order of the data set. Several processes write a part of each shard, with the pictures that they detected on; a
part appears when it is complete. Processes exchange files, not arrays, because results are large and differ in size
between pictures. When all shards are there, the first process joins them to results files, one shard at a time.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data.schema import DataError
from vild_jax.eval.results import Result, ResultsWriter
from vild_jax.runtime import files, reading

FOLDER = 'unfinished'
WAIT_SECONDS = 600  # processes end at about the same time; this leaves time for slow file systems
_JOB = 'job.json'
_OWN = re.compile(r'job\.json|\d{6}(-\d+)*\.part|\..+\.(json|part)\..+\.tmp')  # the last is what a crash leaves
_PICTURES = 64  # of a shard, or as many more as make whole batches
Entry = tuple[int, Sequence[Sequence[Result]]]  # image id, and the results of each method


class Shards:
  """Holds the shards of one evaluation.

  Attributes:
    folder: where they are.
    size: pictures of a shard.
    count: number of shards.
  """

  def __init__(self, out: Path, image_ids: Sequence[int], *, batch_size: int, processes: int = 1, methods: int = 1):
    """Names the shards; touches nothing.

    Args:
      out: the folder of the results.
      image_ids: of all pictures, in the order of the data set.
      batch_size: pictures that are detected on at a time; shards hold whole batches, so that an evaluation that goes on
        has the batches of one without a break.
      processes: that write.
      methods: results files to write.
    """
    self.folder = out / FOLDER
    self.size = batch_size * -(-_PICTURES // batch_size)
    self.count = -(-len(image_ids) // self.size)
    self._ids, self._processes, self._methods = list(map(int, image_ids)), processes, methods
    self._place = {image_id: i for i, image_id in enumerate(self._ids)}

  def open(self, job: Mapping[str, Any]) -> None:
    """Begins the job, or goes on with it; `job` is what decides the results. Only one process calls this.

    Raises DataError if the folder holds the shards of another job; the message names what differs.
    """
    wanted = {**job, 'images': len(self._ids), 'shard': self.size, 'processes': self._processes}
    begin(self.folder, wanted, 'evaluation')

  def finished(self) -> np.ndarray:
    """Tells which shards are complete, bool [count]."""
    there = {path.name for path in self.folder.glob('*.part')}
    return np.array([all(self._name(k, p) in there for p in range(self._processes)) for k in range(self.count)], bool)

  def pictures(self, shards: np.ndarray) -> np.ndarray:
    """Returns the places of the pictures in the shards that bool [count] names, int64, in order."""
    return np.flatnonzero(np.repeat(shards, self.size)[: len(self._ids)])

  def write(self, process: int, shards: np.ndarray, entries: Any) -> None:
    """Writes a process's parts of the shards that bool [count] names.

    `entries` yields the pictures that the process detected on, in the order of the data set.
    """
    waiting, now = list(map(int, np.flatnonzero(shards))), []
    for entry in entries:
      shard = self._place[int(entry[0])] // self.size
      while waiting[0] != shard:
        self._write(waiting.pop(0), process, now)
        now = []
      now.append(entry)
    for shard in waiting:
      self._write(shard, process, now)
      now = []

  def _write(self, shard: int, process: int, entries: list[Entry]) -> None:
    lines = []
    for image_id, found in entries:
      lines.append(json.dumps([int(image_id), [len(of_method) for of_method in found]]))
      lines += [json.dumps(result, allow_nan=False) for of_method in found for result in of_method]
    files.write(self.folder / self._name(shard, process), '\n'.join([*lines, '']))

  def merge(
    self,
    paths: Sequence[Path],
    *,
    before: Callable[[], Any] = lambda: None,
    wait_seconds: float = WAIT_SECONDS,
  ) -> None:
    """Joins all shards to the results files `paths`, one for each method, as one process would have written them.

    `before` is called when all is written, and no older file is replaced yet.

    Raises DataError if a part does not appear or is damaged, or a picture is in no part.
    """
    with contextlib.ExitStack() as stack:
      writers = [stack.enter_context(ResultsWriter(path)) for path in paths]
      for shard in range(self.count):
        found: dict[int, list[list[str]]] = {}
        for process in range(self._processes):
          part = self.folder / self._name(shard, process)
          _wait(part, process, self._processes, wait_seconds)
          found |= _read(part, self._methods)
        for image_id in self._ids[shard * self.size : (shard + 1) * self.size]:
          if image_id not in found:
            raise DataError(f'{self.folder}: shard {shard} lacks image {image_id}; expected every picture once')
          for writer, lines in zip(writers, found[image_id], strict=True):
            writer.write_lines(lines)
      for writer in writers:
        writer.flush()
      before()

  def remove(self) -> None:
    """Removes the folder."""
    end(self.folder)

  def _name(self, shard: int, process: int) -> str:
    return f'{shard:06d}-{process}.part'


def begin(folder: Path, job: Mapping[str, Any], what: str) -> None:
  """Makes the folder of an unfinished job with `job.json`, unless it is there: then the job goes on.

  Args:
    folder: holds the job's parts, files that end with .part.
    job: what decides the results, in values that JSON has.
    what: the word for the job in messages.

  Raises DataError if the folder is of another job; the message names what differs.
  """
  path = folder / _JOB
  if path.is_file():
    try:
      found = reading.json_file(path, 'what describes a job')
      differs = [key for key in job if found.get(key) != job[key]]
    except (ValueError, AttributeError):
      differs = ['description']
    if differs:
      raise DataError(
        f'{folder} holds an unfinished {what} of which the {differs[0]} differs; expected the same '
        f'{what}, another --out, or that folder removed'
      )
    return
  folder.mkdir(parents=True, exist_ok=True)
  for stale in folder.glob('*.part'):
    if _OWN.fullmatch(stale.name):
      stale.unlink()
  files.write(path, json.dumps(job, indent=2) + '\n')


def end(folder: Path) -> None:
  """Removes `job.json` and the parts of a job, and their folder unless it holds files of somebody else."""
  with contextlib.suppress(OSError):
    for path in folder.iterdir():
      if _OWN.fullmatch(path.name):
        path.unlink()
    folder.rmdir()


def _wait(part: Path, process: int, count: int, seconds: float) -> None:
  end = time.monotonic() + seconds
  while not part.is_file():
    if time.monotonic() > end:
      raise DataError(
        f'{part} does not come: process {process} of {count} has written no detections {seconds:g} s after this one; '
        'expected all to run, with one --out that all see'
      )
    time.sleep(0.05)


def _read(part: Path, methods: int) -> dict[int, list[list[str]]]:
  """{image id: for each method, the lines of its results}."""
  lines, at, found = part.read_text(encoding='utf-8').splitlines(), 0, {}
  while at < len(lines):
    try:
      image_id, counts = json.loads(lines[at])
      whole = len(counts) == methods and at + sum(counts) < len(lines)
    except (ValueError, TypeError):
      whole = False
    if not whole:
      raise DataError(f'{part}, line {at + 1} does not begin a picture with its results; delete the file')
    at, found[int(image_id)] = at + 1, []
    for count in counts:
      found[int(image_id)].append(lines[at : at + count])
      at += count
  return found
