"""Real commands in child processes, stopped at random moments several times in a row, and then run to their end.

A `Command` writes into a folder `place` of its own, which may hold an older output. After every kill what stands under
a final name must be the old content or the new one, and whole; after the last run the folder must hold what an
undisturbed run leaves there, and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import trees
from tests.helpers.small_experiment import run
from vild_jax.runtime import processes

_PATIENCE = 900  # seconds until a process must have ended
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_OFTEN = (0.7, 0.15, 0.15)
_MAIN = 'in main'  # of a traceback that came after the command had begun


@dataclasses.dataclass(frozen=True)
class Command:
  """One command.

  Attributes:
    words: the arguments; PLACE in them is the folder that it writes into.
    before: fills the folder with what the command replaces or adds to.
    grows: pattern of names whose content may be neither old nor new while the work is not finished.
    goes: pattern of names that may be missing while they are replaced, as the documentation says.
    checked: names that `vild-jax check` must call whole whenever they are there.
    once: whether it refuses to run again when it has finished.
    module: the program, for `python -m`.
    told: pattern of differences (`trees.differences`) that SIGTERM may make, where the command saves what it has.
    most: how many kills in a row, at most; more where a run takes minutes.
  """

  words: Sequence[object]
  before: Callable[[Path], Any] = lambda place: None
  grows: str = 'never'
  goes: str = 'never'
  checked: Sequence[str] = ()
  once: bool = False
  module: str = 'vild_jax'
  told: str = '(?!)'
  most: int = 4

  def start(self, place: Path, log: Path, before: Sequence[str] = ()) -> subprocess.Popen:
    """Starts it; `before` are the words of a program that runs it."""
    words = [str(word).replace('PLACE', str(place)) for word in self.words]
    with log.open('wb') as output:
      return subprocess.Popen([*before, sys.executable, '-m', self.module, *words], stdout=output, stderr=output)


def finish(*words: object) -> None:
  """Runs a command in a process of its own, so that what it compiles is there for those that are stopped."""
  done = subprocess.run([sys.executable, '-m', 'vild_jax', *map(str, words)], capture_output=True, check=False)
  assert done.returncode == 0, done.stderr.decode()


@dataclasses.dataclass
class Undisturbed:
  """An undisturbed run: what was there before and afterwards, its seconds, and how often names changed."""

  old: trees.Tree
  new: trees.Tree
  seconds: float
  changes: int


class Watch:
  """Counts how often names in a folder appear, go, or become those of other files."""

  def __init__(self, folder: Path):
    self._folder, self.count = folder, 0
    self._seen = self._names()

  def look(self) -> int:
    now = self._names()
    self.count += now != self._seen
    self._seen = now
    return self.count

  def _names(self) -> set[tuple[str, int]]:
    found, folders = set(), [str(self._folder)]
    while folders:
      with contextlib.suppress(OSError):  # it has just gone
        for entry in os.scandir(folders.pop()):
          found.add((entry.path, entry.inode()))
          if entry.is_dir(follow_symlinks=False):
            folders.append(entry.path)
    return found


class Kills:
  """Kills of one command, in a folder of its own."""

  def __init__(self, command: Command, folder: Path, *, twice: bool = False):
    """Runs it undisturbed. `twice`: once more, to see that no two runs differ, and how long it takes with what was
    compiled before."""
    self.command, self._folder = command, folder
    self.place, self._before, self.log = folder / 'place', folder / 'before', folder / 'log'
    self._before.mkdir(parents=True)
    command.before(self._before)
    self.undisturbed = self._undisturbed()
    if twice:
      first, self.undisturbed = self.undisturbed, self._undisturbed()
      assert not (wrong := trees.differences(first.new, self.undisturbed.new)), wrong

  def _undisturbed(self) -> Undisturbed:
    self.renew()
    old, watch, start = trees.read(self.place), Watch(self.place), time.monotonic()
    process = self.command.start(self.place, self.log)
    while process.poll() is None:
      watch.look()
      time.sleep(0.002)
    assert process.returncode == 0, self.log.read_text()
    seconds, new = time.monotonic() - start, trees.read(self.place)
    assert trees.differences(old, new), 'the command changes nothing'
    return Undisturbed(old, new, seconds, watch.look())

  def chain(self, seed: str, most: int = 0) -> Counter[str]:
    """Kills the command up to `most` times in a row, or `Command.most`, and runs it to its end.

    AssertionError says what is wrong.

    Returns how often each signal came, and how often the command was faster.
    """
    rng, done, told = np.random.default_rng(list(seed.encode())), Counter(chains=1), '(?!)'
    self.renew()
    for number in range(int(rng.integers(1, (most or self.command.most) + 1))):
      by = _SIGNALS[rng.choice(3, p=_OFTEN)]
      told = self.command.told if by == signal.SIGTERM else told
      if rng.random() < 0.5:
        changes, seconds = 0, rng.uniform(0, self.undisturbed.seconds)
      else:
        changes, seconds = int(rng.integers(1, self.undisturbed.changes + 1)), rng.uniform(0, 0.02)
      code = self.at(changes, seconds, lambda process, by=by: process.send_signal(by))
      where = f'{seed}, {number}: {by.name} {seconds:.3f} s after {f"change {changes}" if changes else "the start"}'
      said = self.log.read_text(errors='replace')
      _check_end(by, code, said, self.command.words[0], where)
      self.check_between(where)
      done.update(['faster'] if code == 0 else ['kills', by.name])
      if code == 0:
        break
    if self.command.once and not trees.differences(self.undisturbed.new, trees.read(self.place)):
      return done
    self.go_on(where, told)
    return done

  def go_on(self, where: str, told: str = '(?!)') -> None:
    """Runs the command to its end, which leaves what an undisturbed run does, but for differences like `told`."""
    process = self.command.start(self.place, self.log)
    assert process.wait(_PATIENCE) == 0, f'{where}; then {self.log.read_text(errors="replace")[-2000:]}'
    wrong = trees.differences(self.undisturbed.new, trees.read(self.place))
    wrong = [line for line in wrong if not re.match(told, line)]
    assert not wrong, f'{where}: {wrong[:8]}'

  def check_between(self, where: str) -> None:
    """What stands under a final name is the old content or the new one, and whole."""
    now, (old, new) = trees.read(self.place, hidden=False), (self.undisturbed.old, self.undisturbed.new)
    wrong = [
      name
      for name in now.keys() & (old.keys() | new.keys())
      if now[name] not in (old.get(name), new.get(name)) and not re.fullmatch(self.command.grows, name)
    ]
    assert not wrong, f'{where}: {wrong} are neither old nor new'
    # Between the two renames that replace a folder both are in a hidden one, and the next command goes on there.
    if not any(self.place.glob('.*.tmp/old')):
      gone = [n for n in (old.keys() & new.keys()) - now.keys() if not re.fullmatch(self.command.goes, n)]
      assert not gone, f'{where}: {gone} are gone'
    for name in self.command.checked:
      if (self.place / name).exists():
        with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
          code = run('check', self.place / name)
        assert code == 0, f'{where}: {said.getvalue()}'

  def at(self, changes: int, seconds: float, act: Callable[[subprocess.Popen], Any]) -> int:
    """Runs the command, and acts some seconds after so many changes of names, or after the start; the exit code."""
    watch, process = Watch(self.place), self.command.start(self.place, self.log)
    try:
      while changes and process.poll() is None and watch.look() < changes:
        time.sleep(0.001)
      with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
      act(process)
      return process.wait(_PATIENCE)
    finally:
      if process.poll() is None:
        process.kill()
        process.wait()

  def renew(self) -> None:
    """Makes the folder what it was before the first run."""
    shutil.rmtree(self.place, ignore_errors=True)
    shutil.copytree(self._before, self.place, symlinks=True)


def _check_end(by: signal.Signals, code: int, said: str, command: object, where: str) -> None:
  """Asserts the documented exit code of a command that got a signal, and that it says so in one line."""
  told = f'{where}: exit code {code}\n{said[-3000:]}'
  if code == 0:
    return
  # A signal before `main` runs is handled by Python alone.
  early = by == signal.SIGINT and code == -by and _MAIN not in said
  allowed = {
    signal.SIGKILL: (-by,),
    signal.SIGTERM: (processes.EXIT_PREEMPTED, -by) if command == 'train' else (-by,),
    signal.SIGINT: (130,),
  }[by]
  assert early or code in allowed, told
  if not early:
    assert 'Traceback' not in said, told
  if code == 130:
    assert said.count('vild-jax: interrupted') == 1, told
