"""`kill -9` of a real `vild-jax propose` in another process: started again, it ends at the same bytes."""

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
from tests.data import small_set
from vild_jax import cli
from vild_jax import config as config_lib
from vild_jax.data.regions import RegionStore
from vild_jax.train import checkpoint

IMAGES = 90
KILLS = int(os.environ.get('VILD_JAX_KILLS', '1'))  # each starts a process, which compiles
# As many devices as this process has: XLA shares its threads among them, which decides the order of some sums.
_DEVICES = f'--xla_force_host_platform_device_count={jax.local_device_count()}'
_PATIENCE = 300  # seconds until the other process must have come to the shard at which it is killed


def run(*words: object) -> int:
  return cli.main([str(word) for word in words])


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  """A command that writes 45 shards on one of the machine's devices, without its --out, and the folder of all."""
  folder = tmp_path_factory.mktemp('kill')
  images = folder / 'images'
  images.mkdir()
  tree = {**small_set.annotations(), 'annotations': [], 'images': []}
  for i in range(IMAGES):
    (images / f'{i}.jpg').write_bytes(small_set.picture(48, 32 + i, seed=i))
    tree['images'].append({'id': i, 'height': 48, 'width': 32 + i, 'file_name': f'{i}.jpg',
                           'neg_category_ids': [], 'not_exhaustive_category_ids': []})
  path, _ = small_set.write(folder / 'annotations', tree)
  assert run('prepare', '--annotations', path, '--images', images, '--out', folder / 'data') == 0
  config = tiny.config('mesh.data=1', 'evaluation.batch_size=2', f'data.train={folder / "data"}')
  (folder / 'run').mkdir()
  (folder / 'run' / 'config.json').write_text(config_lib.to_text(config))
  checkpoint.save_variables(folder / 'run', tiny.variables(config, deltas=0.02))
  return ['propose', folder / 'run' / 'config.json', '--checkpoint', folder / 'run', '--max-proposals', 30,
          '--images-per-shard', 2, '--out'], folder


@pytest.fixture(scope='module')
def undisturbed(words):
  words, folder = words
  assert run(*words, folder / 'undisturbed', '--json', folder / 'made.json') == 0
  store = RegionStore(folder / 'undisturbed')
  assert len(store) == IMAGES and store.regions > 10 * IMAGES
  return folder / 'undisturbed'


@pytest.mark.parametrize('number', range(KILLS))
def test_propose_killed_at_a_random_moment_ends_at_the_same_bytes(words, undisturbed, tmp_path, number):
  words, shards = words[0], IMAGES // 2
  seed = int.from_bytes(os.urandom(2), 'big')
  rng = np.random.default_rng(seed)
  kill_at, wait = int(rng.integers(0, 2 * shards // 3)), float(rng.uniform(0, 0.02))
  killed = tmp_path / 'killed'
  with (tmp_path / 'log').open('wb') as log:
    process = subprocess.Popen([sys.executable, '-m', 'vild_jax', *map(str, words), str(killed)], stdout=log,
                               stderr=log, env={**os.environ, 'XLA_FLAGS': _DEVICES})
    try:
      deadline = time.monotonic() + _PATIENCE
      while not (killed / 'job.json').exists() or len(list(killed.glob('shard-*.json'))) < kill_at:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / 'log').read_text()
        time.sleep(0.001)
      time.sleep(wait)  # into the next shard, whose pictures are computed, written, renamed or noted then
    finally:
      process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
  left = sorted(killed.iterdir())
  done = [path for path in left if path.suffix == '.json' and path.name.startswith('shard-')]
  where = f'killed {1000 * wait:.0f} ms after {kill_at} shards (seed {seed}), {len(done)} of {shards} were there'
  print(where, '; under way:', [path.name for path in left if path.name.startswith('.')])
  assert not (killed / 'manifest.json').exists(), where

  assert run(*words, killed) == 0
  assert {file.name: file.read_bytes() for file in killed.iterdir()} == \
      {file.name: file.read_bytes() for file in undisturbed.iterdir()}, where
