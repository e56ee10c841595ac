"""`kill -9` of a real `vild-jax train` in another process: started again, it ends as if nothing had happened."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.helpers import killing, small_experiment, tiny
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax.train import checkpoint, writers

STEPS = 16


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  """A tiny config on one of the machine's eight devices; a short run, saved at every step."""
  folder = tmp_path_factory.mktemp('kill')
  small_experiment.prepare(folder, stems=('small_train',))
  small_experiment.plant_regions(folder)
  config = tiny.config(
    f'vocabulary={folder / "v.npz"}',
    f'data.train={folder / "data"}',
    'mesh.data=1',
    *tiny.SHALLOW,
    f'train.steps={STEPS}',
    'train.log_every=1',
    'train.checkpoint_every=1',
    'data.transfer=uint8',  # as the configs of LVIS have it
    'distillation.weight=10',
    f'distillation.store={folder / "regions"}',
    'distillation.regions_per_image=6',
  )
  (folder / 'config.json').write_text(config_lib.to_text(config))
  return folder / 'config.json'


@pytest.fixture(scope='module')
def undisturbed(config_file):
  """The variables of a run that nobody kills; it learns from the teacher meanwhile."""
  workdir = config_file.parent / 'undisturbed'
  assert run('train', config_file, '--workdir', workdir) == 0
  losses = [line['distillation_loss'] for line in writers.read_metrics(workdir / writers.METRICS_FILE)]
  assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]), losses
  return checkpoint.load_variables(workdir, config_lib.load(config_file))


def test_a_run_killed_at_a_random_step_ends_at_bit_identical_parameters(config_file, undisturbed, tmp_path, kills):
  rng, seed = killing.rng_and_seed()
  for number in range(kills):
    kill_at, killed = int(rng.integers(2, STEPS - 5)), tmp_path / f'killed-{number}'
    come_so_far = lambda killed=killed, kill_at=kill_at: (
      (lines := writers.read_metrics(killed / writers.METRICS_FILE)) and lines[-1]['step'] >= kill_at
    )
    # Steps take some 50 ms, so that a save is under way almost always.
    killing.kill(['train', config_file, '--workdir', killed], come_so_far, tmp_path / 'log', wait=rng.uniform(0, 0.05))
    left = checkpoint.Checkpoints(killed).latest_step()
    where = f'killed at step {kill_at} (seed {seed}), resumed from {left}'
    print(where)
    assert left is None or 0 < left < STEPS, where

    assert run('train', config_file, '--workdir', killed) == 0
    end = checkpoint.load_variables(killed, config_lib.load(config_file))
    for a, b in zip(*map(jax.tree.leaves, (undisturbed, end)), strict=True):
      np.testing.assert_array_equal(a, b, err_msg=where)
    assert [line['step'] for line in writers.read_metrics(killed / writers.METRICS_FILE)] == list(range(1, STEPS + 1))
