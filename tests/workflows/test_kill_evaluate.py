"""`kill -9` of a real `vild-jax evaluate` in another process: started again, it ends at the same bytes and metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.helpers import killing, small_set, tiny
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax.eval.shards import FOLDER
from vild_jax.train import checkpoint
from vild_jax.vocabulary import VocabularyFile, save

IMAGES, SHARDS = 600, 10  # 64 pictures to a shard


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  """A command that detects on 600 pictures, without its --out, and the folder of all."""
  folder = tmp_path_factory.mktemp('kill')
  tree, images = small_set.many(folder, [40 + i % 20 for i in range(IMAGES)])
  for i in range(IMAGES):
    polygon = [5.0, 6.0, 25.0 + i % 9, 6.0, 25.0, 30.0]
    tree['annotations'].append(
      {
        'id': i + 1,
        'image_id': i,
        'category_id': (1, 3, 8)[i % 3],
        'bbox': [5.0, 6.0, 20.0 + i % 9, 24.0],
        'area': 240.0,
        'segmentation': [polygon],
      }
    )
  path, _ = small_set.write(folder / 'annotations', tree, stem='many_val')
  assert run('prepare', '--annotations', path, '--images', images, '--out', folder / 'data') == 0
  config = tiny.config(
    'mesh.data=1',
    'evaluation.batch_size=16',
    'evaluation.protocol=coco',
    'model.region_head.embedding_dim=16',
    f'data.val={folder / "data"}',
  )
  (folder / 'run').mkdir()
  (folder / 'run' / 'config.json').write_text(config_lib.to_text(config))
  names = tuple(category['name'] for category in tree['categories'])
  rows = np.eye(3, 16, dtype=np.float32)
  save(folder / 'run' / checkpoint.VOCABULARY_FILE, VocabularyFile(rows, names, np.ones(3, bool), 'made up', ''))
  checkpoint.save_variables(folder / 'run', tiny.variables(config, deltas=0.1))
  return ['evaluate', folder / 'run' / 'config.json', '--checkpoint', folder / 'run', '--out'], folder


@pytest.fixture(scope='module')
def undisturbed(words):
  words, folder = words
  assert run(*words, folder / 'undisturbed') == 0
  assert len(json.loads((folder / 'undisturbed' / 'results.json').read_text())) > IMAGES
  return folder / 'undisturbed'


def _metrics(folder):
  return {k: v for k, v in json.loads((folder / 'metrics.json').read_text()).items() if k != 'seconds_per_image'}


def test_evaluate_killed_at_a_random_moment_ends_at_the_same_bytes(words, undisturbed, tmp_path, kills):
  words = words[0]
  rng, seed = killing.rng_and_seed()
  for number in range(kills):
    killed = tmp_path / f'killed-{number}'
    kill_at, wait = int(rng.integers(0, SHARDS - 2)), float(rng.uniform(0, 0.2))
    come_so_far = lambda killed=killed, kill_at=kill_at: (
      (killed / FOLDER / 'job.json').exists() and len(list((killed / FOLDER).glob('*.part'))) >= kill_at
    )
    killing.kill([*words, killed], come_so_far, tmp_path / 'log', wait=wait)
    where = f'killed {1000 * wait:.0f} ms after {kill_at} shards (seed {seed})'
    print(where, len(list((killed / FOLDER).glob('*.part'))), 'of', SHARDS, 'were there')
    assert not (killed / 'metrics.json').exists(), where

    assert run(*words, killed) == 0
    assert (killed / 'results.json').read_bytes() == (undisturbed / 'results.json').read_bytes(), where
    assert _metrics(killed) == _metrics(undisturbed), where
    assert not (killed / FOLDER).exists(), where
