"""The thread of the detector: what it hands over together, what it refuses, and its end."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest

from vild_jax.serve.batcher import Batcher
from vild_jax.serve.limits import Refused


def test_what_waits_is_handed_over_together_up_to_a_number():
  batches, go_on = [], threading.Event()

  def work(batch):
    go_on.wait(10)
    batches.append([job for job, _ in batch])
    for job, future in batch:
      future.set_result(-job)

  batcher = Batcher(work, places=9, most=3)
  first = batcher.submit(0)
  while not first.running():
    pass
  others = [batcher.submit(number) for number in range(1, 6)]
  assert others[1].cancel()
  go_on.set()
  assert [one.result(10) for one in (first, *others) if not one.cancelled()] == [0, -1, -3, -4, -5]
  batcher.close()
  assert batches == [[0], [1, 3, 4], [5]]


def test_places_are_given_back():
  batcher = Batcher(lambda batch: None, places=1, most=1)
  with batcher.place():
    with pytest.raises(Refused, match='1 requests wait already') as error, batcher.place():
      pass
    assert error.value.status == 429 and error.value.headers == {'retry-after': '1'}
  with pytest.raises(KeyError), batcher.place():
    raise KeyError
  assert batcher.taken == 0
  batcher.close()


def test_the_end_waits_for_what_was_submitted_and_refuses_more():
  batcher = Batcher(lambda batch: [future.set_result(job) for job, future in batch], places=9, most=2)
  futures = [batcher.submit(number) for number in range(5)]
  batcher.close()
  assert [future.result(0) for future in futures] == [0, 1, 2, 3, 4]
  with pytest.raises(Refused, match='shutting down') as error, batcher.place():
    pass
  assert error.value.status == 503


def test_what_the_work_raises_is_told_and_the_thread_lives():
  def work(batch):
    (job, future), *_ = batch
    if job == 'bad':
      raise KeyError('a defect')
    future.set_result(job)

  batcher = Batcher(work, places=9, most=1)
  with pytest.raises(KeyError, match='a defect'):
    batcher.submit('bad').result(10)
  assert batcher.submit('good').result(10) == 'good'
  batcher.close()


def test_jobs_of_those_who_left_are_not_kept_while_the_detector_is_slow():
  class Picture:
    pass

  go_on = threading.Event()

  def work(batch):
    go_on.wait(10)
    for _, future in batch:
      future.set_result(None)

  batcher = Batcher(work, places=1, most=1)
  first = batcher.submit(Picture())
  while not first.running():
    pass
  left = Picture()
  kept = weakref.ref(left)
  assert batcher.submit(left).cancel()
  del left
  gc.collect()
  assert kept() is None
  go_on.set()
  batcher.close()
