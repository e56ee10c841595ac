"""One process at a time in a folder: who is refused, what is stale, and that nobody loses a lock to another."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vild_jax.runtime import files, locks, owners

ROOT = Path(__file__).resolve().parents[2]


def test_a_folder_that_is_in_use_is_refused_in_one_line_that_names_the_holder(tmp_path):
  with locks.locked(tmp_path / 'work'):
    about = json.loads((tmp_path / 'work' / locks.LOCK_FILE).read_text())
    assert about['pid'] == os.getpid() and about['started'] == owners.started(os.getpid())
    with pytest.raises(locks.FolderInUse) as error, locks.locked(tmp_path / 'work'):
      pass
    assert f'work is in use by process {os.getpid()} on {about["host"]} since ' in str(error.value)
    assert '\n' not in str(error.value) and 'choose another folder' in str(error.value)
  assert not (tmp_path / 'work').exists(), 'made for the lock alone'
  with locks.locked(tmp_path):
    (tmp_path / 'file').write_text('x')
  assert [path.name for path in tmp_path.iterdir()] == ['file']


_HOLDER = """
import sys, time
from vild_jax.runtime import locks
with locks.locked(sys.argv[1]):
  print('held', flush=True)
  time.sleep(float(sys.argv[2]))
"""


def test_the_lock_of_a_killed_process_of_this_machine_is_stale_at_once(tmp_path):
  command = [sys.executable, '-c', _HOLDER, tmp_path, '600']
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(locks.FolderInUse, match=f'process {process.pid} on'), locks.locked(tmp_path):
      pass
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert (tmp_path / locks.LOCK_FILE).exists()
  with locks.locked(tmp_path):
    assert json.loads((tmp_path / locks.LOCK_FILE).read_text())['pid'] == os.getpid()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('jump', [-1e8, 1e8])
def test_a_clock_that_jumps_changes_neither_locks_nor_what_belongs_to_whom(tmp_path, monkeypatch, jump):
  now = time.time
  with locks.locked(tmp_path), files.replacing(tmp_path / 'file') as temporary:
    temporary.write_text('x')
    monkeypatch.setattr(time, 'time', lambda: now() + jump)
    files.sweep(tmp_path / '..' / tmp_path.name)  # it looks once under each name
    with pytest.raises(locks.FolderInUse), locks.locked(tmp_path):
      pass
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_who_may_wait_gets_the_lock_of_who_ends(tmp_path):
  with subprocess.Popen(
    [sys.executable, '-c', _HOLDER, tmp_path, '0.3'], stdout=subprocess.PIPE, text=True, cwd=ROOT
  ) as process:
    assert process.stdout.readline() == 'held\n'
    with locks.locked(tmp_path, wait_seconds=60):
      assert json.loads((tmp_path / locks.LOCK_FILE).read_text())['pid'] == os.getpid()


@pytest.mark.parametrize('content', [{'machine': '0' * 8, 'host': 'other', 'pid': 7}, None])
def test_the_lock_of_another_machine_is_stale_when_it_shows_no_life(tmp_path, monkeypatch, capsys, content):
  monkeypatch.setattr(locks, 'WATCH_SECONDS', 0.5)
  (tmp_path / locks.LOCK_FILE).write_text('' if content is None else json.dumps(content))
  with locks.locked(tmp_path):
    assert json.loads((tmp_path / locks.LOCK_FILE).read_text())['pid'] == os.getpid()
  said = capsys.readouterr().err
  assert ('is locked by process 7 on other' in said) == (content is not None)


def test_a_lock_of_another_machine_that_changes_is_alive(tmp_path, monkeypatch):
  monkeypatch.setattr(locks, 'BEAT_SECONDS', 0.1)
  monkeypatch.setattr(locks, 'WATCH_SECONDS', 30.0)
  with locks.locked(tmp_path):  # whose machine the other one does not know
    monkeypatch.setattr(owners, 'machine', lambda: 'f' * 8)
    with pytest.raises(locks.FolderInUse), locks.locked(tmp_path):
      pass


def test_a_process_number_that_was_given_again_is_another_process(tmp_path):
  about = {'machine': owners.machine(), 'pid': os.getpid(), 'started': owners.started(os.getpid()) - 1}
  (tmp_path / locks.LOCK_FILE).write_text(json.dumps(about))
  with locks.locked(tmp_path):
    pass


def test_who_lost_its_lock_leaves_the_new_one_alone(tmp_path):
  with locks.locked(tmp_path):
    (tmp_path / locks.LOCK_FILE).unlink()
    (tmp_path / locks.LOCK_FILE).write_text('of another process')
  assert (tmp_path / locks.LOCK_FILE).read_text() == 'of another process'


_CONTENDER = """
import os, sys, time
from vild_jax.runtime import locks
for number in range(int(sys.argv[2])):
  try:
    with locks.locked(sys.argv[1]):
      inside = os.path.join(sys.argv[1], 'inside')
      os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if another holds the lock too
      time.sleep(0.001)
      os.unlink(inside)
      if number % 5 == 0:
        open(os.path.join(sys.argv[1], 'taken'), 'a').write('x')
        os._exit(9)  # leaves a stale lock behind
  except locks.FolderInUse:
    time.sleep(0.001)
