"""One look for everything that takes longer than a few seconds: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar('T')
_SECONDS_BETWEEN_LINES = 15.0
_QUIET_SECONDS = 2.0  # what takes no longer writes no line


class _Lines(tqdm):
  """A bar that writes a whole line at each refresh, for logs that understand no carriage return."""

  shown: int | None = None  # the count in the last line

  def display(self, msg: str | None = None, pos: int | None = None) -> bool:
    del pos
    self.shown = self.n
    self.fp.write((msg if msg is not None else str(self)) + '\n')
    self.fp.flush()
    return True

  def close(self) -> None:
    """Writes the last line, unless the work was done before anybody wondered; tqdm would add an empty one."""
    if not self.disable:
      self.disable = True
      type(self)._decr_instances(self)
      if time.time() - self.start_t > _QUIET_SECONDS and self.shown != self.n:
        self.display()


def bar(total: int | None, description: str, *, unit: str = 'it', initial: int = 0, disable: bool = False) -> tqdm:
  """A tqdm bar on stderr, unless `disable`: `update(n)`, `set_postfix_str(text)`, `close()`; also a context manager."""
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
    ncols=100,
    disable=disable,
    mininterval=_SECONDS_BETWEEN_LINES,
    maxinterval=_SECONDS_BETWEEN_LINES,
    delay=_QUIET_SECONDS,
  )


def track(items: Iterable[T], description: str, *, total: int | None = None, unit: str = 'it') -> Iterable[T]:
  """Yields `items` under a bar."""
  with bar(total if total is not None else len(items), description, unit=unit) as progress:  # type: ignore[arg-type]
    for item in items:
      yield item
      progress.update()
