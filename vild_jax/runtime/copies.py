"""Copies folders of a bucket to a disk of this machine, for what is read there alone: prepared data, region stores.

The processes of a machine share a copy: one writes it, and the others wait. Each file is copied whole and checked by
size and CRC32C, the checksum that a bucket keeps of every object; a later start copies what has changed since.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vild_jax.runtime import buckets, files, locks, progress

COPIED_FILE = 'copied.json'  # beside a copy: what the bucket said of each file
_PATIENCE = 86_400.0  # seconds; another process of this machine is copying meanwhile
_PIECE = 2**22  # bytes


def cached(place: str | Path, cache: str) -> Path:
  """Returns the folder of this machine that holds what is at `place`: its own, or a copy of one in a bucket.

  Args:
    place: the path of a folder, or an address gs://bucket/name.
    cache: the folder for copies, `data.cache`; a path needs none.

  Raises ValueError if an address has no `cache` or nothing is there, OSError if a file cannot be copied whole.
  """
  if not files.is_remote(place):
    return Path(place)
  if not cache:
    raise ValueError(
      f'{place} is in a bucket, and is read from a copy on this machine; expected data.cache=DIR (embed-regions: '
      '--data-cache), a folder for copies'
    )
  source = files.path(place)
  folder = files.local(cache) / hashlib.sha256(str(source).encode()).hexdigest()[:16]
  with locks.locked(folder, wait_seconds=_PATIENCE):
    _copy(source, folder / source.name, folder / COPIED_FILE)
  return folder / source.name


def _copy(source: Any, target: Path, record: Path) -> None:
  there = buckets.listed(source)
  if not there:
    raise ValueError(f'{source} holds no files; expected the folder of a prepared data set or a region store')
  try:
    copied = json.loads(record.read_text(encoding='utf-8'))
  except (OSError, ValueError):
    copied = {}
  is_here = lambda name, about: (target / name).is_file() and (target / name).stat().st_size == about['bytes']
  missing = [name for name, about in there.items() if copied.get(name) != about or not is_here(name, about)]
  for path in target.rglob('*'):
    if path.is_file() and path.relative_to(target).as_posix() not in there:
      path.unlink()
  if not missing:
    return
  size = sum(there[name]['bytes'] for name in missing)
  print(f'copying {len(missing)} files, {size / 1e9:.2f} GB, from {source} to {target}', file=sys.stderr)
  for name in missing:
    copied.pop(name, None)
    (target / name).parent.mkdir(parents=True, exist_ok=True)
  lock = threading.Lock()
  with progress.bar(size, 'copy', unit='B') as bar, ThreadPoolExecutor(buckets.THREADS) as pool:

    def copy(name: str) -> None:
      with files.replacing(target / name) as temporary:
        buckets.download(source / name, temporary)
        found = {'bytes': temporary.stat().st_size, 'crc32c': _checksum(temporary)}
        if found != there[name]:
          raise OSError(f'{source / name} came as {found}, and the bucket says {there[name]}; expected a whole file')
      with lock:
        copied[name] = found
        bar.update(found['bytes'])

    try:
      list(pool.map(copy, missing))
    finally:
      with lock:  # what is whole need not be copied again
        files.write(record, json.dumps({name: copied[name] for name in sorted(copied)}, indent=1) + '\n')


def _checksum(path: Path) -> str:
  """CRC32C of a file, as a bucket states it."""
  import google_crc32c  # of the extra `gcs`

  found = google_crc32c.Checksum()
  with path.open('rb') as file:
    while piece := file.read(_PIECE):
      found.update(piece)
  return base64.b64encode(found.digest()).decode()
