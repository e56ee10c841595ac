"""Creates the training state: every array is made on the devices that hold it, from the configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vild_jax import detector
from vild_jax.config import Config
from vild_jax.structs import TrainState
from vild_jax.train import fitting, optim, sharding, weights

# The purposes of random numbers: each key is derived from (root key, purpose, step).
INIT, SAMPLING = 0, 1
_FIRST_STAGE = ('backbone', 'fpn', 'rpn_head')


def create(config: Config) -> TrainState:
  """Returns the state at step 0, a pure function of the configuration."""
  root = jax.random.PRNGKey(config.seed)
  variables = detector.init(config, jax.random.fold_in(root, INIT))
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=optim.optimizer(config).init(variables['params']),
    key=root,
  )


def abstract(config: Config, mesh: Mesh) -> Any:
  """Returns shapes, types and shardings of the state, without allocating it; checkpoints are restored to these."""
  shapes = jax.eval_shape(lambda: create(config))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding.state_shardings(mesh, shapes)
  )


def create_on(config: Config, mesh: Mesh, path: Path | None = None) -> TrainState:
  """Creates the state at step 0, each leaf on the devices that hold it.

  With `train.init_backbone` or `train.init_first_stage` these modules get the weights of another model, and with
  `train.init` all that fits. `path` is the folder of these weights, by default what `locate` finds.

  Raises ValueError if those weights are of another architecture.
  """
  expected = abstract(config, mesh)
  state = jax.jit(lambda: create(config), out_shardings=jax.tree.map(lambda x: x.sharding, expected))()
  path = path or locate(config)
  if path is None:
    return state
  if config.train.init:
    found = fitting.fit(weights.folder_of(config.train.init), variables(expected), path)
    return state.replace(**fitting.filled(found, variables(expected), variables(state)))
  parts = _parts(config)
  start = weights.restore(path, _of_parts(variables(expected), parts), parts=parts)
  return state.replace(
    params={**state.params, **start['params']}, batch_stats={**state.batch_stats, **start['batch_stats']}
  )


@dataclass(frozen=True)
class Start:
  """Holds what a training starts from.

  Attributes:
    path: the folder of the weights, for `create_on`; None: from scratch.
    frozen: the names of the parameters that stay as they are (`train.freeze`).
    report: what `train.init` gives, lines of text; '' without it.
    given: the names of the parameters that `path` gives.
  """

  path: Path | None
  frozen: tuple[str, ...]
  report: str
  given: frozenset[str] = frozenset()


def check_start(config: Config, mesh: Mesh) -> Start:
  """Raises ValueError if `create_on` would, or if `train.freeze` does not fit the model; creates nothing.

  A parameter can be frozen only if the start gives its weights, since random ones would stay random.
  """
  path, report = locate(config), ''
  if path is None and not config.train.freeze:
    return Start(None, (), '')
  expected = variables(abstract(config, mesh))
  stays = jax.tree_util.tree_leaves_with_path(optim.frozen(config.train.freeze, expected['params']))
  frozen = tuple(optim.path_name(name) for name, is_frozen in stays if is_frozen)
  given: set[str] = set()
  if config.train.init:
    folder = weights.folder_of(config.train.init)
    found = fitting.fit(folder, expected, path)
    report = fitting.report(folder, found)
    given = {fitting.plain(name) for name in found.taken if name.startswith('params/')}
  elif path is not None:
    parts = _parts(config)
    weights.check(path, _of_parts(expected, parts), parts=parts)
    given = {name for name in frozen if name.split('/')[0] in parts}
  used = (name for name in frozen if config.model.masks or not name.startswith('mask_head/'))
  if missing := next((name for name in used if name not in given), None):
    source = path or 'a start from scratch'
    raise ValueError(
      f'train.freeze: {missing} is frozen, and {source} gives no weights for it that fit: it would stay random; '
      'expected a start that has it (train.init), or other patterns'
    )
  return Start(path, frozen, report, frozenset(given))


def locate(config: Config) -> Path | None:
  """Returns the folder of the weights that training starts from, the same in all processes; None if there is none.

  Raises ValueError if the folder that the config names holds no weights.
  """
  if config.train.init_backbone:
    path = Path(config.train.init_backbone) / weights.VARIABLES
    if not path.is_dir():
      raise ValueError(
        f'train.init_backbone: {path.parent} holds no {weights.VARIABLES}/; expected a folder of '
        '`vild-jax convert resnet`'
      )
    weights.check_sealed(path, 'the folder as `vild-jax convert resnet` wrote it')
    return path
  if not (folder := config.train.init or config.train.init_first_stage):
    return None
  step = weights.step_of(weights.find(weights.folder_of(folder)))
  if jax.process_count() > 1 and step is not None:
    # A training that runs may save between two looks at its folder.
    step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
  return weights.locate(weights.folder_of(folder), step)


def _parts(config: Config) -> tuple[str, ...]:
  """Returns the modules that `train.init_backbone` or `train.init_first_stage` gives."""
  return _FIRST_STAGE[:1] if config.train.init_backbone else _FIRST_STAGE


def _of_parts(tree: dict[str, Any], parts: tuple[str, ...]) -> dict[str, Any]:
  # A part without batch normalisation, such as a proposal network without convolutions, has no batch statistics.
  has = lambda key, part: key == 'params' or part in tree[key]
  return {key: {part: modules[part] for part in parts if has(key, part)} for key, modules in tree.items()}


def variables(state: TrainState) -> dict[str, Any]:
  """Returns the variables of the detector: {'params', 'batch_stats'}."""
  return {'params': state.params, 'batch_stats': state.batch_stats}


def step_key(state: TrainState, purpose: int) -> jax.Array:
  """Returns the random key of this step for one purpose; no key is used twice."""
  return jax.random.fold_in(jax.random.fold_in(state.key, purpose), state.step)
