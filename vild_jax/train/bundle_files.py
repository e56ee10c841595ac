"""Keeps and checks the checksums of a bundle's files, which stand in its `bundle.json`.

Format 2 lists every file of the bundle with its size and SHA-256, but for the model card `README.md`, which is for
people to edit. `bundle.json` ends with the SHA-256 of its own bytes, counted with zeros in the place of that number.
Format 1 had neither; it is still read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vild_jax.runtime import digests, files, reading
from vild_jax.runtime.messages import shown

BUNDLE_FILE, CARD_FILE = 'bundle.json', 'README.md'
VARIABLES = 'variables'  # the subfolder of the weights in a bundle or a converted checkpoint
TEXT_TOWER, IMAGE_TOWER = 'text_tower', 'image_tower'
FORMAT = 2
MOST_CARD = 2**20  # bytes that are read of the model card
# Where a reader looks; folders and files of people beside those of the bundle are not read.
_SUBFOLDERS = (VARIABLES, TEXT_TOWER, IMAGE_TOWER)
_ANEW = 'expected the bundle as `vild-jax export` wrote it: copy or export it anew'


def seal(folder: Path, about: Mapping[str, Any], into: str = BUNDLE_FILE) -> None:
  """Writes bundle.json (or `into`), the last file of a folder: `about`, the list of all files, and its own checksum."""
  names = sorted(set(digests.below(folder)) - {into, CARD_FILE})
  files.write(folder / into, digests.sealed({**about, 'files': digests.of_files(folder, names)}))


def keep_others(old: Path, new: Path, marker: str = BUNDLE_FILE) -> None:
  """Copies what people have put beside the files of a bundle, such as `examples/`, into the one that replaces it.

  Args:
    old: the folder that is replaced, whose file `marker` lists its own files; it need not be there.
    new: the sealed folder that comes in its place.
    marker: `bundle.json`, or the file of another folder that `seal` wrote.
  """
  listed, known = None, (old / marker).is_file()
  if not known and not files.is_unfinished(old):
    return
  # Of a damaged marker, and where one that was being replaced has none, what the new folder lacks is not its own.
  with contextlib.suppress(ValueError):
    listed = reading.json_object(old / marker, 'a list of files').get('files') if known else None
  names = listed if isinstance(listed, dict) else ()
  own = {marker, CARD_FILE, *_SUBFOLDERS, *(name.partition('/')[0] for name in names), *os.listdir(new)}
  if files.is_remote(old):
    for name in files.sizes(old):
      if name.partition('/')[0] not in own and not name.startswith('.'):
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files.fetched(old / name), new / name)
    return
  for path in old.iterdir():
    if path.name in own or files.is_temporary(path.name):
      continue
    if path.is_dir() and not path.is_symlink():
      shutil.copytree(path, new / path.name, symlinks=True)
    else:
      shutil.copy2(path, new / path.name, follow_symlinks=False)


def is_bundle(folder: Path) -> bool:
  """Says whether a folder is a bundle, whole or damaged."""
  return (files.path(folder) / BUNDLE_FILE).is_file()


def holds(bundle: Path, path: Path) -> bool:
  """Says whether a path is a file of a bundle, and no link to one elsewhere on this machine: bundles are of others.

  In the cache of the hub's client each file of `snapshots/REVISION/` is a link into `blobs/` of the same repository.
  """
  if not path.is_file():
    return False
  target, bundle = path.resolve(), bundle.resolve()
  of_the_hub = bundle.parent.name == 'snapshots' and target.parent == bundle.parents[1] / 'blobs'
  return of_the_hub or target.is_relative_to(bundle)


def card(bundle: Path) -> str:
  """Returns the model card of a bundle or work directory, at most `MOST_CARD` of it; '' if it has none."""
  path = bundle / CARD_FILE
  if not holds(bundle, path):
    return ''
  with path.open('rb') as file:
    return file.read(MOST_CARD).decode('utf-8', errors='replace')


def watched(folder: Path) -> Callable[[], None]:
  """Returns a function that raises ValueError if the bundle in a folder is not the one that is there now.

  A bundle is read in several steps, each of which checks what it reads; another `export` may replace it in between.
  """
  path = files.path(folder) / BUNDLE_FILE
  read = lambda: path.read_bytes() if path.is_file() else None
  before = read()

  def check_same() -> None:
    if read() != before:
      raise ValueError(f'{folder} was replaced while it was read; expected one bundle: give the command again')

  return check_same


def read_about(bundle: Path) -> dict[str, Any]:
  """Returns the contents of bundle.json. Raises ValueError if it is damaged or of a format unknown to this version."""
  path = files.path(bundle) / BUNDLE_FILE
  about = reading.json_file(path, 'a file that `vild-jax export` wrote')
  content = path.read_bytes()
  version = about.get('format') if isinstance(about, dict) else None
  if version == 1 and 'files' not in about:
    return about
  if type(version) is not int or version not in (1, FORMAT):
    raise ValueError(f'{path} has format {shown(version)}; expected {FORMAT}, or 1')
  if not digests.is_whole(content):
    raise ValueError(f'{path} is damaged: it does not have the checksum that it states; {_ANEW}')
  listed = about.get('files')
  if not isinstance(listed, dict) or not all(
    reading.is_place(name)
    and isinstance(of, dict)
    and type(of.get('bytes')) is int
    and isinstance(of.get('sha256'), str)
    for name, of in listed.items()
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
