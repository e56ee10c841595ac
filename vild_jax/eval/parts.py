"""Writes the results of several processes: each process writes a part, a file of its own, and one merges the parts.

Processes exchange files, not arrays, because results are large and differ in size between pictures. A part appears only
when it is complete. Its name contains the number of the run, so the parts of another run are never merged.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vild_jax.data.schema import DataError
from vild_jax.eval.results import Result, ResultsWriter
from vild_jax.runtime import files

WAIT_SECONDS = 600  # processes end at about the same time; this leaves time for slow file systems


class PartWriter:
  """Streams the results of some pictures, in the order of the data set, to a part of a results file.

  The part appears, complete, when the `with` block ends without an error.
  """

  def __init__(self, results: str | Path, run: str, index: int):
    """Takes the results file that the parts become, and `run`, a text that all processes of this run alone share."""
    self._path = _part(Path(results), run, index)
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> PartWriter:
    self._path.parent.mkdir(parents=True, exist_ok=True)
    temporary = self._stack.enter_context(files.replacing(self._path))
    self._file = self._stack.enter_context(temporary.open('w', encoding='ascii'))
    return self

  def write(self, image_id: int, results: Sequence[Result]) -> None:
    """Appends all results of one picture."""
    self._file.write(json.dumps([int(image_id), list(results)], allow_nan=False) + '\n')

  def __exit__(self, *error: Any) -> None:
    self._stack.__exit__(*error)


def merge(
  results: str | Path, run: str, count: int, image_ids: Sequence[int], *, wait_seconds: float = WAIT_SECONDS
) -> None:
  """Waits for the parts of `count` processes, writes them as one results file, and removes them.

  Args:
    results: the results file; it is the same as if one process had written it.
    run: the same text as for the writers.
    count: the number of parts.
    image_ids: all pictures in the order of the data set; the file and each part have this order.
    wait_seconds: how long to wait for the last part.

  Raises:
    DataError: if a part does not appear or is damaged, or if a picture is unknown, in two parts or in no part.
  """
  parts = [_part(Path(results), run, index) for index in range(count)]
  _wait(parts, wait_seconds)
  place = {int(image_id): i for i, image_id in enumerate(image_ids)}
  with contextlib.ExitStack() as stack:
    writer = stack.enter_context(ResultsWriter(results))
    streams = [_pictures(stack.enter_context(part.open(encoding='ascii')), part, place) for part in parts]
    heads = [next(stream, None) for stream in streams]
    for i, image_id in enumerate(image_ids):
      holder = next((k for k, head in enumerate(heads) if head is not None and head[0] == i), None)
      if holder is None:
        raise DataError(
          f'the {count} parts of {results} lack image {image_id}, or it is out of order; expected every '
          'picture of the data set once'
        )
      writer.write(int(image_id), heads[holder][1])
      heads[holder] = next(streams[holder], None)
    if any(head is not None for head in heads):
      raise DataError(f'the {count} parts of {results} hold a picture twice; expected every picture once')
  for part in parts:
    part.unlink()


def remove_parts(results: str | Path) -> None:
  """Removes the parts that interrupted runs have left."""
  results = Path(results)
  for pattern in (f'.{results.name}.*.part', f'..{results.name}.*.part.*.tmp'):
    for stale in results.parent.glob(pattern):
      stale.unlink(missing_ok=True)


def _part(results: Path, run: str, index: int) -> Path:
  return results.with_name(f'.{results.name}.{run}-{index}.part')


def _wait(parts: Sequence[Path], seconds: float) -> None:
  end = time.monotonic() + seconds
  while missing := [index for index, part in enumerate(parts) if not part.is_file()]:
    if time.monotonic() > end:
      raise DataError(
        f'{parts[missing[0]]} does not come: process {missing[0]} of {len(parts)} has written no '
        f'results {seconds:g} s after this one; expected all to run, with one --out that all see'
      )
    time.sleep(0.05)


def _pictures(lines: Iterator[str], part: Path, place: dict[int, int]) -> Iterator[tuple[int, list[Result]]]:
  """(place in the data set, results) of each picture of a part."""
  for number, line in enumerate(lines, 1):
    try:
      image_id, found = json.loads(line)
      where = place[image_id]
    except (ValueError, TypeError, KeyError):
      raise DataError(
        f'{part}, line {number} is not a picture of the data set with its results; expected what a process '
        'of this run wrote'
      ) from None
    yield where, found
