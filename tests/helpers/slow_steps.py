"""`vild-jax`, every training step of which takes `SECONDS` longer: a signal is noticed before a short run has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vild_jax import cli
from vild_jax.train import preemption

SECONDS = 0.4  # JAX looks for the signal once a second


def main(words: Sequence[str]) -> int:
  reached = preemption.Notice.reached

  def slowly(notice: preemption.Notice, step: int) -> bool:
    time.sleep(SECONDS)
    return reached(notice, step)

  preemption.Notice.reached = slowly
  return cli.main(words)
