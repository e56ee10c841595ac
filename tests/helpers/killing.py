"""`kill -9` of a command in another process, or SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from vild_jax.runtime import processes

_PATIENCE = 300  # seconds until the other process must have come so far


def rng_and_seed() -> tuple[np.random.Generator, int]:
  """Moments that are others in every run of the tests, and the number to name where one fails."""
  seed = int.from_bytes(os.urandom(2), 'big')
  return np.random.default_rng(seed), seed


def kill(
  words: Sequence[object],
  come_so_far: Callable[[], bool],
  log: Path,
  *,
  wait: float = 0.0,
  by: signal.Signals = signal.SIGKILL,
) -> None:
  """Runs `vild-jax WORDS` and kills it `wait` seconds after `come_so_far()` is true; it must not have ended by then.

  With `by=SIGTERM` it must end with the exit code that says that it has saved.

  It has the options and as many devices as this process: XLA shares its threads among them, which decides the order of
  some sums.
  """
  flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={jax.local_device_count()}'
  with log.open('wb') as output:
    process = subprocess.Popen(
      [sys.executable, '-m', 'vild_jax', *map(str, words)],
      stdout=output,
      stderr=output,
      env={**os.environ, 'XLA_FLAGS': flags},
    )
    try:
      deadline = time.monotonic() + _PATIENCE
      while not come_so_far():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.001)
      time.sleep(wait)
      if by != signal.SIGKILL:
        process.send_signal(by)
        assert process.wait(_PATIENCE) == processes.EXIT_PREEMPTED, log.read_text()
        return
    finally:
      process.send_signal(signal.SIGKILL)  # also where the test fails: it must not go on beside the others
    assert process.wait() == -signal.SIGKILL, log.read_text()
