"""Training resumes to the exact step and bit, logs what it says, and refuses what does not belong together."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.helpers import tiny
from vild_jax import config as config_lib
from vild_jax.runtime import processes
from vild_jax.structs import Batch, TrainState
from vild_jax.train import checkpoint, loop, recorder, sharding, timing, weights, writers
from vild_jax.train import state as state_lib
from vild_jax.train.step import make_train_step

config_of = functools.partial(tiny.config, *tiny.SHALLOW, 'model.mask_head.num_convs=1')
CONFIG = config_of('train.log_every=4', 'train.on_nan=skip')  # one config, so that its step is compiled once


def _train(workdir, stream, mesh, config=CONFIG):
  checkpoint.claim_workdir(workdir, config)
  return loop.train(config, workdir, tiny.vocabulary(), stream, mesh=mesh)


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
  return sharding.make_mesh(config_of().mesh, jax.devices()[:1])


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, mesh):
  workdir = tmp_path_factory.mktemp('undisturbed')
  return workdir, _train(workdir, _batches(), mesh)


def test_a_killed_run_ends_at_bit_identical_parameters(undisturbed, tmp_path, mesh):
  workdir, final = undisturbed
  with pytest.raises(Killed):
    _train(tmp_path, _batches(kill_at=5), mesh)
  resumed = _train(tmp_path, _batches(), mesh)
  assert int(resumed.step) == 8
  for a, b in zip(jax.tree.leaves(final), jax.tree.leaves(resumed), strict=True):
    np.testing.assert_array_equal(a, b)
  steps = [line['step'] for line in writers.read_metrics(tmp_path / writers.METRICS_FILE)]
  assert steps == [4, 8]
  lines = [writers.read_metrics(folder / writers.METRICS_FILE)[-1] for folder in (workdir, tmp_path)]
  assert lines[0]['loss'] == lines[1]['loss'] and np.isfinite(lines[0]['loss'])


def test_a_finished_run_is_not_trained_again(undisturbed, mesh):
  workdir, final = undisturbed
  again = _train(workdir, _batches(kill_at=0), mesh)
  np.testing.assert_array_equal(again.params['background'], final.params['background'])


def test_a_checkpoint_restores_on_another_topology(undisturbed):
  workdir, final = undisturbed
  mesh = sharding.make_mesh(config_of().mesh, jax.devices()[:4])
  variables = checkpoint.load_variables(workdir, config_of(), mesh)
  for a, b in zip(jax.tree.leaves(variables['params']), jax.tree.leaves(final.params), strict=True):
    np.testing.assert_array_equal(a, b)
    assert len(a.sharding.device_set) == 4


def test_an_older_checkpoint_is_loaded_by_its_step(undisturbed):
  workdir, final = undisturbed
  older = checkpoint.load_variables(workdir, config_of(), step=6)
  assert (np.asarray(older['params']['background']) != np.asarray(final.params['background'])).any()
  with pytest.raises(ValueError, match=r'holds no checkpoint of step 7; expected one of .*4, 6, 8$'):
    checkpoint.load_variables(workdir, config_of(), step=7)


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
    checkpoint.claim_workdir(workdir, config_of('optimizer.momentum=0.5'))
  checkpoint.check_workdir(workdir, config_of('optimizer.reference_batch=8'))  # the same rates, otherwise given
  with pytest.raises(ValueError, match=r'optimizer\.learning_rate: 0\.01 and 0\.02 differ'):
    checkpoint.check_workdir(workdir, config_of('optimizer.reference_batch=4'))
  checkpoint.claim_workdir(workdir, config_of('train.log_every=1'))
  assert checkpoint.read_config(workdir).train.log_every == 1


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('model.mask_head.channels=4', r'another architecture: .*is \(.*expected \('),
    ('model.region_head.num_convs=1', 'another architecture: .*conv1.* is missing'),
    ('model.mask_head.num_convs=0', 'another architecture: .*(has no place in the model|, expected)'),
  ],
)
def test_a_checkpoint_of_another_architecture_is_refused(undisturbed, override, message):
  workdir, _ = undisturbed
  with pytest.raises(ValueError, match=message):
    checkpoint.load_variables(workdir, config_of(override))


def test_an_empty_folder_is_no_checkpoint(tmp_path):
  with pytest.raises(ValueError, match='holds no checkpoint'):
    checkpoint.load_variables(tmp_path, config_of())
  with pytest.raises(ValueError, match=r'holds no config\.json'):
    checkpoint.read_config(tmp_path)


def _poisoned(step):
  """Batches with the pictures of one step spoiled, and numbers for the pictures."""

  def stream(start):
    for number, arrays in enumerate(_batches()(start), start + 1):
      yield {
        **arrays,
        'image': arrays['image'] * (np.nan if number == step else 1),
        'image_id': 100 * number + np.arange(8),
      }

  return stream


def test_a_step_that_is_not_finite_stops_the_run_and_is_named_with_its_images(tmp_path, mesh, monkeypatch):
  """States are saved at steps 4 and 6, the next log is that of step 8."""
  # The program that may skip: it ends at the same losses, and is compiled already.
  monkeypatch.setattr(loop, 'make_train_step', lambda config, mesh: make_train_step(CONFIG, mesh))
  stops = config_of('train.log_every=4')
  with pytest.raises(
    FloatingPointError,
    match=r'not finite in step 5: .*gradient_norm nan, loss nan, .*; '
    r'images 500, 501, .*, 507; expected finite numbers \(the checkpoint of step 4 is kept\)$',
  ):
    _train(tmp_path, _poisoned(5), mesh, stops)
  assert checkpoint.Checkpoints(tmp_path).latest_step() == 4
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(checkpoint.load_variables(tmp_path, CONFIG)))
  with pytest.raises(FloatingPointError, match=r'in step 6: .*the checkpoint of step 4 is kept'):
    _train(tmp_path, _poisoned(6), mesh, stops)


def test_a_step_that_is_not_finite_is_skipped_and_counted_if_the_config_says_so(undisturbed, tmp_path, mesh):
  config = config_of('train.log_every=4', 'train.on_nan=skip', 'train.checkpoint_every=1', 'train.keep=9')
  _train(tmp_path, _poisoned(5), mesh, config)
  states = {step: _restored(tmp_path, config, step) for step in (4, 5, 6)}
  for key in ('params', 'batch_stats', 'opt_state'):
    before, skipped, after = (jax.tree.leaves(getattr(states[step], key)) for step in (4, 5, 6))
    for a, b in zip(before, skipped, strict=True):
      np.testing.assert_array_equal(b, a + 1 if a.dtype == np.int32 else a, err_msg=key)
    assert any((a != b).any() for a, b in zip(skipped, after, strict=True)), key
  lines = writers.read_metrics(tmp_path / writers.METRICS_FILE)
  assert [line['skipped_steps'] for line in lines] == [0, 1] and np.isfinite(lines[1]['loss'])
  whole = writers.read_metrics(undisturbed[0] / writers.METRICS_FILE)
  assert lines[0]['loss'] == whole[0]['loss'] and lines[1]['learning_rate'] == whole[1]['learning_rate']


def _restored(workdir, config, step):
  """The state of a step, by Orbax alone."""
  shapes = jax.eval_shape(lambda: state_lib.create(config))
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore((workdir / 'checkpoints' / str(step) / 'state').absolute(), shapes)


def test_only_skips_in_a_row_stop_a_run_that_skips():
  config = config_of('train.on_nan=skip', 'train.steps=1000', 'train.log_every=1000')
  bad, good = ({'loss': jnp.float32(x), 'gradient_norm': jnp.float32(1)} for x in (np.inf, 2))
  kept = recorder.Recorder(config, None)
  for step in range(1, 400):
    kept.add(step, good if step % 100 == 0 else bad)
  kept.add(400, good)
  assert kept.loss_since_save() == 2 and kept.loss_since_save() == np.inf
  with pytest.raises(FloatingPointError, match=r'in step 500, the 100th such step in a row: loss inf, gradient'):
    for step in range(401, 502):
      kept.add(step, bad)


def test_the_newest_checkpoints_and_the_best_ones_stay(tmp_path):
  state = TrainState(step=np.zeros(()), params={}, batch_stats={}, opt_state={}, key=np.zeros(2))
  for resumed in range(2):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2, keep_best=1)
    for step in (1, 2, 3, 4, 5, 6) if not resumed else (7, 8, 9):
      checkpoints.save(step, state, loss={2: 0.1, 3: 0.5, 8: 0.05}.get(step, 1.0))
    assert checkpoints.latest_step() == (9 if resumed else 6)
    checkpoints.close()
    assert {int(path.name) for path in (tmp_path / 'checkpoints').iterdir()} == ({8, 9} if resumed else {2, 5, 6})


def _told_to_end(monkeypatch, at):
  """Sends the real signal while step `at` is computed, once."""
  told = []

  def make(config, mesh):
    run = make_train_step(config, mesh)

    def step(state, *arguments):
      if int(state.step) + 1 == at and not told:
        told.append(os.kill(os.getpid(), signal.SIGTERM))
      return run(state, *arguments)

    return step

  monkeypatch.setattr(loop, 'make_train_step', make)


@pytest.mark.parametrize('told_at', [1, 5])
def test_sigterm_saves_the_step_and_a_resume_ends_bit_identical(undisturbed, tmp_path, mesh, monkeypatch, told_at):
  """In between the loop ends as it does for one process."""
  _told_to_end(monkeypatch, told_at)
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(processes.Preempted, match=rf'told to end \(SIGTERM\); step {told_at} of 8 is saved in '):
    _train(tmp_path, _batches(), mesh)
  assert signal.getsignal(signal.SIGTERM) is before
  assert checkpoint.Checkpoints(tmp_path).latest_step() == told_at
  resumed = _train(tmp_path, _batches(), mesh)
  for a, b in zip(jax.tree.leaves(undisturbed[1]), jax.tree.leaves(resumed), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_signal_while_a_checkpoint_is_read_is_no_damage(undisturbed, tmp_path, mesh, monkeypatch):
  shutil.copytree(undisturbed[0], tmp_path / 'run')
  monkeypatch.setattr(checkpoint.Checkpoints, 'restore', lambda *_: checkpoint_reading(tmp_path))
  with pytest.raises(processes.Preempted), processes.ending_when_told():
    _train(tmp_path / 'run', _batches(), mesh)


def checkpoint_reading(path):
  with weights.reading(path):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def test_told_to_end_in_the_last_step_a_run_is_finished(tmp_path, mesh, monkeypatch):
  _told_to_end(monkeypatch, 8)
  assert int(_train(tmp_path, _batches(), mesh).step) == 8


def test_devices_that_wait_for_data_are_measured_and_warned_of(tmp_path, mesh, capsys, monkeypatch):
  """By a clock on which each batch takes 3 s, and nothing else any time."""
  seconds = [0.0]

  class Slow:
    ready = False

    def __init__(self, items, place):
      self._items, self._place, self.close = items, place, items.close

    def __next__(self):
      seconds[0] += 3
      return self._place(next(self._items))

  monkeypatch.setattr(loop, 'Ahead', Slow)
  checkpoint.claim_workdir(tmp_path, CONFIG)
  clock = timing.Clock(now=lambda: seconds[0])
  loop.train(CONFIG, tmp_path, tiny.vocabulary(), _batches(), mesh=mesh, clock=clock)
  lines, said = writers.read_metrics(tmp_path / writers.METRICS_FILE), capsys.readouterr().err
  # The first step is not part of a line, since it includes the compilation.
  expected = [{'data_seconds': 3.0 * steps, 'step_seconds': 0, 'save_seconds': 0, 'log_seconds': 0} for steps in (3, 4)]
  assert [{key: line[key] for key in expected[0]} for line in lines] == expected
  assert said.count('(9.0 of 9.0 s) the devices waited for data; more workers (data.workers=0, of ') == 1
  assert said.count('first step after 3.0 s: data 3.0') == 1
  assert said.count('the devices waited') == 1 and '0.0 % of 24 s were training steps; data 100.0 %' in said
  kept = json.loads((tmp_path / timing.GOODPUT_FILE).read_text())
  assert {part: s for part, s in kept['seconds'].items() if s} == {'data': 24} and kept['step'] == 8


def test_a_trace_of_some_steps_is_written_and_the_others_are_as_without_it(undisturbed, tmp_path, mesh, capsys):
  checkpoint.claim_workdir(tmp_path, CONFIG)
  state = loop.train(CONFIG, tmp_path, tiny.vocabulary(), _batches(), mesh=mesh, profile=2)
  (trace,) = (tmp_path / loop.PROFILE_FOLDER).rglob('*.xplane.pb')
  assert trace.stat().st_size > 0 and f'{loop.PROFILE_FOLDER} holds a trace' in capsys.readouterr().err
  np.testing.assert_array_equal(state.params['background'], undisturbed[1].params['background'])


@pytest.mark.parametrize('count', [1, 9])
def test_a_trace_ends_with_the_run_and_a_short_run_has_none(undisturbed, tmp_path, mesh, count):
  """Of a run that goes on from step 6 to 8, and of one that is stopped within the traced steps."""
  checkpoint.claim_workdir(tmp_path, CONFIG)
  with pytest.raises(Killed):
    loop.train(CONFIG, tmp_path, tiny.vocabulary(), _batches(kill_at=7), mesh=mesh, profile=count)
  assert list((tmp_path / loop.PROFILE_FOLDER).rglob('*.xplane.pb'))
  shutil.rmtree(tmp_path / loop.PROFILE_FOLDER)
  assert int(loop.train(CONFIG, tmp_path, tiny.vocabulary(), _batches(), mesh=mesh, profile=count).step) == 8
  assert not (tmp_path / loop.PROFILE_FOLDER).exists()


def test_a_process_that_waits_for_data_checks_nothing():
  """Other processes may have data, and have begun the next step: an error of this one alone would leave them there."""
  kept = recorder.Recorder(tiny.config(), None)
  kept.add(1, {'loss': jnp.float32(np.nan), 'gradient_norm': jnp.float32(1), 'learning_rate': jnp.float32(1)})
  late = type('Late', (), {'ready': False, '__next__': lambda self: ('batch', None)})()
  assert loop._next(late, kept, timing.Clock()) == ('batch', None)
  with pytest.raises(FloatingPointError, match='not finite in step 1'):
    kept.settle()


def test_metrics_of_a_line_are_means_over_its_steps():
  steps = [{'loss': np.float32(1), 'part_loss': np.float32(4)}, {'loss': np.float32(2), 'part_loss': np.float32(8)}]
  assert recorder.averages(steps) == {'loss': 1.5, 'part_loss': 6} and recorder.averages([]) == {}


def test_the_saved_config_reads_back(undisturbed):
  workdir, _ = undisturbed
  assert config_lib.difference(checkpoint.read_config(workdir), config_of('train.log_every=1')) == []


def test_a_half_written_last_line_of_metrics_is_left_out(tmp_path):
  path = tmp_path / writers.METRICS_FILE
  path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
  assert writers.read_metrics(path) == [{'step': 1, 'loss': 2.0}]


def test_an_error_of_tensorboards_writer_names_the_work_directory(tmp_path, monkeypatch):
  writer = writers.WorkdirWriter(tmp_path)
  with monkeypatch.context() as patch, pytest.raises(OSError, match=f"{tmp_path}'$"):
    patch.setattr(writer._tensorboard, 'flush', lambda: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    writer.flush()
  writer.close()


def test_a_damaged_line_of_metrics_is_left_out_and_the_file_is_named(tmp_path, capsys):
  path = tmp_path / writers.METRICS_FILE
  path.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo\xff\n[]\n{"step": 3, "loss": 1.0}\n')
  writers.WorkdirWriter(tmp_path, resume_step=3).close()
  assert [line['step'] for line in writers.read_metrics(path)] == [1, 3]
  assert capsys.readouterr().err.splitlines()[0] == f'{path}: 2 of 4 lines are damaged and left out'
