"""Keeps a second process out of a folder that one works in: a work directory, an evaluation's output."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import secrets
import shlex
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vild_jax.runtime import buckets, files, owners

LOCK_FILE = '.lock'
BEAT_SECONDS = 5.0  # how often the holder of a lock shows that it lives
WATCH_SECONDS = 20.0  # a lock of another machine that shows no life for so long is stale


class FolderInUse(ValueError):
  """Says that another process holds the lock of a folder; the message names it."""


@contextlib.contextmanager
def locked(folder: str | Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
  """Keeps other processes out of a folder, which is made where it does not exist, until the block ends.

  The lock is the file `.lock`. It names host, process number, start time and command, and its holder changes it every
  `BEAT_SECONDS`. The rule for a lock that was left behind: one of this machine is stale at once when its process does
  not run any more; one of another machine is stale when it does not change for `WATCH_SECONDS`, which is watched first.
  In a bucket the rule is the same. There every write and removal of the lock has the condition that nobody has written
  it since it was read, so that of several processes only one gets it.

  Args:
    folder: what to lock; folders below it are not.
    wait_seconds: how long to wait for a holder that lives.

  Raises:
    FolderInUse: another process holds the lock.
    OSError: the folder cannot be written.
  """
  if files.is_remote(folder):
    with locked_object(files.path(folder) / LOCK_FILE, wait_seconds=wait_seconds):
      yield
    return
  folder = files.local(folder)
  made = [path for path in (folder, *folder.parents) if not path.exists()]
  folder.mkdir(parents=True, exist_ok=True)
  files.sweep(folder)
  try:
    handle, pid = _take(folder / LOCK_FILE, time.monotonic() + wait_seconds), os.getpid()
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder / LOCK_FILE, handle, over), name='lock', daemon=True)
    beat.start()
    try:
      yield
    finally:
      over.set()
      if os.getpid() == pid:  # a forked child leaves the lock to its parent
        beat.join()
        _drop(folder / LOCK_FILE, handle)
  finally:
    with contextlib.suppress(OSError):  # not empty
      for path in made:
        path.rmdir()


def _take(path: Path, until: float) -> int:
  """Creates the lock file and returns its handle; FolderInUse if a living process holds it at the time `until`."""
  announced = False
  while True:
    with contextlib.suppress(FileExistsError):
      return _create(path)
    found = _read(path)
    if found is None:
      continue  # it was dropped this moment
    announced = announced or _announce(path, found)
    if _is_stale(found, lambda: _read(path)):
      _remove_stale(path, found)
    else:
      _wait(path, found, until)


def _announce(path: Path, found: bytes) -> bool:
  """Says on stderr that a lock of another machine is watched; returns whether it is one."""
  if _parsed(found).get('machine', owners.machine()) == owners.machine():
    return False
  print(
    f'{path.parent} is locked by {_holder(found)}; looking for {WATCH_SECONDS:g} s whether it is alive', file=sys.stderr
  )
  return True


def _wait(path: Path, found: bytes, until: float) -> None:
  """Waits a moment for the holder of a lock; FolderInUse after the time `until`."""
  if time.monotonic() >= until:
    raise FolderInUse(
      f'{path.parent} is in use by {_holder(found)}; expected one process at a time: wait for it, or '
      'choose another folder'
    )
  time.sleep(0.1)


def _create(path: Path) -> int:
  """Creates the lock file with its content. Raises FileExistsError if it is there."""
  handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, 'O_NOFOLLOW', 0), 0o644)
  try:
    with files.naming(path):
      os.write(handle, json.dumps(_about()).encode())
      os.fsync(handle)
  except BaseException:
    with contextlib.suppress(OSError):
      path.unlink()
    os.close(handle)
    raise
  return handle


def _about() -> dict[str, Any]:
  """The fields of a lock file of this process."""
  return {
    'beat': f'{0:012d}',
    'host': socket.gethostname(),
    'machine': owners.machine(),
    'pid': os.getpid(),
    'started': owners.started(os.getpid()) or 0,
    'since': time.strftime('%Y-%m-%d %H:%M:%S'),
    'command': shlex.join(sys.argv),
    'token': secrets.token_hex(8),
  }


def _beat(path: Path, handle: int, over: threading.Event) -> None:
  """Changes the lock file by its handle, and warns when another process has put its own in its place."""
  for number in range(1, 10**12):
    if over.wait(BEAT_SECONDS):
      return
    with contextlib.suppress(OSError):
      os.pwrite(handle, f'{{"beat": "{number:012d}"'.encode(), 0)
      os.fsync(handle)
      if not os.path.samestat(os.fstat(handle), os.lstat(path)):
        print(f'warning: {path.parent} is locked by another process now; expected one at a time', file=sys.stderr)
        return


def _drop(path: Path, handle: int) -> None:
  """Removes the lock file, unless another process has put its own in its place."""
  with contextlib.suppress(OSError):
    if os.path.samestat(os.fstat(handle), os.lstat(path)):
      path.unlink()
  with contextlib.suppress(OSError):
    os.close(handle)


def _read(path: Path) -> bytes | None:
  """Returns the content of a lock file, None if there is none. FolderInUse if it is not a regular file."""
  try:
    if not stat.S_ISREG(path.lstat().st_mode):
      raise FolderInUse(f'{path} is not a regular file; expected a lock file of this program, or none')
    return path.read_bytes()
  except FileNotFoundError:
    return None


def _parsed(content: bytes) -> dict[str, Any]:
  """The fields of a lock file; empty for one that is being written, or was when its process died."""
  try:
    found = json.loads(content)
  except (ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def _is_stale(found: bytes, read: Callable[[], bytes | None]) -> bool:
  """Whether the holder is known to be dead, or shows no life while it is watched: `read` gives what `found` was."""
  about = _parsed(found)
  pid, started = about.get('pid'), about.get('started')
  if about.get('machine') == owners.machine() and isinstance(pid, int) and isinstance(started, int):
    now = owners.started(pid)
    if now is None or now != 0:  # it can be seen whether the process runs
      return now != started
  end = time.monotonic() + WATCH_SECONDS
  while time.monotonic() < end:
    time.sleep(0.2)
    if read() != found:
      return False
  return True


def _remove_stale(path: Path, found: bytes) -> None:
  """Removes a stale lock file, unless it is another one by now.

  Who removes it holds `flock` on the very file, so that of several processes that found it stale only one does, and
  none removes the new lock of another.
  """
  try:
    handle = os.open(path, os.O_RDWR | getattr(os, 'O_NOFOLLOW', 0))
  except OSError:
    return
  try:
    remove = path.unlink
    try:
      fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # the file system has no flock
      remove = functools.partial(_take_away, path, found)
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(handle), os.lstat(path)) and _read(path) == found:
        remove()
  finally:
    os.close(handle)


def _take_away(path: Path, found: bytes) -> None:
  """Removes a stale lock file without `flock`: a lock that another process has put in its place meanwhile comes back.

  The file is renamed before it is removed, which one process can do, and which leaves time to look at what it was.
  """
  aside = files.temporary_name(path)
  os.rename(path, aside)
  if aside.read_bytes() != found:
    try:
      os.link(aside, path)  # unlike a rename it never replaces the lock of a third
    except FileExistsError:
      pass
    except OSError:  # the file system has no links either
      os.rename(aside, path)
  aside.unlink(missing_ok=True)


def _holder(found: bytes) -> str:
  about = _parsed(found)
  if not about:
    return 'a process that has just started'
  return f'process {about.get("pid")} on {about.get("host")} since {about.get("since")} ({about.get("command")})'


# --- in a bucket ----------------------------------------------------------------------------------------------------


def holder_of_object(path: Path) -> str:
  """Returns who holds a lock that is an object in a bucket; '' for nobody. A stale one is removed."""
  there = buckets.read_generation(path)
  if there is None:
    return ''
  _announce(path, there[0])
  if not _is_stale(there[0], lambda: (buckets.read_generation(path) or (None,))[0]):
    return _holder(there[0])
  buckets.remove_if(path, there[1])
  return ''


@contextlib.contextmanager
def locked_object(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
  """Holds a lock that is this object in a bucket until the block ends; see `locked`."""
  until, about, announced, pid = time.monotonic() + wait_seconds, _about(), False, os.getpid()
  content = lambda: json.dumps(about).encode()
  read = lambda: (buckets.read_generation(path) or (None,))[0]
  generation = buckets.write_if(path, content(), 0)
  while generation is None:
    there = buckets.read_generation(path)
    if there is None:
      generation = buckets.write_if(path, content(), 0)
      continue
    announced = announced or _announce(path, there[0])
    if _is_stale(there[0], read):
      generation = buckets.write_if(path, content(), there[1])
    else:
      _wait(path, there[0], until)
  over, held = threading.Event(), [generation]

  def beat() -> None:
    for number in range(1, 10**12):
      if over.wait(BEAT_SECONDS):
        return
      about['beat'] = f'{number:012d}'
      with contextlib.suppress(OSError):  # the bucket may not answer for a while
        written = buckets.write_if(path, content(), held[0])
        if written is None and (there := buckets.read_generation(path)) and about['token'].encode() in there[0]:
          written = there[1]  # an earlier beat was written, and the answer lost
        if written is None:
          print(f'warning: {path.parent} is locked by another process now; expected one at a time', file=sys.stderr)
          return
        held[0] = written

  thread = threading.Thread(target=beat, name='lock', daemon=True)
  thread.start()
  try:
    yield
  finally:
    over.set()
    if os.getpid() == pid:  # a forked child leaves the lock to its parent
      thread.join()
      with contextlib.suppress(OSError):
        buckets.remove_if(path, held[0])
