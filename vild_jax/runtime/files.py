"""Files and folders that are whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write(path: str | Path, content: str | bytes) -> Path:
  """Writes a file whole, over an older one if there is one. OSError names `path`, not the temporary file."""
  with replacing(path) as temporary:
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
  return Path(path)


def temporary_beside(path: Path) -> Path:
  """Where nobody else writes meanwhile: processes of two containers may have the same number and host name."""
  return path.with_name(f'.{path.name}.{secrets.token_hex(6)}.tmp')


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
  """A temporary path to write a file to, which becomes `path` when all is written, and disappears if that fails."""
  path = Path(path)
  temporary = temporary_beside(path)
  try:
    yield temporary
    os.replace(temporary, path)
  except OSError as error:
    # Without a number it is somebody's own text, which would be lost.
    if error.errno is not None and error.filename in (None, str(temporary)):
      raise type(error)(error.errno, error.strerror, str(path)) from error
    raise
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
  """A folder to write into, which becomes `out` when all of it is written, and disappears if that fails.

  A folder that stands at `out` is replaced: whether it may be is for the caller to check before.
  """
  out = Path(out).absolute()
  out.parent.mkdir(parents=True, exist_ok=True)
  parent = Path(tempfile.mkdtemp(prefix=f'.{out.name}.', dir=out.parent))
  try:
    (parent / 'new').mkdir()
    yield parent / 'new'
    if out.exists():
      out.rename(parent / 'old')
    (parent / 'new').rename(out)
  finally:
    shutil.rmtree(parent, ignore_errors=True)
