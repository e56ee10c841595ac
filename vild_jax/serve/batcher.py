"""One thread that owns the detector; requests that wait for it are handed over together."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Generic, TypeVar

from vild_jax.serve.limits import Refused, busy

Job = TypeVar('Job')


class Batcher(Generic[Job]):
  """Runs `work` on the jobs that wait, in one thread.

  A job takes a place from when it is accepted until it is answered. There are `places` of them, and what comes when all
  are taken is refused, so that neither memory nor waiting grows with the number of clients.
  """

  def __init__(self, work: Callable[[list[tuple[Job, Future]]], None], *, places: int, most: int):
    """Starts the thread.

    Args:
      work: gets at most `most` jobs, each with the future that it has to complete; must not raise.
      places: how many jobs are accepted at the same time.
      most: how many are handed over together.
    """
    self._work, self._places, self._most = work, places, most
    self._waiting: queue.SimpleQueue[tuple[Job, Future] | None] = queue.SimpleQueue()
    self.taken, self.stopping = 0, False
    self._thread = threading.Thread(target=self._run, name='detector')
    self._thread.start()

  def check(self) -> None:
    """Raises Refused if a job would be refused now."""
    if self.stopping:
      raise Refused(503, 'the service is shutting down; expected another one')
    if self.taken >= self._places:
      raise busy(f'{self.taken} requests wait already')

  @contextlib.contextmanager
  def place(self) -> Iterator[None]:
    """Takes a place while the context lasts; raises Refused if there is none. For one thread alone."""
    self.check()
    self.taken += 1
    try:
      yield
    finally:
      self.taken -= 1

  def submit(self, job: Job) -> Future:
    """Hands over a job that has a place; a future that is cancelled before its job begins costs nothing."""
    future: Future = Future()
    self._waiting.put((job, future))
    return future

  def close(self) -> None:
    """Ends the thread when all jobs that were submitted are done."""
    self.stopping = True
    self._waiting.put(None)
    self._thread.join()

  def _run(self) -> None:
    ending = False
    while not ending:
      batch, one = [], self._waiting.get()
      with contextlib.suppress(queue.Empty):
        while one is not None:
          if one[1].set_running_or_notify_cancel():
            batch.append(one)
          if len(batch) == self._most:
            break
          one = self._waiting.get_nowait()
      ending = one is None
      if batch:
        self._work(batch)
