"""A start from a detector: what is taken of it, what is new and left, in any of its folders, and what is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax import detector
from vild_jax.train import checkpoint, fitting, sharding, state
from vild_jax.train.state import TrainState


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A bundle's folder of weights, and the weights."""
  folder = tmp_path_factory.mktemp('bundle')
  given = jax.device_get(tiny.variables(tiny.config(), seed=1))
  checkpoint.save_variables(folder, given)
  return folder, given


def _started(monkeypatch, *overrides):
  """(weights from scratch, weights at the start, report) of a config."""
  config = tiny.config(*overrides)
  scratch = jax.device_get(tiny.variables(config))
  monkeypatch.setattr(detector, 'init', lambda config, key: jax.tree.map(jax.numpy.asarray, scratch))
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  report = state.check_start(config, mesh)
  return scratch, jax.device_get(state.variables(state.create_on(config, mesh))), report


def _equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_same_model_takes_everything(saved, monkeypatch):
  folder, given = saved
  _, made, report = _started(monkeypatch, f'train.init={folder}')
  _equal(made, given)
  count = len(jax.tree.leaves(given))
  first, *lines = report.splitlines()
  assert first == f'train.init: {count} of {count} arrays of parameters and statistics from {folder}'
  assert [line.partition(':')[0] for line in lines] == ['  taken'] and 'background 1' in lines[0]


def test_what_is_new_or_of_another_shape_begins_anew_and_what_has_no_place_is_left(saved, monkeypatch):
  folder, given = saved
  overrides = (
    'model.image_head=true',
    'model.region_head.fc_channels=24',
    'model.mask_head.num_convs=0',
    'distillation.weight=1',
  )
  scratch, made, report = _started(monkeypatch, f'train.init={folder}', *overrides)
  for kind, tree in made.items():
    for part in ('backbone', 'fpn', 'rpn_head'):
      _equal(tree[part], given[kind][part])
    _equal(tree['image_head'], scratch[kind]['image_head'])
    _equal(
      tree['region_head']['conv1_bn' if kind == 'batch_stats' else 'conv1'],
      given[kind]['region_head']['conv1_bn' if kind == 'batch_stats' else 'conv1'],
    )
    _equal(tree['region_head']['fc1_bn'], scratch[kind]['region_head']['fc1_bn'])
  names = lambda tree, part: {name for name in _names(tree) if name.split('/')[1] == part}
  image, left = names(scratch, 'image_head'), names(given, 'mask_head') - names(scratch, 'mask_head')
  lines = dict(line.strip().split(': ', 1) for line in report.splitlines())
  assert lines['new, not in the folder'] == f'image_head {len(image)}'
  assert lines['left in the folder'] == f'mask_head {len(left)}' and left
  reshaped = lines['new, of another shape']
  assert reshaped.startswith('region_head ') and ') there, (' in reshaped and reshaped.endswith(' here)')
  assert 'region_head' in lines['taken'] and len(report.splitlines()) == 5


def _names(tree):
  return [jax.tree_util.keystr(p, simple=True, separator='/') for p, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def test_a_work_directory_gives_its_newest_checkpoint(saved, tmp_path, monkeypatch):
  _, given = saved
  checkpoints = checkpoint.Checkpoints(tmp_path)
  for step in (2, 4):
    values = jax.tree.map(lambda x, step=step: x + np.float32(step), given)
    checkpoints.save(step, TrainState(np.int32(step), opt_state=(), key=np.zeros(2, np.uint32), **values), 1.0)
  checkpoints.close()
  _, made, _ = _started(monkeypatch, f'train.init={tmp_path}')
  _equal(made, jax.tree.map(lambda x: x + np.float32(4), given))


@pytest.mark.parametrize('override', ['model.backbone.depth=18', 'model.backbone.width=16', 'model.backbone.depth=14'])
def test_another_backbone_is_refused_by_name(saved, override):
  config = tiny.config(f'train.init={saved[0]}', override)
  with pytest.raises(ValueError, match=r'train\.init: .*of another architecture: .*/backbone/') as error:
    state.check_start(config, sharding.make_mesh(config.mesh, jax.devices()[:1]))
  assert '\n' not in str(error.value)


def test_a_folder_without_weights_is_refused(tmp_path):
  with pytest.raises(ValueError, match='holds no checkpoint; expected a work directory'):
    fitting.fit(tmp_path, state.variables(state.abstract(tiny.config(), sharding.make_mesh(tiny.config().mesh))))


def test_only_one_start_is_chosen():
  for other in ('init_backbone', 'init_first_stage'):
    with pytest.raises(ValueError, match=r"train\.init is a; expected '' if train\.init_backbone or"):
      tiny.config(f'train.{other}=b', 'train.init=a')
