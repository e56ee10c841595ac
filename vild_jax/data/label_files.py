"""Reads and checks the files that repeat a split's records without their pictures; counts objects by category.

The metadata of a split has the counts, and the sizes and hashes of the files. Data sets of older versions have neither,
and their files are checked by the number of records alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vild_jax.data.schema import Category, DataError, Example
from vild_jax.runtime import digests

_AT_ONCE = 1024  # records that are read together
Described = list[dict[str, Any]]


class Counts(NamedTuple):
  """Counts the objects of a category: those that are no crowds, how many of these have a mask, and the crowds."""

  objects: int
  masked: int
  crowds: int


def count(
  categories: Sequence[Category], category_ids: np.ndarray, is_crowd: np.ndarray, has_mask: np.ndarray
) -> dict[int, Counts]:
  """Returns what there is of each category, by its id; the arrays [M] are int64, bool and bool."""
  ids = np.array(sorted(category.id for category in categories), np.int64)
  of = lambda chosen: np.bincount(np.searchsorted(ids, category_ids[chosen]), minlength=len(ids)).tolist()
  columns = of(~is_crowd), of(~is_crowd & has_mask), of(is_crowd)
  return {key: Counts(*row) for key, row in zip(ids.tolist(), zip(*columns, strict=True), strict=True)}


def described(paths: Sequence[Path]) -> Described:
  """Returns {'bytes', 'sha256'} of each file, for the metadata."""
  return [{'bytes': path.stat().st_size, 'sha256': digests.sha256(path)} for path in paths]


def problem(paths: Sequence[Path], expected: Described | None, told: Callable[[int], Any] = lambda count: None) -> str:
  """Returns what is wrong with the files, in words, `expected` being what `described` said of them; '' if nothing is.

  Files are read whole only if their sizes are right; `told` is as in `digests.sha256`.
  """
  if missing := [path for path in paths if not path.is_file()]:
    return f'{missing[0]} is missing'
  if expected is None:
    return ''
  if len(paths) != len(expected):
    return f'{paths[0] if paths else "no file"} is one of {len(paths)} files; expected {len(expected)}'
  for path, one in zip(paths, expected, strict=True):
    if (size := path.stat().st_size) != one['bytes']:
      return f'{path} has {size} bytes; expected {one["bytes"]}'
    if digests.sha256(path, told) != one['sha256']:
      return f'{path} has another content than was written'
  return ''


def read(paths: Sequence[Path], count: int, expected: Described | None) -> Iterator[Example]:
  """Yields the `count` examples of the files, in order, with an empty picture; `expected` is as in `problem`.

  Raises DataError if the files are not those of the split, or cannot be read.
  """
  from array_record.python import array_record_module

  from vild_jax.data.tfds_builders import detection

  advice = 'prepare the split again, which restores them'
  if wrong := problem(paths, expected):
    raise DataError(f'{wrong}; {advice}')
  features = detection.label_features()
  try:
    readers = [array_record_module.ArrayRecordReader(str(path)) for path in paths]
    if (found := sum(reader.num_records() for reader in readers)) != count:
      raise DataError(f'{paths[0]} and its like hold {found} records; expected {count}: {advice}')
    for reader in readers:
      for first in range(0, reader.num_records(), _AT_ONCE):
        for record in reader.read(first, min(first + _AT_ONCE, reader.num_records())):
          yield detection.from_features(features.deserialize_example_np(record))
      reader.close()
  except DataError:
    raise
  except (OSError, RuntimeError, ValueError, IndexError, KeyError) as error:  # of ArrayRecord, protobuf and JSON
    raise DataError(f'{paths[0]} or its like cannot be read ({type(error).__name__}); {advice}') from error
