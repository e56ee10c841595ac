"""What the starting detector says is kept beside the checkpoints, and of it no more than a step needs."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax import config as config_lib
from vild_jax.structs import TrainState
from vild_jax.train import retention, sharding

BOTH = ('train.init=bundle', 'train.retention=1')


def _mesh():
  return sharding.make_mesh(config_lib.Mesh(data=1))


def _state(config, seed):
  return TrainState(
    step=np.int32(0), key=np.zeros(2, np.uint32), opt_state=(), **jax.device_get(tiny.variables(config, seed))
  )


@pytest.mark.parametrize(
  ('freeze', 'expected'),
  [
    ('', {'backbone', 'fpn', 'region_head', 'background'}),
    ('backbone/*,rpn_head/*', {'backbone', 'fpn', 'region_head', 'background'}),
    ('backbone/*,fpn/*_bn/*', {'backbone', 'fpn', 'region_head', 'background'}),
    ('backbone/*,fpn/*', {'region_head', 'background'}),
  ],
)
def test_the_modules_are_those_that_may_change(freeze, expected):
  config = tiny.config(*BOTH, *([f'train.freeze={freeze}'] if freeze else []))
  assert set(retention.parts(config)) == expected
  assert set(retention.abstract(config, _mesh())['params']) == expected


def test_without_the_setting_nothing_is_kept(tmp_path):
  config = tiny.config('train.init=bundle')
  assert retention.opened(config, tmp_path, _mesh(), _state(config, 0)) is None
  assert not list(tmp_path.iterdir())


def test_a_resumed_training_gets_the_start_of_the_first_run(tmp_path):
  config, mesh = tiny.config(*BOTH, 'train.freeze=backbone/*,fpn/*'), _mesh()
  for seed in (0, 1):  # a run that ended before its first checkpoint starts anew, perhaps from other weights
    begun = retention.opened(config, tmp_path, mesh, _state(config, seed))
  jax.tree.map(np.testing.assert_array_equal, begun, retention.of(config, _state(config, 1)))
  resumed = retention.opened(config, tmp_path, mesh, None)
  jax.tree.map(np.testing.assert_array_equal, resumed, begun)
  shutil.rmtree(tmp_path / retention.FOLDER)
  with pytest.raises(ValueError, match='start cannot be read') as error:
    retention.opened(config, tmp_path, mesh, None)
  assert 'is not there; expected what the first run wrote' in str(error.value) and '\n' not in str(error.value)


def test_only_a_training_that_starts_from_a_detector_has_something_to_keep():
  with pytest.raises(config_lib.ConfigError, match=r'train\.retention is 1\.0; expected 0 unless train.init'):
    tiny.config('train.retention=1')
