"""One thread that owns the detector; requests that wait for it are handed over together."""

from __future__ import annotations

import contextlib
import itertools
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
      work: gets at most `most` jobs, each with the future that it has to complete; what it raises completes the rest.
      places: how many jobs are accepted at the same time.
      most: how many are handed over together.
    """
    self._work, self._places, self._most = work, places, most
    self._waiting: dict[Future, Job] = {}  # in the order in which they came
    self._changed, self._closed = threading.Condition(), False
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
    """Hands over a job that has a place; one whose future is cancelled before it begins is forgotten at once.

    Its place is free then, so that without forgetting a slow detector would gather the pictures of all who have left.
    """
    future: Future = Future()
    with self._changed:
      self._waiting[future] = job
      self._changed.notify()
    future.add_done_callback(self._forget)
    return future

  def close(self) -> None:
    """Ends the thread when all jobs that were submitted are done."""
    self.stopping = True
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join()

  def _forget(self, future: Future) -> None:
    with self._changed:
      self._waiting.pop(future, None)

  def _next(self) -> list[tuple[Job, Future]]:
    """Waits for jobs and takes them; none are left when the batcher is closed and this is empty."""
    with self._changed:
      while self._changed.wait_for(lambda: self._waiting or self._closed) and self._waiting:
        first = list(itertools.islice(self._waiting.items(), self._most))
        for future, _ in first:
          del self._waiting[future]
        if batch := [(job, future) for future, job in first if future.set_running_or_notify_cancel()]:
          return batch
      return []

  def _run(self) -> None:
    while batch := self._next():
      try:
        self._work(batch)
      except Exception as error:  # whatever it is: without this thread nobody would ever be answered
        for _, future in batch:
          if not future.done():
            future.set_exception(error)
      del batch  # and the pictures in it, while nobody asks
