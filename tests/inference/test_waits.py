"""Rates and shares of the time, by a clock that is set by hand."""

from __future__ import annotations

import pytest

from vild_jax.inference import waits


class Clock:
  """Shows the time that it was set to."""

  def __init__(self):
    self.now = 50.0

  def __call__(self):
    return self.now


def test_waits_are_shares_of_the_time_since_the_start():
  clock = Clock()
  timer = waits.Timer(clock)

  def pictures():
    for seconds in (7, 2, 1):
      clock.now += seconds
      yield seconds
    clock.now += 1  # until the end is known

  for number, _ in enumerate(timer.each(pictures(), waits.PICTURES)):
    if not timer.started:
      with timer.waiting(waits.DEVICES, images=8):
        clock.now += 100  # compiles
      timer.start()
    with timer.waiting(waits.DEVICES, images=8 if number < 2 else 4):
      clock.now += 4
    clock.now += 0.5  # work of the host
    with timer.waiting(waits.MASKS):
      clock.now += 1
  # 3 x (4 + 0.5 + 1) and 2 + 1 + 1; neither the first 7 s nor the compilation.
  assert timer.shares() == 'pictures 20 %, devices 59 %, masks 15 %'
  clock.now += 19.5
  assert timer.summary() == (
    'detected on 20 images at 0.5 images/s; of the time, waited for pictures 10 %, devices 30 %, masks 8 %'
  )
  assert timer.seconds_per_image() == pytest.approx(12 / 20)


def test_without_a_detection_there_is_nothing_to_say():
  timer = waits.Timer(Clock())
  assert list(timer.each([], waits.PICTURES)) == []
  assert timer.seconds_per_image() is None and timer.summary() == ''
  assert timer.shares() == 'pictures 0 %, devices 0 %, masks 0 %'
  timer.add(0.5, 2)
  assert timer.seconds_per_image() == 0.25 and timer.summary() == ''
  timer.start()
  assert timer.shares() == 'pictures 0 %, devices 0 %, masks 0 %'


def test_an_error_while_waiting_is_passed_on():
  timer = waits.Timer(Clock())
  timer.start()
  with pytest.raises(KeyError), timer.waiting(waits.MASKS):
    raise KeyError
