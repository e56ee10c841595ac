"""Locks region stores: which processes are writing a store, and one process at a time for short steps.

Of a store in a bucket, a lock is an object with the rules of `vild_jax/runtime/locks.py`. On a disk:

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

from vild_jax.data.schema import DataError
from vild_jax.runtime import files, locks

_FOLDER_LOCK = '.store.lock'
_PATIENCE = 3600.0  # seconds for a step of each of hundreds of processes
_ATTEMPTS = 100  # more mean a file system that gives one file several inode numbers


def lock_file(path: Path, process_index: int, process_count: int) -> Path:
  """Returns the file whose lock a process holds while it writes its part of a store."""
  return path / f'.part-{process_index}-of-{process_count}.lock'


@contextlib.contextmanager
def part_lock(path: Path, process_index: int, process_count: int) -> Iterator[None]:
  """Holds the lock of a process's part of the store in the folder `path`; needs `folder_lock` at the start.

  Raises DataError if another process holds it, or one that belongs to another number of processes.
  """
  mine, of_all = lock_file(path, process_index, process_count), f'-of-{process_count}.lock'
  if files.is_remote(path):
    others = [path / name for name in files.sizes(path) if _is_part(name) and not name.endswith(of_all)]
    in_use = {other.name: who for other in others if (who := locks.holder_of_object(other))}
  else:
    held = [other for other in held_locks(path) if other == mine or not other.name.endswith(of_all)]
    in_use = dict.fromkeys((other.name for other in held), '')
  for name, who in in_use.items():
    raise _in_use(path, f'{name} is held' + (f' by {who}' if who else ''))
  if files.is_remote(path):
    with contextlib.ExitStack() as stack:
      try:
        stack.enter_context(locks.locked_object(mine))
      except locks.FolderInUse as error:
        raise _in_use(path, f'{mine.name}: {error}') from error
      yield
    return
  handle = take_lock(mine)
  try:
    yield
  finally:
    drop_lock(mine, handle)


def _in_use(path: Path, how: str) -> DataError:
  return DataError(
    f'{path} is being written by another process ({how}); expected to be the only one: wait for it, or choose another '
    'folder'
  )


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
  with contextlib.suppress(OSError):  # a file that stays is free, and in nobody's way
    file.unlink()
  with contextlib.suppress(OSError):
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
  if files.is_remote(path):
    with locks.locked_object(file, wait_seconds=_PATIENCE):
      yield
    return
  handle = take_lock(file)
  try:
    yield
  finally:
    drop_lock(file, handle)


def is_lock(name: str) -> bool:
  """Tells whether this name in a store's folder is that of a lock, or of a removed file that NFS shows for a moment."""
  return name == _FOLDER_LOCK or name.startswith('.nfs') or _is_part(name)


def _is_part(name: str) -> bool:
  return name.startswith('.part-') and name.endswith('.lock')
