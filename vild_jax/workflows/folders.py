"""Does what the first process of a run does for all, such as locking a folder; all of them stop where it cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vild_jax.runtime import locks


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Keeps other runs out of `folder` until the block ends; every process of the run must call it.

  Raises FolderInUse in every process if another run works there, OSError if the folder cannot be written.
  """
  with contextlib.ExitStack() as stack:
    by_the_first(lambda: stack.enter_context(locks.locked(folder)), f'lock {folder}', locks.FolderInUse)
    yield


def by_the_first(do: Callable[[], Any], what: str, kind: type[Exception] = ValueError) -> None:
  """Calls `do` in the first process of a run, while the others wait; every process of the run must call this.

  A ValueError or OSError of `do` is raised in the first process, and in the others one of the
  type `kind`, which says that process 0 cannot do `what`.
  """
  problem: Exception | None = None
  if jax.process_index() == 0:
    try:
      do()
    except (ValueError, OSError) as error:
      problem = error
  if jax.process_count() > 1:
    is_done = multihost_utils.broadcast_one_to_all(np.int32(problem is None))
    if not is_done and problem is None:
      problem = kind(f'process 0 cannot {what}; expected its output to say why')
  if problem is not None:
    raise problem
