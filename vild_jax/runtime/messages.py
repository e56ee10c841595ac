"""Shortens the messages of errors, and catches what libraries write past Python."""

from __future__ import annotations

import contextlib
import os
import reprlib
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

_REPR = reprlib.Repr()
_REPR.maxstring = 200


def first_line(error: BaseException) -> str:
  """Returns the first line of the message of an error, or its type if there is none."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(value: Any) -> str:
  """Returns a value that a file holds for a message: in one line, and not too long."""
  return _REPR.repr(value)


def is_panic(error: BaseException) -> bool:
  """Says whether an error is a panic of a library in Rust, which Python does not count among its Exceptions."""
  return type(error).__module__ == 'pyo3_runtime' and not isinstance(error, Exception)


def threads_in_one_line(who: str) -> None:
  """Lets what threads and the end of the process raise be one line each on stderr, of equal ones one.

  Several threads of a library fail where one disk is full. The command has the error of the first of them.
  """
  told = set()

  def tell(error: BaseException | None) -> None:
    if isinstance(error, SystemExit | None):
      return
    line = f'{who}: in the background: {type(error).__name__}: {first_line(error)}'
    if line not in told:
      told.add(line)
      print(line, file=sys.stderr)

  threading.excepthook = lambda found: tell(found.exc_value)
  sys.unraisablehook = lambda found: tell(found.exc_value)


_CAPTURING = threading.RLock()


@contextlib.contextmanager
def stderr_of_libraries() -> Iterator[list[str]]:
  """Captures what libraries, also those in C++, write to stderr in the block; at its end the list holds the text.

  It holds what other threads write meanwhile, too. One thread captures at a time: stderr belongs to the process, and of
  two the second would keep the file of the first for the stderr to go back to.
  """
  with _CAPTURING:
    yield from _captured()


def _captured() -> Iterator[list[str]]:
  said: list[str] = []
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)
    try:
      yield said
    finally:
      os.dup2(kept, 2)
      os.close(kept)
      file.seek(0)
      said.append(file.read().decode(errors='replace'))
