"""Keeps embeddings of class names on the disk, so that a list of many thousands is embedded once on a machine.

The folder is $VILD_JAX_CACHE, else vild_jax/ in $XDG_CACHE_HOME or ~/.cache; VILD_JAX_CACHE=off keeps nothing. In it,
names/KEY/00.npz to 15.npz hold the names of one text tower and tokenizer with one set of prompts, which make the KEY:
`names` uint8 [N, 16], the starts of their SHA-256 hashes, and `embeddings` float32 [N, D]. A file that cannot be used
counts as empty and is written anew. Processes that write at the same time may lose rows of each other, which are
embedded again.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vild_jax.runtime import files
from vild_jax.teacher.text import TextTower
from vild_jax.vocabulary import UNIT_TOLERANCE

_FILES = 16  # a new name writes one of them
_ROWS = 8192  # of a file, the newest; 128 Ki names of one tower and prompts, 256 MiB at 512 dimensions
_RECIPE = 1  # changes when the same tower and prompts come to give other embeddings
_SECONDS_BETWEEN_WRITES = 30.0  # while many names are embedded, so that little is lost if that is stopped

Rows = dict[bytes, np.ndarray]


def folder() -> Path | None:
  """Returns the folder that the cache lies in; None if the user wants none, or has no home as in some containers."""
  chosen = os.environ.get('VILD_JAX_CACHE')
  if chosen == 'off':
    return None
  try:
    return Path(chosen or Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'vild_jax')).expanduser()
  except RuntimeError:
    return None


def embed(tower: TextTower, names: Sequence[str], templates: Sequence[str]) -> dict[str, np.ndarray]:
  """Returns {name: float32 [D]}: what `tower.embed` gives, read from the disk where it is known, else kept there."""
  where = folder()
  if where is not None:
    # The identity names the tokens, and not how texts are divided into them.
    division = hashlib.sha256(tower.teacher.tokenizer_json.encode()).hexdigest()
    recipe = repr((_RECIPE, tower.identity, division, tower.dtype, tuple(templates)))
    where = where / 'names' / hashlib.sha256(recipe.encode()).hexdigest()[:32]
  key_of = {name: hashlib.sha256(name.encode()).digest()[:16] for name in names}
  known: Rows = {}
  for number in sorted({_file_of(key) for key in key_of.values()}) if where else ():
    known |= _read(where / f'{number:02}.npz', tower.embedding_dim)
  found = {name: known[key] for name, key in key_of.items() if key in known}
  missing = [name for name in key_of if name not in found]
  if not missing:
    return found
  fresh: Rows = {}
  written, place = time.monotonic(), 0
  for rows in tower.embed_in_parts(missing, templates):
    part = missing[place : place + len(rows)]
    place += len(rows)
    found.update(zip(part, rows, strict=True))
    fresh.update((key_of[name], row) for name, row in zip(part, rows, strict=True))
    if where and (place == len(missing) or time.monotonic() - written > _SECONDS_BETWEEN_WRITES):
      try:
        _add(where, fresh, tower.embedding_dim)
      except OSError as error:
        print(f'warning: embeddings of names are not kept ({error}); VILD_JAX_CACHE names a folder', file=sys.stderr)
        where = None
      fresh, written = {}, time.monotonic()
  return found


def _file_of(key: bytes) -> int:
  return key[0] % _FILES


def _add(where: Path, fresh: Rows, dimension: int) -> None:
  where.mkdir(parents=True, exist_ok=True)
  for number in sorted(set(map(_file_of, fresh))):
    path = where / f'{number:02}.npz'
    # Rows that another process has added since are kept.
    rows = _read(path, dimension) | {key: row for key, row in fresh.items() if _file_of(key) == number}
    newest = list(rows.items())[-_ROWS:]
    with files.replacing(path) as temporary, open(temporary, 'wb') as f:
      np.savez(
        f,
        names=np.frombuffer(b''.join(key for key, _ in newest), np.uint8).reshape(-1, 16),
        embeddings=np.stack([row for _, row in newest]),
      )


def _read(path: Path, dimension: int) -> Rows:
  """Returns the rows of a file by the keys of their names, oldest first; none if it is missing or damaged."""
  try:
    with np.load(path, allow_pickle=False) as arrays:
      keys, rows = arrays['names'], arrays['embeddings']
  except Exception:  # a damaged archive raises errors of many types
    return {}
  usable = (
    rows.ndim == 2
    and keys.dtype == np.uint8
    and keys.shape == (len(rows), 16)
    and rows.dtype == np.float32
    and rows.shape[1:] == (dimension,)
    and (np.abs(np.linalg.norm(rows, axis=1) - 1) < UNIT_TOLERANCE).all()  # not so for numbers that are not finite
  )
  return dict(zip(map(bytes, keys), rows, strict=True)) if usable else {}
