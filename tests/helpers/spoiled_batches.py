"""`vild-jax`, whose first process trains on pictures that are not finite from step `AT` on, and whose others wait long.

A process that waits for data when another one stops is a pod that hangs, unless all look at the step before they wait.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax
import numpy as np

from vild_jax import cli
from vild_jax.workflows import training

AT = 3
WAIT = 2.0  # seconds for a batch


def main(words: Sequence[str]) -> int:
  stream = training.Training.stream

  def spoiled(opened: training.Training, start_step: int):
    for step, arrays in enumerate(stream(opened, start_step), start_step + 1):
      if jax.process_index():
        time.sleep(WAIT)
      elif step >= AT:
        arrays = {**arrays, 'image': np.full_like(arrays['image'], np.nan)}
      yield arrays

  training.Training.stream = spoiled
  return cli.main(words)
