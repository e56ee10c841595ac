"""A work directory in a bucket: killed and told to end, a run ends as one on a disk; others evaluate and export it."""

from __future__ import annotations

import json
import signal
import time

import jax
import numpy as np
import pytest

from tests.helpers import killing, small_experiment, small_teacher, tiny
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax.runtime import buckets, files
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.train import bundle_files, checkpoint, timing, writers

STEPS = 30
_OF_THE_EXPERIMENT = {
  'data.train': 'data',
  'distillation.store': 'regions',
  'vocabulary': 'v.npz',
  'train.init': 'bundle',
}


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  folder = tmp_path_factory.mktemp('experiment')
  small_experiment.prepare(folder)
  config = tiny.config(
    f'vocabulary={folder / "v.npz"}',
    f'data.train={folder / "data"}',
    f'data.val={folder / "data"}',
    'mesh.data=1',
    *tiny.SHALLOW,
    f'train.steps={STEPS}',
    'train.log_every=1',
    'train.checkpoint_every=3',
    'optimizer.learning_rate=0.001',
  )
  (folder / 'config.json').write_text(config_lib.to_text(config))
  return folder / 'config.json'


@pytest.fixture(scope='module')
def undisturbed(config_file):
  """The work directory, on the disk, of a run that nobody kills."""
  workdir = config_file.parent / 'undisturbed'
  assert run('train', config_file, '--workdir', workdir) == 0
  return workdir


