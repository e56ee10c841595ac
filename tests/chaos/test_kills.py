"""Commands that are killed, told to end or interrupted at random moments end, run again, as if nothing had happened.

`launch/test.sh -m soak tests/chaos/test_kills.py --kills 20 --record FILE` kills each command so often and more, and
goes on from the record, so that the counts of several days add up. A seed in the record or in a message is that of
`Kills.chain`.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.helpers import record, trees
from tests.helpers.kill_cases import COMMANDS
from tests.helpers.kills import Kills

# What starts quickly; test_kill_*.py of tests/workflows kill others in the suite.
CHEAP = ('prepare', 'prepare --overwrite', 'convert')


def test_trees_are_compared_by_bytes_but_for_times(tmp_path):
  files = {'a.bin': b'ab', 'metrics.json': b'{"box": {"AP": 1}, "seconds_per_image": 2}', '.a.tmp': b''}
  for name, content in files.items():
    (tmp_path / name).write_bytes(content)
  (tmp_path / 'empty').mkdir()
  tree = trees.read(tmp_path)
  assert set(tree) == {*files, 'empty/'} and set(trees.read(tmp_path, hidden=False)) == set(tree) - {'.a.tmp'}
  (tmp_path / 'metrics.json').write_bytes(files['metrics.json'].replace(b'2', b'3'))
  assert not trees.differences(tree, trees.read(tmp_path))
  (tmp_path / 'metrics.json').write_bytes(files['metrics.json'].replace(b'1', b'3'))
  (tmp_path / 'a.bin').write_bytes(b'ac')
  (tmp_path / '.a.tmp').rename(tmp_path / '.b.tmp')
  found = trees.differences(tree, trees.read(tmp_path))
  assert found == [
    '.a.tmp is missing',
    '.b.tmp is left over',
    'a.bin differs: 2 and 2 bytes',
    "metrics.json differs in ['box']",
  ]


@pytest.mark.slow
@pytest.mark.parametrize('name', CHEAP)
def test_killed_at_a_random_moment(name, world, tmp_path):
  seed = f'{name} {time.time_ns()}'
  print(Kills(COMMANDS[name](world), tmp_path / 'kills').chain(seed, most=2))


def _processor_seconds() -> float:
  times = os.times()
  return times.user + times.system + times.children_user + times.children_system


@pytest.mark.soak
@pytest.mark.parametrize('name', COMMANDS)
def test_many_kills(name, world, tmp_path, pytestconfig):
  path, wanted = pytestconfig.getoption('record'), pytestconfig.getoption('kills')
  kills, failed, done = Kills(COMMANDS[name](world), tmp_path / 'kills', twice=True), [], 0
  number = record.read(path, name).get('chains', 0)
  while done < wanted:
    start, before, seed = time.monotonic(), _processor_seconds(), f'{name} {number}'
    try:
      counts = kills.chain(seed)
    except AssertionError as error:  # the others may say more about it
      failed.append(str(error)[:3000])
      counts = {'chains': 1, 'failures': [failed[-1]]}
    done += max(counts.get('kills', 0), 'failures' in counts)
    number += 1
    spent = {'seconds': time.monotonic() - start, 'processor seconds': _processor_seconds() - before}
    record.add(path, name, {**counts, **{key: round(value, 1) for key, value in spent.items()}})
  print(name, record.read(path, name))
  assert not failed, '\n\n'.join(failed)
