"""ViLD in google-research/scenic: configs there and back without Scenic, and two steps by its own `app.run` with it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_experiment, tiny
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax import objective as objective_lib
from vild_jax import vocabulary
from vild_jax.config import ConfigError
from vild_jax.scenic import config as scenic_config
from vild_jax.scenic import project as scenic_project
from vild_jax.structs import Batch
from vild_jax.train import checkpoint, sharding, writers

ROOT = Path(__file__).resolve().parents[2]


# --- configs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_every_config_goes_to_scenic_and_back(path):
  config = config_lib.load(path)
  assert scenic_config.from_scenic(scenic_config.to_scenic(config)) == config


def test_scenics_names_and_ours_are_one_setting():
  scenic = scenic_config.to_scenic(tiny.config())
  scenic.batch_size, scenic.rng_seed, scenic.vild.train.steps = 4, 7, 5
  scenic.vild.optimizer.decay_at = (0.5,)
  config = scenic_config.from_scenic(scenic)
  assert (config.data.batch_size, config.seed, config.optimizer.decay_at) == (4, 7, (0.5,))
  assert scenic.num_training_steps == config.train.steps == 5
  for theirs, ours in scenic_config.ALIASES.items():
    assert scenic[theirs] == config_lib.flatten(config)[ours]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'batch_size': 4}, r'batch_size is 4 and vild\.data\.batch_size 8; expected one value'),
    ({'num_training_epochs': 12}, 'num_training_epochs is 12; expected num_training_steps'),
    ({'checkpoint': False}, 'checkpoint is False; expected True'),
    ({'data_dtype_str': 'bfloat16'}, "data_dtype_str is 'bfloat16'; expected 'float32'"),
    ({'vild.model.backbon': 1}, "unknown key 'model.backbon'; the nearest valid one is 'model.backbone'"),
    ({'vild.model.backbone.depth': 51}, 'model.backbone.depth is 51; expected one of'),
  ],
)
def test_a_scenic_config_that_cannot_be_meant_is_refused(change, message):
  scenic = scenic_config.to_scenic(tiny.config()).copy_and_resolve_references()  # a copy's two names can differ
  for key, value in change.items():
    *parents, leaf = key.split('.')
    section = scenic
    for parent in parents:
      section = section[parent]
    section[leaf] = value
  with pytest.raises(ConfigError, match=message):
    scenic_config.from_scenic(scenic)


def test_another_projects_config_is_refused():
  scenic = scenic_config.to_scenic(tiny.config())
  del scenic.vild
  with pytest.raises(ConfigError, match=r"has no 'vild'; expected what scenic_config\.to_scenic"):
    scenic_config.from_scenic(scenic)


# --- data and model, as far as they need no Scenic ------------------------------------------------------------------


def _arrays(seed: int = 0) -> dict:
  return {key: getattr(tiny.batch(seed), key) for key in Batch.__dataclass_fields__}


def test_a_batch_goes_to_scenic_and_back():
  arrays = _arrays()
  batch = scenic_project.to_scenic_batch(arrays)
  assert batch['inputs'].shape == (8, 64, 64, 3) and batch['batch_mask'].tolist() == [1.0] * 8
  again = scenic_project.from_scenic_batch(batch)
  assert again.keys() == arrays.keys() and all(again[key] is arrays[key] for key in arrays)
  with pytest.raises(ValueError, match=r'inputs \(2, 4, 64, 64, 3\); expected \[B, S, S, 3\]'):
    scenic_project.from_scenic_batch({**batch, 'inputs': batch['inputs'].reshape(2, 4, 64, 64, 3)})
  with pytest.raises(ValueError, match='3 of 8 pictures of a training batch are padding'):
    scenic_project.from_scenic_batch({**batch, 'batch_mask': (np.arange(8) < 5).astype(np.float32)})


def test_the_stream_starts_at_any_step():
  iterator = scenic_project.StepIterator(lambda step: iter(range(step, step + 100)))
  assert [next(iterator), next(iterator)] == [0, 1]
  assert next(iterator.from_step(40)) == 40 and next(iterator) == 2


def test_the_networks_parameters_are_the_detectors():
  config = tiny.config()
  made = jax.eval_shape(
    lambda: scenic_project.Network(config.model).init(
      jax.random.PRNGKey(0), jnp.zeros((2, 64, 64, 3)), train=False, debug=False
    )
  )
  assert jax.tree.map(lambda x: x.shape, dict(made)) == jax.tree.map(lambda x: x.shape, tiny.variables(config))


def test_without_scenic_one_line_says_how_to_get_it(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'scenic', None)
  scenic_project._model_cls.cache_clear()
  with pytest.raises(
    ImportError,
    match=r'google-research/scenic is not installed; expected `pip install '
    r"'vild_jax\[scenic\]'`, which takes it from git",
  ):
    scenic_project.get_model_cls()
  (tmp_path / 'scenic').mkdir()
  (tmp_path / 'scenic' / '__init__.py').write_text('')
  done = subprocess.run(
    [sys.executable, '-m', 'vild_jax.scenic.project'],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT}'},
  )
  assert done.returncode == 1 and 'on PyPI, scenic is another project' in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


def test_the_extra_pins_the_commit_that_was_run():
  commit = next(word.strip(',') for word in scenic_project.__doc__.split() if len(word.strip(',')) == 40)
  assert f'github.com/google-research/scenic@{commit}' in (ROOT / 'setup.py').read_text()


# --- the forward pass -----------------------------------------------------------------------------------------------


def test_forward_hands_per_image_to_every_part_and_gathers_no_picture():
  """On 8 devices: proposals, targets and the three poolings, each mapped over the images that a device has."""
  config = tiny.config('mesh.data=8', 'distillation.weight=0.5', 'model.image_head=true')
  mesh, calls = sharding.make_mesh(config.mesh), []

  def per_image(function):
    calls.append(function)
    return sharding.per_image(mesh)(function)

  def loss(variables, batch, vocabulary, key):
    logits, _ = scenic_project.forward(config, variables, batch, vocabulary, key, per_image=per_image)
    return sum(objective_lib.losses(config, logits['outputs'], logits['targets'], logits['vocabulary']).values())

  batch, whole = tiny.distilled_batch(), sharding.replicated(mesh)
  program = jax.jit(loss, in_shardings=(whole, sharding.batch_shardings(mesh, batch), whole, whole))
  lowered = program.lower(tiny.variables(config), batch, tiny.vocabulary(), jax.random.PRNGKey(0))
  assert len(calls) == 5
  text = lowered.compile().as_text()
  assert 'all-reduce(' in text and 'all-gather' not in text and 'all-to-all' not in text


# --- inside Scenic --------------------------------------------------------------------------------------------------


def _has(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except ImportError:
    return False


needs_scenic = pytest.mark.skipif(
  not (_has('scenic.train_lib') and _has('tensorflow')),
  reason="google-research/scenic is not installed (pip install 'vild_jax[scenic]')",
)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A config that distils, on a prepared set of a few pictures, and two steps of `vild-jax train` with it."""
  folder = tmp_path_factory.mktemp('made')
  small_experiment.prepare(folder)
  small_experiment.plant_regions(folder)
  config = tiny.config(
    f'vocabulary={folder / "v.npz"}',
    f'data.train={folder / "data"}',
    f'data.val={folder / "data"}',
    'mesh.data=2',
    'train.steps=2',
    'train.log_every=1',
    'train.pictures=1',
    'distillation.weight=0.5',
    f'distillation.store={folder / "regions"}',
    'distillation.regions_per_image=6',
  )
  (folder / 'config.json').write_text(config_lib.to_text(config))
  (folder / 'scenic_config.py').write_text(f"""
from vild_jax import config
from vild_jax.scenic import config as scenic_config

def get_config():
  return scenic_config.to_scenic(config.load({str(folder / 'config.json')!r}))
""")
  return folder


