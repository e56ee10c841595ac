"""Reads and writes buckets of Google Cloud Storage, whose addresses are gs://bucket/name; `files` calls it for them.

A path in a bucket is an `epath.Path` of etils, which Orbax uses as well and which has the methods of `pathlib.Path`.
An object appears whole, or not at all. Folders do not exist: a folder is a beginning that names share, so that it can
be neither renamed nor replaced at once. One that must be whole has a marker, a file without which no reader takes it:
it is the first to be removed and the last to be written.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vild_jax.runtime import messages

_UNFINISHED = '.unfinished'  # in a folder that is being written, or was when its writer died
_ADDRESS = re.compile(r'gs:/{1,2}(?P<bucket>[a-z0-9][\w.-]{1,220}[a-z0-9])(/(?P<name>.*))?')  # a Path drops a slash
PACE_SECONDS = 30.0  # between two uploads of a file that grows
THREADS = 8  # files that are on their way at a time


def is_address(place: object) -> bool:
  """Says whether a place is an address of Google Cloud Storage, which may be malformed."""
  return str(place).startswith('gs:/')


def address(place: str | Path) -> str:
  """Returns an address as gs://bucket/name. Raises ValueError if it is malformed; asks nobody."""
  found = _ADDRESS.fullmatch(str(place))
  if found is None:
    raise ValueError(f'{place} is not an address in a bucket; expected gs://BUCKET/NAME')
  return f'gs://{found["bucket"]}/{found["name"] or ""}'.rstrip('/')


def path(place: str | Path) -> Any:
  """Returns the `epath.Path` of an address.

  Raises ValueError, one line, if it is malformed, the client is not installed, or the bucket cannot be read.
  """
  whole = address(place)
  _reach(whole[len('gs://') :].partition('/')[0])
  from etils import epath

  return epath.Path(whole)


def client() -> Any:
  """Returns gcsfs's file system. Raises ValueError if it is not installed."""
  return _client(os.getpid())


@functools.cache
def _client(pid: int) -> Any:
  del pid  # a forked process needs its own
  # With TensorFlow installed etils would use its client, which has other credentials, errors and caches.
  os.environ['EPATH_USE_TF'] = 'false'
  try:
    import fsspec
    import gcsfs  # noqa: F401
  except ImportError as error:
    raise ValueError(
      f'addresses gs://... need gcsfs, which cannot be imported ({error}); expected `pip install "vild_jax[gcs]"`'
    ) from error
  # TensorStore and other processes write too, so that a list that was read once is soon wrong.
  fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
  logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # its errors come as exceptions too
  return fsspec.filesystem('gcs', finalize_on_close=True)  # the one that etils takes


@functools.cache
def _reach(bucket: str) -> None:
  """Raises ValueError, once and early, if a bucket cannot be read: it does not exist, or there are no credentials."""
  system = client()
  try:
    system.call('GET', 'b/{}/o', bucket, maxResults=1, json_out=True)
  except Exception as error:  # the client raises errors of many types: its own, of its HTTP library, of the system
    raise ValueError(
      f'gs://{bucket} cannot be read ({type(error).__name__}: {messages.first_line(error)}); expected a bucket that '
      'exists, credentials for it and a network'
    ) from error


# --- files ----------------------------------------------------------------------------------------------------------


def upload(source: Path, target: Any) -> None:
  """Writes a local file to the path of an object, over an older one; it appears whole."""
  with _naming(target):
    client().put_file(str(source), str(target))


def write(target: Any, content: bytes) -> None:
  """Writes an object whole, over an older one."""
  with _naming(target):
    client().pipe_file(str(target), content)


def download(source: Any, target: Path) -> None:
  """Copies an object to a local file."""
  with _naming(source):
    client().get_file(str(source), str(target))


def fetched(source: Any) -> Path:
  """Copies an object into a folder of this process, and returns the path there; it goes when the process ends."""
  local = Path(tempfile.mkdtemp(dir=_of_the_process(os.getpid()))) / source.name
  download(source, local)
  return local


def fetched_folder(source: Any, marker: str) -> Path:
  """Copies a folder as `fetched` does a file, once for each content of its marker, and returns the local folder."""
  return _fetched_folder(str(source), marker, (source / marker).read_bytes())


@functools.lru_cache
def _fetched_folder(source: str, marker: str, content: bytes) -> Path:
  del content  # of another one the folder is another
  local = Path(tempfile.mkdtemp(dir=_of_the_process(os.getpid()))) / source.rpartition('/')[2]
  local.mkdir()
  names = _names(source)
  for name in names:
    (local / name).parent.mkdir(parents=True, exist_ok=True)
  with _naming(source), ThreadPoolExecutor(THREADS) as pool:
    list(pool.map(lambda name: client().get_file(f'{source}/{name}', str(local / name)), names))
  return local


def _names(folder: str) -> list[str]:
  return list(listed(folder))


