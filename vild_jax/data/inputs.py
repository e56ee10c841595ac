"""Lists the pictures and videos that the arguments of a command name: files, folders and globs."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vild_jax.data import picture_files, pictures
from vild_jax.data.schema import DataError

VIDEO_SUFFIXES = ('.mp4', '.mov', '.m4v', '.avi', '.mkv', '.webm', '.mpg', '.mpeg')
_LONGEST_NAME = 160  # bytes; file systems allow 255, and a temporary name is longer than the final one


@dataclass(frozen=True)
class Input:
  """Holds one picture or video.

  Attributes:
    path: of the file.
    name: what the names of files about it begin with; no two inputs share it, even where upper and lower case are one.
  """

  path: Path
  name: str

  @property
  def is_video(self) -> bool:
    """Tells by its suffix whether the file is a video."""
    return _has_suffix(self.path, VIDEO_SUFFIXES)


def inputs(arguments: Sequence[str | Path], out: Path, endings: Sequence[str] = ()) -> list[Input]:
  """Returns what the arguments name, each file once, in their order; files of one folder or glob by name.

  The name of an input is that of its file without suffix, and in a folder its path below that, with `_` between the
  parts. Where two would have one name, or OUT/NAME+ending is itself an input, the later one gets a number.

  Args:
    arguments: files; folders, of which all pictures count that are not hidden, in folders below it too; and globs, in
      which ** stands for any folders, of which pictures, videos and folders count.
    out: where files about the inputs will be written. What it holds is left out of folders, and these files out of
      globs, so that what a run has written is no input when it is started again.
    endings: of these files.

  Raises DataError for an argument that names nothing, or if `out` is a folder of the pictures.
  """
  found: dict[str, tuple[Path, str]] = {}
  for argument in map(str, arguments):
    for path, name in _named(argument, os.path.realpath(out), tuple(endings)):
      found.setdefault(os.path.realpath(path), (path, name))
  taken = {_key(Path(path)) for path in found}
  listed = []
  for path, name in found.values():
    name, number = _shortened(name), 1
    while True:
      free = name if number == 1 else f'{name}_{number}'
      files = {_key(Path(os.path.realpath(out), free + ending)) for ending in ('', *endings)}
      if not files & taken:
        break
      number += 1
    taken |= files
    listed.append(Input(path, free))
  return listed


def _named(argument: str, out: str, endings: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
  """Yields (path, name) of what one argument names."""
  if os.path.isdir(argument):
    below = list(_in_folder(argument, out))
    if not below:
      raise DataError(f'{argument} holds no picture; expected files that end with {" ".join(pictures.SUFFIXES)}')
    yield from below
  elif os.path.lexists(argument):
    yield Path(argument), Path(argument).stem
  elif glob.has_magic(argument):
    matches = [match for match in sorted(glob.glob(argument, recursive=True)) if not _is_result(match, out, endings)]
    known = (*pictures.SUFFIXES, *VIDEO_SUFFIXES)
    below = [
      (Path(match), Path(match).stem) for match in matches if _has_suffix(match, known) and os.path.isfile(match)
    ]
    # `**` has listed what is in folders already.
    folders = [] if '**' in argument else filter(os.path.isdir, matches)
    below += [found for folder in folders for found in _in_folder(folder, out)]
    if not below:
      raise DataError(f'{argument} matches no picture and no video; expected a glob such as "photos/**/*.jpg"')
    yield from below
  else:
    raise DataError(f'{argument} does not exist; expected a picture, a video, a folder of pictures or a glob')


def _is_result(match: str, out: str, endings: tuple[str, ...]) -> bool:
  folder, name = os.path.split(match)
  return os.path.realpath(match) == out or (name.endswith(endings) and os.path.realpath(folder) == out)


def _in_folder(folder: str, out: str) -> Iterator[tuple[Path, str]]:
  if os.path.realpath(folder) == out:
    raise DataError(f'{folder} is the folder of the pictures and of the results; expected another --out')
  files = [
    Path(where, name)
    for where, names in picture_files.walk(folder, hidden=False)
    if out not in (real := os.path.realpath(where), *map(str, Path(real).parents))
    for name in names
    if not name.startswith('.') and _has_suffix(name, pictures.SUFFIXES)
  ]
  for path in sorted(files):
    yield path, '_'.join(path.relative_to(folder).with_suffix('').parts)


def _has_suffix(path: str | Path, suffixes: Sequence[str]) -> bool:
  return str(path).lower().endswith(tuple(suffixes))


def _key(path: Path) -> str:
  """One form of the names that a file system may take for the same."""
  return picture_files.composed(str(path)).casefold()


def _shortened(name: str) -> str:
  while len(os.fsencode(name)) > _LONGEST_NAME:
    name = name[:-1]
  return name
