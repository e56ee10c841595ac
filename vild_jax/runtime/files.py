"""Files and folders that are whole or not there, and one writer at a time in a folder.

All that the product writes goes through this module. What is new is written under a temporary name beside its target,
flushed to the disk and renamed, so that neither a crash nor a full disk leaves something half-written in the place of
something good. `write`, `replacing`, `new_folder`, `temporary_folder`, `move` and `locked` are the whole interface: a
backend without renames (buckets) would come behind these names.

A temporary name holds its owner: machine, process number and start time of the process. What a dead process of this
machine has left is removed when another one first writes in the same folder.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK_FILE = '.lock'
BEAT_SECONDS = 5.0  # how often the holder of a lock shows that it lives
WATCH_SECONDS = 20.0  # a lock of another machine that shows no life for so long is stale
_TEMPORARY = re.compile(r'\.(?P<target>.+)\.(?P<owner>[0-9a-f]{8}-\d+-\d+)-[0-9a-f]{8}\.tmp')


class FolderInUse(ValueError):
  """Another process holds the lock of a folder; the message names it."""


# --- writing --------------------------------------------------------------------------------------------------------


def write(path: str | Path, content: str | bytes) -> Path:
  """Writes a file whole, over an older one if there is one, and returns its path; see `replacing`."""
  with replacing(path) as temporary:
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
  return Path(path)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
  """Yields a temporary path to write a file to; it becomes `path` at the end, and disappears if the block fails.

  A link at `path` is replaced, not followed. A device such as /dev/null is written to directly. OSError names `path`,
  not the temporary file.
  """
  path = Path(path)
  if _is_device(path):
    yield path
    return
  _sweep(path.parent, os.getpid())
  temporary = _temporary_name(path)
  try:
    yield temporary
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)
  except OSError as error:
    # An error without a number has a text of its own, which would be lost.
    if error.errno is not None and error.filename in (None, str(temporary)):
      raise type(error)(error.errno, error.strerror, str(path)) from error
    raise
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
  """Yields a folder to write into; it becomes `out` at the end, and disappears if the block fails.

  A folder that stands at `out` is replaced; the caller checks before whether it may be. It comes back if the new one
  cannot take its place.
  """
  out = Path(out).absolute()
  with temporary_folder(out) as temporary:
    (temporary / 'new').mkdir()
    yield temporary / 'new'
    _flush_tree(temporary / 'new')
    stands = os.path.lexists(out)
    if stands:
      os.rename(out, temporary / 'old')
    try:
      os.rename(temporary / 'new', out)
    except BaseException:
      if stands:
        os.rename(temporary / 'old', out)
      raise
    _flush(out.parent)


@contextlib.contextmanager
def temporary_folder(beside: str | Path) -> Iterator[Path]:
  """Yields a hidden folder beside a path, whose name it carries; gone at the end, as are parents made for it alone."""
  beside = Path(beside).absolute()
  made = [folder for folder in beside.parents if not folder.exists()]
  beside.parent.mkdir(parents=True, exist_ok=True)
  _sweep(beside.parent, os.getpid())
  temporary = _temporary_name(beside)
  try:
    temporary.mkdir()
    yield temporary
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
    with contextlib.suppress(OSError):  # not empty
      for folder in made:
        folder.rmdir()


def move(source: str | Path, target: str | Path) -> None:
  """Renames a finished file or folder to `target` on the same file system, over an older file, flushed to the disk."""
  source, target = Path(source), Path(target)
  (_flush_tree if source.is_dir() else _flush)(source)
  os.replace(source, target)
  _flush(target.parent)


def _is_device(path: Path) -> bool:
  try:
    mode = path.lstat().st_mode
  except OSError:
    return False
  return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def _flush(path: Path) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  try:
    handle = os.open(path, os.O_RDONLY)
  except OSError:
    if path.is_dir():
      return  # a folder that may be written but not read
    raise
  try:
    os.fsync(handle)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS) and not path.is_dir():
      raise
  finally:
    os.close(handle)


def _flush_tree(folder: Path) -> None:
  for where, _, names in os.walk(folder):
    for name in names:
      if not os.path.islink(os.path.join(where, name)):
        _flush(Path(where, name))
    _flush(Path(where))


# --- owners of temporary names and locks ------------------------------------------------------------------------------


@functools.cache
def _machine() -> str:
  """Identifies what process numbers belong to: host name, boot, and namespace of process numbers (containers)."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    parts.append(Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii'))
    parts.append(os.readlink('/proc/self/ns/pid'))
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:8]


def _started(pid: int) -> int | None:
  """When a process of this machine started, in ticks since boot (0 where nobody says); None if it does not run."""
  try:
    fields = Path(f'/proc/{pid}/stat').read_text(encoding='ascii', errors='replace').rpartition(')')[2].split()
    return None if fields[0] in 'ZX' else int(fields[19])
  except (OSError, IndexError, ValueError):
    if Path('/proc/self/stat').exists():
      return None
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return None
  except OSError:
    pass  # it runs, and belongs to somebody else
  return 0


def _owner() -> str:
  return f'{_machine()}-{os.getpid()}-{_started(os.getpid()) or 0}'


def _is_dead(owner: str) -> bool:
  """Whether an owner is a process of this machine that does not run any more."""
  machine, pid, started = owner.split('-')
  return machine == _machine() and _started(int(pid)) != int(started)


def _temporary_name(path: Path) -> Path:
  return path.with_name(f'.{path.name}.{_owner()}-{secrets.token_hex(4)}.tmp')


