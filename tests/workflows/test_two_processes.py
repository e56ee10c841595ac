"""Two real processes do what one does: the same losses, one set of files, and a state that either number takes up.

Also when one of them is told to end, or is killed.
"""

from __future__ import annotations

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from tests.helpers import (
  killing,
  planted_store,
  same_training,
  small_experiment,
  small_set,
  small_teacher,
  spoiled_batches,
  tiny,
)
from tests.helpers.child_processes import Children
from vild_jax import config as config_lib
from vild_jax.data import sources
from vild_jax.data.regions.store import RegionStore
from vild_jax.runtime import processes
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.train import checkpoint, sharding, weights, writers

STEPS, SAVED = 3, 1  # and the step of the checkpoint that another number of processes goes on from
BETWEEN = 8  # steps for each time that a run is told to end or killed, of those of `slow_steps`
_HEARTBEAT = 10  # seconds of silence


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Data, a vocabulary and the config of a short run."""
  folder = tmp_path_factory.mktemp('two')
  small_experiment.prepare(folder)
  write_config(folder, STEPS, SAVED)
  return folder


def write_config(folder, steps, save_every):
  """The config of a run whose batches are shared by all devices; returns its file."""
  config = tiny.config(
    f'vocabulary={folder / "v.npz"}',
    f'data.train={folder / "data"}',
    f'data.val={folder / "data"}',
    f'train.steps={steps}',
    f'train.checkpoint_every={save_every}',
    'train.log_every=1',
    'train.on_nan=skip',
    'data.batch_size=4',
    'data.transfer=uint8',  # as the configs of LVIS have it
    'evaluation.batch_size=8',
    'mesh.data=-1',
    *tiny.SHALLOW,
  )
  (folder / f'{steps}.json').write_text(config_lib.to_text(config))
  return folder / f'{steps}.json'


@pytest.fixture(scope='module')
def children(tmp_path_factory):
  return Children(tmp_path_factory.mktemp('logs'))


def losses(workdir):
  return {int(line['step']): line['loss'] for line in writers.read_metrics(workdir / writers.METRICS_FILE)}


def assert_same_results(of_two, of_one):
  found = [json.loads((out / 'results.json').read_text()) for out in (of_two, of_one)]
  assert len(found[0]) == len(found[1]) > 0
  for a, b in zip(*found, strict=True):
    assert (a['image_id'], a['category_id']) == (b['image_id'], b['category_id'])
    np.testing.assert_allclose([a['score'], *a['bbox']], [b['score'], *b['bbox']], rtol=1e-3, atol=1e-3)
  assert not list(of_two.glob('.*')), 'parts that are left'


@pytest.mark.slow
def test_two_processes_of_four_devices_train_as_one_device_does(children, tmp_path, tmp_path_factory):
  """The first step and ten; a state that they save is the same in one process of two devices or eight."""
  codes = children.finish(
    ['mesh.data=-1', '--out', tmp_path / 'first.npz'],
    ['mesh.data=-1', '--ten-steps', '--out', tmp_path / 'ten.npz'],
    ['mesh.fsdp=8', '--save', '--out', tmp_path],
    devices=4,
    count=2,
    of='tests.helpers.same_training',
  )
  assert codes == [0, 0], children.said()

  first = same_training.load(tmp_path / 'first.npz')
  assert first['metrics']['distillation_loss'] > 0
  same_training.assert_same_first_step(same_training.on_one_device(tmp_path_factory, ten=False), first)

  one = same_training.on_one_device(tmp_path_factory, ten=True)
  same_training.assert_same_end(one['after'], same_training.load(tmp_path / 'ten.npz')['after'], one['before'])

  config = tiny.config(*same_training.BASE, 'mesh.data=1')
  saved = same_training.noisy_start(config, sharding.make_mesh(config.mesh))
  same_training.assert_restored(tmp_path, saved, ('mesh.data=2',), (), ('mesh.fsdp=8',))


@pytest.mark.slow
def test_two_processes_do_what_one_does(folder, children, tmp_path):
  config, two, one = folder / f'{STEPS}.json', tmp_path / 'two', tmp_path / 'one'
  train = lambda workdir: ['train', config, '--workdir', workdir]
  others = lambda of: [
    ['evaluate', config, '--checkpoint', two, '--step', STEPS, '--out', tmp_path / f'scored-{of}'],
    ['propose', config, '--checkpoint', two, '--images-per-shard', 1, '--out', tmp_path / f'store-{of}'],
  ]
  assert children.finish(train(two), *others('two'), devices=2, count=2) == [0, 0], children.said()
  assert 'process 1' in children.log(1).read_text() and 'steps 0 to' not in children.log(1).read_text()
  went_on = {devices: tmp_path / f'went on with {devices}' for devices in (2, 4)}
  for workdir in went_on.values():
    shutil.copytree(two, workdir)
    for step in range(SAVED + 1, STEPS + 1):
      shutil.rmtree(workdir / 'checkpoints' / str(step))
  go_on = [[*train(workdir), f'--mesh.data={devices}'] for devices, workdir in went_on.items()]
  # The last batch of eight pictures is filled up: every process takes one batch, and the second one nothing of it.
  assert children.finish(train(one), *go_on, *others('one'), devices=4) == [0], children.said()

  of_two, of_one, *of_both = losses(two), losses(one), *map(losses, went_on.values())
  assert all(sorted(found) == list(range(1, STEPS + 1)) for found in (of_two, of_one, *of_both))
  np.testing.assert_allclose(of_two[1], of_one[1], rtol=1e-5)
  # Other pictures give other losses. The longer the way, the more a rounding may flip a top-k.
  assert min(abs(of_one[step] / of_one[step - 1] - 1) for step in range(2, STEPS + 1)) > 0.03, of_one
  for step in of_two:
    np.testing.assert_allclose(of_one[step], of_two[step], rtol=0.01, err_msg=f'step {step}')
    for devices, found in zip(went_on, of_both, strict=True):
      np.testing.assert_allclose(found[step], of_two[step], rtol=1e-3, err_msg=f'step {step}, {devices} devices')

  assert_same_results(tmp_path / 'scored-two', tmp_path / 'scored-one')
  stores = [RegionStore(tmp_path / f'store-{of}') for of in ('two', 'one')]
  np.testing.assert_array_equal(stores[0].image_ids, stores[1].image_ids)
  assert abs(stores[0].regions - stores[1].regions) < 0.01 * stores[1].regions


@pytest.mark.slow
def test_told_to_end_or_killed_two_processes_go_on_and_end_bit_identical(folder, children, tmp_path, kills):
  """One run is told to end, then loses its second process, and then its first one."""
  rng, seed = killing.rng_and_seed()
  steps, workdir = BETWEEN * (kills + 2), tmp_path / 'run'
  config = write_config(folder, steps, save_every=5)
  words = lambda workdir: ['train', config, '--workdir', workdir]
  whole = tmp_path / 'whole'
  assert children.finish(words(whole), devices=2, count=2) == [0, 0], children.said()
  expected = losses(whole)
  assert sorted(expected) == list(range(1, steps + 1))

  def until_told_to_end(target):
    with children.run(words(workdir), devices=2, count=2, of='tests.helpers.slow_steps') as started:
      children.wait(started, lambda: max(losses(workdir), default=0) >= target)
      started[rng.integers(2)].send_signal(signal.SIGTERM)
      codes = [children.code(process) for process in started]
    assert codes == 2 * [processes.EXIT_PREEMPTED], f'seed {seed}\n{children.said()}'

  def until_killed(victim, target):
    with children.run(
      words(workdir), devices=2, count=2, heartbeat=_HEARTBEAT, of='tests.helpers.slow_steps'
    ) as started:
      children.wait(started, lambda: max(losses(workdir), default=0) >= target)
      started[victim].send_signal(signal.SIGKILL)
      code = started[1 - victim].wait(3 * _HEARTBEAT + 60)
    said = children.log(1 - victim).read_text()
    print(code, said[-3000:])
    assert code not in (0, processes.EXIT_PREEMPTED)
    assert 'another task died' in said or 'another process' in said

  left = 0
  for _ in range(kills):
    target = left + int(rng.integers(1, 5))
    until_told_to_end(target)
    before, left = left, checkpoint.Checkpoints(workdir).latest_step()
    print(f'seed {seed}: SIGTERM once step {target} was logged, saved step {left}')
    assert before < target <= left < steps
  for victim in (1, 0):
    target = max(losses(workdir)) + 3
    until_killed(victim, target)
    found = losses(workdir)
    assert target <= max(found) < steps
    assert found.items() <= expected.items(), f'seed {seed}, {victim} was killed'

  assert children.finish(words(workdir), devices=2, count=2) == [0, 0], children.said()
  ends = [checkpoint.load_variables(path, config_lib.load(config)) for path in (whole, workdir)]
  for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
    np.testing.assert_array_equal(a, b, err_msg=f'seed {seed}')
  assert losses(workdir) == expected, f'seed {seed}'


@pytest.mark.slow
def test_told_to_end_before_the_first_step_both_end_with_the_code_that_launchers_start_again(
  folder, children, tmp_path
):
  """Before they have joined, when each must hear of it; and afterwards, when one tells the other."""
  workdir = tmp_path / 'run'
  train = ['train', folder / f'{STEPS}.json', '--workdir', workdir, '--train.steps=30', '--train.checkpoint_every=30']
  said_so = lambda: all('process 0 at' in children.log(index).read_text() for index in range(2))
  for come_so_far, told in ((said_so, (0, 1)), ((workdir / weights.CONFIG_FILE).exists, (1,))):
    with children.run(train, devices=2, count=2, heartbeat=_HEARTBEAT) as started:
      children.wait(started, come_so_far)
      assert not losses(workdir)
      for index in told:
        started[index].send_signal(signal.SIGTERM)
      codes = [children.code(process) for process in started]
    assert codes == 2 * [processes.EXIT_PREEMPTED], children.said()
    assert 'Traceback' not in children.said()
  saved = checkpoint.Checkpoints(workdir).latest_step()
  assert 1 <= saved < 30 and sorted(losses(workdir)) == list(range(1, saved + 1))


@pytest.mark.slow
def test_a_step_that_is_not_finite_ends_both_though_one_waits_for_data(folder, children, tmp_path):
  config = folder / f'{STEPS}.json'
  train = ['train', config, '--workdir', tmp_path / 'run', '--on-nan', 'stop', '--train.steps=9']
  train += ['--train.checkpoint_every=2', '--data.transfer=float32']
  codes = children.finish(train, devices=2, count=2, of='tests.helpers.spoiled_batches')
  said = [children.log(index).read_text() for index in range(2)]
  assert codes == [2, 2], children.said()
  for text in said:
    lines = [line for line in text.splitlines() if 'not finite' in line]
    assert len(lines) == 1 and f'step {spoiled_batches.AT}: ' in lines[0] and 'the checkpoint of step 2 is kept' in text
  assert checkpoint.Checkpoints(tmp_path / 'run').latest_step() == 2


@pytest.mark.slow
def test_embeddings_of_two_processes_are_those_of_one(folder, children, tmp_path):
  planted_store.write(
    tmp_path / 'proposals', sources.open_dataset(folder / 'data', 'train'), teacher='', kind='proposals'
  )
  teacher_checkpoint.save_teacher(tmp_path / 'teacher', small_teacher.make())
  words = [
    'embed-regions',
    '--teacher',
    tmp_path / 'teacher',
    '--data',
    folder / 'data',
    '--proposals',
    tmp_path / 'proposals',
    '--images-per-shard',
    1,
    '--batch-size',
    16,
    '--out',
  ]
  assert children.finish([*words, tmp_path / 'two'], devices=1, count=2) == [0, 0], children.said()
  assert children.finish([*words, tmp_path / 'one'], devices=1) == [0], children.said()
  assert planted_store.content(tmp_path / 'two') == planted_store.content(tmp_path / 'one')


@pytest.mark.slow
def test_pictures_in_training_and_scores_of_crops_by_two_processes(children, tmp_path):
  annotations, images = small_set.write(tmp_path, stem='small_train')
  teacher_checkpoint.save_teacher(tmp_path / 'teacher', small_teacher.make('red mug ant tree'))
  words, run, data = tmp_path / 'v.npz', tmp_path / 'run', tmp_path / 'data'
  for command in (
    ['prepare', '--annotations', annotations, '--images', images, '--out', data],
    ['embed-text', '--teacher', tmp_path / 'teacher', '--classes', annotations, '--out', words],
  ):
    assert small_experiment.run(*command) == 0
  config = tiny.config(
    f'vocabulary={words}',
    f'data.train={data}',
    f'data.val={data}',
    'data.val_split=train',
    'model.region_head.embedding_dim=8',
    *tiny.SHALLOW,
    'train.steps=1',
    'train.pictures=2',
    'data.batch_size=4',
    'evaluation.batch_size=4',
  )
  (tmp_path / 'config.json').write_text(config_lib.to_text(config))
  evaluate = lambda out: [
    'evaluate',
    tmp_path / 'config.json',
    '--checkpoint',
    run,
    '--scores',
    'text+clip-crops',
    '--teacher',
    tmp_path / 'teacher',
    '--out',
    out,
  ]
  assert children.finish(
    ['train', tmp_path / 'config.json', '--workdir', run], evaluate(tmp_path / 'by-two'), devices=2, count=2
  ) == [0, 0], children.said()
  assert children.finish(evaluate(tmp_path / 'by-one'), devices=4) == [0], children.said()
  assert_same_results(tmp_path / 'by-two', tmp_path / 'by-one')
  assert any(b'\x89PNG' in file.read_bytes() for file in run.rglob('events.*')), 'no picture in the log'
