"""Region stores in a bucket: the same bytes as on a disk, and one writer of each part."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.planted_store import content
from tests.helpers.small_store import IDS, JOB, make, regions
from vild_jax.data.regions import locks, store
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.regions.writer import StoreWriter
from vild_jax.data.schema import DataError
from vild_jax.runtime import copies, files
from vild_jax.runtime import locks as object_locks

_HOLDS = """
import sys, time
from vild_jax.runtime import files, locks
with locks.locked_object(files.path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(600)
"""


@pytest.fixture
def folder(bucket, request):
  return files.path(f'{bucket}/{request.node.name}')


def write(path, shards, index=0, count=1) -> bool:
  """Writes these of the missing shards; returns whether the store is whole."""
  with StoreWriter(path, JOB, process_index=index, process_count=count) as writer:
    for shard in set(writer.missing()) & set(shards):
      writer.write(shard, ((IDS[i], regions(IDS[i])) for i in JOB.examples(shard)))
    return writer.finish()


def test_interrupted_and_by_several_processes_the_bytes_are_those_of_a_disk(folder, tmp_path):
  assert make(tmp_path / 'on-disk')
  assert JOB.shards == 4
  assert not write(folder, [2])
  assert not write(folder, [0], 0, 2)  # another number of processes goes on
  with pytest.raises(ValueError, match='whole'):
    RegionStore(copies.cached(str(folder), str(tmp_path / 'cache')))
  assert write(folder, [1, 3], 1, 2)
  read = RegionStore(copies.cached(str(folder), str(tmp_path / 'cache')))
  assert content(read.path) == content(tmp_path / 'on-disk')
  said = store.summary(folder)
  assert said == store.summary(tmp_path / 'on-disk')
  assert said['identity'] == read.identity and said['size'] == read.size and said['regions'] == read.regions
  assert write(folder, []) and store.summary(folder) == said


def test_two_parts_are_written_at_a_time_and_one_part_once(folder):
  with StoreWriter(folder, JOB, process_index=0, process_count=2):
    with StoreWriter(folder, JOB, process_index=1, process_count=2):
      assert set(files.sizes(folder)) == {'job.json', '.part-0-of-2.lock', '.part-1-of-2.lock'}
    for index, count in ((0, 2), (0, 1)):
      with pytest.raises(DataError, match=r'is being written by another process \(\.part-0-of-2\.lock'):
        StoreWriter(folder, JOB, process_index=index, process_count=count)
  assert set(files.sizes(folder)) == {'job.json'}


def test_what_a_killed_writer_held_is_free(folder):
  held = locks.lock_file(folder, 0, 5)
  with subprocess.Popen([sys.executable, '-c', _HOLDS, str(held)], stdout=subprocess.PIPE) as holder:
    assert holder.stdout.readline() == b'held\n'
    assert f'process {holder.pid} ' in object_locks.holder_of_object(held)
    with pytest.raises(DataError, match=rf'{held.name} is held by process {holder.pid} '):
      StoreWriter(folder, JOB)
    holder.kill()
    holder.wait()
  assert write(folder, range(4))
  assert not [name for name in files.sizes(folder) if name.startswith('.')]


def test_a_damaged_shard_is_made_again_and_another_job_is_refused(folder, capsys):
  assert write(folder, range(4))
  before = {name: (folder / name).read_bytes() for name in files.sizes(folder)}
  (shard,) = (name for name in before if name.startswith('shard-00001') and not name.endswith('.json'))
  damaged = bytearray(before[shard])
  damaged[-9] ^= 1
  files.write(folder / shard, bytes(damaged))
  assert write(folder, range(4))
  assert f'{folder / shard} is not as it was written, and is made anew' in capsys.readouterr().err
  assert {name: (folder / name).read_bytes() for name in files.sizes(folder)} == before
  (folder / 'job.json').unlink()
  with pytest.raises(DataError, match=r'holds images.npy and no job.json; expected a new or empty folder'):
    StoreWriter(folder, JOB)
