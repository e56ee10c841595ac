"""Starts processes that work for this one, and end when it ends in whatever way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def pool(count: int, setup: Callable[..., None] | None = None, *arguments: Any) -> ProcessPoolExecutor:
  """Returns a pool of `count` processes, each a program of its own; `setup(*arguments)` runs in each first.

  They are not forks, which a process with threads may not make. So the main program must be importable again: it keeps
  its work below `if __name__ == '__main__'`.
  """
  context = multiprocessing.get_context('spawn')
  return ProcessPoolExecutor(count, context, initializer=_begin, initargs=(setup, arguments))


def prepare() -> None:
  """Makes this process end when its parent ends, and ignore signals that are sent to the whole group."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a preempted run needs batches until it has saved a checkpoint

  def end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _begin(setup: Callable[..., None] | None, arguments: tuple) -> None:
  prepare()
  if setup is not None:
    setup(*arguments)
