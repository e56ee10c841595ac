"""Keeps what the starting detector knows of classes that the data do not label (`train.retention`).

Its variables are stored once in the work directory, so that a training that is resumed does not need the folder of
`train.init`, and go into every step beside the state. The loss is `core.losses.retention`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vild_jax.config import Config, matches
from vild_jax.structs import TrainState
from vild_jax.train import optim, weights
from vild_jax.train import state as state_lib

FOLDER = 'start'  # in a work directory: the variables of the starting detector
_PYRAMID, _HEAD = ('backbone', 'fpn'), ('region_head', 'background')


def parts(config: Config) -> tuple[str, ...]:
  """Returns the modules of the starting detector that a step needs; none without `train.retention`.

  A frozen pyramid is the same in both.
  """
  if not config.train.retention:
    return ()
  # The names that only patterns of whole modules match.
  same = all(matches(config.train.freeze, f'{module}/') for module in _PYRAMID)
  return _HEAD if same else _PYRAMID + _HEAD


def abstract(config: Config, mesh: Mesh) -> Any:
  """Returns shapes, types and shardings of the variables; None without `train.retention`."""
  return of(config, state_lib.abstract(config, mesh))


def of(config: Config, state: TrainState) -> Any:
  """Returns the variables of `parts` in the (abstract) state that a training starts from; None without any."""
  wanted = parts(config)
  if not wanted:
    return None
  variables = state_lib.variables(state)
  return {key: {part: tree[part] for part in wanted if part in tree} for key, tree in variables.items()}


def check(config: Config, mesh: Mesh, given: frozenset[str]) -> None:
  """Raises ValueError if the start does not give all parameters of `parts`: of random ones nothing is worth keeping.

  `given` holds the names of those that it gives (`state.Start`).
  """
  if not parts(config):
    return
  needed = (optim.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract(config, mesh)['params']))
  if missing := next((name for name in needed if name not in given), None):
    raise ValueError(
      f'train.retention is {config.train.retention:g}, and {config.train.init} gives no {missing} that fits; expected '
      'a detector of this architecture, or train.retention=0'
    )


def opened(config: Config, workdir: Path, mesh: Mesh, state: TrainState | None) -> Any:
  """Returns the variables of the starting detector on `mesh`; None without `train.retention`.

  A new training gives the `state` that it starts from, whose variables are stored in the work directory first; one that
  is resumed gives None. All processes must call it.

  Raises ValueError if what is stored is gone, damaged or of another architecture.
  """
  if not parts(config):
    return None
  folder = workdir / FOLDER
  if state is not None:
    weights.save(folder, of(config, state), replace=True)
  elif not folder.is_dir():
    raise ValueError(
      f'{folder} cannot be read: it is not there; expected what the first run wrote of the detector of train.init '
      '(train.retention), or a new --workdir'
    )
  weights.check_sealed(folder, 'what the first run wrote of the detector of train.init, or a new --workdir')
  return weights.restore(folder, abstract(config, mesh))
