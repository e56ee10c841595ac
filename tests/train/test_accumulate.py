"""A batch in microbatches means what it means at once, up to batch statistics, which are each microbatch's own."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.helpers import same_training, tiny
from vild_jax import detector
from vild_jax.structs import TrainState
from vild_jax.train import accumulate, freezing, optim, sharding

BASE = (
  *tiny.SHALLOW,
  'distillation.weight=0.5',
  'train.init=start',
  'train.retention=2',
)
ONE, PARTS = tiny.config(*BASE, 'mesh.data=1'), tiny.config(*BASE, 'mesh.data=1', 'train.accumulate=2')
SPREAD = tiny.config(*BASE, 'mesh.data=2', 'mesh.fsdp=2', 'train.accumulate=2')
START = jax.device_get(tiny.variables(ONE, 1, deltas=0.1))
VARIABLES = jax.device_get(tiny.variables(ONE, deltas=0.1))


def _batch():
  batch = tiny.distilled_batch()
  batch.regions.valid[:3] = False  # the microbatches hold different numbers of regions
  return batch


def _gradients(config, batch=None, cast=lambda x: x):
  mesh = sharding.make_mesh(config.mesh)
  state = TrainState(step=np.int32(0), key=np.asarray(jax.random.PRNGKey(0)), opt_state=(), **VARIABLES)
  state = jax.device_put(jax.tree.map(cast, state), sharding.state_shardings(mesh, state))
  words = tiny.vocabulary().replace(labelled=np.arange(tiny.CLASSES) != 2)
  words = jax.device_put(jax.tree.map(cast, words), sharding.replicated(mesh))
  start = {key: {part: tree[part] for part in tree if part != 'mask_head'} for key, tree in START.items()}
  start = jax.device_put(jax.tree.map(cast, start), sharding.state_shardings(mesh, start))
  program = jax.jit(lambda *arguments: accumulate.gradients(config, mesh, *arguments))
  return jax.device_get(program(state, sharding.put_batch(mesh, jax.tree.map(cast, batch or _batch())), words, start))


@pytest.mark.slow
def test_with_frozen_statistics_microbatches_add_up_to_the_batch():
  """On four devices, whose parameters are split by two, against one."""
  with freezing.stored_statistics(('*',)):
    whole, whole_metrics, _ = _gradients(ONE)
    parts, metrics, _ = _gradients(SPREAD)
  assert set(metrics) == set(whole_metrics)
  for name, value in whole_metrics.items():
    assert value > 0, name
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
  norm = lambda x: np.linalg.norm(x.astype(np.float64))
  floor = 1e-3 * np.sqrt(sum(norm(g) ** 2 for g in jax.tree.leaves(whole)))
  for (path, one), two in zip(jax.tree_util.tree_flatten_with_path(whole)[0], jax.tree.leaves(parts), strict=True):
    assert norm(one.astype(np.float64) - two) <= 1e-5 * max(norm(one), floor), optim.path_name(path)


@pytest.mark.slow
def test_moving_statistics_take_one_step_towards_the_mean_of_the_microbatches():
  _, metrics, found = _gradients(PARTS)
  assert all(np.isfinite(value) for value in metrics.values())
  first_stage = jax.jit(lambda image: detector.first_stage(ONE.model, VARIABLES, image, train=True)[1]['batch_stats'])
  image = _batch().image
  halves = [jax.device_get(first_stage(image[part::2])) for part in range(2)]
  for network in ('backbone', 'fpn'):
    for a, b, c in zip(*(jax.tree.leaves(tree[network]) for tree in (found, *halves)), strict=True):
      np.testing.assert_allclose(a, (b + c) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('config', [ONE, SPREAD], ids=['whole', 'in parts on four devices'])
def test_a_batch_in_uint8_teaches_what_its_pictures_in_float32_do(config):
  """With the retention's features of the starting detector, which see the picture too."""
  small, plain = tiny.small_batch(_batch())
  # In float32 the order of sums alone makes 1.2e-5 of a gradient, and 1.5e-5 of a loss of 1e-12.
  with jax.enable_x64(True):
    (found, metrics, _), (expected, others, _) = (
      _gradients(config, batch, same_training.wide) for batch in (small, plain)
    )
  assert others['loss'].dtype == np.float64
  for name, value in others.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
  norm = lambda x: np.linalg.norm(x.astype(np.float64))
  floor = 1e-3 * np.sqrt(sum(norm(g) ** 2 for g in jax.tree.leaves(expected)))
  for (path, one), two in zip(jax.tree_util.tree_flatten_with_path(expected)[0], jax.tree.leaves(found), strict=True):
    assert norm(one.astype(np.float64) - two) <= 1e-5 * max(norm(one), floor), optim.path_name(path)
