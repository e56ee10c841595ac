"""Runs commands in one process of their own, whose calls of the system fail where told (`faults.c`).

What is compiled stays compiled from one command to the next, so that a command can run a thousand times.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SOURCE = Path(__file__).with_name('faults.c')
ONCE, HALF, FULL = range(3)  # manners of `faults.c`
_SPACE = 5000
_PATIENCE = 900  # seconds after which a command counts as one that never ends


class Ran(NamedTuple):
  """How a command ended: exit code, its output, calls that were counted, what failed first, and how many failed."""

  code: int
  said: str
  calls: int
  hit: str
  failed: int


class Faulty:
  """A process that runs commands, one after the other, with faults below one folder; a context manager."""

  def __init__(self, folder: Path, below: Path):
    """Compiles the library into `folder`; skips the test if this machine has no compiler."""
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler is None or not sys.platform.startswith('linux'):
      pytest.skip('needs Linux and a C compiler, cc or gcc')
    self._library, self._log, self.below = folder / 'faults.so', folder / 'said.log', below
    subprocess.run([compiler, '-shared', '-fPIC', '-O1', '-o', self._library, SOURCE, '-ldl', '-lpthread'], check=True)

  def __enter__(self) -> Faulty:
    environment = {**os.environ, 'LD_PRELOAD': str(self._library)}
    command = [sys.executable, '-m', 'tests.helpers.faults', self._library, self._log, self.below]
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=SOURCE.parents[2]
    )
    return self

  def __exit__(self, *_: Any) -> None:
    self._process.kill()
    self._process.communicate()

  def run(self, words: Sequence[object], number: int = 0, error: int = errno.ENOSPC, manner: int = ONCE) -> Ran:
    """Runs `vild-jax WORDS`, in which call `number` fails; 0: none does."""
    self._process.stdin.write(json.dumps([[str(word) for word in words], number, error, manner]) + '\n')
    self._process.stdin.flush()
    hangs = threading.Timer(_PATIENCE, self._process.kill)
    hangs.start()
    answer = self._process.stdout.readline()
    hangs.cancel()
    said = self._log.read_text(errors='replace')
    assert answer, f'call {number}, fault {error, manner}: {words} ended the process, or did not end: {said[-3000:]}'
    code, *rest = json.loads(answer)
    return Ran(code, said, *rest)


def _serve(library: str, log: str, below: str) -> None:
  """Runs the commands that come on stdin; the answers go to stdout."""
  from vild_jax import cli
  from vild_jax.runtime import files, owners

  calls, which, failed = ctypes.CDLL(library), ctypes.create_string_buffer(_SPACE), ctypes.c_long()
  calls.faults_disarm.restype = ctypes.c_long
  answers = os.fdopen(os.dup(1), 'w')
  cli._end = lambda code: None  # else a command that fails would end the process
  started = owners.started
  for turn, line in enumerate(sys.stdin):
    # To the next command, this one is another process that has ended, whose locks and temporary files are left.
    owners.started = lambda pid, turn=turn: (started(pid) or 0) + turn if pid == os.getpid() else started(pid)
    words, number, error, manner = json.loads(line)
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
      os.dup2(said, stream)
    os.close(said)
    files._sweep.cache_clear()
    sys.argv = ['vild-jax', *words]
    calls.faults_arm(below.encode(), ctypes.c_long(number), error, manner)
    try:
      code = cli.main()
    except SystemExit as end:
      code = end.code
    count = calls.faults_disarm(which, _SPACE, ctypes.byref(failed))
    sys.stdout.flush()
    sys.stderr.flush()
    answers.write(json.dumps([code, count, which.value.decode(), failed.value]) + '\n')
    answers.flush()


if __name__ == '__main__':
  _serve(*sys.argv[1:])
