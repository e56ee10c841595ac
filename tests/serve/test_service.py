"""The service without its routes: what the threads do, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading

import numpy as np
import pytest

from tests.helpers.encoded import encode
from tests.helpers.fake_detector import FakeDetector
from vild_jax.serve import service as service_lib
from vild_jax.serve.limits import Limits, Refused

PICTURE = encode(np.zeros((8, 12, 3), np.uint8))


@pytest.fixture
def make():
  with contextlib.ExitStack() as stack:

    def one(detector: FakeDetector) -> service_lib.Service:
      service = service_lib.Service(detector, Limits(), 1)
      stack.callback(service.close)
      return service

    yield one


async def until(true) -> None:
  async with asyncio.timeout(10):
    while not true():
      await asyncio.sleep(0.005)


def test_masks_that_take_long_keep_nobody_from_the_detector(make):
  go_on, detector = threading.Event(), FakeDetector()
  detector.finish = lambda found: found if 'quick' in found.names else go_on.wait(10) and found
  service = make(detector)

  async def both():
    slow = asyncio.create_task(service.answer(b'{"classes": ["slow"]}', PICTURE))
    await until(lambda: detector.found)
    quick = await asyncio.wait_for(service.answer(b'{"classes": ["quick"]}', PICTURE), 5)
    assert not slow.done()
    go_on.set()
    return quick.classes, (await slow).classes

  assert asyncio.run(both()) == (['quick'], ['slow'])


def test_what_nobody_has_foreseen_is_told_in_json_and_in_the_log(make, capsys):
  detector = FakeDetector()

  def prepare(pixels):
    raise MemoryError('no room')

  detector.prepare = prepare
  with pytest.raises(Refused) as error:
    asyncio.run(make(detector).answer(b'{}', PICTURE))
  assert error.value.status == 500 and 'room' not in error.value.reason
  assert 'MemoryError: no room' in capsys.readouterr().err


def test_bodies_of_those_who_left_are_not_kept_while_all_threads_are_busy(make):
  go_on, detector, busy = threading.Event(), FakeDetector(), []

  def prepare(pixels):
    busy.append(pixels)
    go_on.wait(10)
    return pixels.shape[:2]

  detector.prepare = prepare
  service = make(detector)

  async def leave():
    others = [asyncio.create_task(service.answer(b'{}', PICTURE)) for _ in range(service_lib._THREADS)]
    await until(lambda: len(busy) == len(others))
    body = bytes(bytearray(PICTURE))
    held = sys.getrefcount(body)
    one = asyncio.create_task(service.answer(b'{}', body))
    await asyncio.sleep(0.02)
    one.cancel()
    await asyncio.wait([one])
    del one
    gc.collect()
    left = sys.getrefcount(body)
    go_on.set()
    await asyncio.gather(*others)
    assert left == held

  asyncio.run(leave())
