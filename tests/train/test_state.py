"""What a training starts from: weights of another run, and what is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax import detector
from vild_jax.train import checkpoint, sharding, state


@pytest.fixture
def scratch(monkeypatch):
  variables = tiny.variables(tiny.config())
  monkeypatch.setattr(detector, 'init', lambda config, key: variables)  # initialisers compile slowly
  return variables


def test_training_starts_from_the_first_stage_of_another_run(tmp_path, scratch):
  other = jax.tree.map(lambda x: np.asarray(x) + 1, scratch)
  checkpoint.save_variables(tmp_path, other)
  config = tiny.config(f'train.init_first_stage={tmp_path}')
  mesh = sharding.make_mesh(config.mesh)
  state.check_start(config, mesh)
  made = state.variables(state.create_on(config, mesh))
  for kind, tree in made.items():
    assert {'backbone', 'fpn', 'rpn_head'} < set(tree)
    for part, values in tree.items():
      expected = other if part in ('backbone', 'fpn', 'rpn_head') else scratch
      jax.tree.map(np.testing.assert_array_equal, jax.device_get(values), expected[kind][part])


def test_a_proposal_network_without_batch_normalisation_is_a_start_too(tmp_path, monkeypatch):
  config = tiny.config('model.rpn.num_convs=0', f'train.init_first_stage={tmp_path}')
  variables = tiny.variables(config)
  monkeypatch.setattr(detector, 'init', lambda config, key: variables)
  assert 'rpn_head' not in variables['batch_stats']
  checkpoint.save_variables(tmp_path, jax.tree.map(lambda x: np.asarray(x) + 1, variables))
  mesh = sharding.make_mesh(config.mesh)
  state.check_start(config, mesh)
  made = state.create_on(config, mesh).params['rpn_head']
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y + 1), jax.device_get(made), variables['params']['rpn_head']
  )


def test_a_start_that_does_not_fit_is_one_line(tmp_path, scratch):
  mesh = sharding.make_mesh(tiny.config().mesh)
  with pytest.raises(ValueError, match='holds no checkpoint'):
    state.check_start(tiny.config(f'train.init_first_stage={tmp_path}'), mesh)
  smaller = {kind: {part: value for part, value in tree.items() if part != 'fpn'} for kind, tree in scratch.items()}
  checkpoint.save_variables(tmp_path, smaller)
  with pytest.raises(ValueError, match=r'of another architecture: .*fpn/.* is missing'):
    state.check_start(tiny.config(f'train.init_first_stage={tmp_path}'), mesh)
  with pytest.raises(ValueError, match=r'if train\.init_backbone is set'):
    tiny.config('train.init_first_stage=a', 'train.init_backbone=b')