def listed(folder: Any) -> dict[str, dict[str, Any]]:
  """Returns {name below a folder: {'bytes', 'crc32c'}} of all files in it; objects that only mark folders are none.

  Raises ValueError for a name that is no path below a folder, such as `../x`: a copy would be written somewhere else.
  """
  beginning = str(folder).removeprefix('gs://') + '/'
  with _naming(folder):
    found = {name.removeprefix(beginning): about for name, about in client().find(str(folder), detail=True).items()}
  found = {name: about for name, about in found.items() if name and not name.endswith('/')}
  if strange := [name for name in found if not {'', '.', '..'}.isdisjoint(name.split('/'))]:
    raise ValueError(
      f'{folder} holds an object with the name {strange[0]!r}; expected names without "..", "." and empty parts'
    )
  return {name: {'bytes': int(about['size']), 'crc32c': about.get('crc32c')} for name, about in found.items()}


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
  """Yields the path of a local file or folder of that name to make; it disappears at the end."""
  with tempfile.TemporaryDirectory(prefix='vild-jax-', ignore_cleanup_errors=True) as folder:
    yield Path(folder) / name


@functools.cache
def _of_the_process(pid: int) -> str:
  del pid  # a forked process has a folder of its own
  folder = tempfile.mkdtemp(prefix='vild-jax-')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder


# --- folders --------------------------------------------------------------------------------------------------------


def is_unfinished(folder: Any) -> bool:
  """Says whether the writer of a folder died before the folder was whole, or is still at work."""
  return (folder / _UNFINISHED).exists()


@contextlib.contextmanager
def new_folder(out: Any, may_replace: Callable[[Any], bool], marker: str) -> Iterator[Path]:
  """Yields a local folder to write into, whose files are written below `out` at the end; see `files.new_folder`."""
  _check_replaceable(out, may_replace)
  with scratch(out.name) as folder:
    folder.mkdir()
    yield folder
    _check_replaceable(out, may_replace)
    _replace(folder, out, marker)


def _check_replaceable(out: Any, may_replace: Callable[[Any], bool]) -> None:
  if out.exists() and not is_unfinished(out) and not may_replace(out):
    raise ValueError(f'{out} exists; expected a new folder')


def _replace(source: Path, target: Any, marker: str) -> None:
  write(target / _UNFINISHED, b'')  # allows another one to replace what a killed one leaves
  (target / marker).unlink(missing_ok=True)
  old = set(_names(str(target))) - {_UNFINISHED}
  new = {file.relative_to(source).as_posix() for file in source.rglob('*') if file.is_file()}
  with _naming(target):
    if gone := [f'{target}/{name}' for name in sorted(old - new)]:
      client().rm(gone)
  upload_all(source, target, sorted(new - {marker}))
  upload(source / marker, target / marker)
  (target / _UNFINISHED).unlink()


def upload_all(source: Path, target: Any, names: Iterable[str]) -> None:
  """Writes the named files of a local folder below `target`, several at a time."""
  with ThreadPoolExecutor(THREADS) as pool:
    list(pool.map(lambda name: upload(source / name, target / name), names))


# --- one writer at a time -------------------------------------------------------------------------------------------


def read_generation(target: Any) -> tuple[bytes, int] | None:
  """Returns the content of an object and its generation, the number that every write changes; None if there is none."""
  with _naming(target):
    while True:
      try:
        generation = int(client().call('GET', 'b/{}/o/{}', *_parts(target), json_out=True)['generation'])
      except FileNotFoundError:
        return None
      with contextlib.suppress(FileNotFoundError):  # another one was written between the two
        _, content = client().call('GET', 'b/{}/o/{}', *_parts(target), alt='media', generation=generation)
        return content, generation


def write_if(target: Any, content: bytes, generation: int) -> int | None:
  """Writes an object only if its generation is as given (0: if there is none); returns the new one, None if it is not.

  The content must be one that nobody else writes.
  """
  bucket, name = _parts(target)
  url = client().base.replace('/storage/', '/upload/storage/') + 'b/{}/o'
  with _naming(target):
    try:
      how = {'uploadType': 'media', 'name': name, 'ifGenerationMatch': generation}
      return int(client().call('POST', url, bucket, data=content, json_out=True, **how)['generation'])
    except FileExistsError:  # also if the answer to a first attempt was lost
      found = read_generation(target)
      return found[1] if found and found[0] == content else None


def remove_if(target: Any, generation: int) -> None:
  """Removes an object, unless its generation is another one by now."""
  with _naming(target), contextlib.suppress(FileExistsError, FileNotFoundError):
    client().call('DELETE', 'b/{}/o/{}', *_parts(target), ifGenerationMatch=generation)


def _parts(target: Any) -> tuple[str, str]:
  bucket, _, name = str(target).removeprefix('gs://').partition('/')
  return bucket, name


@contextlib.contextmanager
def _naming(target: Any) -> Iterator[None]:
  """Turns the client's errors, which are of many types, into an OSError that names the address."""
  try:
    yield
  except (OSError, ValueError):
    raise
  except Exception as error:
    raise OSError(f'{target}: {type(error).__name__}: {messages.first_line(error)}') from error
