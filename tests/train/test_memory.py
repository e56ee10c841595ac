"""What saves memory and time leaves the values: rematerialisation and donation to rounding, bfloat16 within a bound."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax import detector
from vild_jax.nn import normalise
from vild_jax.train import checkpoint, sharding, state, step

BASE = (
  *tiny.SHALLOW,
  'mesh.data=1',
)
STEPS = 2


def _train(config, *, donate=True):
  """The parameters after a few steps on one device, and the metrics of each."""
  mesh = sharding.make_mesh(config.mesh)
  drawn = jax.device_get(tiny.variables(config, deltas=0.1))
  current = state.abstract(config, mesh)
  momentum = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), current.opt_state)
  current = jax.device_put(
    current.replace(step=np.int32(0), key=np.asarray(jax.random.PRNGKey(0)), opt_state=momentum, **drawn),
    jax.tree.map(lambda x: x.sharding, current),
  )
  words = jax.device_put(tiny.vocabulary(), sharding.replicated(mesh))
  train_step = step.make_train_step(config, mesh)
  train_step = train_step if donate else jax.jit(train_step.__wrapped__)
  lines = []
  for seed in range(STEPS):
    before = current
    current, metrics = train_step(before, sharding.put_batch(mesh, tiny.batch(seed)), words)
    assert all(x.is_deleted() == donate for x in jax.tree.leaves(before.params))
    lines.append(jax.device_get(metrics))
  return jax.device_get(current.params), lines


@pytest.fixture(scope='module')
def plain():
  return _train(tiny.config(*BASE), donate=False)


def _distance(found, expected):
  """The largest distance of a parameter's array from the plain one, relative to how far training moved them all."""
  start = jax.device_get(tiny.variables(tiny.config(*BASE), deltas=0.1)['params'])
  norm = lambda a, b: np.sqrt(
    sum(np.sum((x.astype(np.float64) - y) ** 2) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
  )
  moved = norm(expected, start)
  assert moved > 0.01
  return norm(found, expected) / moved


@pytest.mark.slow
def test_rematerialised_blocks_and_donated_buffers_leave_the_values(plain):
  params, lines = _train(tiny.config(*BASE, 'model.backbone.remat=true'))
  for found, expected in zip(lines, plain[1], strict=True):
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
  assert _distance(params, plain[0]) < 1e-4


def test_rematerialised_blocks_keep_their_names():
  of = lambda *overrides: jax.eval_shape(lambda: detector.init(tiny.config(*overrides), jax.random.PRNGKey(0)))
  assert of('model.backbone.remat=true') == of()


def test_rematerialisation_keeps_less_for_the_backward_pass(monkeypatch):
  """Of what the backward pass is handed, a block's inner arrays are missing."""

  def kept(remat):
    config = tiny.config(*BASE, f'model.backbone.remat={remat}')
    variables, image = tiny.variables(config), np.zeros((2, 64, 64, 3), np.float32)
    features = lambda params: (
      detector.first_stage(config.model, {**variables, 'params': params}, image, train=True)[0].features
    )
    _, pull = jax.eval_shape(lambda params: jax.vjp(features, params), variables['params'])
    return sum(np.prod(x.shape) for x in jax.tree.leaves(pull))

  remat, plain = kept('true'), kept('false')
  # The gradient of a normalisation is our own, and keeps less than what differentiation makes of the formula.
  monkeypatch.setattr(normalise, 'by_batch', lambda *arguments: normalise._forward(*arguments)[0])
  differentiated = kept('false')
  assert remat < 0.75 * differentiated and remat < plain < differentiated


@pytest.mark.slow
def test_bfloat16_drifts_from_float32_within_a_bound(plain):
  params, lines = _train(tiny.config(*BASE, 'model.dtype=bfloat16'))
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
  for found, expected in zip(lines, plain[1], strict=True):
    assert abs(found['loss'] - expected['loss']) <= 0.05 * expected['loss']
  assert 1e-4 < _distance(params, plain[0]) < 0.3


def test_another_mesh_and_rematerialisation_may_go_on_with_a_run_but_not_other_microbatches(tmp_path):
  checkpoint.claim_workdir(tmp_path, tiny.config(*BASE))
  checkpoint.claim_workdir(tmp_path, tiny.config('mesh.fsdp=2', 'model.backbone.remat=true', *BASE))
  with pytest.raises(ValueError, match=r'train\.accumulate: 1 and 2 differ'):
    checkpoint.claim_workdir(tmp_path, tiny.config('train.accumulate=2', *BASE))
