"""SIGTERM as a notice: whoever owns the machines wants them back, and there is time for one more save."""

from __future__ import annotations

import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Notice:
  """A context manager in which SIGTERM is noted and no longer ends the process.

  One process notes it itself. Once `jax.distributed` is set up, JAX has taken the signal: a notice to any process
  reaches all, and they agree on one step to stop after.
  """

  def __init__(self, step: int):
    """Takes the step that training starts from: notices count from there on, the first compilation included."""
    self._agreed = jax.distributed.is_initialized()
    self._noted, self._old = False, None
    self.reached(step)

  def __enter__(self) -> Notice:
    if not self._agreed and threading.current_thread() is threading.main_thread():  # Python hands signals to no other
      self._old = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *_: Any) -> None:
    if self._old is not None:
      signal.signal(signal.SIGTERM, self._old)

  def _note(self, *_: Any) -> None:
    self._noted = True

  def reached(self, step: int) -> bool:
    """Whether to save and stop after this step. Every process must ask after every step."""
    return multihost_utils.reached_preemption_sync_point(step) if self._agreed else self._noted
