"""Lists sizes and SHA-256 of files, seals such a list with a checksum of its own, and says what differs from it.

Bundles, checkpoints, data sets and region stores keep such lists; each says which files are in them
(docs/reliability.md).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Listed = Mapping[str, Mapping[str, Any]]  # {name: {'bytes', 'sha256'}}
_NONE = '0' * 64
_SEALED = re.compile(rb'(.*"sha256": ")([0-9a-f]{64})("\n}\n)', re.DOTALL)
_PART = 2**20  # bytes that are read at a time


def sha256(path: Path, told: Callable[[int], Any] = lambda count: None) -> str:
  """Returns the SHA-256 of a file; calls `told` with the number of bytes after each part, and passes on its errors."""
  found, part = hashlib.sha256(), memoryview(bytearray(_PART))
  with path.open('rb') as file:
    while count := file.readinto(part):
      found.update(part[:count])
      told(count)
  return found.hexdigest()


def below(folder: Path, parts: Sequence[str] = ('',)) -> Iterator[str]:
  """Yields the names of all files in `parts` of a folder, with slashes; links to files count."""
  waiting = [folder / part for part in parts]
  while waiting:
    where = waiting.pop()
    for path in where.iterdir() if where.is_dir() else ():  # not `rglob`, which paths in buckets lack
      if not path.is_dir():
        yield path.relative_to(folder).as_posix()
      elif not os.path.islink(path):
        waiting.append(path)


def of_files(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Returns {name: {'bytes', 'sha256'}} of the files of a folder."""
  found = zip(names, _each(folder, names), strict=True)
  return {name: {'bytes': (folder / name).stat().st_size, 'sha256': digest} for name, digest in found}


def differences(
  folder: Path, listed: Listed, where: str, told: Callable[[int], Any] = lambda count: None
) -> Iterator[str]:
  """Yields a line for each file of `listed` that is missing or not as it was written, sizes first, then contents.

  `where` is the name of the file that holds the list, for messages; `told` is called as `sha256` does, in threads.
  """
  sized = []
  for name, expected in listed.items():
    path = folder / name
    if not path.is_file():
      yield f'{path} is missing, which {where} lists'
    elif (size := path.stat().st_size) != expected['bytes']:
      yield f'{path} has {size} bytes, {where} lists {expected["bytes"]}'
    else:
      sized.append(name)
  for name, digest in zip(sized, _each(folder, sized, told), strict=True):
    if digest != listed[name]['sha256']:
      yield f'{folder / name} is damaged: it is not as it was written ({where})'


def sealed(tree: Mapping[str, Any]) -> bytes:
  """Returns a JSON object that ends with `sha256`, the checksum of its own bytes, counted with zeros in its place."""
  content = {key: value for key, value in tree.items() if key != 'sha256'} | {'sha256': _NONE}  # it comes last
  text = (json.dumps(content, indent=2) + '\n').encode()
  start, _, end = _SEALED.fullmatch(text).groups()
  return start + hashlib.sha256(text).hexdigest().encode() + end


def is_whole(content: bytes) -> bool:
  """Says whether bytes are as `sealed` returned them."""
  found = _SEALED.fullmatch(content)
  return found is not None and hashlib.sha256(_NONE.encode().join(found.group(1, 3))).hexdigest().encode() == found[2]


def _each(folder: Path, names: Sequence[str], told: Callable[[int], Any] = lambda count: None) -> Iterator[str]:
  """The digests, in order; several files at a time, since hashlib lets other threads run."""
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    yield from pool.map(lambda name: sha256(folder / name, told), names)
