"""Threads that read the first pictures of a data set at once, and processes that open it while a split is added."""

from __future__ import annotations

import shutil
import subprocess
import sys

from tests.helpers import small_set
from vild_jax.data import prepare, sources
from vild_jax.runtime import reading

# The second thread reads just when the first one's import of TFDS has made the process's imports lazy.
_PROGRAM = """
import builtins, faulthandler, sys, threading, time
from vild_jax.data import sources

faulthandler.dump_traceback_later(60, exit=True)
dataset, usual, found = sources.open_dataset(sys.argv[1], 'train'), builtins.__import__, {}

def second():
  while builtins.__import__ is usual and 0 not in found:  # it may be over before this thread has a turn
    time.sleep(1e-4)
  found[1] = dataset[1].image_id

threads = [threading.Thread(target=second), threading.Thread(target=lambda: found.update({0: dataset[0].image_id}))]
for thread in threads:
  thread.start()
for thread in threads:
  thread.join()
print(found[0], found[1])
"""


def test_two_threads_may_be_the_first_to_read(tmp_path):
  prepare.prepare(*small_set.write(tmp_path), tmp_path / 'out')
  result = subprocess.run(
    [sys.executable, '-c', _PROGRAM, str(tmp_path / 'out')], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr
  dataset = sources.open_dataset(tmp_path / 'out', 'train')
  assert result.stdout.split() == [str(dataset[0].image_id), str(dataset[1].image_id)]


def test_a_split_that_is_added_while_another_process_reads_is_no_damage(tmp_path, monkeypatch):
  path, images = small_set.write(tmp_path)
  folder = prepare.prepare(path, images, tmp_path / 'out')
  shutil.copytree(tmp_path / 'out', tmp_path / 'later')
  later = prepare.prepare(small_set.write(tmp_path, stem='small_val')[0], images, tmp_path / 'later')
  read = reading.content

  def slowly(path, most):
    found = read(path, most)
    if path.name == sources.METADATA_FILE:
      shutil.copytree(later, folder, dirs_exist_ok=True)
    return found

  with monkeypatch.context() as patched:
    patched.setattr(reading, 'content', slowly)
    assert set(sources.read_metadata(folder)[1]) == {'train'}
  assert set(sources.read_metadata(folder)[1]) == {'train', 'val'}