"""


def test_a_stale_lock_is_taken_by_one_of_many(tmp_path):
  """Contenders that die in the folder leave stale locks, which the others fight for."""
  deadline = time.monotonic() + 20
  running, rounds = [], 0
  while rounds < 24 and time.monotonic() < deadline:
    running = [process for process in running if process.poll() is None]
    while len(running) < 3:
      command = [sys.executable, '-c', _CONTENDER, tmp_path, '40']
      running.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
      rounds += 1
    running[0].wait(60)
  for process in running:
    process.wait(60)
    assert 'FileExistsError' not in process.stderr.read()
    process.stderr.close()
  assert (tmp_path / 'taken').read_text()


@pytest.mark.parametrize('links', [True, False])
def test_without_flock_who_comes_late_to_a_stale_lock_leaves_the_new_one(tmp_path, monkeypatch, links):
  """Two processes find a lock stale; the second one removes it after the first one has taken it."""

  def lacks(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', lacks)
  if not links:
    monkeypatch.setattr(os, 'link', lacks)
  lock, rename = tmp_path / locks.LOCK_FILE, os.rename
  dead = json.dumps({'machine': owners.machine(), 'pid': 2**22 + 1, 'started': 5})
  lock.write_text(dead)
  with contextlib.ExitStack() as first:

    def after_the_first_has_it(source, target):
      monkeypatch.setattr(os, 'rename', rename)
      first.enter_context(locks.locked(tmp_path))
      rename(source, target)

    monkeypatch.setattr(os, 'rename', after_the_first_has_it)
    with pytest.raises(locks.FolderInUse), locks.locked(tmp_path):
      pass
    assert json.loads(lock.read_text())['pid'] == os.getpid()
  assert not list(tmp_path.iterdir())


def test_a_process_that_cannot_be_seen_is_not_taken_for_dead(tmp_path, monkeypatch):
  """Where /proc hides the processes of other users, `kill` still tells that one runs: its lock is watched."""
  about = {'machine': owners.machine(), 'pid': 1, 'started': 5, 'host': 'here'}
  (tmp_path / locks.LOCK_FILE).write_text(json.dumps(about))
  monkeypatch.setattr(owners, 'started', lambda pid: 0)
  assert not owners.is_dead(f'{owners.machine()}-1-5')
  monkeypatch.setattr(locks, 'WATCH_SECONDS', 0.5)
  begun = time.monotonic()
  with locks.locked(tmp_path):
    assert time.monotonic() - begun >= 0.5


def test_a_lock_that_is_not_a_file_is_refused(tmp_path):
  (tmp_path / locks.LOCK_FILE).symlink_to(tmp_path / 'nowhere')
  with pytest.raises(locks.FolderInUse, match='is not a regular file'), locks.locked(tmp_path):
    pass


def test_a_lock_that_cannot_be_written_is_not_left_behind(tmp_path, monkeypatch):
  def full(handle):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left') as error, locks.locked(tmp_path / 'a' / 'b'):
      pass
  assert error.value.filename == str(tmp_path / 'a' / 'b' / locks.LOCK_FILE)
  assert not list(tmp_path.iterdir())
