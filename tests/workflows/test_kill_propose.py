"""`kill -9` of a real `vild-jax propose` in another process: started again, it ends at the same bytes."""

from __future__ import annotations

import pytest

from tests.helpers import killing, small_set, tiny
from tests.helpers.planted_store import content
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax.data.regions.store import RegionStore
from vild_jax.train import checkpoint

IMAGES = 90


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  """A command that writes 45 shards on one of the machine's devices, without its --out, and the folder of all."""
  folder = tmp_path_factory.mktemp('kill')
  tree, images = small_set.many(folder, range(32, 32 + IMAGES))
  path, _ = small_set.write(folder / 'annotations', tree)
  assert run('prepare', '--annotations', path, '--images', images, '--out', folder / 'data') == 0
  config = tiny.config('mesh.data=1', 'evaluation.batch_size=2', f'data.train={folder / "data"}')
  (folder / 'run').mkdir()
  (folder / 'run' / 'config.json').write_text(config_lib.to_text(config))
  checkpoint.save_variables(folder / 'run', tiny.variables(config, deltas=0.02))
  return [
    'propose',
    folder / 'run' / 'config.json',
    '--checkpoint',
    folder / 'run',
    '--max-proposals',
    30,
    '--images-per-shard',
    2,
    '--out',
  ], folder


@pytest.fixture(scope='module')
def undisturbed(words):
  words, folder = words
  assert run(*words, folder / 'undisturbed', '--json', folder / 'made.json') == 0
  store = RegionStore(folder / 'undisturbed')
  assert len(store) == IMAGES and store.regions > 10 * IMAGES
  return folder / 'undisturbed'


def test_propose_killed_at_a_random_moment_ends_at_the_same_bytes(words, undisturbed, tmp_path, kills):
  words, shards = words[0], IMAGES // 2
  rng, seed = killing.rng_and_seed()
  for number in range(kills):
    killed = tmp_path / f'killed-{number}'
    kill_at, wait = int(rng.integers(0, 2 * shards // 3)), float(rng.uniform(0, 0.02))
    come_so_far = lambda killed=killed, kill_at=kill_at: (
      (killed / 'job.json').exists() and len(list(killed.glob('shard-*.json'))) >= kill_at
    )
    # The wait goes into the next shard, whose pictures are computed, written, renamed or noted then.
    killing.kill([*words, killed], come_so_far, tmp_path / 'log', wait=wait)
    left = sorted(killed.iterdir())
    done = [path for path in left if path.suffix == '.json' and path.name.startswith('shard-')]
    where = f'killed {1000 * wait:.0f} ms after {kill_at} shards (seed {seed}), {len(done)} of {shards} were there'
    print(where, '; under way:', [path.name for path in left if path.name.startswith('.')])
    assert not (killed / 'manifest.json').exists(), where

    assert run(*words, killed) == 0
    assert content(killed) == content(undisturbed), where
