"""What is dear to make is made once in a run of the tests: the workers of pytest-xdist share it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
  """(the folder that `make(folder)` has filled, what it returned, as JSON gives it back).

  Another worker that wants the same waits for the first one. Tests must leave the folder's files as they are.
  """
  of_the_process = factory.getbasetemp()
  folder = (of_the_process.parent if 'PYTEST_XDIST_WORKER' in os.environ else of_the_process) / name
  done = folder.with_name(f'{name}.json')
  with folder.with_name(f'{name}.lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not done.exists():
      folder.mkdir()
      done.write_text(json.dumps(make(folder)))
  return folder, json.loads(done.read_text())
