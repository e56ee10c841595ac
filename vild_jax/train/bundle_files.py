"""Keeps and checks the checksums of a bundle's files, which stand in its `bundle.json`.

Format 2 lists every file of the bundle with its size and SHA-256, but for the model card `README.md`, which is for
people to edit. `bundle.json` ends with the SHA-256 of its own bytes, counted with zeros in the place of that number.
Format 1 had neither; it is still read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vild_jax.runtime import digests, files, reading

BUNDLE_FILE, CARD_FILE = 'bundle.json', 'README.md'
VARIABLES = 'variables'  # the subfolder of the weights in a bundle or a converted checkpoint
TEXT_TOWER, IMAGE_TOWER = 'text_tower', 'image_tower'
FORMAT = 2
# Where a reader looks; folders and files of people beside those of the bundle are not read.
_SUBFOLDERS = (VARIABLES, TEXT_TOWER, IMAGE_TOWER)
_ANEW = 'expected the bundle as `vild-jax export` wrote it: copy or export it anew'


def seal(folder: Path, about: Mapping[str, Any], into: str = BUNDLE_FILE) -> None:
  """Writes bundle.json (or `into`), the last file of a folder: `about`, the list of all files, and its own checksum."""
  names = sorted(set(digests.below(folder)) - {into, CARD_FILE})
  files.write(folder / into, digests.sealed({**about, 'files': digests.of_files(folder, names)}))


def is_bundle(folder: Path) -> bool:
  """Says whether a folder is a bundle, whole or damaged."""
  return (files.path(folder) / BUNDLE_FILE).is_file()


def read_about(bundle: Path) -> dict[str, Any]:
  """Returns the contents of bundle.json. Raises ValueError if it is damaged or of a format unknown to this version."""
  path = files.path(bundle) / BUNDLE_FILE
  about = reading.json_file(path, 'a file that `vild-jax export` wrote')
  content = path.read_bytes()
  version = about.get('format') if isinstance(about, dict) else None
  if version == 1 and 'files' not in about:
    return about
  if type(version) is not int or version not in (1, FORMAT):
    raise ValueError(f'{path} has format {version!r}; expected {FORMAT}, or 1')
  if not digests.is_whole(content):
    raise ValueError(f'{path} is damaged: it does not have the checksum that it states; {_ANEW}')
  listed = about.get('files')
  if not isinstance(listed, dict) or not all(
    isinstance(of, dict) and type(of.get('bytes')) is int and isinstance(of.get('sha256'), str)
    for of in listed.values()
  ):
    raise ValueError(f'{path} does not list files with their bytes and sha256; {_ANEW}')
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
  if problem := next(problems(folder, listed, weights=weights), None):
    raise ValueError(f'{problem}; {_ANEW}')


def problems(
  folder: Path, listed: digests.Listed, *, weights: bool = True, told: Callable[[int], Any] = lambda count: None
) -> Iterator[str]:
  """Yields a line for each file of a bundle that is missing, changed, or in a subfolder without being `listed`.

  `weights` is as `check` takes it, and `told` as `digests.sha256` does.
  """
  if weights:
    for name in sorted(digests.below(folder, _SUBFOLDERS)):
      if name not in listed:
        yield f'{folder / name} is not a file of the bundle: {BUNDLE_FILE} does not list it'
  chosen = {name: expected for name, expected in listed.items() if weights or '/' not in name}
  yield from digests.differences(folder, chosen, BUNDLE_FILE, told)
