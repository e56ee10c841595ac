"""Shows the progress of everything that takes more than a few seconds: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sized
from typing import TypeVar

from tqdm import tqdm

T = TypeVar('T')
_SECONDS_BETWEEN_LINES = 15.0
_QUIET_SECONDS = 2.0  # shorter work writes no line


class _Lines(tqdm):
  """Writes a whole line at each refresh, for logs that do not support carriage returns."""

  shown: int | None = None  # the count in the last line

  def display(self, msg: str | None = None, pos: int | None = None) -> bool:
    del pos
    self.shown = self.n
    self.fp.write((msg if msg is not None else str(self)) + '\n')
    self.fp.flush()
    return True

  def close(self) -> None:
    """Writes the last line, unless the work took less than `_QUIET_SECONDS`; tqdm would also add an empty line."""
    if not self.disable:
      self.disable = True
      type(self)._decr_instances(self)
      if time.time() - self.start_t > _QUIET_SECONDS and self.shown != self.n:
        self.display()


def bar(total: int | None, description: str, *, unit: str = 'it', initial: int = 0, disable: bool = False) -> tqdm:
  """Returns a tqdm bar on stderr, which is also a context manager; `disable` hides it."""
  if sys.stderr.isatty():
    return tqdm(
      total=total, desc=description, unit=unit, initial=initial, dynamic_ncols=True, ascii=True, disable=disable
    )
  return _Lines(
    total=total,
    desc=description,
    unit=unit,
    initial=initial,
    ascii=True,
    ncols=120,
    disable=disable,
    mininterval=_SECONDS_BETWEEN_LINES,
    maxinterval=_SECONDS_BETWEEN_LINES,
    delay=_QUIET_SECONDS,
  )


def track(
  items: Iterable[T], description: str, *, total: int | None = None, unit: str = 'it', disable: bool = False
) -> Iterable[T]:
  """Yields `items` and shows their progress in a bar, unless `disable` hides it; their number may be unknown."""
  if total is None and isinstance(items, Sized):
    total = len(items)
  with bar(total, description, unit=unit, disable=disable) as progress:
    for item in items:
      yield item
      progress.update()
