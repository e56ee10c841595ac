"""Writes files and folders that are whole or not there.

All that the product writes goes through this module, with three exceptions: `metrics.jsonl` and TensorBoard files grow
line by line; Orbax writes the checkpoints of a training, each whole, by itself; lock files. What is new is written
under a temporary name beside its target, flushed to the disk and renamed, so that neither a crash nor a full disk
leaves something half-written in the place of something good. `locks` keeps a second process out of a folder.

`path` takes addresses in buckets as well, gs://bucket/name, and `write`, `replacing`, `new_folder` and `fetched` work
with what it returns (`buckets`); `local` and all others refuse addresses.

A temporary name holds its owner: machine, process number and start time of the process. What a dead process of this
machine has left is removed when another one first writes in the same folder.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vild_jax.runtime import buckets, owners

ABANDONED_DAYS = 7  # after which a leftover of another machine goes
_PAUSES = (0.0, 0.2, 0.2, 0.5, 1.0, 2.0)  # seconds before each attempt to remove a temporary folder
_REMOTE = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')  # a Path has taken the second slash away; drives have one letter
_TEMPORARY = re.compile(r'\.(?P<target>.+)\.(?P<owner>[0-9a-f]{8}-\d+-\d+)-[0-9a-f]{8}\.tmp')


def local(path: str | Path) -> Path:
  """Returns a path; raises ValueError if it is an address such as gs://bucket/run, which is on no file system."""
  if _REMOTE.match(str(path)):
    raise ValueError(
      f'{path} is an address, and nothing is read or written there by this option; expected a path (docs/scale.md, '
      '"Buckets", says which options take gs://...)'
    )
  return Path(path)


def path(place: str | Path) -> Path:
  """Returns a path, also of an address gs://bucket/name: then an `epath.Path`, which has the same methods.

  Raises ValueError, one line, for another kind of address, or if the bucket cannot be read.
  """
  return buckets.path(place) if is_remote(place) else Path(place)


def is_remote(place: str | Path) -> bool:
  """Says whether a place is in a bucket. Raises ValueError if it is an address of another kind, or malformed."""
  if buckets.is_address(place):
    return bool(buckets.address(place))
  if _REMOTE.match(str(place)):
    raise ValueError(f'{place} is an address of a kind that is not supported; expected gs://BUCKET/NAME, or a path')
  return False


def is_unfinished(folder: str | Path) -> bool:
  """Says whether a folder in a bucket is one whose writer died before it was whole (`new_folder`)."""
  return is_remote(folder) and buckets.is_unfinished(path(folder))


def absolute(place: str | Path) -> Path:
  """Returns `path` of a place, absolute; an address is."""
  return path(place) if is_remote(place) else Path(place).absolute()


def fetched(place: str | Path) -> Path:
  """Returns the path of a file on this machine: its own, or that of a copy if it is in a bucket."""
  return buckets.fetched(path(place)) if is_remote(place) else Path(place)


def sizes(folder: str | Path) -> dict[str, int]:
  """Returns {name: bytes} of the files in a folder, which is asked once; in a bucket also of those further below."""
  if is_remote(folder):
    return {name: about['bytes'] for name, about in buckets.listed(path(folder)).items()}
  found = {}
  with os.scandir(folder) as entries:
    for entry in entries:
      with contextlib.suppress(FileNotFoundError):  # another process has removed it
        if entry.is_file():
          found[entry.name] = entry.stat().st_size
  return found


@contextlib.contextmanager
def growing(folder: Path) -> Iterator[Path]:
  """Yields a folder whose files another library writes: itself, or one of this machine that is copied to a bucket."""
  if not is_remote(folder):
    yield folder
    return
  with buckets.scratch(folder.name) as local:
    yield local
    names = (file.relative_to(local).as_posix() for file in local.rglob('*') if file.is_file())
    buckets.upload_all(local, path(folder), names)


# --- writing --------------------------------------------------------------------------------------------------------


