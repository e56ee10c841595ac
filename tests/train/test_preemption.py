"""SIGTERM that something swallowed before the loop still ends the training, after its first step."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from vild_jax.runtime import processes
from vild_jax.train import preemption


def told() -> None:
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(5)


def test_a_signal_that_an_import_swallows_is_not_lost():
  with processes.ending_when_told():
    with contextlib.suppress(BaseException):  # as the imports of some extensions do
      told()
    with preemption.Notice(0) as notice:
      assert notice.reached(1)
  with processes.ending_when_told(), preemption.Notice(0) as notice:
    assert not notice.reached(1)


def test_a_signal_that_an_import_makes_another_error_of_is_what_it_was():
  with pytest.raises(processes.Preempted, match='while no step ran'), processes.ending_when_told():
    try:
      told()
    except BaseException:
      raise ImportError('Encountered an error while initializing the extension.') from None
  with pytest.raises(ImportError), processes.ending_when_told():
    raise ImportError('x')
