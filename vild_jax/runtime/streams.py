"""Keeps standard output and error usable: nobody who stops listening ends work that takes days.

A stream may be closed from the start (`2>&-`), its reader may end (`| head -1`), or its file be on a full disk. What is
written to it is then lost, and the command goes on; of standard output, other losses than that of a reader who left are
an error at the end.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any

_NAMES = ('stdin', 'stdout', 'stderr')


class _Lasting(io.RawIOBase):
  """Writes to a file descriptor until that fails, and then to nowhere."""

  def __init__(self, descriptor: int):
    self._descriptor = descriptor
    self.is_terminal = os.isatty(descriptor)  # which one that was closed does not say any more
    self.lost: OSError | None = None

  def fileno(self) -> int:
    return self._descriptor

  def isatty(self) -> bool:
    return os.isatty(self._descriptor)

  def writable(self) -> bool:
    return True

  def write(self, data: Any) -> int:
    try:
      return os.write(self._descriptor, data)
    except BlockingIOError:
      raise
    except OSError as error:
      self.lost = error
      _to_nowhere(self._descriptor)  # also for libraries that write past Python
      return len(data)


def keep() -> Callable[[], OSError | None]:
  """Opens what is closed of the three standard streams, and makes output and error outlast whoever reads them.

  Streams that somebody has put in the place of Python's own stay as they are. Returns a function that says by which
  error standard output lost something that was not the choice of its reader; None: nothing.
  """
  for descriptor, name in enumerate(_NAMES):
    try:
      os.fstat(descriptor)
    except OSError:
      # The next file that is opened would get this number, and what libraries write to the stream.
      _to_nowhere(descriptor)
    if getattr(sys, name) is None:
      how = {'mode': 'r' if name == 'stdin' else 'w', 'encoding': 'utf-8', 'errors': 'backslashreplace'}
      setattr(sys, name, open(descriptor, **how, closefd=False))  # noqa: SIM115
  raws = {}
  for name in _NAMES[1:]:
    stream = getattr(sys, name)
    if stream is not getattr(sys, f'__{name}__') or not isinstance(stream, io.TextIOWrapper):
      continue
    try:
      stream.flush()
      raws[name] = raw = _Lasting(stream.fileno())
    except (OSError, ValueError):
      continue
    lasting = io.TextIOWrapper(
      io.BufferedWriter(raw),
      stream.encoding,
      # A name that the terminal cannot show is no reason to lose the rest.
      'backslashreplace',
      # With PYTHONUNBUFFERED, as in containers, Python writes through.
      line_buffering=stream.line_buffering or stream.write_through or name == 'stderr',
    )
    setattr(sys, name, lasting)

  def lost() -> OSError | None:
    for stream in (sys.stdout, sys.stderr):
      stream.flush()
    raw = raws.get('stdout')
    if raw is None or raw.lost is None or raw.is_terminal or raw.lost.errno in (errno.EPIPE, errno.EBADF):
      return None
    return raw.lost

  return lost


def _to_nowhere(descriptor: int) -> None:
  nowhere = os.open(os.devnull, os.O_RDWR)
  if nowhere != descriptor:
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