def write(path: str | Path, content: str | bytes) -> Path:
  """Writes a file whole, over an older one if there is one, and returns its path; see `replacing`."""
  content = content.encode() if isinstance(content, str) else content
  if is_remote(path):
    buckets.write(buckets.path(path), content)
    return buckets.path(path)
  with replacing(path) as temporary:
    temporary.write_bytes(content)
  return Path(path)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
  """Yields a temporary path to write a file to; it becomes `path` at the end, and disappears if the block fails.

  A link at `path` is replaced, not followed. A device such as /dev/null is written to directly. OSError names `path`,
  not the temporary file.
  """
  if is_remote(path):
    with buckets.scratch(Path(path).name) as temporary:
      yield temporary
      buckets.upload(temporary, buckets.path(path))
    return
  path = local(path)
  if _is_device(path):
    yield path
    return
  sweep(path.parent)
  temporary = temporary_name(path)
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
    with contextlib.suppress(OSError):  # it has its name by now, or is left for `sweep`
      temporary.unlink()


def require_writable(path: str | Path) -> None:
  """Raises OSError, which names `path`, if a file cannot be written there: said before long work, not after it."""
  path = local(path)
  if _is_device(path):
    return
  temporary = temporary_name(path)
  try:
    if path.is_dir():
      raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    temporary.touch()
  except OSError as error:
    raise type(error)(error.errno, error.strerror, str(path)) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


@contextlib.contextmanager
def new_folder(
  out: str | Path, *, may_replace: Callable[[Path], bool] = lambda path: False, marker: str | None = None
) -> Iterator[Path]:
  """Yields a folder to write into; it becomes `out` at the end, and disappears if the block fails.

  Args:
    out: a folder that does not exist or is empty, or one that `may_replace` allows to replace.
    may_replace: asked at the start and again before the folder is replaced, since that may be minutes later.
    marker: the file without which no reader takes the folder; in a bucket, where a folder appears file by file, it is
      written last. None: `out` may not be in a bucket.

  Raises:
    ValueError: `out` holds something that may not be replaced.
    OSError: the folder cannot be written or renamed; what stood at `out` stands there again, or the message says where.
  """
  if marker and is_remote(out):
    with buckets.new_folder(buckets.path(out), may_replace, marker) as folder:
      yield folder
    return
  out = local(out).absolute()
  _check_replaceable(out, may_replace)
  with temporary_folder(out) as temporary:
    (temporary / 'new').mkdir()
    with naming(out):
      yield temporary / 'new'
    _flush_tree(temporary / 'new')
    _check_replaceable(out, may_replace)
    try:
      if os.path.lexists(out):
        os.rename(out, temporary / 'old')
      os.rename(temporary / 'new', out)
    except BaseException as error:  # Ctrl-C comes between the two as well
      if os.path.lexists(temporary / 'old') and not os.path.lexists(out):
        try:
          os.rename(temporary / 'old', out)
        except OSError:
          raise OSError(f'{out} could not be replaced ({error}); what stood there is in {temporary / "old"}') from error
      raise
    _flush(out.parent)


def _check_replaceable(out: Path, may_replace: Callable[[Path], bool]) -> None:
  is_empty = out.is_dir() and not out.is_symlink() and not any(out.iterdir())
  if os.path.lexists(out) and not is_empty and not may_replace(out):
    raise ValueError(f'{out} exists; expected a new folder')


@contextlib.contextmanager
def temporary_folder(beside: str | Path) -> Iterator[Path]:
  """Yields a hidden folder beside a path, whose name it carries; gone at the end, as are parents made for it alone."""
  beside = local(beside).absolute()
  made = [folder for folder in beside.parents if not folder.exists()]
  beside.parent.mkdir(parents=True, exist_ok=True)
  sweep(beside.parent)
  temporary, failed = temporary_name(beside), True
  try:
    temporary.mkdir()
    with naming(beside.parent):
      yield temporary
    failed = False
  finally:
    if not (temporary / 'old').exists() or os.path.lexists(beside):  # else it is the only copy
      _remove(temporary, failed)
    with contextlib.suppress(OSError):  # not empty
      for folder in made:
        folder.rmdir()


