"""A disk that is full, read-only or goes away: one line, exit code 2, and nothing good is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.helpers.kill_cases import COMMANDS
from tests.helpers.kills import Kills

_BLOCK = 1024  # bytes of a unit of `ulimit -f`
_LINES = 12  # on stderr: what the command says of its work, and the error
_NO_ROOM = 'No space left', 'File too large'


@contextlib.contextmanager
def _mounted(place: Path, size: int) -> Iterator[None]:
  """A file system of `size` bytes at `place`, with what was there."""
  before = shutil.copytree(place, place.with_name('content'), symlinks=True)
  try:
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', place], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f'no file system can be mounted here: {getattr(error, "stderr", b"").decode() or error}')
  try:
    shutil.copytree(before, place, symlinks=True, dirs_exist_ok=True)
    yield
  finally:
    subprocess.run(['umount', '-l', place], check=True)


def _size(folder: Path) -> int:
  return sum(path.lstat().st_blocks * 512 for path in folder.rglob('*'))


def _check_told(kills: Kills, code: int, *words: str) -> None:
  """The command has ended with one line of an error that has one of the words."""
  said = kills.log.read_text(errors='replace')
  assert code == 2, f'exit code {code}: {said[-3000:]}'
  lines = [line.rpartition('\r')[2] for line in said.splitlines()]
  assert 'Traceback' not in said and len(lines) <= _LINES, said[-3000:]
  told = [line for line in lines if line.startswith(f'vild-jax {kills.command.words[0]}: ')]
  assert told and any(word in told[-1] for word in words), said[-3000:]


def _stop(kills: Kills, limit: Sequence[str] = ()) -> None:
  """Runs the command, which must find no room and leave what stood there."""
  _check_told(kills, kills.command.start(kills.place, kills.log, limit).wait(900), *_NO_ROOM)
  kills.check_between('after an error')


_LONGER = ('train', 'evaluate', 'detect', 'export')
_STOPPED = ['prepare', *(pytest.param(name, marks=pytest.mark.soak) for name in _LONGER)]


@pytest.mark.slow
@pytest.mark.parametrize('name', _STOPPED)
def test_a_disk_that_is_full_read_only_or_goes_away(name, world, tmp_path):
  kills = Kills(COMMANDS[name](world), tmp_path / 'kills')
  needed, largest = _size(kills.place), max(path.lstat().st_size for path in kills.place.rglob('*') if path.is_file())
  kills.renew()
  # A file that is too large, which needs no right to mount.
  _stop(kills, ['bash', '-c', f'ulimit -f {max(largest // 2 // _BLOCK, 1)}; exec "$@"', 'bash'])

  kills.renew()
  with _mounted(kills.place, 4 * needed + 2**20):
    disk = os.statvfs(kills.place)
    room = max(needed - _size(kills.place), largest) // 2
    with (kills.place / 'other').open('wb') as other:
      other.write(bytes(disk.f_bavail * disk.f_frsize - room))
    _stop(kills)
    (kills.place / 'other').unlink()
    subprocess.run(['mount', '-o', 'remount,ro', kills.place], check=True)
    _check_told(kills, kills.command.start(kills.place, kills.log).wait(900), 'Read-only')
    subprocess.run(['mount', '-o', 'remount,rw', kills.place], check=True)
    kills.go_on('after errors')

  kills.renew()
  away = kills.place.with_name('away')
  code = kills.at(kills.undisturbed.changes // 3, 0, lambda process: kills.place.rename(away))
  if code:
    _check_told(kills, code, 'No such file', 'NOT_FOUND', 'does not exist')
