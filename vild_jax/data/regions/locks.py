"""Locks of a region store: which processes write it now, and one at a time for moments.

A lock is of a file that is open for writing, since network file systems lock nothing else, and ends with its process.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

_FOLDER_LOCK = '.store.lock'
_ATTEMPTS = 100  # beyond that it is a file system that gives one file several numbers


def lock_file(path: Path, process_index: int, process_count: int) -> Path:
  """What a process that writes a store holds the lock of, for as long as it lives."""
  return path / f'.part-{process_index}-of-{process_count}.lock'


def take_lock(file: Path) -> int:
  """Waits for the lock of a file, which is made where it is not there; returns what `drop_lock` takes."""
  for attempt in itertools.count():
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      with contextlib.suppress(OSError):  # the file system knows no locks
        fcntl.flock(handle, fcntl.LOCK_EX)
      # Who had it may have removed the file while we waited, and another process may have the lock of the next one.
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), os.stat(file)) or attempt >= _ATTEMPTS:
          return handle
    except BaseException:
      os.close(handle)
      raise
    os.close(handle)


def drop_lock(file: Path, handle: int) -> None:
  """Removes the file of a lock and lets it go, in this order: who waits for it will find the file gone."""
  file.unlink(missing_ok=True)
  os.close(handle)


def held_locks(path: Path, mine: Path | None = None) -> list[Path]:
  """The lock files of parts in the folder of a store that a running process holds, apart from `mine`.

  To ask takes a shared lock for a moment, so that nobody else who asks meanwhile takes this process for one that
  writes; nothing is written, and the folder may be read-only.
  """
  held = []
  for file in sorted(path.glob('.part-*.lock')):
    if file == mine:
      continue  # where a lock belongs to the process and not to the handle, to close another handle would let it go
    try:
      handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
      continue
    except PermissionError:
      held.append(file)  # somebody else's, for all that can be seen
      continue
    try:
      fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      held.append(file)
    except OSError:
      pass  # the file system knows no locks
    finally:
      os.close(handle)
  return held


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[None]:
  """One process at a time; for moments."""
  file = path / _FOLDER_LOCK
  handle = take_lock(file)
  try:
    yield
  finally:
    drop_lock(file, handle)


def is_lock(name: str) -> bool:
  """Whether a file of this name in a store's folder is a lock, or what NFS leaves for a moment of a removed one."""
  return name == _FOLDER_LOCK or name.startswith('.nfs') or (name.startswith('.part-') and name.endswith('.lock'))