def disturbed(bucket: str, config_file, name: str, log) -> tuple[str, str]:
  """(a work directory in the bucket of a run that was killed and told to end, when that was)."""
  rng, seed = killing.rng_and_seed()
  workdir, moments = f'{bucket}/{name}', [f'seed {seed}']
  folder = files.path(workdir) / checkpoint.CHECKPOINTS
  for by, first in ((signal.SIGKILL, 3), (signal.SIGTERM, STEPS // 2)):
    step = 3 * int(rng.integers(first // 3, first // 3 + 3))
    wait = rng.uniform(0, 0.5)
    # The folder of a checkpoint is there before the checkpoint is.
    come_so_far = lambda step=step: time.sleep(0.05) or (folder / str(step)).exists()  # each is a request
    killing.kill(['train', config_file, '--workdir', workdir], come_so_far, log, wait=wait, by=by)
    whole = sorted(int(path.name) for path in folder.iterdir() if (path / 'commit_success.txt').exists())
    moments.append(f'{by.name} {wait:.2f} s after a checkpoint of step {step} began, whole are {whole}')
  assert run('train', config_file, '--workdir', workdir) == 0
  return workdir, '; '.join(moments)


def check(workdir: str, undisturbed, config_file, moments: str) -> None:
  """The run has ended as the undisturbed one, and has its files."""
  config = config_lib.load(config_file)
  one, other = (checkpoint.load_variables(files.path(of), config) for of in (undisturbed, workdir))
  for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
    np.testing.assert_array_equal(a, b, err_msg=moments)
  lines = writers.read_metrics(f'{workdir}/{writers.METRICS_FILE}')
  assert [line['step'] for line in lines] == list(range(1, STEPS + 1)), moments
  spent = json.loads((files.path(workdir) / timing.GOODPUT_FILE).read_text())
  assert spent['starts'] == 3 and spent['step'] == STEPS, moments
  assert {path.name for path in files.path(workdir).iterdir()} == {path.name for path in undisturbed.iterdir()}


@pytest.fixture(scope='module')
def finished(bucket, config_file):
  return disturbed(bucket, config_file, 'run', config_file.parent / 'log')


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_and_told_to_end_ends_as_one_on_a_disk(finished, undisturbed, config_file):
  workdir, moments = finished
  check(workdir, undisturbed, config_file, moments)


@pytest.mark.soak
def test_it_does_so_at_many_moments(bucket, undisturbed, config_file, tmp_path, pytestconfig):
  for number in range(pytestconfig.getoption('kills')):  # each a SIGKILL and a SIGTERM
    workdir, moments = disturbed(bucket, config_file, f'many-{number}', tmp_path / 'log')
    print(moments)
    check(workdir, undisturbed, config_file, moments)


@pytest.mark.slow
def test_a_run_in_a_bucket_is_evaluated_and_exported_from_there(
  finished, bucket, undisturbed, config_file, tmp_path, capsys
):
  one, other = tmp_path / 'out', files.path(f'{bucket}/out')
  for workdir, out in ((undisturbed, one), (finished[0], other)):
    run_of = (config_file, '--checkpoint', workdir)
    assert run('evaluate', *run_of, '--out', out / 'evaluation') == 0
    assert run('export', *run_of, '--out', out / 'bundle') == 0
  assert run('export', *run_of, '--out', other / 'bundle') == 0  # in the place of the first
  assert run('evaluate', config_file, '--checkpoint', other / 'bundle', '--out', tmp_path / 'of-bundle') == 0
  names, there = ({path.name for path in (out / 'evaluation').iterdir()} for out in (one, other))
  assert names == there and len(names) > 5
  expected = (one / 'evaluation' / 'results.json').read_bytes()
  assert len(expected) > 1000
  assert (other / 'evaluation' / 'results.json').read_bytes() == expected
  assert (tmp_path / 'of-bundle' / 'results.json').read_bytes() == expected
  (other / 'bundle' / 'vocabulary.npz').unlink()
  buckets._fetched_folder.cache_clear()  # another process would have no copy
  assert run('export', config_file, '--checkpoint', other / 'bundle', '--out', tmp_path / 'not') == 2
  assert 'vocabulary.npz is missing, which bundle.json lists' in capsys.readouterr().err
  listed = [bundle_files.read_about(out / 'bundle')['files'] for out in (one, other)]
  assert len(listed[0]) > 5
  for name in ('vocabulary.npz', 'config.json'):
    assert listed[0][name] == listed[1][name]
  (other / 'bundle' / 'bundle.json').unlink()
  assert run('export', config_file, '--checkpoint', other / 'bundle', '--out', tmp_path / 'not') == 2
  assert 'holds variables/ but not bundle.json' in capsys.readouterr().err


@pytest.mark.slow
def test_data_regions_vocabulary_and_start_are_read_from_a_bucket(bucket, made, tmp_path):
  far = f'{bucket}/experiment'
  for name in ('data', 'regions', 'bundle'):
    below = [path.relative_to(made / name).as_posix() for path in (made / name).rglob('*') if path.is_file()]
    buckets.upload_all(made / name, files.path(f'{far}/{name}'), below)
  buckets.upload(made / 'v.npz', files.path(f'{far}/v.npz'))
  lines = []
  for place, more in ((made, ()), (far, (f'--data.cache={tmp_path / "cache"}',))):
    words = [f'--{key}={place}/{name}' for key, name in _OF_THE_EXPERIMENT.items()]
    workdir = tmp_path / f'run-{len(more)}'
    assert run('train', made / 'config.json', '--workdir', workdir, *words, '--train.pictures=0', *more) == 0
    lines.append([line['loss'] for line in writers.read_metrics(workdir / writers.METRICS_FILE)])
  assert lines[0] == lines[1] and lines[0]
  saved = config_lib.load(workdir / 'config.json')
  assert saved.data.train == f'{far}/data', 'another machine copies it as well'
  assert len(list((tmp_path / 'cache').glob('*/data'))) == 1


@pytest.mark.slow
def test_region_stores_are_written_to_a_bucket_with_the_bytes_of_a_disk(bucket, made, tmp_path):
  far, cache = f'{bucket}/regions', tmp_path / 'cache'
  below = [path.relative_to(made / 'data').as_posix() for path in (made / 'data').rglob('*') if path.is_file()]
  buckets.upload_all(made / 'data', files.path(f'{far}/data'), below)
  teacher_checkpoint.save_teacher(tmp_path / 'teacher', small_teacher.make())
  for place, data, *cached in ((tmp_path, made / 'data'), (far, f'{far}/data', cache)):
    more = [f'--data.cache={cache}'] if cached else []
    words = ('--data', data, '--images-per-shard', 2)
    detector = (made / 'config.json', '--checkpoint', made / 'run')
    assert run('propose', *detector, *words, '--out', f'{place}/proposals', *more) == 0
    more = ['--data-cache', cache] if cached else []
    words = (*words, '--teacher', tmp_path / 'teacher', '--proposals', f'{place}/proposals')
    assert run('embed-regions', *words, '--out', f'{place}/embedded', *more) == 0
  for name in ('proposals', 'embedded'):
    written = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
    assert len(written) > 4
    assert {file: (files.path(f'{far}/{name}') / file).read_bytes() for file in files.sizes(f'{far}/{name}')} == written
