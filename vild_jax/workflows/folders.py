"""Locks an output folder for all processes of one run: the first holds the lock, and all stop where it cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from vild_jax.runtime import locks


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Keeps other runs out of `folder` until the block ends; every process of the run must call it.

  Raises FolderInUse in every process if another run works there, OSError if the folder cannot be written.
  """
  problem: Exception | None = None
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      try:
        stack.enter_context(locks.locked(folder))
      except (locks.FolderInUse, OSError) as error:
        problem = error
    if jax.process_count() > 1:
      is_held = multihost_utils.broadcast_one_to_all(np.int32(problem is None))
      if not is_held and problem is None:
        problem = locks.FolderInUse(f'process 0 cannot lock {folder}; expected its output to say why')
    if problem is not None:
      raise problem
    yield
