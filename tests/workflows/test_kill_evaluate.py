"""`kill -9` of a real `evaluate` by one or two processes: started again, it ends at the same bytes and metrics."""

from __future__ import annotations

import json
import signal
import time

import numpy as np
import pytest

from tests.helpers import killing, small_set, tiny
from tests.helpers.child_processes import Children
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax.eval.shards import FOLDER
from vild_jax.train import checkpoint
from vild_jax.vocabulary import VocabularyFile, save

IMAGES, SHARDS = 384, 6  # 64 pictures to a shard
_HEARTBEAT = 10  # seconds of silence after which what is left of two processes ends


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  """A command that detects on IMAGES pictures, without its --out, and the folder of all."""
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
    'mesh.data=-1',
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
def children(tmp_path_factory):
  return Children(tmp_path_factory.mktemp('logs'))


@pytest.fixture(scope='module')
def undisturbed(words, children):
  """The output folder of an evaluation by so many processes without a break, made once."""
  words, folder = words
  made = {}

  def of(count):
    if count not in made:
      out = folder / f'undisturbed-{count}'
      assert children.finish([*words, out], devices=1, count=count) == count * [0], children.said()
      assert len(json.loads((out / 'results.json').read_text())) > IMAGES
      made[count] = out
    return made[count]

  return of


def _metrics(folder):
  return {k: v for k, v in json.loads((folder / 'metrics.json').read_text()).items() if k != 'seconds_per_image'}


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
def test_evaluate_killed_at_a_random_moment_ends_at_the_same_bytes(
  words, children, undisturbed, tmp_path, kills, count
):
  """Of two processes, one is killed or both are; the other one ends by itself and says why."""
  words, expected = words[0], undisturbed(count)
  rng, seed = killing.rng_and_seed()
  for number in range(kills):
    killed = tmp_path / f'killed-{number}'
    # After the last shard, results are joined.
    kill_at, wait = int(rng.integers(0, SHARDS + 1)), float(rng.uniform(0, 0.2))
    victims = [[0], [1], [0, 1]][rng.integers(3)] if count == 2 else [0]
    parts = lambda killed=killed: len(list((killed / FOLDER).glob('*.part')))
    come_so_far = lambda killed=killed, kill_at=kill_at, parts=parts: (
      (killed / FOLDER / 'job.json').exists() and parts() >= kill_at * count
    )
    where = f'processes {victims} of {count} killed {1000 * wait:.0f} ms after {kill_at} shards (seed {seed})'
    with children.run([*words, killed], devices=1, count=count, heartbeat=_HEARTBEAT) as started:
      children.wait(started, come_so_far)
      time.sleep(wait)
      for victim in victims:
        started[victim].send_signal(signal.SIGKILL)
      codes = [children.code(process) for process in started]
    print(where, codes, parts(), 'of', SHARDS * count, 'parts were there')
    assert all(codes[victim] == -signal.SIGKILL for victim in victims), f'{where}\n{children.said()}'
    for left in set(range(count)) - set(victims):
      said = children.log(left).read_text()
      if codes[left] == 0:
        # The first process needs nobody once all parts are there: it may have ended before it noticed.
        assert left == 0, f'{where}\n{said}'
        assert (killed / 'results.json').read_bytes() == (expected / 'results.json').read_bytes(), where
        assert _metrics(killed) == _metrics(expected), where
      else:
        assert 'another task died' in said or 'another process' in said, f'{where}\n{said}'
    assert kill_at > SHARDS - 3 or not (killed / 'metrics.json').exists(), where

    assert children.finish([*words, killed], devices=1, count=count) == count * [0], f'{where}\n{children.said()}'
    assert (killed / 'results.json').read_bytes() == (expected / 'results.json').read_bytes(), where
    assert _metrics(killed) == _metrics(expected), where
    assert not (killed / FOLDER).exists(), where