@contextlib.contextmanager
def work_folder(beside: str | Path) -> Iterator[Path]:
  """Yields a `temporary_folder` beside a path; for one in a bucket, a folder among this machine's temporary files."""
  if not is_remote(beside):
    with temporary_folder(beside) as folder:
      yield folder
    return
  with buckets.scratch('work') as folder:
    folder.mkdir()
    yield folder


def _remove(folder: Path, failed: bool) -> None:
  """Removes a folder; threads of a library one of whose writes `failed` may make it again a moment later."""
  for pause in _PAUSES:
    time.sleep(pause)
    if pause and not folder.exists():
      return
    shutil.rmtree(folder, ignore_errors=True)
    if not failed and not folder.exists():
      return


def move(source: str | Path, target: str | Path) -> None:
  """Renames a finished file or folder to `target` on the same file system, over an older file, flushed to the disk."""
  source, target = Path(source), Path(target)
  (_flush_tree if source.is_dir() else _flush)(source)
  os.replace(source, target)
  _flush(target.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
  """Gives an error of the system that names no file, as those of a write or of closing do, a path to name."""
  try:
    yield
  except OSError as error:
    if error.errno is not None and error.filename is None:
      raise type(error)(error.errno, error.strerror, str(path)) from error
    raise


def _is_device(path: Path) -> bool:
  try:
    mode = path.stat().st_mode  # /dev/stdout is a link to a device
  except OSError:
    return False
  return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


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
      raise type(error)(error.errno, error.strerror, str(path)) from error
  finally:
    os.close(handle)


def _flush_tree(folder: Path) -> None:
  for where, _, names in os.walk(folder):
    for name in names:
      if not os.path.islink(os.path.join(where, name)):
        _flush(Path(where, name))
    _flush(Path(where))


# --- leftovers ------------------------------------------------------------------------------------------------------


def temporary_name(path: Path) -> Path:
  """Returns a new hidden name beside a path, which says whose it is: `sweep` removes it when this process is dead."""
  return path.with_name(f'.{path.name}.{owners.owner()}-{secrets.token_hex(4)}.tmp')


def is_temporary(name: str) -> bool:
  """Says whether a name is one that `temporary_name` gives."""
  return _TEMPORARY.fullmatch(name) is not None


def sweep(folder: Path) -> None:
  """Removes what dead processes of this machine left in a folder, and what others left `ABANDONED_DAYS` ago.

  It looks once for each folder and process, so that it costs nothing.
  """
  _sweep(folder, os.getpid())


def clear(folder: Path) -> None:
  """Removes a folder with all that is in it, as far as that is possible; one of `temporary_name`."""
  if not is_temporary(folder.name):
    raise ValueError(f'{folder} has no temporary name')
  shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(leftover: Path) -> bool:
  """Whether a leftover of another machine, container or boot has not changed for `ABANDONED_DAYS`."""
  machine = _TEMPORARY.fullmatch(leftover.name)['owner'].partition('-')[0]
  try:
    return machine != owners.machine() and time.time() - leftover.lstat().st_mtime > ABANDONED_DAYS * 86_400
  except OSError:
    return False


@functools.lru_cache(maxsize=4096)
def _sweep(folder: Path, pid: int) -> None:
  """Removes what dead processes of this machine left in a folder; once a folder and process, so that it costs nothing.

  A folder that was about to be replaced when its writer died is put in its place first: it was complete.
  """
  del pid  # makes a forked process look again
  with contextlib.suppress(OSError):  # the folder is not there, or may not be read
    for name in os.listdir(folder):
      found = _TEMPORARY.fullmatch(name)
      if found is None:
        continue
      leftover, target = folder / name, folder / found['target']
      if not owners.is_dead(found['owner']) and not _is_abandoned(leftover):
        continue
      with contextlib.suppress(OSError):
        if leftover.is_dir() and not leftover.is_symlink():
          # With both there, the writer died between its two renames; with `old` alone, after them.
          if (leftover / 'old').exists() and (leftover / 'new').exists() and not os.path.lexists(target):
            os.rename(leftover / 'new', target)
          shutil.rmtree(leftover, ignore_errors=True)
        else:
          leftover.unlink()
