"""Runs the stages of a long workflow once each: keeps their results, and says which one runs and how long is left."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vild_jax.report.report import Stage
from vild_jax.runtime import files, reading


class Stages:
  """Runs each stage once; keeps its result (JSON) and its duration in `stages.json`.

  Attributes:
    done: what was run, here or by an earlier process, in this order.
  """

  def __init__(self, workdir: Path, seed: int, settings: str, expected: Mapping[str, float]):
    """Opens the stages of a work directory.

    Args:
      workdir: the folder of `stages.json`, which is made.
      seed: of the run.
      settings: identifies everything else on which results depend.
      expected: {stage: seconds that it takes on a typical machine}, of all stages in the order in which they will run.

    Raises:
      ValueError: the folder holds stages of another seed or of other settings.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    self._path = workdir / 'stages.json'
    kept = {'seed': seed, 'settings': settings, 'stages': {}}
    if self._path.is_file():
      kept = _read(self._path)
    if kept['seed'] != seed:
      raise ValueError(
        f'{workdir} holds a demo with seed {kept["seed"]}; expected --seed {kept["seed"]} or another --workdir'
      )
    if kept.get('settings') != settings:
      raise ValueError(
        f'{workdir} holds a demo of a version with other settings ({kept.get("settings")}); expected '
        f'{settings}, or another --workdir'
      )
    self._kept = kept
    self._expected = expected
    self.done: list[Stage] = []

  def run(self, name: str, what: str, stage: Callable[[], Any]) -> Any:
    """Runs a stage, or returns its stored result if it has run before."""
    if name not in self._kept['stages']:
      result, seconds = self._timed(name, stage)
      self._kept['stages'][name] = {'result': result, 'seconds': seconds}
      files.write(self._path, json.dumps(self._kept))
    kept = self._kept['stages'][name]
    self.done.append(Stage(name, what, kept['seconds']))
    return kept['result']

  def measure(self, name: str, what: str, stage: Callable[[], Any]) -> Any:
    """Runs a stage whose result is not stored."""
    result, seconds = self._timed(name, stage)
    self.done.append(Stage(name, what, seconds))
    return result

  def line(self, name: str) -> str:
    """Returns the line that announces a stage: its number, how many there are, and about how long all the rest takes.

    The time is that of a typical machine, times the pace of the stages that have run on this one.
    """
    names = list(self._expected)
    behind = [stage for stage in self.done if stage.name in self._expected]
    usual = sum(self._expected[stage.name] for stage in behind)
    pace = sum(stage.seconds for stage in behind) / usual if usual else 1.0
    kept = {stage.name for stage in behind} | set(self._kept['stages'])
    left = pace * sum(seconds for stage, seconds in self._expected.items() if stage not in kept)
    return f'[{names.index(name) + 1}/{len(names)}] {name.replace("_", " ")}: {_about(left)} left'

  def _timed(self, name: str, stage: Callable[[], Any]) -> tuple[Any, float]:
    if name in self._expected:
      print(self.line(name), file=sys.stderr, flush=True)
    start = time.perf_counter()
    return stage(), time.perf_counter() - start


def _read(path: Path) -> dict[str, Any]:
  expected = 'what `vild-jax demo` wrote: delete it, or choose another --workdir'
  kept = reading.json_object(path, expected)
  with reading.parsing(path, expected, problem='is damaged'):
    for stage in {**kept['stages']}.values():
      stage['result'], stage['seconds'] + 0.0
    return kept | {'seed': kept['seed']}


def _about(seconds: float) -> str:
  if seconds < 90:
    return f'about {max(10, 10 * round(seconds / 10))} s'
  return f'about {round(seconds / 60)} min'
