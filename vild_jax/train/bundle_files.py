"""Keeps and checks the checksums of a bundle's files, which stand in its `bundle.json`.

Format 2 lists every file of the bundle with its size and SHA-256, but for the model card `README.md`, which is for
people to edit. `bundle.json` ends with the SHA-256 of its own bytes, counted with zeros in the place of that number.
Format 1 had neither; it is still read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vild_jax.runtime import files

BUNDLE_FILE, CARD_FILE = 'bundle.json', 'README.md'
VARIABLES = 'variables'  # the subfolder of the weights in a bundle or a converted checkpoint
TEXT_TOWER, IMAGE_TOWER = 'text_tower', 'image_tower'
FORMAT = 2
# Where a reader looks; folders and files of people beside those of the bundle are not read.
_SUBFOLDERS = (VARIABLES, TEXT_TOWER, IMAGE_TOWER)
_ANEW = 'expected the bundle as `vild-jax export` wrote it: copy or export it anew'
_NO_DIGEST = '0' * 64
_SEALED = re.compile(rb'(.*"sha256": ")([0-9a-f]{64})("\n}\n)', re.DOTALL)


def seal(folder: Path, about: Mapping[str, Any], into: str = BUNDLE_FILE) -> None:
  """Writes bundle.json (or `into`), the last file of a folder: `about`, the list of all files, and its own checksum."""
  names = sorted(set(_below(folder)) - {into, CARD_FILE})
  digests = _digests(folder, names)
  listed = {name: {'bytes': (folder / name).stat().st_size, 'sha256': digests[name]} for name in names}
  open_ = (json.dumps({**about, 'files': listed, 'sha256': _NO_DIGEST}, indent=2) + '\n').encode()
  start, _, end = _SEALED.fullmatch(open_).groups()
  files.write(folder / into, start + hashlib.sha256(open_).hexdigest().encode() + end)


def is_bundle(folder: Path) -> bool:
  """Says whether a folder is a bundle, whole or damaged."""
  return (files.path(folder) / BUNDLE_FILE).is_file()


def read_about(bundle: Path) -> dict[str, Any]:
  """Returns the contents of bundle.json. Raises ValueError if it is damaged or of a format unknown to this version."""
  path = files.path(bundle) / BUNDLE_FILE
  content = path.read_bytes()
  try:
    about = json.loads(content)
  except ValueError as error:  # also if it is not text
    raise ValueError(f'{path} is not JSON: {error}; expected a file that `vild-jax export` wrote') from error
  version = about.get('format') if isinstance(about, dict) else None
  if version == 1 and 'files' not in about:
    return about
  if version not in (1, FORMAT):
    raise ValueError(f'{path} has format {version!r}; expected {FORMAT}, or 1')
  sealed = _SEALED.fullmatch(content)
  if not sealed or hashlib.sha256(_NO_DIGEST.encode().join(sealed.group(1, 3))).hexdigest().encode() != sealed[2]:
    raise ValueError(f'{path} is damaged: it does not have the checksum that it states; {_ANEW}')
  return about


def check(folder: Path, *, weights: bool = True) -> None:
  """Checks the files of a bundle against bundle.json; does nothing for another folder, or a bundle of format 1.

  A folder with a tower of the teacher is a bundle, whether bundle.json is there or not.

  Args:
    folder: the bundle.
    weights: whether to read the subfolders too, which hold nearly all of the bytes.

  Raises ValueError that names the first file that is missing, changed, or in a subfolder without being listed.
  """
  if not is_bundle(folder):
    if tower := next((name for name in (TEXT_TOWER, IMAGE_TOWER) if (folder / name).is_dir()), None):
      raise ValueError(f'{folder / BUNDLE_FILE} is missing, which a bundle with a {tower}/ has; {_ANEW}')
    return
  listed = read_about(folder).get('files')
  if listed is None:
    return
  if weights:
    for name in sorted(_below(folder, _SUBFOLDERS)):
      if name not in listed:
        raise ValueError(f'{folder / name} is not a file of the bundle: {BUNDLE_FILE} does not list it; {_ANEW}')
  names = [name for name in listed if weights or '/' not in name]
  for name in names:
    found, expected = folder / name, listed[name]['bytes']
    if not found.is_file():
      raise ValueError(f'{found} is missing, which {BUNDLE_FILE} lists; {_ANEW}')
    if found.stat().st_size != expected:
      raise ValueError(f'{found} has {found.stat().st_size} bytes, {BUNDLE_FILE} lists {expected}; {_ANEW}')
  for name, digest in _digests(folder, names).items():
    if digest != listed[name]['sha256']:
      raise ValueError(f'{folder / name} is damaged: it is not as it was exported ({BUNDLE_FILE}); {_ANEW}')


def _below(folder: Path, parts: tuple[str, ...] = ('',)) -> Iterator[str]:
  """The names of all files in `parts` of the folder, with slashes; links to files count."""
  for part in parts:
    for where, _, names in os.walk(folder / part):
      yield from ((Path(where) / name).relative_to(folder).as_posix() for name in names)


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
  """{name: SHA-256}; several files at a time, since hashlib lets other threads run."""

  def digest(name: str) -> str:
    with open(folder / name, 'rb') as file:
      return hashlib.file_digest(file, 'sha256').hexdigest()

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    return dict(zip(names, pool.map(digest, names), strict=True))
