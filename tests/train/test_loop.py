"""Training resumes to the exact step and bit, logs what it says, and refuses what does not belong together."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests import tiny
from vild_jax import config as config_lib
from vild_jax.structs import Batch
from vild_jax.train import checkpoint, loop, sharding, writers

CONFIG = tiny.config('train.log_every=4')  # one config, so that its step is compiled once


class Killed(Exception):
  pass


def _batches(kill_at=None):
  def stream(start):
    for step in range(start, 1000):
      if step == kill_at:
        raise Killed
      yield {field: getattr(tiny.batch(step), field) for field in Batch.__dataclass_fields__}
  return stream


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(tiny.config().mesh, jax.devices()[:1])


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, mesh):
  workdir = tmp_path_factory.mktemp('undisturbed')
  return workdir, loop.train(CONFIG, workdir, tiny.vocabulary(), _batches(), mesh=mesh)


def test_a_killed_run_ends_at_bit_identical_parameters(undisturbed, tmp_path, mesh):
  workdir, final = undisturbed
  with pytest.raises(Killed):
    loop.train(CONFIG, tmp_path, tiny.vocabulary(), _batches(kill_at=5), mesh=mesh)
  resumed = loop.train(CONFIG, tmp_path, tiny.vocabulary(), _batches(), mesh=mesh)
  assert int(resumed.step) == 8
  for a, b in zip(jax.tree.leaves(final), jax.tree.leaves(resumed), strict=True):
    np.testing.assert_array_equal(a, b)
  steps = [line['step'] for line in writers.read_metrics(tmp_path / writers.METRICS_FILE)]
  assert steps == [4, 8]
  lines = [writers.read_metrics(folder / writers.METRICS_FILE)[-1] for folder in (workdir, tmp_path)]
  assert lines[0]['loss'] == lines[1]['loss'] and np.isfinite(lines[0]['loss'])


def test_a_finished_run_is_not_trained_again(undisturbed, mesh):
  workdir, final = undisturbed
  again = loop.train(CONFIG, workdir, tiny.vocabulary(), _batches(kill_at=0), mesh=mesh)
  np.testing.assert_array_equal(again.params['background'], final.params['background'])


def test_a_checkpoint_restores_on_another_topology(undisturbed):
  workdir, final = undisturbed
  mesh = sharding.make_mesh(tiny.config().mesh, jax.devices()[:4])
  variables = checkpoint.load_variables(workdir, tiny.config(), mesh)
  for a, b in zip(jax.tree.leaves(variables['params']), jax.tree.leaves(final.params), strict=True):
    np.testing.assert_array_equal(a, b)
    assert len(a.sharding.device_set) == 4


def test_the_whole_state_restores_on_another_topology(undisturbed):
  """From one device onto four, momentum and step too."""
  workdir, final = undisturbed
  state = checkpoint.Checkpoints(workdir).restore(CONFIG, sharding.make_mesh(CONFIG.mesh, jax.devices()[:4]))
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(final), strict=True):
    np.testing.assert_array_equal(a, b)
    assert len(a.sharding.device_set) == 4


def test_another_config_is_refused_but_another_cadence_is_not(undisturbed):
  workdir, _ = undisturbed
  with pytest.raises(ValueError, match=r'made with another config: optimizer\.momentum: 0\.9 and 0\.5 differ'):
    checkpoint.claim_workdir(workdir, tiny.config('optimizer.momentum=0.5'))
  checkpoint.claim_workdir(workdir, tiny.config('train.log_every=1'))
  assert checkpoint.read_config(workdir).train.log_every == 1


@pytest.mark.parametrize(('override', 'message'), [
  ('model.mask_head.channels=4', r'another architecture: .*is \(.*expected \('),
  ('model.region_head.num_convs=2', 'another architecture: .*conv2.* is missing'),
  ('model.mask_head.num_convs=0', 'another architecture: .*(has no place in the model|, expected)'),
])
def test_a_checkpoint_of_another_architecture_is_refused(undisturbed, override, message):
  workdir, _ = undisturbed
  with pytest.raises(ValueError, match=message):
    checkpoint.load_variables(workdir, tiny.config(override))


def test_an_empty_folder_is_no_checkpoint(tmp_path):
  with pytest.raises(ValueError, match='holds no checkpoint'):
    checkpoint.load_variables(tmp_path, tiny.config())
  with pytest.raises(ValueError, match=r'holds no config\.json'):
    checkpoint.read_config(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run_before_its_state_is_saved(tmp_path, mesh):
  """The pictures of step 5 are poisoned; states are saved at steps 4 and 6, the next log is that of step 8."""
  def poisoned(start):
    for step, arrays in enumerate(_batches()(start), start + 1):
      yield {**arrays, 'image': arrays['image'] * (np.nan if step == 5 else 1)}

  with pytest.raises(FloatingPointError, match=r'not finite in step 6: .*gradient_norm nan'):
    loop.train(CONFIG, tmp_path, tiny.vocabulary(), poisoned, mesh=mesh)
  assert checkpoint.Checkpoints(tmp_path).latest_step() == 4
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(checkpoint.load_variables(tmp_path, CONFIG)))


def test_losses_between_two_log_steps_are_checked_too():
  metrics = {'loss': np.float32(np.inf), 'class_loss': np.float32(np.inf), 'gradient_norm': np.float32(1)}
  with pytest.raises(FloatingPointError, match='not finite in steps 3 to 7: class_loss inf, gradient_norm 1, loss inf'):
    loop._check_finite(dict(sorted(metrics.items())), 3, 7)


def test_the_saved_config_reads_back(undisturbed):
  workdir, _ = undisturbed
  assert config_lib.difference(checkpoint.read_config(workdir), tiny.config('train.log_every=1')) == []


def test_a_half_written_last_line_of_metrics_is_left_out(tmp_path):
  path = tmp_path / writers.METRICS_FILE
  path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
  assert writers.read_metrics(path) == [{'step': 1, 'loss': 2.0}]
