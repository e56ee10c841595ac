"""Saves and restores weights without optimiser state: {'params', 'batch_stats'} in a folder of Orbax.

Weights that do not fit the model are an error. `read_config` reads the config that stands beside them.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import absl.logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from vild_jax import config as config_lib
from vild_jax.config import Config
from vild_jax.runtime import buckets, files, hub, messages
from vild_jax.train import bundle_files, sealed
from vild_jax.train.bundle_files import BUNDLE_FILE, IMAGE_TOWER, TEXT_TOWER, VARIABLES
from vild_jax.train.optim import path_name

CONFIG_FILE = 'config.json'  # the resolved config in a work directory or a bundle
CHECKPOINTS = 'checkpoints'  # the subfolder of a work directory, with one folder for each saved step
_ON_THE_HUB = (BUNDLE_FILE, CONFIG_FILE, '*.npz', f'{VARIABLES}/*', f'{TEXT_TOWER}/*', f'{IMAGE_TOWER}/*')


def save(path: Path, tree: Any, *, replace: bool = False) -> None:
  """Writes a pytree of arrays to the folder `path`, which must not exist, unless it may be replaced; seals it."""
  with saving(path), ocp.Checkpointer(sealed.Handler()) as checkpointer:
    checkpointer.save(files.absolute(path), args=sealed.Save(tree), force=replace)


@contextlib.contextmanager
def saving(path: Any) -> Iterator[None]:
  """Gives an error of a save with Orbax a path to name: TensorStore names no file when a flush or closing failed."""
  try:
    with files.naming(path):
      yield
  except ValueError as error:
    if str(path) in str(error):
      raise
    raise ValueError(f'{path} cannot be written: {messages.first_line(error)}') from error


def folder_of(place: str | Path) -> Path:
  """Returns the folder of a bundle, work directory or converted checkpoint, given its path or `hf://owner/name`.

  Of a bundle in a bucket it is a copy on this machine. Raises ValueError if the hub or the bucket does not give it.
  """
  if hub.is_name(place):
    return hub.folder(place, _ON_THE_HUB)
  folder = files.path(place)
  if not files.is_remote(folder) or not (folder / VARIABLES).is_dir():
    return folder
  if not bundle_files.is_bundle(folder):
    raise ValueError(
      f'{folder} holds {VARIABLES}/ but not {BUNDLE_FILE}, the last file of a bundle; expected all of it'
    )
  return buckets.fetched_folder(folder, BUNDLE_FILE)


def locate(folder: Path, step: int | None = None) -> Path:
  """Returns what `find` does, and raises ValueError if a file of it is not as it was written.

  Nobody reads weights without this.
  """
  path = find(folder, step)
  if step_of(path) is None:
    bundle_files.check(files.absolute(folder))
    if not bundle_files.is_bundle(folder):
      check_sealed(path, f'the folder anew, as it was written into {folder}')
  else:
    check_step(path)
  return path


def find(folder: Path, step: int | None = None) -> Path:
  """Returns the folder of the weights of a bundle, or of a checkpoint of a work directory (the newest, or `step`).

  Raises ValueError if there are none.
  """
  folder = files.absolute(folder)
  if (folder / VARIABLES).is_dir() and step is None:
    return folder / VARIABLES
  there = steps(folder)
  step = max(there) if step is None else step
  if step not in there:
    raise ValueError(f'{folder} holds no checkpoint of step {step}; expected one of {", ".join(map(str, there))}')
  return folder / CHECKPOINTS / str(step) / 'state'


def steps(folder: Path) -> list[int]:
  """Returns the steps of the complete checkpoints of a work directory, in order; ValueError if there are none."""
  if not (folder / CHECKPOINTS).is_dir():
    raise ValueError(f'{folder} holds no checkpoint; expected a work directory of `vild-jax train` or a bundle')
  # A manager would read the losses of all steps, of which one may be damaged.
  there = sorted(ocp.utils.checkpoint_steps(folder / CHECKPOINTS))
  if not there:
    raise ValueError(f'{folder} holds no complete checkpoint yet; expected one under {CHECKPOINTS}/')
  return there


def check_step(path: Path) -> None:
  """Raises ValueError if a file of a checkpoint (`find`) is not as it was saved; the message says what helps."""
  _raise_of_step(path, next(sealed.problems(path), ''))


def check_losses(workdir: Path) -> None:
  """Raises ValueError, as `check_step` does, if Orbax could not open the checkpoints, as it reads the loss of each."""
  for path in (files.absolute(workdir) / CHECKPOINTS).glob('*/state'):
    if path.parent.name.isdigit():
      _raise_of_step(path, sealed.loss_problem(path))


def _raise_of_step(path: Path, problem: str) -> None:
  if problem:
    step, workdir = step_of(path), path.parents[2]
    others = ', '.join(str(other) for other in steps(workdir) if other != step)
    raise ValueError(
      f'{problem}; expected the checkpoint of step {step} as it was saved: `vild-jax train --fallback` goes on from '
      f'the newest one that is whole, and --step N of the other commands takes another ({others or "there is none"})'
    )


def check_sealed(path: Path, expected: str) -> None:
  """Raises ValueError if a file of a folder that `save` wrote has changed; the message says what was `expected`."""
  if problem := next(sealed.problems(path), None):
    raise ValueError(f'{problem}; expected {expected}')


def step_of(path: Path) -> int | None:
  """Returns the step of a checkpoint that `locate` found in a work directory; None for a bundle."""
  return int(path.parent.name) if path.parent.parent.name == CHECKPOINTS else None


def read_config(workdir: Path) -> Config:
  """Returns the resolved config of a work directory or a bundle. Raises ValueError if it is not there or damaged."""
  path = files.path(workdir) / CONFIG_FILE
  if not path.is_file():
    raise ValueError(f'{workdir} holds no {CONFIG_FILE}; expected a work directory of `vild-jax train` or a bundle')
  bundle_files.check(path.parent, weights=False)
  return config_lib.read(path)


def restore(path: Path, expected: Any, *, parts: tuple[str, ...] = ()) -> Any:
  """Restores the arrays of `expected` from the checkpoint at `path`.

  Args:
    path: an Orbax folder.
    expected: {'params', 'batch_stats'}, abstract arrays with shardings; with `parts`, these modules alone.
    parts: names of the modules to restore, such as 'backbone'; the other modules of the checkpoint are ignored. Empty:
      all modules.

  Raises ValueError, naming the first difference, unless both have the same weights with the same shapes.
  """
  check(path, expected, parts=parts)
  return read(path, expected)


def read(path: Path, expected: Any) -> Any:
  """Reads the arrays of `expected` from the checkpoint at `path`, which has all of them with the same shapes.

  Raises ValueError, naming the first such array, if some values are not finite.
  """
  restore_args = jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype), expected)
  args = ocp.args.PyTreeRestore(item=expected, restore_args=restore_args, partial_restore=True)
  with reading(path), ocp.PyTreeCheckpointer() as checkpointer:
    found = checkpointer.restore(files.absolute(path), args=args)
  check_finite(found, path)
  return found


def check(path: Path, expected: Any, *, parts: tuple[str, ...] = ()) -> None:
  """Raises ValueError, naming the first difference, unless the checkpoint has the weights that `restore` expects."""
  found = stored(path)
  if parts:
    found = {key: {part: tree.get(part, {}) for part in parts} for key, tree in found.items()}
  there, here = shapes(found), shapes(expected)
  differences = [f'{name} is missing' for name in here if name not in there]
  differences += [f'{name} has no place in the model' for name in there if name not in here]
  differences += [
    f'{name} is {there[name]}, expected {here[name]}' for name in here if name in there and there[name] != here[name]
  ]
  if differences:
    raise ValueError(
      f'the checkpoint {path} is of another architecture: {differences[0]} ({len(differences)} differences); '
      'expected the config that it was trained with'
    )


def stored(path: Path) -> dict[str, Any]:
  """Returns what the checkpoint at `path` holds, as {'params', 'batch_stats'} of leaves with a `shape`."""
  with reading(path), ocp.PyTreeCheckpointer() as checkpointer:
    found = checkpointer.metadata(files.absolute(path)).item_metadata.tree
  return {key: found.get(key, {}) for key in ('params', 'batch_stats')}


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Returns {name of a leaf: shape}."""
  return {path_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def check_finite(tree: Any, path: Path) -> None:
  """Raises ValueError, naming the first such array, if a value of this process's part of the arrays is not finite."""
  for name, value in jax.tree_util.tree_leaves_with_path(tree):
    # One copy of each part: the devices of a mesh may all have the same.
    parts = {str(s.index): s.data for s in value.addressable_shards} if isinstance(value, jax.Array) else {'': value}
    if not all(_all_finite(part) for part in parts.values()):
      raise ValueError(
        f'{path_name(name)} of the checkpoint {path} is not finite; expected weights of a training that did not diverge'
      )


def _all_finite(value: Any) -> bool:
  value = np.asarray(value)
  return not jax.numpy.issubdtype(value.dtype, jax.numpy.floating) or bool(np.isfinite(value.astype(np.float32)).all())


def identity(tree: Any) -> str:
  """Returns a hash of weights: of their names, shapes, types and values, on whatever devices they are.

  Raises ValueError, naming the first such array, if some values are not finite: results would not be finite either.
  """
  digest = hashlib.sha256()
  for path, value in jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]:
    value = np.ascontiguousarray(value)
    if not np.isfinite(value.astype(np.float32)).all():
      raise ValueError(
        f'{path_name(path)} of the checkpoint is not finite; expected weights of a training that did not diverge'
      )
    digest.update(f'{path_name(path)} {value.shape} {value.dtype}\n'.encode())
    digest.update(value.tobytes())
  return digest.hexdigest()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
  """Turns every error of Orbax in this context into one ValueError that names the folder `path`."""
  loud = sys.unraisablehook

  def quiet(unraisable: Any) -> None:
    # After a failed read, threads of TensorStore still use Orbax's closed event loop: one traceback for each array.
    if str(unraisable.exc_value) != 'Event loop is closed':
      loud(unraisable)

  sys.unraisablehook = quiet
  verbosity = absl.logging.get_verbosity()
  absl.logging.set_verbosity(absl.logging.ERROR)  # hides warnings about missing metadata files
  try:
    yield
  except Exception as error:  # Orbax and TensorStore raise many types, with messages of many lines
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
      raise  # another process has ended; the checkpoint may be good
    raise ValueError(
      f'the checkpoint {path} cannot be read ({type(error).__name__}); expected a whole one '
      '(of a work directory, `vild-jax train --fallback` goes on from the newest that is whole)'
    ) from error
  finally:
    absl.logging.set_verbosity(verbosity)
  sys.unraisablehook = loud  # not after a failure: the threads of the failed read are still running
