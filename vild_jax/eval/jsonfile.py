"""Reads JSON files whole, or a list of objects in parts that fit into memory; errors name the file, in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from vild_jax.data.schema import DataError

PART = 8 * 2**20  # bytes that are read at a time
_BETWEEN = re.compile(rb'\}\s{0,60},\s{0,60}\{')  # where one object of a list ends and the next begins
Rows = TypeVar('Rows')


def content(path: str | Path, expected: str) -> bytes:
  """Returns the bytes of a file; raises DataError if there is none, which says what was `expected`."""
  if not Path(path).is_file():
    raise DataError(f'{path} is not a file; expected {expected}')
  return Path(path).read_bytes()


def parsed(text: bytes, path: str | Path, expected: str) -> Any:
  """Returns what a JSON text holds; raises DataError if it is not JSON. NaN and Infinity are accepted."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise DataError(f'{path} is not JSON ({error}); expected {expected}') from None


def lists(
  path: str | Path, decode: Callable[[bytes], Rows | None], expected: str, *, size: int = PART
) -> Iterator[Rows]:
  """Yields a JSON file that holds a list of objects as several decoded lists, so that it is never in memory whole.

  Args:
    path: the file.
    decode: takes the JSON text of a list and returns what is yielded, or None if the text is not JSON. That happens
      where the file was cut inside an object, whose inner lists hold objects too; then more of the file is read.
    expected: for messages: what the file should be.
    size: bytes that are read at a time.

  Raises DataError if there is no such file, or if it is not JSON or not a list.
  """
  if not Path(path).is_file():
    raise DataError(f'{path} is not a file; expected {expected}')
  with Path(path).open('rb') as file:
    waiting, needed = file.read(size).lstrip(), size
    if not waiting.startswith(b'['):
      found = parsed(waiting + file.read(), path, expected)
      raise DataError(f'{path} holds a {type(found).__name__}; expected {expected}')
    while more := file.read(size):
      if len(waiting) >= needed and (cut := _last_cut(waiting)):
        comma, brace = cut
        if (rows := decode(waiting[:comma] + b']')) is None:
          needed = 2 * len(waiting)  # so that a file that is broken at its beginning is not decoded over and over
        else:
          yield rows
          waiting, needed = b'[' + waiting[brace:], 0
      waiting += more
    if (rows := decode(waiting)) is None:
      parsed(waiting, path, expected)
      raise AssertionError('the decoder refused JSON')
    yield rows


def _last_cut(text: bytes) -> tuple[int, int] | None:
  """Returns where the comma between the last two objects of a text stands, and the second one's brace."""
  end = len(text)
  while (brace := text.rfind(b'{', 0, end)) > 0:
    if match := _BETWEEN.search(text, max(0, brace - 128), brace + 1):
      return text.index(b',', match.start()), match.end() - 1
    end = brace
  return None
