"""Files, folders and locks in a bucket mean what they mean on a disk, as far as a bucket can."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vild_jax.runtime import buckets, files, locks, owners

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(bucket, request):
  return files.path(f'{bucket}/{request.node.name}')


# --- addresses ------------------------------------------------------------------------------------------------------


def test_an_address_keeps_its_two_slashes(bucket):
  for place in (f'{bucket}/a/b', Path(f'{bucket}/a/b'), files.path(f'{bucket}/a/b'), f'{bucket}/a/b/'):
    assert str(files.path(place)) == str(files.absolute(place)) == f'{bucket}/a/b' and files.is_remote(place)
  assert files.path('a/b') == Path('a/b') and not files.is_remote('C:/data')


def test_a_bucket_that_is_not_there_is_one_line(bucket):
  with pytest.raises(ValueError, match=r'^gs://no-such-bucket cannot be read \(FileNotFoundError: .*\); expected a bu'):
    files.path('gs://no-such-bucket/run')


def test_without_the_client_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  with pytest.raises(
    ValueError, match=r'need gcsfs, which cannot be imported .*; expected `pip install "vild_jax\[gcs]'
  ):
    buckets._client(-1)


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_stays_as_it_was(folder):
  assert files.write(folder / 'file', 'one') == folder / 'file' and (folder / 'file').read_text() == 'one'
  with files.replacing(folder / 'file') as temporary:
    temporary.write_bytes(bytes(6 * 2**20))  # large enough for an upload in parts
    assert (folder / 'file').read_text() == 'one'
  assert files.fetched(folder / 'file').read_bytes() == bytes(6 * 2**20)
  with pytest.raises(KeyError), files.replacing(folder / 'file') as temporary:
    temporary.write_text('half')
    raise KeyError
  assert (folder / 'file').stat().length == 6 * 2**20 and [path.name for path in folder.iterdir()] == ['file']


@pytest.mark.parametrize('content', [b'', b'\r', b'a\r', b'a\n', b'\r\n\r\n', bytes(range(256)) + b' \r'])
def test_every_byte_of_a_file_arrives(folder, content):
  files.write(folder / 'file', content)
  with files.replacing(folder / 'sent') as temporary:
    temporary.write_bytes(content)
  assert [(folder / name).read_bytes() for name in ('file', 'sent')] == [content] * 2


# --- folders --------------------------------------------------------------------------------------------------------


def below(folder) -> dict[str, bytes]:
  return {name: (folder / name).read_bytes() for name in buckets._names(str(folder))}


def write(folder, contents: dict[str, str], may_replace=lambda path: True) -> None:
  with files.new_folder(folder, marker='manifest', may_replace=may_replace) as local:
    for name, content in contents.items():
      (local / name).parent.mkdir(exist_ok=True)
      (local / name).write_text(content)


def test_a_folder_replaces_another_and_its_marker_is_the_first_to_go_and_the_last_to_come(folder, monkeypatch):
  write(folder, {'manifest': '1', 'data/a': 'a', 'old': 'x'})
  assert below(folder) == {'manifest': b'1', 'data/a': b'a', 'old': b'x'}
  upload, seen = buckets.upload, []
  monkeypatch.setattr(
    buckets, 'upload', lambda source, target: (seen.append(sorted(below(folder))), upload(source, target))
  )
  write(folder, {'manifest': '2', 'data/b': 'b'})
  assert seen == [['.unfinished'], ['.unfinished', 'data/b']]
  assert below(folder) == {'manifest': b'2', 'data/b': b'b'}
  with pytest.raises(ValueError, match='exists; expected a new folder'):
    write(folder, {'manifest': '3'}, may_replace=lambda path: False)


def test_what_a_killed_writer_left_has_no_marker_and_is_replaced(folder, monkeypatch):
  write(folder, {'manifest': '1', 'a': 'a'})
  with monkeypatch.context() as patch:
    patch.setattr(buckets, 'upload_all', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      write(folder, {'manifest': '2', 'b': 'b'})
  assert not (folder / 'manifest').exists() and files.is_unfinished(folder)
  write(folder, {'manifest': '3'}, may_replace=lambda path: False)
  assert below(folder) == {'manifest': b'3'} and not files.is_unfinished(folder)


def test_a_folder_is_fetched_once_for_each_content_of_its_marker(folder):
  write(folder, {'manifest': '1', 'data/a': 'a'})
  local = buckets.fetched_folder(folder, 'manifest')
  assert local.name == folder.name and (local / 'data/a').read_text() == 'a'
  assert buckets.fetched_folder(folder, 'manifest') == local
  write(folder, {'manifest': '2', 'data/a': 'b'})
  assert (buckets.fetched_folder(folder, 'manifest') / 'data/a').read_text() == 'b'


def test_a_folder_without_a_marker_cannot_be_whole_in_a_bucket(folder):
  with pytest.raises(ValueError, match='is an address'), files.new_folder(folder):
    pass


# --- locks ----------------------------------------------------------------------------------------------------------


def test_a_write_with_a_condition_is_done_by_one(folder):
  first = buckets.write_if(folder / 'x', b'one', 0)
  assert buckets.write_if(folder / 'x', b'two', 0) is None and buckets.read_generation(folder / 'x') == (b'one', first)
  assert buckets.write_if(folder / 'x', b'one', 0) == first, 'an attempt whose answer was lost is repeated'
  second = buckets.write_if(folder / 'x', b'two', first)
  buckets.remove_if(folder / 'x', first)
  assert buckets.read_generation(folder / 'x') == (b'two', second)
  buckets.remove_if(folder / 'x', second)
  assert buckets.read_generation(folder / 'x') is None
  found = []
  threads = [
    threading.Thread(target=lambda i=i: found.append(buckets.write_if(folder / 'y', b'%d' % i, 0))) for i in range(6)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(found) == 6 and sum(generation is not None for generation in found) == 1


_HOLDER = """
import sys, time
from vild_jax.runtime import locks
with locks.locked(sys.argv[1]):
  print('held', flush=True)
  time.sleep(600)
