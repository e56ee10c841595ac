"""What processes that are dead left behind goes, and what was complete comes to its place."""

from __future__ import annotations

import os
from pathlib import Path

from vild_jax.runtime import files, owners

# A process number that cannot run: the kernel gives none beyond 2^22.
DEAD = 2**22 + 5


def leftover(path: Path, *, pid: int = DEAD, machine: str | None = None) -> Path:
  """The temporary name that a process would have used for `path`."""
  return path.with_name(f'.{path.name}.{machine or owners.machine()}-{pid}-77-0123abcd.tmp')


def test_leftovers_of_dead_processes_of_this_machine_go_and_no_others(tmp_path):
  gone, folder_gone = leftover(tmp_path / 'file'), leftover(tmp_path / 'folder')
  gone.write_text('half')
  (folder_gone / 'new').mkdir(parents=True)
  started = owners.started(os.getpid())
  mine = tmp_path / f'.file.{owners.machine()}-{os.getpid()}-{started}-0123abcd.tmp'
  kept = [leftover(tmp_path / 'file', machine='0' * 8), mine, tmp_path / '.file.tmp', tmp_path / 'file.tmp']
  for path in kept:
    path.write_text('not ours to remove')
  files.write(tmp_path / 'file', 'x')
  assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / 'file'])


def test_a_folder_whose_writer_died_between_the_two_renames_is_put_in_its_place(tmp_path):
  for name in ('new', 'old'):
    (leftover(tmp_path / 'bundle') / name).mkdir(parents=True)
    (leftover(tmp_path / 'bundle') / name / name).write_text(name)
  files.write(tmp_path / 'other', 'x')
  assert (tmp_path / 'bundle' / 'new').read_text() == 'new'
  assert sorted(path.name for path in tmp_path.iterdir()) == ['bundle', 'other']


def test_a_replaced_folder_whose_removal_was_interrupted_does_not_come_back(tmp_path):
  (leftover(tmp_path / 'bundle') / 'old').mkdir(parents=True)
  files.write(tmp_path / 'other', 'x')
  assert [path.name for path in tmp_path.iterdir()] == ['other']


def test_a_leftover_of_another_machine_goes_when_nobody_has_changed_it_for_days(tmp_path):
  old, new = (leftover(tmp_path / name, machine='0' * 8) for name in ('old', 'new'))
  for path in (old, new):
    path.write_text('half')
  os.utime(old, (0, 0))
  files.write(tmp_path / 'other', 'x')
  assert sorted(path.name for path in tmp_path.iterdir()) == sorted([new.name, 'other'])