@needs_scenic
def test_two_steps_by_scenics_app_equal_vild_jax_train(made):
  """Scenic's app.run, config flags, work directory and writer around ours: the same parameters, to the bit."""
  assert run('train', made / 'config.json', '--workdir', made / 'ours') == 0
  environment = {**os.environ, 'JAX_NUM_CPU_DEVICES': '8', 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path])}
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'vild_jax.scenic.project',
      f'--config={made}/scenic_config.py',
      f'--workdir={made}/theirs',
      '--config.num_training_steps=2',
    ],
    capture_output=True,
    text=True,
    check=False,
    cwd=made,
    env=environment,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  config = config_lib.load(made / 'config.json')
  ours, theirs = (checkpoint.load_variables(made / name, config) for name in ('ours', 'theirs'))
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_array_equal(a, b)
  # what Scenic's writer was given, read back from its TensorBoard file, and the evaluation
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  events = event_accumulator.EventAccumulator(str(made / 'theirs'), size_guidance={'tensors': 0})
  events.Reload()
  losses = [float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors('loss')]
  ours = [line['loss'] for line in writers.read_metrics(made / 'ours' / writers.METRICS_FILE)]
  assert losses == pytest.approx(ours, rel=1e-6) and len(losses) == 2
  assert {'valid/box_AP', 'distillation_loss'} <= set(events.Tags()['tensors'])
  assert (made / 'theirs' / 'evaluation' / 'metrics.json').is_file()


