"""Measures how fast a detection on a data set is, and what it waits for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar('T')
PICTURES, DEVICES, MASKS = 'pictures', 'devices', 'masks'  # what a detection waits for


class Timer:
  """Measures from `start` on, which is when the programs are compiled; until then nothing counts.

  The devices work while the detection waits for them, and mostly rest while it waits for pictures (which are read and
  decoded) or for masks (which are encoded). What is left of the time is its own work on this host.
  """

  def __init__(self, clock: Callable[[], float] = time.perf_counter):
    self._clock = clock
    self._begun: float | None = None
    self._seconds, self._images = 0.0, 0
    self._waited = dict.fromkeys((PICTURES, DEVICES, MASKS), 0.0)

  @property
  def started(self) -> bool:
    """Tells whether `start` was called."""
    return self._begun is not None

  def start(self) -> None:
    """Begins to measure."""
    self._begun = self._clock()

  def add(self, seconds: float, images: int) -> None:
    """Adds the `seconds` that the detection on `images` pictures took, those that only fill up a batch left out."""
    self._seconds, self._images = self._seconds + seconds, self._images + images

  def seconds_per_image(self) -> float | None:
    """Returns the mean time of a picture; None if nothing was added, as when all detections were there already."""
    return self._seconds / self._images if self._images else None

  @contextlib.contextmanager
  def waiting(self, what: str, images: int = 0) -> Iterator[None]:
    """Counts the time of the block as waiting for `what`; with `images` also as that of the detection on so many."""
    begun = self._clock()
    yield
    if self.started:
      seconds = self._clock() - begun
      self._waited[what] += seconds
      if images:
        self.add(seconds, images)

  def each(self, items: Iterable[T], what: str) -> Iterator[T]:
    """Yields `items`, and counts the time until each one comes as waiting for `what`."""
    items = iter(items)
    while True:
      with self.waiting(what):
        item = next(items, _END)
      if item is _END:
        return
      yield item

  def shares(self) -> str:
    """Returns what shares of the time so far were waits, as text."""
    passed = self._clock() - self._begun if self.started else 0.0
    return ', '.join(f'{what} {100 * waited / passed if passed else 0:.0f} %' for what, waited in self._waited.items())

  def summary(self) -> str:
    """Returns a line that says how fast the detection was and what it waited for; empty if it detected nothing."""
    if not self.started or not self._images:
      return ''
    rate = self._images / max(self._clock() - self._begun, 1e-9)
    return f'detected on {self._images:,} images at {rate:.1f} images/s; of the time, waited for {self.shares()}'


_END = object()
