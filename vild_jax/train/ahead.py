"""Fetches batches, and puts them on the devices, in a thread of its own, before the loop asks for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar('T')
COUNT = 2  # items that are made before they are asked for
_PATIENCE = 30.0  # seconds that `close` waits for an item that is being made


class Ahead(Generic[T]):
  """Iterates over `place(item)` of the items of an iterator, and makes two of them before they are asked for.

  Errors of the iterator and of `place` are raised where their item would be returned, in the caller's thread.
  """

  def __init__(self, items: Iterator[Any], place: Callable[[Any], T]):
    self._items, self._place = items, place
    self._made: queue.Queue = queue.Queue(COUNT - 1)  # one more is in the hands of the thread
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._run, name='batches ahead', daemon=True)
    self._thread.start()

  def __iter__(self) -> Ahead[T]:
    return self

  def __next__(self) -> T:
    item, error = self._made.get()
    if error is not None:
      self._made.put((None, error))  # so that it is raised again, rather than waited for
      raise error
    return item

  @property
  def ready(self) -> bool:
    """Tells whether the next item can be had without waiting."""
    return not self._made.empty()

  def close(self) -> None:
    """Ends the thread and closes the iterator, if it can be closed."""
    self._closed.set()
    self._discard()
    self._thread.join(_PATIENCE)
    # An iterator that still makes an item cannot be closed.
    if not self._thread.is_alive() and hasattr(self._items, 'close'):
      self._items.close()

  def _discard(self) -> None:
    """Frees the places of items that nobody will take, so that the thread does not wait for one."""
    try:
      while True:
        self._made.get_nowait()
    except queue.Empty:
      pass

  def _run(self) -> None:
    try:
      for item in self._items:
        self._made.put((self._place(item), None))
        if self._closed.is_set():
          return
      error: BaseException = StopIteration()
    except BaseException as raised:
      error = raised
    self._made.put((None, error))