@needs_scenic
def test_the_model_is_a_base_model_whose_loss_is_the_objective(made):
  from scenic.model_lib.base_models import base_model
  from scenic.train_lib import train_utils

  scenic = scenic_config.to_scenic(config_lib.load(made / 'config.json'))
  dataset = scenic_project.get_dataset(scenic)
  batch = next(dataset.train_iter)
  model = scenic_project.get_model_cls('vild')(scenic, dataset.meta_data)
  assert isinstance(model, base_model.BaseModel) and 'regions' in batch['label']
  params, statistics, _, _ = train_utils.initialize_model(
    model_def=model.flax_model,
    input_spec=[(dataset.meta_data['input_shape'], jnp.float32)],
    config=scenic,
    rngs=jax.random.PRNGKey(0),
  )
  variables = tiny.variables(model.experiment)
  shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
  assert shapes({'params': dict(params), **statistics}) == shapes(variables)

  words, key = vocabulary.to_struct(dataset.meta_data['vocabulary']), jax.random.PRNGKey(1)

  @jax.jit
  def both(variables, words):
    logits, updated = model.forward(variables, batch, words, key)
    total, (_, statistics) = objective_lib.objective(
      model.experiment, variables, scenic_project._struct(batch), words, key
    )
    return (
      model.loss_function(logits, batch),
      updated['batch_stats'],
      model.get_metrics_fn_jit('train')(logits, batch),
    ), (total, statistics)

  (loss, updated, metrics), (total, statistics) = both(variables, words)
  assert float(loss) == float(total) > 0
  assert sum(float(value) / count for value, count in metrics.values()) == pytest.approx(float(total), rel=1e-5)
  jax.tree.map(np.testing.assert_array_equal, dict(updated), dict(statistics))
  with pytest.raises(ValueError, match='get_metrics_fn_jit'):
    model.get_metrics_fn('train')
  with pytest.raises(ValueError, match=r'model_cls is Other; expected scenic_project\.get_model_cls'):
    scenic_project.train_and_evaluate(None, scenic, type('Other', (type(model),), {}), dataset, made / 'w', None)
  valid = next(dataset.valid_iter)
  assert valid['batch_mask'].sum() == dataset.meta_data['num_eval_examples'] % 8
