"""Turns SIGTERM into a checkpoint and an exit.

The loop then raises `processes.Preempted`; `cli.main` turns it into exit code 75 (`processes.EXIT_PREEMPTED`).
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from vild_jax.runtime import processes


class Notice:
  """Records SIGTERM while its context is active, instead of ending the process.

  A single process handles the signal itself. With `jax.distributed`, JAX handles it: a signal to any process reaches
  all, and they agree on one step after which they stop.
  """

  def __init__(self, step: int):
    """Takes the step that training starts from: signals count from here on, also during the first compilation."""
    self._agreed = jax.distributed.is_initialized()
    self._noted, self._old = False, None
    self.reached(step)

  def __enter__(self) -> Notice:
    if processes.was_told():
      self._noted = True
      if self._agreed:
        os.kill(os.getpid(), signal.SIGTERM)  # this time JAX hears it, and tells the others
    if (
      not self._agreed and threading.current_thread() is threading.main_thread()
    ):  # Python delivers signals to it alone
      self._old = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *_: Any) -> None:
    if self._old is not None:
      signal.signal(signal.SIGTERM, self._old)

  def _note(self, *_: Any) -> None:
    self._noted = True

  def reached(self, step: int) -> bool:
    """Returns True if training should save and stop after this step. Every process must call it after every step."""
    return multihost_utils.reached_preemption_sync_point(step) if self._agreed else self._noted
