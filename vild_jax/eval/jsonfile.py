"""Reads JSON files whole, or a list of objects in parts that fit into memory; errors name the file, in one line."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from vild_jax.data.schema import DataError

PART = 8 * 2**20  # bytes that are read at a time
_BETWEEN = re.compile(rb'\}\s{0,60},\s{0,60}\{')  # where one object of a list ends and the next begins
_LONGEST = 128  # bytes of a match
_NEAR = 2**16  # bytes that are searched at a time


def content(path: str | Path, expected: str) -> bytes:
  """Returns the bytes of a file; raises DataError if there is none, which says what was `expected`."""
  if not Path(path).is_file():
    raise DataError(f'{path} is not a file; expected {expected}')
  return Path(path).read_bytes()


def parsed(text: bytes, path: str | Path, expected: str) -> Any:
  """Returns what a JSON text holds; raises DataError if it is not JSON. NaN and Infinity are accepted."""
  try:
    return msgspec.json.decode(text)  # three times as fast
  except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
    pass
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise DataError(f'{path} is not JSON ({error}); expected {expected}') from None


@dataclass(frozen=True)
class Span:
  """Names a part of a file that holds a JSON list: the objects from byte `start` to byte `stop`.

  A cut between two objects may have fallen inside a larger one, whose inner lists hold objects too; then `text` is not
  JSON, and the objects are those of this span and the next one `joined`.
  """

  path: str
  start: int
  stop: int | None  # None for the end of the file

  def text(self) -> bytes:
    """Reads the span, as a JSON list of its own."""
    with Path(self.path).open('rb') as file:
      file.seek(self.start)
      found = file.read() if self.stop is None else file.read(self.stop - self.start)
    return (b'[' if self.start else b'') + found + (b'' if self.stop is None else b']')

  def joined(self, following: Span) -> Span:
    """Returns this span and the following one as one."""
    return Span(self.path, self.start, following.stop)


def spans(path: str | Path, expected: str, *, size: int = PART) -> Iterator[Span]:
  """Yields the parts of a file that holds a JSON list of objects, each of about `size` bytes.

  Raises DataError if there is no such file, or if it does not hold a list.
  """
  if not Path(path).is_file():
    raise DataError(f'{path} is not a file; expected {expected}')
  with Path(path).open('rb') as file:
    begin = file.read(_NEAR).lstrip()
    if begin.startswith(codecs.BOM_UTF8):
      raise DataError(f'{path} begins with a byte order mark; expected {expected} without one')
    if not begin.startswith(b'['):
      found = parsed(begin + file.read(), path, expected)
      raise DataError(f'{path} holds a {type(found).__name__}; expected {expected}')
    start = 0
    while cut := _cut_after(file, start + size):
      comma, brace = cut
      yield Span(str(path), start, comma)
      start = brace
    yield Span(str(path), start, None)


def _cut_after(file: BinaryIO, offset: int) -> tuple[int, int] | None:
  """Returns where the next comma between two objects stands, and the brace after it; None if there is none."""
  file.seek(offset)
  waiting = b''
  while more := file.read(_NEAR):
    waiting += more
    if match := _BETWEEN.search(waiting):
      return offset + waiting.index(b',', match.start()), offset + match.end() - 1
    # The rest may hold the beginning of what is searched.
    kept = waiting[-_LONGEST:]
    offset, waiting = offset + len(waiting) - len(kept), kept
  return None
