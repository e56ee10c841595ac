"""Compiles the programs that run on the mesh: a training step, and predictions or proposals for one batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vild_jax import detector
from vild_jax.config import Config, Data, Distillation, Evaluation, Train
from vild_jax.runtime import compiler
from vild_jax.structs import Batch, Detections, Proposals, TrainState, Vocabulary
from vild_jax.train import accumulate, optim, retention, sharding
from vild_jax.train.state import abstract


def make_train_step(config: Config, mesh: Mesh) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """Returns the training step: (state, batch, vocabulary) -> (next state, {metric: scalar}); the state is donated.

  With `train.retention` it takes a fourth argument, the variables of the starting detector (`train.retention`).
  Arrays are global, so that batch statistics, normalisers and samplers give the same on one device as on many. Configs
  that need the same program share one compiled step.
  """
  return _train_step(_of_the_program(config), mesh)


def make_predict_step(config: Config, mesh: Mesh) -> Callable[..., Detections]:
  """Returns the prediction step: (variables, images [B, S, S, 3], content sizes [B, 2], vocabulary) -> detections."""
  return _predict_step(_of_the_program(config), mesh)


def make_propose_step(config: Config, mesh: Mesh) -> Callable[..., Proposals]:
  """Returns the proposal step: (variables, images [B, S, S, 3]) -> proposals of the batch, as in evaluation."""
  return _propose_step(_of_the_program(config), mesh)


def on_batches(function: Callable, config: Config, mesh: Mesh) -> Callable[..., Any]:
  """Returns a function of `detector.predict_batch`'s arguments as a program on the mesh, without the first, `model`.

  The program takes what that of `make_predict_step` takes; everything that it returns is split by image.
  """
  batch, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  return compiler.jit(
    functools.partial(function, config.model, per_image=sharding.per_image(mesh)),
    mesh=mesh,
    in_shardings=(replicated, sharding.image_sharding(mesh), batch, replicated),
    out_shardings=batch,
  )


def _of_the_program(config: Config) -> Config:
  """Resets settings on which no program depends: names, paths, intervals, and sizes that the arrays have anyway."""
  return dataclasses.replace(
    config,
    name='',
    seed=0,
    vocabulary='',
    teacher='',
    data=Data(),
    optimizer=config.optimizer.of_batch(config.data.batch_size),
    evaluation=Evaluation(),
    distillation=Distillation(config.distillation.weight),
    train=Train(
      steps=config.train.steps,
      on_nan=config.train.on_nan,
      accumulate=config.train.accumulate,
      freeze=config.train.freeze,
      retention=config.train.retention,
      init='the start' if config.train.retention else '',
    ),
  )


@functools.cache
def _train_step(config: Config, mesh: Mesh) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  update = optim.optimizer(config)
  rate = optim.schedule(config.optimizer, config.train.steps)

  def train_step(
    state: TrainState, batch: Batch, vocabulary: Vocabulary, start: Any = None
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    gradients, metrics, batch_stats = accumulate.gradients(config, mesh, state, batch, vocabulary, start)
    updates, opt_state = update.update(gradients, state.opt_state, state.params)
    metrics |= {'gradient_norm': optax.global_norm(gradients), 'learning_rate': rate(state.step)}
    after = state.replace(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    if config.train.on_nan == 'skip':
      after = _unless_broken(after, state, metrics)
    return after, metrics

  state = jax.tree.map(lambda x: x.sharding, abstract(config, mesh))
  start = jax.tree.map(lambda x: x.sharding, retention.abstract(config, mesh))
  batch = Batch(**{field: sharding.batch_sharding(mesh) for field in Batch.__dataclass_fields__})
  batch, replicated = batch.replace(image=sharding.image_sharding(mesh)), sharding.replicated(mesh)
  return compiler.jit(
    train_step,
    mesh=mesh,
    in_shardings=(state, batch, replicated) + (() if start is None else (start,)),
    out_shardings=(state, replicated),
    donate_argnums=0,
  )


def _unless_broken(after: TrainState, before: TrainState, metrics: dict[str, jax.Array]) -> TrainState:
  """Returns the state before the step if loss or gradients are not finite, else the one after it.

  The step is counted in both cases.
  """
  finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(metrics['gradient_norm'])
  kept = lambda new, old: new if jnp.issubdtype(new.dtype, jnp.integer) else jnp.where(finite, new, old)
  return jax.tree.map(kept, after, before)


@functools.cache
def _predict_step(config: Config, mesh: Mesh) -> Callable[..., Detections]:
  def predict_step(*arguments: Any, **settings: Any) -> Detections:
    return detector.predict_batch(*arguments, **settings)[0]

  return on_batches(predict_step, config, mesh)


@functools.cache
def _propose_step(config: Config, mesh: Mesh) -> Callable[..., Proposals]:
  per_image = sharding.per_image(mesh)

  def propose_step(variables, image: jax.Array) -> Proposals:
    return detector.first_stage(config.model, variables, image, train=False, per_image=per_image)[0].proposals

  return compiler.jit(
    propose_step,
    mesh=mesh,
    in_shardings=(sharding.replicated(mesh), sharding.image_sharding(mesh)),
    out_shardings=sharding.batch_sharding(mesh),
  )
