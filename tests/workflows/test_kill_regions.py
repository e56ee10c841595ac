"""`kill -9` of a real `vild-jax embed-regions` in another process: given again, it ends at the same bytes."""

from __future__ import annotations

import pytest

from tests.helpers import killing, small_set, small_teacher
from tests.helpers.planted_store import content, write_proposals
from tests.helpers.small_experiment import run
from vild_jax.data import sources
from vild_jax.teacher import checkpoint as teacher_checkpoint

COPIES = 60  # of the four pictures of the small set, a file each: long enough to be hit


@pytest.fixture(scope='module')
def command(tmp_path_factory):
  """The words of a command whose store has a shard for every two pictures."""
  folder = tmp_path_factory.mktemp('kill')
  tree = small_set.annotations()
  tree['images'] = [
    {**image, 'id': 1000 * copy + image['id'], 'file_name': f'{copy}_{image["id"]}.jpg'}
    for copy in range(COPIES)
    for image in tree['images']
  ]
  tree['annotations'] = tree['annotations'][:0]
  annotations, images = small_set.write(folder, tree)
  for entry in tree['images']:
    picture = f'{entry["id"] % 1000:012d}.jpg'
    (images / entry['file_name']).write_bytes((images / 'train2017' / picture).read_bytes())
  assert run('prepare', '--annotations', annotations, '--images', images, '--out', folder / 'data') == 0
  write_proposals(folder / 'proposals', sources.open_dataset(folder / 'data', 'train'))
  teacher_checkpoint.save_teacher(folder / 'teacher', small_teacher.make())
  return [
    'embed-regions',
    '--teacher',
    folder / 'teacher',
    '--data',
    folder / 'data',
    '--proposals',
    folder / 'proposals',
    '--images-per-shard',
    2,
    '--batch-size',
    16,
  ]


def test_a_run_killed_at_random_moments_ends_at_the_same_bytes(command, tmp_path, kills):
  assert run(*command, '--out', tmp_path / 'undisturbed') == 0
  whole = content(tmp_path / 'undisturbed')
  shards = sum(name.endswith('.array_record') for name in whole)
  (rng, seed), killed = killing.rng_and_seed(), tmp_path / 'killed'
  for kill in range(kills):
    had = len(list(killed.glob('*.array_record')))
    wanted = had + int(rng.integers(1, max((shards - had) // (kills + 1 - kill), 2)))
    killing.kill(
      [*command, '--out', killed],
      lambda wanted=wanted: len(list(killed.glob('*.array_record'))) >= wanted,
      tmp_path / 'log',
      wait=rng.uniform(0, 0.03),
    )  # a shard takes about that long
    left = {file.name for file in killed.glob('*.array_record')}
    assert had < len(left) < shards and not (killed / 'manifest.json').exists(), f'seed {seed}: {len(left)} shards'
  assert run(*command, '--out', killed) == 0
  assert content(killed) == whole, f'killed with seed {seed}'
