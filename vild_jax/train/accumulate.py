"""Computes the gradients of one step: of the whole batch, or of `train.accumulate` microbatches to save memory.

The objective is the same in microbatches: each loss is the sum over all of them, divided by the count of the whole
batch. These counts (sampled regions, foreground) depend on the proposals. Therefore the first stage runs twice: a
forward pass over all microbatches gives targets and counts, and a second pass computes the gradients.

One thing differs: batch statistics. Each microbatch (over all devices) is normalised by its own statistics, and the
moving statistics take one step towards the mean over the microbatches.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vild_jax import detector, objective
from vild_jax import targets as targets_lib
from vild_jax.config import Config
from vild_jax.structs import Batch, TrainState, Vocabulary
from vild_jax.train import freezing, sharding
from vild_jax.train.state import SAMPLING, step_key

Result = tuple[Any, dict[str, jax.Array], Any]


def gradients(
  config: Config, mesh: Mesh, state: TrainState, batch: Batch, vocabulary: Vocabulary, start: Any = None
) -> Result:
  """Returns (gradients, metrics, batch statistics after the step) of a global batch, inside a program on `mesh`.

  `start` holds variables of the starting detector, as in `objective.objective`.
  """
  params, start, key = *sharding.gathered(mesh, (state.params, start)), step_key(state, SAMPLING)
  variables = {'params': params, 'batch_stats': state.batch_stats}
  with freezing.stored_statistics(config.train.freeze):
    if config.train.accumulate > 1:
      return _in_parts(config, mesh, variables, batch, vocabulary, key, start)

    def loss(params):
      learning = {**variables, 'params': freezing.stopped(config.train.freeze, params)}
      per_image = sharding.per_image(mesh)
      return objective.objective(config, learning, batch, vocabulary, key, start=start, per_image=per_image)

    (_, (metrics, batch_stats)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return sharding.split_like_params(mesh, grads), metrics, batch_stats


def _in_parts(
  config: Config, mesh: Mesh, variables: Any, batch: Batch, vocabulary: Vocabulary, key: jax.Array, start: Any
) -> Result:
  objective.check_distillation(config, has_regions=batch.regions is not None)
  number, per_image = config.train.accumulate, sharding.per_image(mesh)
  # An image has the same key as in an undivided batch, so that the same anchors and regions are drawn.
  parts = _split((batch, jax.random.split(key, batch.image.shape[0])), number)

  def first_stage(params, image):
    return detector.first_stage(config.model, {**variables, 'params': params}, image, train=True, per_image=per_image)

  def assign(_, part):
    microbatch, keys = part
    image = objective.network_input(microbatch.image, microbatch.image_size)
    first, _ = first_stage(variables['params'], image)
    return None, targets_lib.assign(config, first, microbatch, vocabulary, keys, per_image=per_image)

  _, targets = jax.lax.scan(assign, None, parts)
  counts = targets_lib.count(targets)

  def gradients_of(part):
    (image, image_size), targets = part
    image = objective.network_input(image, image_size)

    def loss(params):
      first, after = first_stage(freezing.stopped(config.train.freeze, params), image)
      kept = objective.kept_of(config, start, image, first, targets, vocabulary, per_image=per_image)
      return objective.loss_of(config, after, first, targets, vocabulary, counts, kept=kept, per_image=per_image)

    (_, (metrics, batch_stats)), grads = jax.value_and_grad(loss, has_aux=True)(variables['params'])
    share = jax.tree.map(lambda x: x / number, batch_stats)
    return sharding.split_like_params(mesh, grads), metrics, share

  parts = (parts[0].image, parts[0].image_size), targets
  shapes = jax.eval_shape(lambda: gradients_of(jax.tree.map(lambda x: x[0], parts)))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  add = lambda total, part: (jax.tree.map(jnp.add, total, gradients_of(part)), None)
  (grads, metrics, batch_stats), _ = jax.lax.scan(add, zeros, parts)
  # A sum of equal shares may differ from their whole in its last bit.
  batch_stats = freezing.kept_statistics(config.train.freeze, variables['batch_stats'], batch_stats)
  return grads, metrics, batch_stats


def _split(tree: Any, number: int) -> Any:
  """Splits leaves [B, ...] into [number, B / number, ...].

  Every microbatch has pictures of every device, so that no picture moves to another device.
  """
  return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, number, *x.shape[1:]), 0, 1), tree)