"""


def test_a_lock_of_who_lives_is_refused_and_that_of_a_killed_process_is_stale_at_once(folder):
  command = [sys.executable, '-c', _HOLDER, str(folder)]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(locks.FolderInUse, match=rf'^{folder} is in use by process {process.pid} on'):
      locks.locked(folder).__enter__()
    process.send_signal(signal.SIGKILL)
    process.wait()
  with locks.locked(folder):
    assert json.loads((folder / locks.LOCK_FILE).read_text())['token']
  assert not (folder / locks.LOCK_FILE).exists()


def test_a_lock_of_another_machine_is_watched(folder, monkeypatch, capsys):
  monkeypatch.setattr(locks, 'WATCH_SECONDS', 1.0)
  other = {'machine': '0' * 8, 'pid': 1, 'started': 1, 'host': 'far'}
  buckets.write(folder / locks.LOCK_FILE, json.dumps({**other, 'beat': '0'}).encode())
  over = threading.Event()

  def beat():
    while not over.wait(0.1):
      buckets.write(
        folder / locks.LOCK_FILE, json.dumps({**other, 'beat': owners.owner() + str(id(object()))}).encode()
      )

  thread = threading.Thread(target=beat)
  thread.start()
  try:
    with pytest.raises(locks.FolderInUse, match='is in use by process 1 on far'):
      locks.locked(folder).__enter__()
  finally:
    over.set()
    thread.join()
  with locks.locked(folder):
    assert json.loads((folder / locks.LOCK_FILE).read_text())['machine'] == owners.machine()
  assert 'is locked by process 1 on far' in capsys.readouterr().err


def test_the_holder_shows_that_it_lives_and_leaves_the_lock_of_another_one(folder, monkeypatch, capsys):
  monkeypatch.setattr(locks, 'BEAT_SECONDS', 0.05)
  path = folder / locks.LOCK_FILE
  with locks.locked(folder):
    beat = lambda: json.loads(path.read_text())['beat']
    before = beat()
    while beat() == before:
      time.sleep(0.02)
    buckets.write(path, b'of another')
    while 'is locked by another process now' not in capsys.readouterr().err:
      time.sleep(0.02)
  assert path.read_bytes() == b'of another'


@pytest.mark.parametrize('name', ['../../x', 'a/../../x', '/x', 'a//x', './x'])
def test_an_object_whose_name_is_no_path_below_its_folder_is_refused(monkeypatch, name):
  """A copy of it would be written outside of the folder of the copies."""
  found = {f'a-bucket/data/{one}': {'size': 1, 'crc32c': 'x'} for one in ('a', 'b/c', 'folder/', name)}
  monkeypatch.setattr(buckets, 'client', lambda: SimpleNamespace(find=lambda folder, detail: found))
  with pytest.raises(ValueError, match=rf"gs://a-bucket/data holds an object with the name '{re.escape(name)}'"):
    buckets.listed('gs://a-bucket/data')
  del found[f'a-bucket/data/{name}']
  assert list(buckets.listed('gs://a-bucket/data')) == ['a', 'b/c']
