"""Flips single bits of files, and says whether checks of the product notice."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.helpers.small_experiment import run

# What holds no value of ours: text for people, and the times of a save, which Orbax keeps.
# `config.json` is sealed in a bundle alone: people edit that of a work directory.
NO_VALUE = ('README.md', '_CHECKPOINT_METADATA', 'commit_success.txt')


@contextlib.contextmanager
def flipped(path: Path, bit: int) -> Iterator[None]:
  """Flips a bit of a file until the block ends."""
  content = path.read_bytes()
  changed = bytearray(content)
  changed[bit // 8] ^= 1 << bit % 8
  path.write_bytes(changed)
  try:
    yield
  finally:
    path.write_bytes(content)


def places(files: Sequence[Path], count: int, seed: int) -> Iterator[tuple[Path, int]]:
  """Yields `count` bits (file, place), half of them drawn from all bits, and half from a file drawn from all."""
  rng, sizes = np.random.default_rng(seed), np.array([8 * path.stat().st_size for path in files])
  files, sizes = [path for path, size in zip(files, sizes, strict=True) if size], sizes[sizes > 0]
  for number in range(count):
    chosen = int(rng.choice(len(files), p=sizes / sizes.sum() if number % 2 else None))
    yield files[chosen], int(rng.integers(sizes[chosen]))


class Noticed(NamedTuple):
  """How many flips were noticed, by whom, and which changed a value unnoticed: (file, bit)."""

  by_reading: int
  by_check: int
  without_a_value: int
  lost: list[tuple[str, int]]


def notice(folder: Path, count: int, seed: int, read: Callable[[], Any], *, leave: Sequence[str] = ()) -> Noticed:
  """Flips bits in the files of a folder, one at a time, and says what `read` and `vild-jax check` notice.

  Args:
    folder: its files are flipped, and put right again.
    count, seed: how many flips, and which.
    read: loads the folder and returns its values, to compare with those before; ValueError, OSError and RuntimeError
      (of ArrayRecord) mean that the flip was noticed.
    leave: names of files that are not flipped, besides `NO_VALUE`.
  """
  files = sorted(path for path in folder.rglob('*') if path.is_file() and path.name not in (*NO_VALUE, *leave))
  assert _check(folder) == 0
  whole, found, lost = read(), Counter(), []
  for path, bit in places(files, count, seed):
    with flipped(path, bit):
      try:
        changed = read() != whole
      except (ValueError, OSError, RuntimeError):
        found['reading'] += 1
        continue
      code = _check(folder)
      assert code in (0, 2), (path, bit, code)
      if code == 2:
        found['check'] += 1
      elif changed:
        lost.append((path.relative_to(folder).as_posix(), bit))
      else:
        found['nothing'] += 1
  return Noticed(found['reading'], found['check'], found['nothing'], lost)


def _check(folder: Path) -> int:
  with contextlib.redirect_stdout(io.StringIO()):
    return run('check', folder)
