"""Plans one batch, or searches the largest batch that fits, by several compilations."""

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

_FARTHEST = 64  # times the largest batch that fits: no guess goes beyond


def planned(config: Config, of: Target, *, fit: bool = False, **how: Any) -> dict[str, Any]:
  """`plan`, with `fit` of the largest global batch that fits (of the smallest, where none does).

  `tried` is then {batch: bytes needed on a device}. Raises ValueError if nobody knows what memory there is.
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
  """The largest number from 1 that fits, if all smaller ones do; 0 if none does.

  A measurement is a compilation of minutes, so the next number to try is where the line through the last two
  measurements reaches what there is. The line is a guess (a compiler that is short of memory computes twice what it
  cannot keep): beyond it steps double, and between a number that fits and one that does not every other guess is the
  middle.

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
