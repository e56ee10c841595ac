"""Seals folders of Orbax: each gets a list of the sizes and SHA-256 of its files before it counts as written.

The list stands in `digests.json` of the folder. Folders in buckets and those of older versions have none, and there is
nothing to check.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from vild_jax.runtime import digests, files

FILE = 'digests.json'
_LATER = '_CHECKPOINT_METADATA'  # Orbax writes the times of a save last
# Beside the folder of a training's state, Orbax keeps the loss, which decides what `train.keep_best` keeps.
_LOSS = ('metrics', 'metrics')


class Handler(ocp.StandardCheckpointHandler):
  """Saves and restores a pytree as its base class does, and seals the folder.

  Orbax calls `finalize` when all processes have written, of an asynchronous save in the thread of that save, and
  renames the folder to its name afterwards: a folder with its name has its list, and no step waits for it.
  """

  def __init__(self):
    super().__init__()
    self._about: Mapping[str, Any] = {}

  async def async_save(self, directory: Any, *rest: Any, args: Save | None = None, **more: Any) -> Any:
    """Saves; see the base class."""
    self._about = getattr(args, 'about', {})
    return await super().async_save(directory, *rest, args=args, **more)

  def finalize(self, directory: Any) -> None:
    """Joins what the processes have written, then writes the list."""
    super().finalize(directory)
    # A bucket checks what is sent and read by checksums of its own; the list would be made by reading all of it back.
    if jax.process_index() == 0 and not files.is_remote(directory):
      folder = Path(directory)
      listed = digests.of_files(folder, sorted(set(digests.below(folder)) - {_LATER}))
      files.write(folder / FILE, digests.sealed({**self._about, 'files': listed}))


@ocp.args.register_with_handler(Handler, for_save=True)
@dataclasses.dataclass
class Save(ocp.args.StandardSave):
  """Holds what to save, and what the list says besides, in JSON values."""

  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@ocp.args.register_with_handler(Handler, for_restore=True)
@dataclasses.dataclass
class Restore(ocp.args.StandardRestore):
  """Holds what to restore."""


def is_sealed(folder: Path) -> bool:
  """Says whether a folder has a list, which may be damaged."""
  return (folder / FILE).is_file()


def problems(folder: Path, told: Callable[[int], Any] = lambda count: None) -> Iterator[str]:
  """Yields a line for each file of a folder that is not as it was written; none for a folder without a list.

  The state of a checkpoint's step (`state` as the name of the folder) also has the loss beside it, and two folders up
  the training vocabulary, both as the list says. `told` is called as `digests.sha256` does.
  """
  if not is_sealed(folder):
    return
  content = (folder / FILE).read_bytes()
  if not digests.is_whole(content):
    yield f'{folder / FILE} is damaged: it does not have the checksum that it states'
    return
  about = json.loads(content)
  yield from digests.differences(folder, about['files'], FILE, told)
  if problem := loss_problem(folder):
    yield problem
  for name, digest in about.get('beside', {}).items():
    path = folder.parents[2] / name
    if not path.is_file() or digests.sha256(path) != digest:
      yield f'{path} is not the file that it was when step {folder.parent.name} was saved'


def loss_problem(folder: Path) -> str:
  """Returns why the loss beside the state of a step cannot be read, or is not that of its list; '' if it can."""
  path, said = folder.parent.joinpath(*_LOSS), None
  if is_sealed(folder) and digests.is_whole(content := (folder / FILE).read_bytes()):
    said = json.loads(content).get('loss')
  if not path.is_file():
    return f'{path} is missing' if said is not None else ''
  try:
    found = json.loads(path.read_bytes())['loss']
  except (ValueError, KeyError, TypeError):
    found = None
  is_right = isinstance(found, int | float) if said is None else found == said
  return '' if is_right else f'{path} is damaged: it holds no loss' + (f' of {said}' if said is not None else '')
