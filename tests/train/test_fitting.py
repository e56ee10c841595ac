"""A start from a detector: what is taken of it, what is new and left, in any of its folders, and what is refused."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax import config as config_lib
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
  start = state.check_start(config, mesh)
  return scratch, jax.device_get(state.variables(state.create_on(config, mesh, start.path))), start.report


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
  assert lines['new, not in the folder'] == f'image_head {len(image)} ({_first(scratch, image)} for one)'
  assert lines['left in the folder'] == f'mask_head {len(left)} ({_first(given, left)} for one)' and left
  reshaped = lines['new, of another shape']
  assert reshaped.startswith('region_head ') and ') there, (' in reshaped and reshaped.endswith(' here)')
  region = [name for name in _names(given) if name.split('/')[1] == 'region_head']
  assert f' of {len(region)}' in lines['taken'].split('region_head ')[1].split(',')[0]
  assert 'fpn ' in lines['taken'] and ' of ' not in lines['taken'].split('fpn ')[1].split(',')[0]
  assert len(report.splitlines()) == 5


def _first(tree, names):
  return next(name for name in _names(tree) if name in names).partition('/')[2]


def _names(tree):
  return [jax.tree_util.keystr(p, simple=True, separator='/') for p, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def test_a_work_directory_gives_its_newest_checkpoint(saved, tmp_path, monkeypatch):
  _, given = saved
  checkpoints = checkpoint.Checkpoints(tmp_path)
  for step in (2, 4):
    values = jax.tree.map(lambda x, step=step: x + np.float32(step), given)
    checkpoints.save(step, TrainState(np.int32(step), opt_state=(), key=np.zeros(2, np.uint32), **values), 1.0)
  checkpoints.close()
  _, made, report = _started(monkeypatch, f'train.init={tmp_path}')
  expected = jax.tree.map(lambda x: x + np.float32(4), given)
  _equal(made, expected)
  assert report.splitlines()[0].endswith(f' from {tmp_path}, step 4')
  # That training goes on while this one starts.
  config = tiny.config(f'train.init={tmp_path}')
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  start = state.check_start(config, mesh)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(6, TrainState(np.int32(6), opt_state=(), key=np.zeros(2, np.uint32), **given), 1.0)
  checkpoints.close()
  _equal(jax.device_get(state.variables(state.create_on(config, mesh, start.path))), expected)
  assert state.locate(config).parent.name == '6'


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


HEAD = 'train.freeze=backbone/*,image_head/*'


@pytest.mark.parametrize(
  ('overrides', 'name'),
  [
    (('train.init={}', 'model.image_head=true', HEAD), 'image_head/'),
    (('model.image_head=true', HEAD), 'backbone/'),
    (('train.init={}', 'model.region_head.fc_channels=24', 'train.freeze=region_head/*'), 'region_head/'),
    (('train.init_first_stage={}', 'train.freeze=fpn/*,mask_head/*'), 'mask_head/'),
    (('train.init_backbone={}', 'train.freeze=backbone/*,fpn/*'), 'fpn/'),
  ],
)
def test_what_is_frozen_has_to_come_from_somewhere(saved, overrides, name):
  config = tiny.config(*(override.format(saved[0]) for override in overrides))
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  with pytest.raises(ValueError, match=rf'train\.freeze: {name}\S+ is frozen, and .* it would stay random; ') as error:
    state.check_start(config, mesh)
  assert '\n' not in str(error.value)


def test_what_the_start_gives_may_be_frozen(saved, monkeypatch):
  monkeypatch.setattr(detector, 'init', lambda config, key: saved[1])  # tracing takes seconds
  mesh = sharding.make_mesh(tiny.config().mesh, jax.devices()[:1])
  for start, freeze in (
    ('init', 'backbone/*,mask_head/*,background'),
    ('init_first_stage', 'backbone/*,rpn_head/*'),
    ('init_backbone', 'backbone/*'),
  ):
    config = tiny.config(f'train.{start}={saved[0]}', f'train.freeze={freeze}')
    found = state.check_start(config, mesh)
    assert {name.split('/')[0] for name in found.frozen} == {pattern.split('/')[0] for pattern in freeze.split(',')}


def test_a_mask_head_that_has_learnt_nothing_is_not_taken(saved, tmp_path, monkeypatch):
  monkeypatch.setattr(detector, 'init', lambda config, key: saved[1])
  checkpoint.save_variables(tmp_path, saved[1])
  mesh = sharding.make_mesh(tiny.config().mesh, jax.devices()[:1])
  config = tiny.config(f'train.init={tmp_path}')
  expected = state.variables(state.abstract(config, mesh))
  for masks in (True, False):
    (tmp_path / 'config.json').write_text(config_lib.to_text(tiny.config(f'model.masks={masks}')))
    new = fitting.fit(tmp_path, expected).new
    assert new == [name for name in _names(expected) if '/mask_head/' in name and not masks]
  frozen = (f'train.init={tmp_path}', 'train.freeze=mask_head/*')
  with pytest.raises(ValueError, match=r'train\.freeze: mask_head/'):
    state.check_start(tiny.config(*frozen), mesh)
  assert state.check_start(tiny.config(*frozen, 'model.masks=false'), mesh).frozen