@functools.lru_cache(maxsize=4096)
def _sweep(folder: Path, pid: int) -> None:
  """Removes what dead processes of this machine left in a folder; once a folder and process, so that it costs nothing.

  A folder that was about to be replaced when its writer died is put in its place first: it was complete.
  """
  del pid  # makes a forked process look again
  with contextlib.suppress(OSError):  # the folder is not there, or may not be read
    for name in os.listdir(folder):
      found = _TEMPORARY.fullmatch(name)
      if found is None or not _is_dead(found['owner']):
        continue
      leftover, target = folder / name, folder / found['target']
      with contextlib.suppress(OSError):
        if leftover.is_dir() and not leftover.is_symlink():
          if (leftover / 'old').exists() and not os.path.lexists(target):
            os.rename(leftover / ('new' if (leftover / 'new').exists() else 'old'), target)
          shutil.rmtree(leftover, ignore_errors=True)
        else:
          leftover.unlink()


# --- one writer at a time -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(folder: str | Path, *, hold: bool = True, wait_seconds: float = 0.0) -> Iterator[None]:
  """Keeps other processes out of a folder, which is made where it does not exist, until the block ends.

  The lock is the file `.lock`. It names host, process number, start time and command, and its holder changes it every
  `BEAT_SECONDS`. The rule for a lock that was left behind: one of this machine is stale at once when its process does
  not run any more; one of another machine is stale when it does not change for `WATCH_SECONDS`, which is watched first.

  Args:
    folder: what to lock; folders below it are not.
    hold: False does nothing: of several processes of one run only the first locks.
    wait_seconds: how long to wait for a holder that lives.

  Raises:
    FolderInUse: another process holds the lock.
    OSError: the folder cannot be written.
  """
  folder = Path(folder)
  if not hold:
    yield
    return
  is_new = not folder.exists()
  folder.mkdir(parents=True, exist_ok=True)
  _sweep(folder, os.getpid())
  try:
    handle = _take(folder / LOCK_FILE, time.monotonic() + wait_seconds)
    over = threading.Event()
    beat = threading.Thread(target=_beat, args=(handle, over), name='lock', daemon=True)
    beat.start()
    try:
      yield
    finally:
      over.set()
      beat.join()
      _drop(folder / LOCK_FILE, handle)
  finally:
    if is_new:
      with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def _take(path: Path, until: float) -> int:
  """Creates the lock file and returns its handle; FolderInUse if somebody who lives holds it at the time `until`."""
  while True:
    try:
      handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, 'O_NOFOLLOW', 0), 0o644)
    except FileExistsError:
      pass
    else:
      pid = os.getpid()
      about = {
        'beat': f'{0:012d}',
        'host': socket.gethostname(),
        'machine': _machine(),
        'pid': pid,
        'started': _started(pid) or 0,
        'since': time.strftime('%Y-%m-%d %H:%M:%S'),
        'command': shlex.join(sys.argv),
        'token': secrets.token_hex(8),
      }
      os.write(handle, json.dumps(about).encode())
      os.fsync(handle)
      return handle
    found = _read(path)
    if found is None:
      continue  # it was dropped this moment
    if _is_stale(path, found):
      _remove_stale(path, found)
    elif time.monotonic() >= until:
      raise FolderInUse(
        f'{path.parent} is in use by {_holder(found)}; expected one process at a time: wait for it, or '
        'choose another folder'
      )
    else:
      time.sleep(0.1)


def _beat(handle: int, over: threading.Event) -> None:
  """Changes the lock file, by its handle: a file that another process put in its place is not touched."""
  for number in range(1, 10**12):
    if over.wait(BEAT_SECONDS):
      return
    with contextlib.suppress(OSError):
      os.pwrite(handle, f'{{"beat": "{number:012d}"'.encode(), 0)
      os.fsync(handle)


def _drop(path: Path, handle: int) -> None:
  """Removes the lock file, unless another process has put its own in its place."""
  with contextlib.suppress(OSError):
    if os.path.samestat(os.fstat(handle), os.lstat(path)):
      path.unlink()
  os.close(handle)


def _read(path: Path) -> bytes | None:
  try:
    return path.read_bytes()
  except FileNotFoundError:
    return None


def _parsed(content: bytes) -> dict[str, Any]:
  """The fields of a lock file; empty for one that is being written, or was when its process died."""
  try:
    found = json.loads(content)
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _is_stale(path: Path, found: bytes) -> bool:
  """Whether the holder is known to be dead, or shows no life while it is watched."""
  about = _parsed(found)
  if about.get('machine') == _machine():
    return _is_dead(f'{_machine()}-{about.get("pid", 0)}-{about.get("started", 0)}')
  if about:
    print(
      f'{path.parent} is locked by {_holder(found)}; looking for {WATCH_SECONDS:g} s whether it is alive',
      file=sys.stderr,
    )
  end = time.monotonic() + (WATCH_SECONDS if about else 2.0)
  while time.monotonic() < end:
    time.sleep(0.2)
    if _read(path) != found:
      return False
  return True


def _remove_stale(path: Path, found: bytes) -> None:
  """Removes a stale lock file; if another process has replaced it meanwhile, that one's comes back."""
  aside = _temporary_name(path)
  with contextlib.suppress(FileNotFoundError):
    os.rename(path, aside)
    if _read(aside) != found:
      with contextlib.suppress(FileExistsError):
        os.link(aside, path)
    aside.unlink(missing_ok=True)


def _holder(found: bytes) -> str:
  about = _parsed(found)
  if not about:
    return 'a process that has just started'
  return f'process {about.get("pid")} on {about.get("host")} since {about.get("since")} ({about.get("command")})'
