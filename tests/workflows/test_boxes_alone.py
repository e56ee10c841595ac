"""Data of which no object, or only some, has a mask: what is learnt, scored, exported and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vild_jax
from tests.helpers import small_experiment, small_set, tiny
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax import detector
from vild_jax.train import checkpoint
from vild_jax.workflows import training

HALF = (20, 9)  # ids of the two trees; the mug, 21, is the only other object of a base class


def prepare(folder: Path, *without: int) -> list[str]:
  """A small experiment whose objects `without` have no mask; returns its settings."""
  tree = small_set.annotations()
  for annotation in tree['annotations']:
    if annotation['id'] in without:
      del annotation['segmentation']
  small_experiment.prepare(folder, tree)
  places = [f'vocabulary={folder / "v.npz"}', f'data.train={folder / "data"}', f'data.val={folder / "data"}']
  return [
    *tiny.SHALLOW,
    *places,
    'mesh.data=1',
    'train.steps=2',
    'train.pictures=1',
    'data.batch_size=2',
    'evaluation.batch_size=2',
  ]


def config_file(folder: Path, settings: list[str]) -> Path:
  path = folder / 'config.json'
  path.write_text(config_lib.to_text(tiny.config(*settings)))
  return path


@pytest.mark.parametrize(
  ('without', 'said', 'learnt'),
  [
    ((), '', True),
    (HALF, '1 of 3 objects to learn have a mask; the others train boxes alone', True),
    ((20, 9, 21), '0 of 3 objects to learn have a mask; boxes alone are learnt, without the loss of masks', False),
    ((4,), '3 of 3 objects to learn have a mask', True),  # a novel object
  ],
)
def test_training_says_at_its_start_how_many_objects_have_masks(tmp_path, capsys, without, said, learnt):
  settings = prepare(tmp_path, *without)
  capsys.readouterr()
  opened = training.open_training(tiny.config(*settings))
  assert opened.config.model.masks is learnt
  error = capsys.readouterr().err
  assert said in error and (bool(said) or not error)
  arrays = next(stream := opened.stream(0))
  stream.close()
  assert ('masks' in arrays) == ('has_mask' in arrays) == learnt
  assert not training.open_training(tiny.config(*settings, 'model.masks=false')).config.model.masks


@pytest.mark.parametrize(('saved', 'given', 'found'), [(0, 1, False), (1, 0, False), (1, 1, True), (0, 0, False)])
def test_a_detector_gives_masks_if_it_learnt_them_and_the_config_wants_them(tmp_path, saved, given, found):
  of = lambda masks: tiny.config(f'model.masks={bool(masks)}')
  checkpoint.claim_workdir(tmp_path, of(saved))
  assert checkpoint.same_model(of(given), tmp_path).model.masks is found


@pytest.mark.slow
def test_without_masks_the_mask_head_is_in_no_program():
  config = tiny.config('model.masks=false')
  weights = jax.eval_shape(lambda: detector.init(config, jax.random.key(0)))
  words, image = jax.tree.map(jnp.asarray, tiny.vocabulary()), jnp.zeros((64, 64, 3))
  traced = jax.make_jaxpr(lambda v: detector.predict(config, v, image, (64, 64), words), return_shape=True)(weights)
  assert traced[1].masks is None and 'mask_head' in weights['params']
  used = {v for equation in traced[0].eqns for v in equation.invars if not hasattr(v, 'val')}
  paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(weights)]
  unused = {path for path, v in zip(paths, traced[0].jaxpr.invars, strict=True) if v not in used}
  assert unused == {path for path in paths if 'mask_head' in path}


@pytest.fixture(scope='module')
def boxes(tmp_path_factory) -> Path:
  """A folder with an experiment of which no object has a mask: data, config.json, run, bundle."""
  folder = tmp_path_factory.mktemp('boxes')
  path = config_file(folder, prepare(folder, 4, *HALF, 21))
  assert run('train', path, '--workdir', folder / 'run') == 0
  assert run('export', path, '--checkpoint', folder / 'run', '--out', folder / 'bundle') == 0
  return folder


@pytest.mark.slow
def test_without_masks_boxes_are_learnt_scored_and_drawn(boxes, tmp_path, capsys):
  lines = [json.loads(line) for line in (boxes / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert lines and all('mask_loss' not in line and line['box_loss'] >= 0 for line in lines)
  assert json.loads((boxes / 'bundle' / 'bundle.json').read_text())['masks'] is False
  words = ('evaluate', boxes / 'config.json', '--checkpoint', boxes / 'bundle', '--out', tmp_path / 'out')
  assert run(*words, '--evaluation.protocol=coco', '--json', tmp_path / 'm.json') == 0
  assert 'boxes alone are scored: the detector has learnt no masks' in capsys.readouterr().err
  metrics = json.loads((tmp_path / 'm.json').read_text())
  assert metrics['box'] and metrics['mask'] is None
  results = json.loads((tmp_path / 'out' / 'results.json').read_text())
  assert results and not any('segmentation' in result for result in results)
  Image.new('RGB', (72, 40), 'red').save(tmp_path / 'picture.png')
  found = vild_jax.load(boxes / 'bundle').detect(tmp_path / 'picture.png', min_score=0.0)
  assert len(found.scores) and found.masks is None
  words = ('detect', tmp_path / 'picture.png', '--checkpoint', boxes / 'run', '--classes', 'tree', '--min-score', '0')
  assert run(*words, '--out', tmp_path / 'found') == 0
  (of,) = json.loads((tmp_path / 'found' / 'detections.json').read_text())
  assert of['detections'] and set(of['detections'][0]) == {'class', 'score', 'box_yxyx'}


@pytest.mark.slow
def test_a_training_without_masks_is_resumed_as_such(boxes, capsys):
  assert run('train', boxes / 'config.json', '--workdir', boxes / 'run') == 0
  assert 'steps 2 to 2' in capsys.readouterr().err
  assert not checkpoint.read_config(boxes / 'run').model.masks


@pytest.mark.slow
def test_some_masks_train_the_mask_head(tmp_path, capsys):
  path = config_file(tmp_path, [*prepare(tmp_path, *HALF), 'data.batch_size=4', 'train.log_every=1'])
  assert run('train', path, '--workdir', tmp_path / 'run') == 0
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert all(np.isfinite(line['mask_loss']) for line in lines) and any(line['mask_loss'] > 0 for line in lines)
  words = ('evaluate', path, '--checkpoint', tmp_path / 'run', '--out', tmp_path / 'out')
  assert run(*words, '--json', tmp_path / 'm.json') == 0
  assert 'boxes alone are scored: 2 of 4 objects have no mask' in capsys.readouterr().err
  metrics = json.loads((tmp_path / 'm.json').read_text())
  assert metrics['mask'] is None and metrics['masks_not_scored'] == '2 of 4 objects have no mask'
  assert not any('segmentation' in result for result in json.loads((tmp_path / 'out' / 'results.json').read_text()))
