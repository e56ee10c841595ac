"""Turns Python's garbage collector off for a while."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def off() -> Iterator[None]:
  """Turns the garbage collector off: it would walk millions of new objects, none of them garbage, again and again."""
  was_on = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if was_on:
      gc.enable()
