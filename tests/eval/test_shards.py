"""Shards become the file that one process would have written without a break, or one line says why not."""

from __future__ import annotations

import json
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.results import write_results
from vild_jax.data.schema import DataError
from vild_jax.eval.shards import Shards

IDS = [int(i) for i in np.random.default_rng(0).permutation(200)]
JOB = {'weights': 'abc', 'data': 'def'}
OF = {
  i: [[{'image_id': i, 'score': s / 10} for s in range(i % 4)], [{'image_id': i, 'score': 0.5}] * (i % 2)] for i in IDS
}


def _shards(folder, processes=1, ids=IDS, batch_size=32):
  return Shards(folder, ids, batch_size=batch_size, processes=processes, methods=2)


def _entries(shards, missing, process=0, processes=1, batch=32):
  """A process's share of each batch, in the order of the data set."""
  for n, place in enumerate(shards.pictures(missing)):
    if n % batch * processes // batch == process:
      yield IDS[place], OF[IDS[place]]


def _alone(folder):
  paths = folder / 'a.json', folder / 'b.json'
  for m, path in enumerate(paths):
    write_results(path, [result for image in IDS for result in OF[image][m]])
  return [path.read_bytes() for path in paths]


def _merged(shards, folder, **more):
  paths = folder / 'one.json', folder / 'two.json'
  shards.merge(paths, **more)
  return [path.read_bytes() for path in paths]


def test_shards_hold_whole_batches():
  here = Path('x')
  assert (_shards(here).size, _shards(here).count) == (64, 4)
  assert _shards(here, batch_size=24).size == 72 and _shards(here, batch_size=100).size == 100
  shards = _shards(here)
  assert shards.pictures(np.array([False, True, False, True])).tolist() == [*range(64, 128), *range(192, 200)]


def test_what_comes_before_the_replacement_finds_all_written_and_the_older_files(tmp_path):
  """A disk that is full for the results leaves what describes the older ones."""
  (shards := _shards(tmp_path)).open(JOB)
  shards.write(0, missing := ~shards.finished(), _entries(shards, missing))
  (tmp_path / 'one.json').write_text('older')
  found = []

  def look():
    written = sum(path.stat().st_size for path in tmp_path.glob('.*.tmp'))
    found.append(((tmp_path / 'one.json').read_text(), written))

  merged = _merged(shards, tmp_path, before=look)
  assert merged == _alone(tmp_path)
  (older, written) = found[0]
  assert older == 'older' and written == sum(map(len, merged)) - 2 * len('\n]\n')


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_the_joined_files_are_those_of_one_process(tmp_path, processes):
  for process in range(processes):
    shards = _shards(tmp_path, processes)
    if process == 0:
      shards.open(JOB)
    shards.write(process, np.ones(4, bool), _entries(shards, np.ones(4, bool), process, processes))
  assert shards.finished().all() and _merged(shards, tmp_path) == _alone(tmp_path)
  shards.remove()
  assert not shards.folder.exists()


def test_a_folder_of_somebody_else_by_that_name_stays(tmp_path):
  shards = _shards(tmp_path)
  shards.folder.mkdir()
  for name in ('mine.jpg', 'film.part'):
    (shards.folder / name).write_text('')
  shards.open(JOB)
  shards.write(0, np.ones(4, bool), _entries(shards, np.ones(4, bool)))
  (shards.folder / '.000001-0.part.0a1b2c3d-7-8-00112233.tmp').write_text('')  # of a process that was killed
  assert shards.finished().all()
  shards.remove()
  assert sorted(path.name for path in shards.folder.iterdir()) == ['film.part', 'mine.jpg']


def test_what_was_written_is_not_detected_again(tmp_path):
  first = _shards(tmp_path)
  first.open(JOB)

  def broken():
    for n, entry in enumerate(_entries(first, np.ones(4, bool))):
      if n == 150:
        raise KeyboardInterrupt
      yield entry

  with pytest.raises(KeyboardInterrupt):
    first.write(0, np.ones(4, bool), broken())
  again = _shards(tmp_path)
  again.open(JOB)
  assert again.finished().tolist() == [True, True, False, False]
  again.write(0, ~again.finished(), _entries(again, ~again.finished()))
  assert _merged(again, tmp_path) == _alone(tmp_path)


