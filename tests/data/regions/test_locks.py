"""Locks of a store: one writer of a part, whatever the file system; who only asks is in nobody's way."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from tests.helpers.planted_store import content
from tests.helpers.small_store import IDS, JOB, make, regions
from vild_jax.data.regions import locks
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.regions.writer import StoreWriter
from vild_jax.data.schema import DataError

FLOCK = fcntl.flock


@pytest.fixture
def network_file_system(monkeypatch):
  """Where `flock` is a lock of bytes, as on NFS: what is not open for writing cannot be locked alone."""

  def flock(handle, operation):
    if operation & fcntl.LOCK_EX and fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
      raise OSError(9, 'Bad file descriptor')
    FLOCK(handle, operation)

  monkeypatch.setattr(fcntl, 'flock', flock)


def test_a_lock_whose_file_cannot_be_removed_is_free_all_the_same(tmp_path, monkeypatch):
  """Another command of the same process, as in a demo, would wait for it for ever."""
  handle = locks.take_lock(tmp_path / 'lock')

  def fails(*_, **__):
    raise OSError(5, 'Input/output error')

  with monkeypatch.context() as patch:
    patch.setattr(type(tmp_path), 'unlink', fails)
    locks.drop_lock(tmp_path / 'lock', handle)
  with (tmp_path / 'lock').open('r+') as again:
    fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_is_locked_on_a_network_file_system(network_file_system, tmp_path):
  events, threads = [], []

  def visit(name):
    with locks.folder_lock(tmp_path):
      events.append(f'{name} in')
      time.sleep(0.02)  # what another one does meanwhile would stand in between
      events.append(f'{name} out')

  for name in range(4):
    threads.append(threading.Thread(target=visit, args=(name,)))
    threads[-1].start()
  for thread in threads:
    thread.join()
  assert sorted(events[::2]) == [f'{name} in' for name in range(4)]
  assert events[1::2] == [event.replace('in', 'out') for event in events[::2]]
  assert not list(tmp_path.iterdir())


def test_who_waited_for_a_lock_whose_file_is_gone_takes_the_next(tmp_path):
  """Otherwise two would write: one with the lock of a file that is no more, one with that of the file made since."""
  file = tmp_path / 'lock'
  first, got = locks.take_lock(file), []
  waiting = threading.Thread(target=lambda: got.append(locks.take_lock(file)))
  waiting.start()
  time.sleep(0.05)
  locks.drop_lock(file, first)
  waiting.join()
  assert os.path.samestat(os.fstat(got[0]), file.stat())
  locks.drop_lock(file, got[0])


def test_a_store_on_a_network_file_system_has_the_same_bytes(network_file_system, tmp_path):
  assert make(tmp_path / 'a')
  for part in range(2):
    make(tmp_path / 'b', part=(part, 2))
  assert content(tmp_path / 'a') == content(tmp_path / 'b') and len(RegionStore(tmp_path / 'b')) == len(IDS)


def test_a_writer_keeps_its_lock_where_it_belongs_to_the_process(tmp_path, monkeypatch):
  """As on systems where `flock` is a lock of bytes: closing any handle of the file lets it go."""
  monkeypatch.setattr(fcntl, 'flock', fcntl.lockf)
  code = 'import fcntl, sys; fcntl.lockf(open(sys.argv[1], "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB)'
  with StoreWriter(tmp_path, JOB) as writer:
    for shard in writer.missing():
      writer.write(shard, [(IDS[i], regions(IDS[i])) for i in JOB.examples(shard)])
    assert writer.finish()
    lock = locks.lock_file(tmp_path, 0, 1)
    found = subprocess.run([sys.executable, '-c', code, lock], capture_output=True, text=True, check=False)
    assert 'BlockingIOError' in found.stderr


def test_who_finishes_leaves_alone_what_another_is_writing(tmp_path):
  """Process 1 writes a damaged shard anew, of which process 0 has seen a whole one."""
  path = tmp_path / 'store'
  assert not make(path, part=(1, 2))
  with StoreWriter(path, JOB, process_index=1, process_count=2) as second:

    def under_way():
      for i in JOB.examples(1):
        yield IDS[i], regions(IDS[i])
        assert make(path, part=(0, 2))
        assert len(list(path.glob('.shard-00001*.tmp'))) == 1

    second.write(1, under_way())
    assert second.finish()
  make(tmp_path / 'other')
  assert content(path) == content(tmp_path / 'other')


def test_who_asks_is_not_taken_for_a_writer(tmp_path, monkeypatch):
  """While one process looks whether a store is being written, a writer and another reader find it free."""
  path = tmp_path / 'store'
  with pytest.raises(KeyboardInterrupt):
    make(path, stop_after=1)
  lock = locks.lock_file(path, 0, 1)
  lock.touch()  # of a process that was killed
  seen = []

  def flock(handle, operation):
    FLOCK(handle, operation)
    if not seen:
      seen.append(None)
      seen.append(locks.held_locks(path))

  monkeypatch.setattr(fcntl, 'flock', flock)
  with pytest.raises(DataError, match='writing it was interrupted'):
    RegionStore(path)
  assert seen == [None, []]


def test_a_lock_ends_with_its_process(tmp_path):
  path = tmp_path / 'store'
  code = (
    'import sys, time; from tests.helpers import small_store as t; '
    'from vild_jax.data.regions.writer import StoreWriter; '
    'writer = StoreWriter(sys.argv[1], t.JOB); print("held", flush=True); time.sleep(600)'
  )
  process = subprocess.Popen([sys.executable, '-c', code, path], stdout=subprocess.PIPE, text=True)
  try:
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(DataError, match=r'is being written by another process \(0 shards so far\)'):
      RegionStore(path)
    with pytest.raises(DataError, match=r'is being written by another process \(.part-0-of-1.lock is held\)'):
      make(path)
  finally:
    process.kill()
    process.wait()
    process.stdout.close()
  assert make(path)
  assert not [name for name in content(path) if name.startswith('.')]
