"""One device and eight mean the same: losses, gradients, parameters; and the program moves nothing it need not."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import test_distillation, tiny
from vild_jax import objective
from vild_jax.train import optim, sharding, state, step


def _first_gradients(config, devices, batch):
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
  start = state.create_on(config, mesh)

  def loss(params, batch, vocabulary):
    return objective.objective(config, {'params': params, 'batch_stats': start.batch_stats}, batch, vocabulary,
                               state.step_key(start, state.SAMPLING), per_image=sharding.per_image(mesh))

  program = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(
    start.params, sharding.put_batch(mesh, batch), jax.device_put(tiny.vocabulary(), sharding.replicated(mesh)))
  compiled = program.compile()
  (_, (metrics, _)), gradients = compiled(start.params, sharding.put_batch(mesh, batch),
                                          jax.device_put(tiny.vocabulary(), sharding.replicated(mesh)))
  return jax.device_get(metrics), jax.device_get(gradients), compiled.as_text()


def test_first_step_is_the_same_on_one_device_and_on_eight_and_gathers_nothing():
  config, batch = tiny.config(), tiny.batch()
  metrics, gradients, _ = _first_gradients(config, 1, batch)
  metrics8, gradients8, text = _first_gradients(config, 8, batch)
  for name, value in metrics.items():
    np.testing.assert_allclose(metrics8[name], value, rtol=1e-5, err_msg=name)
  names = [optim.path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(gradients)[0]]
  norm = lambda x: np.linalg.norm(x.astype(np.float64))
  whole = np.sqrt(sum(norm(g) ** 2 for g in jax.tree.leaves(gradients)))
  for name, one, eight in zip(names, jax.tree.leaves(gradients), jax.tree.leaves(gradients8), strict=True):
    # A bias in front of a batch normalisation has no gradient but rounding: there the floor decides.
    assert norm(one.astype(np.float64) - eight) <= 1e-5 * max(norm(one), 1e-3 * whole), name
  collectives = {kind: len(re.findall(rf'{kind}(?:-start)?\(', text)) for kind in ('all-gather', 'all-to-all',
                                                                                'all-reduce')}
  assert collectives['all-reduce'] > 0
  assert collectives['all-gather'] == collectives['all-to-all'] == 0
  # Loops are printed apart from their bodies, so each body is looked up: a collective there would run in every round.
  bodies = re.findall(r'(?:body|condition)=%?([\w.-]+)', text)
  assert bodies
  for body in bodies:
    block = text[text.index(f'%{body} ('):]
    assert not re.search(r'all-(?:reduce|gather|to-all)(?:-start)?\(', block[:block.index('\n}')]), body


def test_losses_are_the_same_on_one_device_and_on_eight_with_regions_to_distil():
  config, variables = test_distillation.ONE_HEAD, tiny.variables(test_distillation.ONE_HEAD)
  batch = test_distillation.batch()
  batch.regions.valid[:3] = False  # the devices hold different numbers of regions; the mean is over all of them
  found = []
  for devices in (1, 8):
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    run = jax.jit(lambda *args, mesh=mesh: objective.objective(config, *args, jax.random.PRNGKey(3),
                                                               per_image=sharding.per_image(mesh))[1][0])
    everywhere = lambda x, mesh=mesh: jax.device_put(x, sharding.replicated(mesh))
    found.append(run(everywhere(variables), sharding.put_batch(mesh, batch), everywhere(tiny.vocabulary())))
  assert found[0]['distillation_loss'] > 0
  for name, value in found[0].items():
    np.testing.assert_allclose(found[1][name], value, rtol=1e-5, err_msg=name)


def test_ten_steps_end_at_the_same_parameters():
  """In float64: in float32 a rounding can flip a top-k, which says nothing about the sharding."""
  with jax.enable_x64(True):
    config = tiny.config()
    ends = []
    for devices in (1, 8):
      mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
      current = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x,
                             state.create_on(config, mesh))
      train_step = step.make_train_step(config, mesh)
      vocabulary = jax.device_put(jax.tree.map(_wide, tiny.vocabulary()), sharding.replicated(mesh))
      for seed in range(10):
        batch = sharding.put_batch(mesh, jax.tree.map(_wide, tiny.batch(seed)))
        current, metrics = train_step(current, batch, vocabulary)
      assert metrics['loss'].dtype == jnp.float64
      ends.append(jax.device_get(current.params))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ends[0], jax.device_get(
      state.create_on(config, sharding.make_mesh(config.mesh, jax.devices()[:1])).params))
    assert max(jax.tree.leaves(moved)) > 1e-3
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), *ends)
    assert max(jax.tree.leaves(difference)) < 1e-6, difference


def _wide(x):
  return x.astype(np.float64) if x.dtype == np.float32 else x


def test_a_leaf_without_a_rule_is_an_error_that_names_it():
  mesh = sharding.make_mesh(tiny.config().mesh)
  with pytest.raises(ValueError, match="no rule of sharding matches 'surprise'"):
    sharding.state_shardings(mesh, {'surprise': np.zeros(3)})


def test_mesh_and_batch_that_do_not_fit_say_so():
  with pytest.raises(ValueError, match=r'mesh\.data is 16, but there are 8 devices'):
    sharding.make_mesh(tiny.config('mesh.data=16').mesh)
  with pytest.raises(ValueError, match='expected a multiple'):
    sharding.check_batch_size(sharding.make_mesh(tiny.config().mesh), 12, 'data.batch_size')
