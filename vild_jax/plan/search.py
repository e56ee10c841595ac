"""Plans one batch size, or searches for the largest one that fits, by several compilations."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from typing import Any

from vild_jax.config import Config
from vild_jax.plan.compile import plan
from vild_jax.plan.report import verdict
from vild_jax.plan.topology import Target, devices
from vild_jax.train import sharding

_FARTHEST = 64  # a guess is at most this many times the largest batch known to fit


def planned(config: Config, of: Target, *, fit: bool = False, **how: Any) -> dict[str, Any]:
  """Plans the batch of a config, or with `fit` the largest global batch that fits (the smallest, if none fits).

  The result is that of `plan`; with `fit` it also has `largest_batch` (0 if none fits) and `tried`: {batch: bytes
  needed on a device}. Raises ValueError if the memory of the devices is not known. `how` is passed to `plan`.
  """
  if not fit:
    return plan(config, of, **how)
  mesh = sharding.make_mesh(config.mesh, devices(of))
  unit = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES) * config.train.accumulate
  plans: dict[int, dict[str, Any]] = {}

  def measure(units: int) -> tuple[bool, int, int]:
    data = dataclasses.replace(config.data, batch_size=units * unit)
    plans[units] = found = plan(dataclasses.replace(config, data=data), of, **how)
    memory = found['memory']
    if memory['available'] is None:
      raise ValueError(f'how much memory a device of {of.topology} has is not known; expected --hbm GIB beside --fit')
    print(f'batch {units * unit}: {verdict(found)}', file=sys.stderr, flush=True)
    return found['fits'], memory['needed'], memory['available']

  best = largest_that(measure)
  tried = {units * unit: found['memory']['needed'] for units, found in sorted(plans.items())}
  return plans[max(best, 1)] | {'largest_batch': best * unit, 'tried': tried}


def largest_that(measure: Callable[[int], tuple[bool, int, int]]) -> int:
  """Returns the largest number from 1 that fits, if all smaller ones fit too; 0 if none fits.

  A measurement is a compilation of minutes, so the next number to try is where the straight line through the last two
  measurements reaches the available memory. The line is only a guess, because a compiler that is short of memory
  computes twice what it cannot keep. So as long as every number fits, steps at least double, and between a number that
  fits and one that does not, every second guess is the middle.

  Args:
    measure: a number -> (whether it fits, bytes needed, bytes available).
  """
  fits, needs, available = {}, [], 0

  def try_out(number: int) -> None:
    nonlocal available
    fits[number], needed, available = measure(number)
    needs.append((number, needed))

  def guess() -> int:
    (a, of_a), (b, of_b) = sorted(needs[-2:])
    return b + (available - of_b) * (b - a) // (of_b - of_a) if of_b > of_a else 2 * b

  try_out(1)
  if fits[1]:
    try_out(2)
  step, middle = 0, False
  while True:
    good = max((number for number, fit in fits.items() if fit), default=0)
    bad = min((number for number, fit in fits.items() if not fit), default=None)
    if bad is None:
      number, step = max(min(guess(), _FARTHEST * good), good + max(step, 1)), 2 * step or 1
    elif bad - good == 1:
      return good
    else:
      number = guess()
      if middle or not good < number < bad:
        number = (good + bad) // 2
      middle = not middle
    try_out(number)
