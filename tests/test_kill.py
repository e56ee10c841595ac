"""`kill -9` of a real `vild-jax train` in another process: started again, it ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests import tiny
from tests.data import planted_store, small_set
from vild_jax import cli
from vild_jax import config as config_lib
from vild_jax.data import sources
from vild_jax.teacher import vocabulary
from vild_jax.train import checkpoint, writers

STEPS = 40
# As many devices as this process has: XLA shares its threads among them, which decides the order of some sums.
_DEVICES = f'--xla_force_host_platform_device_count={jax.local_device_count()}'
_PATIENCE = 300  # seconds until the other process must have come to the step at which it is killed


def run(*words: object) -> int:
  return cli.main([str(word) for word in words])


@pytest.fixture(scope='module')
def config_file(tmp_path_factory):
  """A tiny config on one of the machine's eight devices; a short run, saved at every step."""
  folder = tmp_path_factory.mktemp('kill')
  annotations, images = small_set.write(folder)
  assert run('prepare', '--annotations', annotations, '--images', images, '--out', folder / 'data') == 0
  np.save(folder / 'rows.npy', np.random.default_rng(0).normal(size=(3, 16)))
  assert run('embed-text', '--from-npy', folder / 'rows.npy', '--classes', annotations, '--teacher-id', 'made up',
             '--out', folder / 'v.npz') == 0
  planted_store.write(folder / 'regions', sources.open_dataset(folder / 'data', 'train'),
                      teacher=vocabulary.load(folder / 'v.npz').teacher)
  config = tiny.config(f'vocabulary={folder / "v.npz"}', f'data.train={folder / "data"}', 'mesh.data=1',
                       f'train.steps={STEPS}', 'train.log_every=1', 'train.checkpoint_every=1',
                       'distillation.weight=10', f'distillation.store={folder / "regions"}',
                       'distillation.regions_per_image=6')
  (folder / 'config.json').write_text(config_lib.to_text(config))
  return folder / 'config.json'


def test_a_run_killed_at_a_random_step_ends_at_bit_identical_parameters(config_file, tmp_path):
  """And learns from the teacher meanwhile."""
  assert run('train', config_file, '--workdir', tmp_path / 'undisturbed') == 0
  losses = [line['distillation_loss'] for line in writers.read_metrics(tmp_path / 'undisturbed' / writers.METRICS_FILE)]
  assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5]), losses
  seed = int.from_bytes(os.urandom(2), 'big')
  kill_at = int(np.random.default_rng(seed).integers(2, STEPS - 5))
  killed = tmp_path / 'killed'
  with (tmp_path / 'log').open('wb') as log:
    process = subprocess.Popen([sys.executable, '-m', 'vild_jax', 'train', config_file, '--workdir', killed],
                               stdout=log, stderr=log, env={**os.environ, 'XLA_FLAGS': _DEVICES})
    deadline = time.monotonic() + _PATIENCE
    while not (lines := writers.read_metrics(killed / writers.METRICS_FILE)) or lines[-1]['step'] < kill_at:
      assert process.poll() is None and time.monotonic() < deadline, (tmp_path / 'log').read_text()
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)  # steps take some 50 ms, so that a save is under way almost always
    assert process.wait() == -signal.SIGKILL
  left = checkpoint.Checkpoints(killed).latest_step()
  assert left is None or 0 < left < STEPS, f'killed at step {kill_at} (seed {seed}), but step {left} was saved'

  assert run('train', config_file, '--workdir', killed) == 0
  config = config_lib.load(config_file)
  ends = [checkpoint.load_variables(tmp_path / name, config) for name in ('undisturbed', 'killed')]
  for a, b in zip(*(jax.tree.leaves(end) for end in ends), strict=True):
    np.testing.assert_array_equal(a, b, err_msg=f'killed at step {kill_at} (seed {seed}), resumed from {left}')
  assert [line['step'] for line in writers.read_metrics(killed / writers.METRICS_FILE)] == list(range(1, STEPS + 1))
