"""Weights alone in a folder (Orbax): {'params', 'batch_stats'} without optimiser state; strict about what fits."""

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

from vild_jax.train.optim import path_name

VARIABLES = 'variables'  # the folder's name below a bundle or a converted checkpoint
CHECKPOINTS = 'checkpoints'  # ... and below a work directory, where each step has one


def save(path: Path, tree: Any) -> None:
  """Writes a pytree of arrays to the folder `path`, which must not exist."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(Path(path).absolute(), tree)


def locate(folder: Path, step: int | None = None) -> Path:
  """Where the weights of a bundle are, or of a work directory's checkpoint: the newest, or that of `step`.

  Raises ValueError if there are none.
  """
  folder = Path(folder).absolute()
  if (folder / VARIABLES).is_dir() and step is None:
    return folder / VARIABLES
  if not (folder / CHECKPOINTS).is_dir():
    raise ValueError(f'{folder} holds no checkpoint; expected a work directory of `vild-jax train` or a bundle')
  options = lambda: ocp.CheckpointManagerOptions(read_only=True)  # made inside: it logs what read-only means
  with reading(folder / CHECKPOINTS), ocp.CheckpointManager(folder / CHECKPOINTS, options=options()) as manager:
    steps = manager.all_steps()
  if not steps:
    raise ValueError(f'{folder} holds no complete checkpoint yet; expected one under {CHECKPOINTS}/')
  step = max(steps) if step is None else step
  if step not in steps:
    there = ', '.join(map(str, sorted(steps)))
    raise ValueError(f'{folder} holds no checkpoint of step {step}; expected one of {there}')
  return folder / CHECKPOINTS / str(step) / 'state'


def restore(path: Path, expected: Any, *, parts: tuple[str, ...] = ()) -> Any:
  """Restores what `expected` names (abstract, with shardings) of the checkpoint at `path`.

  Args:
    path: an Orbax folder.
    expected: {'params', 'batch_stats'}, or below each of them `parts` alone.
    parts: the modules to take, such as 'backbone'; what else the checkpoint holds is of no account then. All if empty.

  Raises ValueError, naming the first misfit, unless both have the same weights of the same shapes.
  """
  check(path, expected, parts=parts)
  restore_args = jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype), expected)
  args = ocp.args.PyTreeRestore(item=expected, restore_args=restore_args, partial_restore=True)
  with reading(path), ocp.PyTreeCheckpointer() as checkpointer:
    return checkpointer.restore(path.absolute(), args=args)


def check(path: Path, expected: Any, *, parts: tuple[str, ...] = ()) -> None:
  """Raises ValueError, naming the first misfit, unless the checkpoint has the weights of `expected` (see `restore`)."""
  with reading(path), ocp.PyTreeCheckpointer() as checkpointer:
    found = checkpointer.metadata(path.absolute()).item_metadata.tree
  found = {key: found.get(key, {}) for key in expected}
  if parts:
    found = {key: {part: tree.get(part, {}) for part in parts} for key, tree in found.items()}
  shapes = lambda tree: {path_name(p): tuple(x.shape) for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]}
  there, here = shapes(found), shapes(expected)
  misfits = [f'{name} is missing' for name in here if name not in there]
  misfits += [f'{name} has no place in the model' for name in there if name not in here]
  misfits += [
    f'{name} is {there[name]}, expected {here[name]}' for name in here if name in there and there[name] != here[name]
  ]
  if misfits:
    raise ValueError(
      f'the checkpoint {path} is of another architecture: {misfits[0]} ({len(misfits)} misfits); '
      'expected the config that it was trained with'
    )


def identity(tree: Any) -> str:
  """Hash of weights: their names, shapes, types and values, wherever they lie.

  Raises ValueError, naming the first, if some are not finite: whatever is computed from them would not be either.
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
  """Around what Orbax reads from `path`: whatever goes wrong is one ValueError that names the folder."""
  loud = sys.unraisablehook

  def quiet(unraisable: Any) -> None:
    # After a failed read TensorStore's threads still call into Orbax's event loop: a traceback for each array.
    if str(unraisable.exc_value) != 'Event loop is closed':
      loud(unraisable)

  sys.unraisablehook = quiet
  verbosity = absl.logging.get_verbosity()
  absl.logging.set_verbosity(absl.logging.ERROR)  # that a folder was written without notes of Orbax's is no news
  try:
    yield
  except Exception as error:  # Orbax and TensorStore raise many types, of many lines
    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
      raise  # another process is gone, and the checkpoint may be good
    raise ValueError(
      f'the checkpoint {path} cannot be read ({type(error).__name__}); expected a whole one '
      '(of a work directory, remove a damaged one, and the one before is taken)'
    ) from error
  finally:
    absl.logging.set_verbosity(verbosity)
  sys.unraisablehook = loud  # stays quiet after a failure, whose threads go on
