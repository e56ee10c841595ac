"""Compares the shards of a region store with the SHA-256 in its manifest, once, while a training runs."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vild_jax.data.regions.store import RegionStore
from vild_jax.data.schema import DataError
from vild_jax.runtime import digests


class _Over(Exception):
  """Ends the reading of a file."""


def check(shard: Path, expected: str, told: Callable[[int], Any] = lambda count: None) -> None:
  """Raises DataError unless a shard has the SHA-256 that the manifest says; `told` is as in `digests.sha256`."""
  if digests.sha256(shard, told) != expected:
    raise DataError(
      f'{shard} is not the shard that the manifest of the store lists (its SHA-256 is another); expected the store as '
      'it was written: copy it again, or make it anew. A work directory that has trained on it has learnt from it'
    )


class Verification:
  """Reads the shards of a store in a thread; a context manager that ends it.

  One thread reads and hashes, at about the speed of one core, so that it does not disturb what trains.
  """

  def __init__(self, store: RegionStore | None, part: int = 0, parts: int = 1):
    """Begins with the shards part, part + parts, part + 2 parts, …; of no store there is nothing to read."""
    self._shards = store.shards()[part::parts] if store else []
    self._over = threading.Event()
    self._pool = ThreadPoolExecutor(1, 'verify')
    self._done: Future[None] = self._pool.submit(self._run)

  def __enter__(self) -> Verification:
    return self

  def __exit__(self, *_: Any) -> None:
    self._over.set()
    self._pool.shutdown()

  def _run(self) -> None:
    with contextlib.suppress(_Over):
      for shard, expected in self._shards:
        check(shard, expected, self._told)

  def _told(self, count: int) -> None:
    del count
    if self._over.is_set():
      raise _Over

  def wait(self) -> None:
    """Waits until all shards are read. Raises DataError for the first that differs, OSError if one cannot be read."""
    if not self._done.done():
      print('waiting until the rest of the region store is compared with its checksums', file=sys.stderr)
    self._done.result()

  def watched(self, stream: Callable[[int], Iterator[Any]]) -> Callable[[int], Iterator[Any]]:
    """Returns `stream`, a function that returns an iterator, with iterators that raise what `wait` does, once known."""

    def each(start: int) -> Iterator[Any]:
      items = stream(start)
      try:
        for item in items:
          if self._done.done():
            self.wait()
          yield item
      finally:
        if close := getattr(items, 'close', None):
          close()

    return each
