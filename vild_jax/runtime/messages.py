"""Shortens the messages of errors, and catches what libraries write past Python."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


def first_line(error: BaseException) -> str:
  """Returns the first line of the message of an error, or its type if there is none."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_panic(error: BaseException) -> bool:
  """Says whether an error is a panic of a library in Rust, which Python does not count among its Exceptions."""
  return type(error).__module__ == 'pyo3_runtime' and not isinstance(error, Exception)


@contextlib.contextmanager
def stderr_of_libraries() -> Iterator[list[str]]:
  """Captures what libraries, also those in C++, write to stderr in the block; at its end the list holds the text."""
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
