"""Creates the training state: every array is made on the devices that hold it, from the configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
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


def create_on(config: Config, mesh: Mesh) -> TrainState:
  """Creates the state at step 0, each leaf on the devices that hold it.

  With `train.init_backbone` or `train.init_first_stage` these modules get the weights of another model, and with
  `train.init` all that fits.

  Raises ValueError if those weights are of another architecture.
  """
  expected = abstract(config, mesh)
  state = jax.jit(lambda: create(config), out_shardings=jax.tree.map(lambda x: x.sharding, expected))()
  if config.train.init:
    return state.replace(**fitting.filled(Path(config.train.init), variables(expected), variables(state)))
  if not (given := _given(config, mesh)):
    return state
  path, expected, parts = given
  start = weights.restore(path, expected, parts=parts)
  return state.replace(
    params={**state.params, **start['params']}, batch_stats={**state.batch_stats, **start['batch_stats']}
  )


def check_start(config: Config, mesh: Mesh) -> str:
  """Raises ValueError if `create_on` would, or if `train.freeze` does not fit the model; creates nothing.

  Returns a report of what `train.init` gives, lines of text; '' without it.
  """
  if config.train.freeze:
    optim.frozen(config.train.freeze, abstract(config, mesh).params)
  if config.train.init:
    folder = Path(config.train.init)
    return fitting.report(folder, fitting.fit(folder, variables(abstract(config, mesh))))
  if given := _given(config, mesh):
    path, expected, parts = given
    weights.check(path, expected, parts=parts)
  return ''


def _given(config: Config, mesh: Mesh) -> tuple[Path, Any, tuple[str, ...]] | None:
  """Returns the folder of the weights that training starts from, their expected (abstract) tree, and their modules.

  None if the config names no such weights.
  """
  if config.train.init_backbone:
    path, parts = Path(config.train.init_backbone) / weights.VARIABLES, _FIRST_STAGE[:1]
    if not path.is_dir():
      raise ValueError(
        f'train.init_backbone: {path.parent} holds no {weights.VARIABLES}/; expected a folder of '
        '`vild-jax convert resnet`'
      )
  elif config.train.init_first_stage:
    path, parts = weights.locate(Path(config.train.init_first_stage)), _FIRST_STAGE
  else:
    return None
  expected = {key: {part: tree[part] for part in parts} for key, tree in variables(abstract(config, mesh)).items()}
  return path, expected, parts


def variables(state: TrainState) -> dict[str, Any]:
  """Returns the variables of the detector: {'params', 'batch_stats'}."""
  return {'params': state.params, 'batch_stats': state.batch_stats}


def step_key(state: TrainState, purpose: int) -> jax.Array:
  """Returns the random key of this step for one purpose; no key is used twice."""
  return jax.random.fold_in(jax.random.fold_in(state.key, purpose), state.step)
