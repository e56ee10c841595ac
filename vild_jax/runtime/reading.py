"""Reads files that others have made: one boundary for each format, and limits on what a small file may ask for.

Whatever a parser raises becomes one line with the name of the file, so that a caller has one error to expect. What a
file would take in memory is compared with a limit before it is taken. Larger JSON files, annotations and results, have
readers of their own (`data.annotations`, `eval.jsonfile`). SECURITY.md lists all limits.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vild_jax.runtime import messages

if TYPE_CHECKING:
  import numpy as np

JSON_MEGABYTES = 64  # of a file of settings, a manifest or a log: thousands of times what this program writes
JSON_DEPTH = 100  # lists and objects in one another
_LONGEST_NAME = 255  # bytes of a file's name, on nearly all file systems
ARRAY_GIGABYTES = 2.0  # of all arrays of a file together: 500,000 class embeddings of dimension 1,024
ARRAY_LIMIT = 'VILD_JAX_ARRAY_GIGABYTES'  # the variable of the environment that allows more, or less


@contextlib.contextmanager
def parsing(
  path: str | Path, expected: str, *, error: type[ValueError] = ValueError, problem: str = 'cannot be read'
) -> Iterator[None]:
  """Turns whatever the block raises into one `error` of one line: the file, the problem, what was expected.

  So are panics of libraries in Rust, which are no Exception. What asks a program to end passes, and so does an `error`
  whose message begins with the name of the file already.
  """
  try:
    yield
  except BaseException as found:
    if not (isinstance(found, Exception) or messages.is_panic(found)):
      raise
    if type(found) is error and str(found).startswith(str(path)):
      raise
    raise error(f'{path} {problem} ({_reason(found)}); expected {expected}') from found


def _reason(found: BaseException) -> str:
  if isinstance(found, OSError) and found.strerror:
    return found.strerror
  kind = '' if isinstance(found, ValueError) else type(found).__name__
  text = messages.first_line(found)[:300]
  return text if not kind else kind if text == kind else f'{kind}: {text}'


# --- JSON -----------------------------------------------------------------------------------------------------------


def json_file(
  path: str | Path, expected: str, *, error: type[ValueError] = ValueError, text: bytes | None = None
) -> Any:
  """Returns what a JSON file of at most `JSON_MEGABYTES` holds; `text` is its content, if it is read already.

  Raises `error`, one line, if it is larger, not there, not JSON or nested more than `JSON_DEPTH` deep.
  """
  text = json_bytes(path, expected, error=error) if text is None else text
  with parsing(path, expected, error=error, problem='is not JSON'):
    return json_text(text)


def json_bytes(path: str | Path, expected: str, *, error: type[ValueError] = ValueError) -> bytes:
  """Returns the bytes of a JSON file of at most `JSON_MEGABYTES`. Raises `error`, one line."""
  with parsing(path, expected, error=error):
    return content(path, JSON_MEGABYTES * 2**20)


def json_object(
  path: str | Path, expected: str, *, error: type[ValueError] = ValueError, text: bytes | None = None
) -> dict[str, Any]:
  """Returns the JSON object of a file, as `json_file` reads it; anything else is an `error` too."""
  tree = json_file(path, expected, error=error, text=text)
  if not isinstance(tree, dict):
    raise error(f'{path} holds a {type(tree).__name__}; expected an object: {expected}')
  return tree


def json_text(text: str | bytes) -> Any:
  """Returns what a JSON text holds. Raises ValueError if it is not JSON or nested more than `JSON_DEPTH` deep."""
  with contextlib.suppress(RecursionError):
    tree = json.loads(text)
    if not _is_deep(tree):
      return tree
  raise ValueError(f'lists and objects more than {JSON_DEPTH} deep in one another')


def _is_deep(tree: Any) -> bool:
  level = [tree]
  for _ in range(JSON_DEPTH + 1):
    level = [
      inner
      for value in level
      if isinstance(value, dict | list)
      for inner in (value.values() if isinstance(value, dict) else value)
    ]
    if not level:
      return False
  return True


def is_place(text: Any) -> bool:
  """Says whether a value of a file can name another below a folder: printable, relative, its parts not too long."""
  return (
    isinstance(text, str)
    and text.isprintable()
    and all(part not in ('', '.', '..') and len(part.encode()) <= _LONGEST_NAME for part in text.split('/'))
  )


def content(path: str | Path, most: int) -> bytes:
  """Returns the bytes of a file. Raises ValueError if they are more than `most`, which may be found while reading."""
  with (Path(path) if isinstance(path, str) else path).open('rb') as file:  # a path in a bucket opens itself
    found = file.read(most + 1)
  if len(found) > most:
    raise ValueError(f'more than {most >> 20} MiB')
  return found


# --- arrays ---------------------------------------------------------------------------------------------------------


def arrays(
  path: str | Path,
  names: Sequence[str],
  expected: str,
  *,
  optional: Sequence[str] = (),
  error: type[ValueError] = ValueError,
) -> dict[str, np.ndarray]:
  """Returns arrays of an .npz file by their names; others in the file are not read, and objects never unpickled.

  A small file can expand to any size: what the headers state is compared with the limit before any array is made.

  Args:
    path: the file.
    names: arrays that it must have.
    expected: what the file should be, for messages.
    optional: arrays that it may have.
    error: the type of the error.

  Raises `error`, one line that names the file, if it cannot be used.
  """
  found: dict[str, np.ndarray] = {}
  with parsing(path, expected, error=error), _archive(path) as archive:
    there = set(archive.namelist())
    if missing := [name for name in names if f'{name}.npy' not in there]:
      raise ValueError(f'it has no array {missing[0]!r}')
    wanted = [name for name in (*names, *optional) if f'{name}.npy' in there]
    total = 0
    for name in wanted:
      with archive.open(f'{name}.npy') as member:
        total += _stated_bytes(member, name)
    _require_fits(total)
    from numpy.lib import format as npy

    for name in wanted:
      with archive.open(f'{name}.npy') as member:
        found[name] = npy.read_array(member, allow_pickle=False)
  return found


def _archive(path: str | Path) -> zipfile.ZipFile:
  try:
    return zipfile.ZipFile(path)
  except zipfile.BadZipFile:
    raise ValueError('it is not a complete .npz archive') from None


def array(path: str | Path, expected: str, *, error: type[ValueError] = ValueError) -> np.ndarray:
  """Returns the array of an .npy file, whose header must state the size that the file has. Raises `error`."""
  with parsing(path, expected, error=error), open(path, 'rb') as file:
    size = _stated_bytes(file, 'the array')
    stored = os.fstat(file.fileno()).st_size - file.tell()
    if size != stored:
      raise ValueError(f'its header states {size:,} bytes of numbers, and it holds {stored:,}')
    _require_fits(size)
    from numpy.lib import format as npy

    file.seek(0)
    return npy.read_array(file, allow_pickle=False)


def _stated_bytes(file: Any, name: str) -> int:
  """Returns the bytes of the array that begins at the place of `file`, as its header states them."""
  from numpy.lib import format as npy

  version = npy.read_magic(file)
  read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
  if read is None:
    raise ValueError(f'{name} is in version {version} of the format; expected 1.0 or 2.0')
  shape, _, dtype = read(file)
  if dtype.hasobject:
    raise ValueError(f'{name} holds Python objects, which are never read; expected numbers or text')
  if any(side < 0 for side in shape):
    raise ValueError(f'{name} has the shape {shape}; expected sides of 0 or more')
  return math.prod(shape) * dtype.itemsize if dtype.itemsize else math.prod(shape)


def _require_fits(size: int) -> None:
  given = os.environ.get(ARRAY_LIMIT) or ARRAY_GIGABYTES
  try:
    most = float(given)
  except ValueError:
    most = 0.0
  if not most > 0:  # so is NaN
    raise ValueError(f'{ARRAY_LIMIT} is {given!r}; expected a number of gigabytes above 0')
  if size > most * 2**30:
    raise ValueError(
      f'arrays of {size / 2**30:,.1f} GiB, more than {most:g}; the variable {ARRAY_LIMIT} of the environment '
      'allows more'
    )
