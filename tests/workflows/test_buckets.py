"""A work directory in a bucket: killed and told to end, a run ends as one on a disk; others evaluate and export it."""

from __future__ import annotations

import json
import signal

import jax
import numpy as np
import pytest

from tests.helpers import emulated_bucket, killing, small_experiment, tiny
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax.runtime import files
from vild_jax.train import bundle_files, checkpoint, writers

STEPS = 30


@pytest.fixture(scope='module')
def bucket():
  with emulated_bucket.running() as address:
    yield address


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
  )
  (folder / 'config.json').write_text(config_lib.to_text(config))
  return folder / 'config.json'


@pytest.fixture(scope='module')
def undisturbed(config_file):
  """The work directory, on the disk, of a run that nobody kills."""
  workdir = config_file.parent / 'undisturbed'
  assert run('train', config_file, '--workdir', workdir) == 0
  return workdir


@pytest.mark.slow
def test_a_run_in_a_bucket_that_is_killed_and_told_to_end_ends_as_one_on_a_disk(
  bucket, config_file, undisturbed, tmp_path, kills
):
  rng, seed = killing.rng_and_seed()
  config, moments = config_lib.load(config_file), []
  for number in range(kills):
    workdir = f'{bucket}/run-{number}'
    saved = lambda workdir=workdir: files.path(workdir) / checkpoint.CHECKPOINTS
    for by, first in ((signal.SIGKILL, 3), (signal.SIGTERM, STEPS // 2)):
      step = 3 * int(rng.integers(first // 3, first // 3 + 3))
      # The folder of a checkpoint is there before the checkpoint is.
      come_so_far = lambda step=step, saved=saved: (saved() / str(step)).exists()
      wait = rng.uniform(0, 0.3)
      killing.kill(['train', config_file, '--workdir', workdir], come_so_far, tmp_path / 'log', wait=wait, by=by)
      moments.append(f'{by.name} {wait:.2f} s after step {step}: {_steps(saved())}')
    print(*moments, f'(seed {seed})')
    assert run('train', config_file, '--workdir', workdir) == 0
    assert _same(undisturbed, workdir, config), f'{moments} (seed {seed})'
    assert [line['step'] for line in writers.read_metrics(f'{workdir}/{writers.METRICS_FILE}')] == [*range(1, STEPS + 1)]
    spent = json.loads((files.path(workdir) / 'goodput.json').read_text())
    assert spent['starts'] == 3 and spent['step'] == STEPS
  names = {path.name for path in files.path(f'{bucket}/run-0').iterdir()}
  assert names == {path.name for path in undisturbed.iterdir()}


def _steps(folder) -> list[int]:
  """Those whose checkpoint is whole."""
  return sorted(int(path.name) for path in folder.iterdir() if (path / 'commit_success.txt').exists())


def _same(one, other, config) -> bool:
  found = (checkpoint.load_variables(files.path(of), config) for of in (one, other))
  return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, found), strict=True))
