"""Parts of results become the file that one process would have written, or one line says why not."""

from __future__ import annotations

import json
import threading

import pytest

from tests.helpers.results import write_results
from vild_jax.data.schema import DataError
from vild_jax.eval import parts

IDS = [30, 7, 12, 5, 99]
OF = {image: [{'image_id': image, 'score': score / 10} for score in range(image % 4)] for image in IDS}


def write(path, run, index, ids):
  with parts.PartWriter(path, run, index) as writer:
    for image in ids:
      writer.write(image, OF[image])


def test_the_merged_file_is_that_of_one_process(tmp_path):
  """Pictures alternate as batches of four do between two processes; the third one came too late for any."""
  path = tmp_path / 'new' / 'results.json'
  for index, ids in enumerate(([30, 7, 99], [12, 5], [])):
    write(path, 'abc', index, ids)
  parts.merge(path, 'abc', 3, IDS)
  write_results(tmp_path / 'alone.json', [result for image in IDS for result in OF[image]])
  assert path.read_bytes() == (tmp_path / 'alone.json').read_bytes()
  assert list(path.parent.iterdir()) == [path]


def test_a_part_that_comes_late_is_waited_for(tmp_path):
  path = tmp_path / 'results.json'
  write(path, 'r', 0, IDS[:3])
  late = threading.Timer(0.2, write, (path, 'r', 1, IDS[3:]))
  late.start()
  parts.merge(path, 'r', 2, IDS, wait_seconds=60)
  late.join()
  assert len(json.loads(path.read_text())) == sum(map(len, OF.values()))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({1: None}, r'\.results\.json\.r-1\.part does not come: process 1 of 2 has written no results 0\.1 s after'),
    ({1: [12]}, 'the 2 parts of .* lack image 5, or it is out of order'),
    ({1: [5, 12]}, 'lack image 12, or it is out of order'),
    ({1: [12, 5, 99]}, 'hold a picture twice'),
  ],
)
def test_parts_that_do_not_make_a_whole(tmp_path, change, message):
  """What stood there before stays, and the part of another run is not taken for one of this."""
  path = tmp_path / 'results.json'
  write_results(path, OF[7])
  write(path, 'other', 1, [12, 5])
  for index, ids in ({0: [30, 7, 99], 1: [12, 5]} | change).items():
    if ids is not None:
      write(path, 'r', index, ids)
  with pytest.raises(DataError, match=message) as error:
    parts.merge(path, 'r', 2, IDS, wait_seconds=0.1)
  assert '\n' not in str(error.value) and json.loads(path.read_text()) == OF[7]
  parts.remove_parts(path)
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('line', ['[7, [', '[8, []]', '7', '["a", 1, 2]'])
def test_a_damaged_part_is_named(tmp_path, line):
  path = tmp_path / 'results.json'
  write(path, 'r', 0, [30])
  with (tmp_path / '.results.json.r-0.part').open('a') as part:
    part.write(line + '\n')
  with pytest.raises(DataError, match=r'r-0\.part, line 2 is not a picture of the data set'):
    parts.merge(path, 'r', 1, IDS)


def test_a_failure_leaves_no_part(tmp_path):
  with pytest.raises(RuntimeError), parts.PartWriter(tmp_path / 'results.json', 'r', 0) as writer:
    writer.write(7, OF[7])
    raise RuntimeError('the power went')
  assert not list(tmp_path.iterdir())
