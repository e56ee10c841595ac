"""Commands that must end with one line on standard error and exit code 2."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.helpers.small_experiment import run


@dataclasses.dataclass(frozen=True)
class BadInput:
  """One command that must fail; `{NAME}` in its words and its message stands for a path that the test gives."""

  name: str
  words: str  # as in a shell
  message: str  # a part of the line that it prints
  spoil: Callable[[Path, Path], object] | None = None  # (what the test file has made, an empty folder)


def each(*cases: BadInput) -> pytest.MarkDecorator:
  """Runs a test once for every case, as its argument `case`."""
  return pytest.mark.parametrize('case', cases, ids=[case.name for case in cases])


def assert_one_line(capsys: pytest.CaptureFixture, case: BadInput, paths: Mapping[str, Path]) -> None:
  """Runs the command of a case, whose input is spoiled already."""
  capsys.readouterr()
  assert run(*(word.format(**paths) for word in shlex.split(case.words))) == 2
  error = capsys.readouterr().err.strip()
  assert case.message.format(**paths) in error and len(error.splitlines()) == 1, error