def test_a_shard_is_finished_when_every_process_has_written_its_part(tmp_path):
  shards = _shards(tmp_path, 2)
  shards.open(JOB)
  shards.write(0, np.ones(4, bool), _entries(shards, np.ones(4, bool), 0, 2))
  assert not shards.finished().any()
  shards.write(1, np.array([0, 1, 0, 0], bool), iter(()))
  assert shards.finished().tolist() == [False, True, False, False]


@pytest.mark.parametrize(
  ('change', 'what'), [({'weights': 'xyz'}, 'weights'), ({'data': ''}, 'data'), ({'scores': 'model'}, 'scores')]
)
def test_the_shards_of_another_job_are_refused_and_stay(tmp_path, change, what):
  _shards(tmp_path).open(JOB)
  with pytest.raises(DataError, match=f'an unfinished evaluation of which the {what} differs; expected') as error:
    _shards(tmp_path).open(JOB | change)
  assert '\n' not in str(error.value)
  _shards(tmp_path).open(JOB)
  for other, key in ((_shards(tmp_path, 2), 'processes'), (_shards(tmp_path, ids=IDS[1:]), 'images')):
    with pytest.raises(DataError, match=f'of which the {key} differs'):
      other.open(JOB)
  (_shards(tmp_path).folder / 'job.json').write_text('{"wei')
  with pytest.raises(DataError, match='of which the description differs'):
    _shards(tmp_path).open(JOB)


def test_a_part_that_comes_late_is_waited_for(tmp_path):
  shards = _shards(tmp_path, 2)
  shards.open(JOB)
  shards.write(0, np.ones(4, bool), _entries(shards, np.ones(4, bool), 0, 2))
  with pytest.raises(DataError, match=r'000000-1\.part does not come: process 1 of 2 has written no detections 0\.1 s'):
    _merged(shards, tmp_path, wait_seconds=0.1)
  late = threading.Timer(0.2, shards.write, (1, np.ones(4, bool), list(_entries(shards, np.ones(4, bool), 1, 2))))
  late.start()
  assert _merged(shards, tmp_path, wait_seconds=60) == _alone(tmp_path)
  late.join()


@pytest.mark.parametrize('line', ['[7, [', '[8, []]', '7', '["a", 1, 2]', '[3, [5, 5]]', '[4, ["x", 1]]'])
def test_a_damaged_part_is_named_and_nothing_is_overwritten(tmp_path, line):
  shards = _shards(tmp_path)
  shards.open(JOB)
  shards.write(0, np.ones(4, bool), _entries(shards, np.ones(4, bool)))
  before = _merged(shards, tmp_path)
  with (shards.folder / '000002-0.part').open('a') as part:
    part.write(line + '\n')
  with pytest.raises(DataError, match=r'000002-0\.part, line \d+ does not begin a picture'):
    _merged(shards, tmp_path)
  shards.write(0, np.array([0, 0, 1, 0], bool), iter(()))
  with pytest.raises(DataError, match='shard 2 lacks image'):
    _merged(shards, tmp_path)
  assert [(tmp_path / name).read_bytes() for name in ('one.json', 'two.json')] == before


def test_joining_holds_one_shard_at_a_time(tmp_path):
  many = list(range(64 * 15))
  shards = Shards(tmp_path, many, batch_size=32, methods=1)
  shards.open(JOB)
  shards.write(0, np.ones(15, bool), ((i, [[{'image_id': i, 'text': 'x' * 1000}]]) for i in many))
  tracemalloc.start()
  shards.merge([tmp_path / 'r.json'])
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < (tmp_path / 'r.json').stat().st_size / 3


def test_results_stay_json(tmp_path):
  shards = _shards(tmp_path)
  shards.open(JOB)
  shards.write(0, np.ones(4, bool), _entries(shards, np.ones(4, bool)))
  for text in _merged(shards, tmp_path):
    assert len(json.loads(text)) > 50
