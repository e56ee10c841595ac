"""Flips single bits of files, and says whether checks of the product notice."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

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


def unnoticed(
  folder: Path, count: int, seed: int, read: Callable[[], Any], *, leave: Sequence[str] = ()
) -> list[tuple[str, int, str]]:
  """Flips bits in the files of `folder`, one at a time; returns those that neither `read` nor `vild-jax check` notices.

  `read` loads the folder and returns its values, which are compared with those before: a flip that changes no value
  need not be noticed. An exit code of `check` other than 0 and 2 is an error.

  Args:
    folder: its files are flipped, and put right again.
    count, seed: how many flips, and which.
    read: returns values with `==`; ValueError or OSError mean that the flip was noticed.
    leave: names of files that are not flipped, besides `NO_VALUE`.
  """
  files = sorted(path for path in folder.rglob('*') if path.is_file() and path.name not in (*NO_VALUE, *leave))
  whole, lost = read(), []
  for path, bit in places(files, count, seed):
    with flipped(path, bit):
      try:
        if read() == whole:
          continue
      except (ValueError, OSError):
        continue
      with contextlib.redirect_stdout(io.StringIO()):
        code = run('check', folder)
      assert code in (0, 2), (path, bit, code)
      if code == 0:
        lost.append((path.relative_to(folder).as_posix(), bit, 'changed a value'))
  return lost
