"""Frozen parameters and batch statistics stay as they are, to the bit; everything else learns as before."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax import detector
from vild_jax.nn.layers import BatchNorm
from vild_jax.structs import TrainState
from vild_jax.train import checkpoint, freezing, optim, sharding, state, step


class _Two(nn.Module):
  """Two batch normalisations; the second is inside a rematerialised block, as in the backbone."""

  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      return BatchNorm(name='norm_bn')(x, train=train)

  @nn.compact
  def __call__(self, x, *, train):
    x = BatchNorm(name='first_bn')(x, train=train)
    return nn.remat(self.Block, static_argnums=2)(name='block')(x, train)


X = np.random.default_rng(0).normal(3, 2, (64, 4)).astype(np.float32)
STORED = {'mean': np.full(4, 1, np.float32), 'var': np.full(4, 4, np.float32)}


def _applied(patterns):
  """(result, statistics after) in training mode of `_Two`, whose statistics are mean 1 and variance 4."""
  gains = {'bn': {'scale': np.ones(4, np.float32), 'bias': np.zeros(4, np.float32)}}
  variables = {
    'params': {'first_bn': gains, 'block': {'norm_bn': gains}},
    'batch_stats': {'first_bn': {'bn': STORED}, 'block': {'norm_bn': {'bn': STORED}}},
  }
  with freezing.stored_statistics(patterns):
    y, after = _Two().apply(variables, X, train=True, mutable=['batch_stats'])
  return np.asarray(y), jax.device_get(after['batch_stats'])


def _normalised(x, mean, var):
  return (x - mean) / np.sqrt(var + 1e-4)


def test_a_frozen_batch_normalisation_uses_its_stored_statistics_and_keeps_them():
  own = _normalised(X, X.mean(0), X.var(0))
  y, after = _applied(('block/*',))
  np.testing.assert_allclose(y, _normalised(own, 1, 4), rtol=1e-4, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, after['block']['norm_bn']['bn'], STORED)
  np.testing.assert_allclose(after['first_bn']['bn']['mean'], 0.997 + 0.003 * X.mean(0), rtol=1e-5)
  y, after = _applied(('*_bn/*',))
  np.testing.assert_allclose(y, _normalised(_normalised(X, 1, 4), 1, 4), rtol=1e-4, atol=1e-5)
  jax.tree.map(np.testing.assert_array_equal, after['first_bn']['bn'], STORED)


def test_a_batch_normalisation_that_learns_a_scale_or_a_bias_is_not_frozen():
  for patterns in ((), ('*/scale',), ('other/*',)):
    y, after = _applied(patterns)
    np.testing.assert_allclose(y, _normalised(X, X.mean(0), X.var(0)), rtol=1e-3, atol=1e-3)
    assert (after['first_bn']['bn']['mean'] != STORED['mean']).all()


def test_no_gradient_flows_into_frozen_parameters():
  params = {'a': {'kernel': jnp.ones(3)}, 'b': {'kernel': jnp.ones(3)}}
  loss = lambda p: jnp.sum(freezing.stopped(('a/*',), p)['a']['kernel'] * p['b']['kernel'] * 2)
  gradients = jax.grad(loss)(params)
  np.testing.assert_array_equal(gradients['a']['kernel'], 0)
  np.testing.assert_array_equal(gradients['b']['kernel'], 2)


def test_statistics_of_frozen_parts_are_kept_by_name():
  before = {'a': {'x_bn': {'bn': {'mean': 1.0}}}, 'b': {'bn': {'mean': 2.0}}}
  after = jax.tree.map(lambda x: x + 5, before)
  kept = freezing.kept_statistics(('a/x_bn/*',), before, after)
  assert kept == {'a': {'x_bn': {'bn': {'mean': 1.0}}}, 'b': {'bn': {'mean': 7.0}}}
  assert freezing.kept_statistics((), before, after) == after


def test_one_pattern_freezes_every_batch_normalisation_of_a_detector():
  config = tiny.config('model.image_head=true', 'distillation.weight=1')
  shapes = jax.eval_shape(lambda: detector.init(config, jax.random.key(0)))
  before, after = (jax.tree.map(lambda _, value=value: value, shapes['batch_stats']) for value in (0, 1))
  assert {'backbone', 'fpn', 'rpn_head', 'region_head', 'image_head', 'mask_head'} == set(before)
  assert freezing.kept_statistics(('*/bn/*',), before, after) == before
  frozen = optim.frozen(('*/bn/*',), shapes['params'])
  assert {optim.path_name(path[-2:]) for path, stays in jax.tree_util.tree_leaves_with_path(frozen) if stays} == {
    'bn/scale',
    'bn/bias',
  }


FROZEN = ('backbone', 'fpn', 'rpn_head')
# One level of the pyramid and few convolutions compile fastest.
BASE = (
  'model.pyramid.min_level=5',
  'model.pyramid.max_level=5',
  'model.anchors.size=1',
  'model.rpn.num_convs=1',
  'model.mask_head.num_convs=0',
  'optimizer.weight_decay=0.1',
  f'train.freeze={",".join(f"{part}/*" for part in FROZEN)}',
)


@pytest.mark.slow
@pytest.mark.parametrize(
  'overrides',
  [
    ('mesh.data=1', 'model.backbone.remat=true'),
    ('mesh.data=1', 'mesh.fsdp=2', 'train.accumulate=4', 'optimizer.rule=muon'),
  ],
  ids=['sgd', 'muon on split parameters, in microbatches'],
)
def test_frozen_parts_are_the_same_to_the_bit_after_steps_and_the_rest_has_moved(tmp_path, overrides):
  config = tiny.config(*BASE, *overrides)
  mesh = sharding.make_mesh(config.mesh, jax.devices()[: 2 if 'mesh.fsdp=2' in overrides else 1])
  before = jax.device_get(tiny.variables(config, deltas=0.1))
  begun = TrainState(
    step=np.int32(0),
    key=np.asarray(jax.random.PRNGKey(0)),
    opt_state=optim.optimizer(config).init(before['params']),
    **before,
  )
  current = jax.device_put(begun, sharding.state_shardings(mesh, begun))
  train_step = step.make_train_step(config, mesh)
  words = jax.device_put(tiny.vocabulary(), sharding.replicated(mesh))
  for seed in range(2):
    current, metrics = train_step(current, sharding.put_batch(mesh, tiny.batch(seed)), words)
    assert np.isfinite(metrics['loss']) and metrics['gradient_norm'] > 0
  after = jax.device_get(state.variables(current))
  for kind, tree in before.items():
    for part, values in tree.items():
      pairs = zip(jax.tree_util.tree_flatten_with_path(values)[0], jax.tree.leaves(after[kind][part]), strict=True)
      for (path, old), new in pairs:
        name = '/'.join((kind, part, optim.path_name(path)))
        if part in FROZEN:
          assert old.tobytes() == new.tobytes(), name
        elif not name.endswith('/bias'):  # in front of a batch normalisation a bias has no gradient
          assert old.tobytes() != new.tobytes(), name
  # No optimiser state is kept for what is frozen, and a checkpoint of the rest restores.
  names = [optim.path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(current.opt_state)[0]]
  assert names and not [name for name in names for part in FROZEN if f'/{part}/' in name]
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(2, current, 1.0)
  checkpoints.close()
  found = checkpoint.Checkpoints(tmp_path).restore(config, mesh)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(current))
