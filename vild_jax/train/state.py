"""The training state: created on the mesh, in place, from the configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vild_jax import detector
from vild_jax.config import Config
from vild_jax.structs import TrainState
from vild_jax.train import optim, sharding, weights

# Every use of randomness derives its key from (root key, step, one of these).
INIT, SAMPLING = 0, 1
_FIRST_STAGE = ('backbone', 'fpn', 'rpn_head')


def create(config: Config) -> TrainState:
  """The state at step 0, a pure function of the configuration."""
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
  """Shapes, types and shardings of the state, nothing allocated: what a checkpoint is restored onto."""
  shapes = jax.eval_shape(lambda: create(config))
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, sharding.state_shardings(mesh, shapes)
  )


def create_on(config: Config, mesh: Mesh) -> TrainState:
  """The state at step 0, every leaf made where it lives, but for what `train.init_...` brings.

  Raises ValueError if the weights there are of another architecture.
  """
  shardings = jax.tree.map(lambda x: x.sharding, abstract(config, mesh))
  state = jax.jit(lambda: create(config), out_shardings=shardings)()
  if not (given := _given(config, mesh)):
    return state
  path, expected, parts = given
  start = weights.restore(path, expected, parts=parts)
  return state.replace(
    params={**state.params, **start['params']}, batch_stats={**state.batch_stats, **start['batch_stats']}
  )


def check_start(config: Config, mesh: Mesh) -> None:
  """Raises the ValueError of `create_on`, without creating anything."""
  if given := _given(config, mesh):
    path, expected, parts = given
    weights.check(path, expected, parts=parts)


def _given(config: Config, mesh: Mesh) -> tuple[Path, Any, tuple[str, ...]] | None:
  """The folder of the weights that training starts from, what they must be like (abstract), and which modules."""
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
  """What the detector takes."""
  return {'params': state.params, 'batch_stats': state.batch_stats}


def step_key(state: TrainState, purpose: int) -> jax.Array:
  """The key of this step for one purpose; nothing is ever reused."""
  return jax.random.fold_in(jax.random.fold_in(state.key, purpose), state.step)
