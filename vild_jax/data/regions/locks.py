"""Locks region stores: which processes are writing a store, and one process at a time for short steps.

Locks are on files that are open for writing, since network file systems lock no others. A lock ends with its process.
A lock that was left behind is never stale: it is free. Work directories use another lock, `locked` in
`vild_jax/runtime/locks.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

_FOLDER_LOCK = '.store.lock'
_ATTEMPTS = 100  # more mean a file system that gives one file several inode numbers


def lock_file(path: Path, process_index: int, process_count: int) -> Path:
  """Returns the file whose lock a process holds while it writes its part of a store."""
  return path / f'.part-{process_index}-of-{process_count}.lock'


def take_lock(file: Path) -> int:
  """Waits for the lock of a file, which is created if needed; returns the handle for `drop_lock`."""
  for attempt in itertools.count():
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      with contextlib.suppress(OSError):  # the file system has no locks
        fcntl.flock(handle, fcntl.LOCK_EX)
      # The holder may have removed the file during the wait, and another process may hold the lock of a new file.
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(handle), os.stat(file)) or attempt >= _ATTEMPTS:
          return handle
    except BaseException:
      os.close(handle)
      raise
    os.close(handle)


def drop_lock(file: Path, handle: int) -> None:
  """Removes the file of a lock, then releases the lock: a process that waits for it then finds the file gone."""
  file.unlink(missing_ok=True)
  os.close(handle)


def held_locks(path: Path, mine: Path | None = None) -> list[Path]:
  """Returns the lock files of parts, in the folder of a store, that running processes hold, except `mine`.

  The check takes a shared lock for a moment, so that another process that checks meanwhile does not mistake this one
  for a writer. Nothing is written, and the folder may be read-only.
  """
  held = []
  for file in sorted(path.glob('.part-*.lock')):
    if file == mine:
      continue  # where locks belong to the process and not to the handle, closing another handle would release it
    try:
      handle = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
      continue
    except PermissionError:
      held.append(file)  # of another user: assume that it is held
      continue
    try:
      fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      held.append(file)
    except OSError:
      pass  # the file system has no locks
    finally:
      os.close(handle)
  return held


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[None]:
  """Lets one process at a time work in the folder, for a short step."""
  file = path / _FOLDER_LOCK
  handle = take_lock(file)
  try:
    yield
  finally:
    drop_lock(file, handle)


def is_lock(name: str) -> bool:
  """Tells whether this name in a store's folder is that of a lock, or of a removed file that NFS shows for a moment."""
  return name == _FOLDER_LOCK or name.startswith('.nfs') or (name.startswith('.part-') and name.endswith('.lock'))
