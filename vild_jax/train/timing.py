"""Says what a training spends its time on: every second belongs to one part, so that the parts add up to the clock."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vild_jax.runtime import buckets, files

GOODPUT_FILE = 'goodput.json'  # in a work directory
# Parts of a running process. `open` is all before the loop that has no other part; `data` is the time in which the
# devices have nothing to do because no batch is there.
IMPORT, OPEN, RESTORE, COMPILE, DATA, STEP, SAVE, LOG, PICTURES = PARTS = (
  'import',
  'open',
  'restore',
  'compile',
  'data',
  'step',
  'save',
  'log',
  'pictures',
)
# Parts of a run of several processes, one after the other: steps that had to be done again with all that belongs to
# them, and the time from the last sign of life of one process to the start of the next.
LOST, DOWN = 'lost', 'down'
_SAVES = 3  # of which the seconds are kept
LINES = (DATA, STEP, SAVE, LOG)  # parts that each line of the log has


class Clock:
  """Adds up the seconds of each part; at every moment one part is running, at first `open`.

  Args:
    age: seconds for which the process has run before, counted as `import`.
    now: a function that returns seconds.
  """

  def __init__(self, age: float = 0.0, now: Callable[[], float] = time.monotonic):
    self._now, self._mark, self._part = now, now(), OPEN
    self._seconds: Counter[str] = Counter({IMPORT: age})

  @classmethod
  def of_process(cls) -> Clock:
    """Returns a clock that started with this process (known on Linux)."""
    try:
      started = int(Path('/proc/self/stat').read_text().rpartition(')')[2].split()[19]) / os.sysconf('SC_CLK_TCK')
      age = float(Path('/proc/uptime').read_text().split()[0]) - started
    except (OSError, ValueError, IndexError):
      age = 0.0
    return cls(max(age, 0.0))

  def seconds(self) -> Counter[str]:
    """Returns {part: seconds} until now."""
    self.switch(self._part)
    return Counter(self._seconds)

  def switch(self, part: str) -> str:
    """Lets another part run from now on; returns the part that has run until now."""
    now, before = self._now(), self._part
    self._seconds[before] += now - self._mark
    self._mark, self._part = now, part
    return before

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Counts the time of a block as `name`, and what follows as what ran before."""
    before = self.switch(name)
    try:
      yield
    finally:
      self.switch(before)

  def start_up(self) -> str:
    """Describes the seconds until now by part: what a start costs."""
    seconds = self.seconds()
    parts = ', '.join(f'{part} {seconds[part]:.1f}' for part in PARTS if seconds[part] >= 0.05)
    return f'first step after {sum(seconds.values()):.1f} s: {parts}'


class Goodput:
  """Keeps in a work directory what the run has spent its time on, over all processes that have worked at it.

  `goodput.json` holds `seconds` {part: seconds}, the `step` that it was written at, `starts`, the number of processes
  one after the other, `goodput`, the share of steps in all seconds, and what a next process needs: the time of writing,
  and the seconds up to the last checkpoints.
  """

  def __init__(self, workdir: Path, clock: Clock, resumed: int | None, now: Callable[[], float] = time.time):
    """Reads what former processes wrote; `resumed` is the step of the checkpoint that this one goes on from, or None.

    What they did after that checkpoint counts as lost. A file that cannot be read counts as none.
    """
    self._file, self._clock, self._now = files.path(workdir) / GOODPUT_FILE, clock, now
    self._far, self._written = files.is_remote(self._file), 0.0
    self._before, self._starts, resumed = Counter(), 1, resumed or 0
    if former := _read(self._file):
      seconds = Counter(former['seconds'])
      # Of another checkpoint it is not known what it had cost.
      saved = Counter(former['saves'].get(str(resumed), seconds if resumed else {}))
      again = {part: max(seconds[part] - saved[part], 0.0) for part in PARTS}
      self._before = seconds - Counter(again)
      self._before[LOST] = seconds[LOST] + sum(again.values())
      self._before[DOWN] = seconds[DOWN] + max(now() - sum(clock.seconds().values()) - former['written'], 0.0)
      self._starts = former['starts'] + 1
    self._saves = {str(resumed): dict(self._before)}  # {step: seconds}

  def seconds(self) -> Counter[str]:
    """Returns {part: seconds} of all processes until now."""
    return self._before + self._clock.seconds()

  def write(self, step: int, saved: bool = False) -> None:
    """Writes the file; `saved` says that a checkpoint of this step is being written.

    Without one, a file in a bucket is written every `buckets.PACE_SECONDS` at most.
    """
    if self._far and not saved and self._now() - self._written < buckets.PACE_SECONDS:
      return
    with self._clock.part(LOG):
      seconds = {part: round(value, 3) for part, value in self.seconds().items()}
      if saved:  # a process that is killed meanwhile goes on from an earlier one
        self._saves = dict([*self._saves.items(), (str(step), seconds)][-_SAVES:])
      content = {
        'goodput': round(share(seconds, STEP), 4),
        'step': step,
        'starts': self._starts,
        'seconds': seconds,
        'saves': self._saves,
        'written': self._now(),
      }
      self._written = content['written']
      try:
        files.write(self._file, json.dumps(content, indent=2) + '\n')
      except OSError as error:
        if saved or not self._far:
          raise
        print(f'warning: {error}; the time of the run is sent to the bucket again later', file=sys.stderr)

  def __str__(self) -> str:
    seconds = self.seconds()
    others = ', '.join(
      f'{part} {100 * share(seconds, part):.1f} %'
      for part in (*PARTS, LOST, DOWN)
      if part != STEP and share(seconds, part) >= 0.0005
    )
    again = f' in {self._starts} starts' if self._starts > 1 else ''
    return f'{100 * share(seconds, STEP):.1f} % of {sum(seconds.values()):,.0f} s{again} were training steps; {others}'


def share(seconds: Mapping[str, float], part: str) -> float:
  """Returns the share of a part in all seconds; 0 if there are none."""
  total = sum(seconds.values())
  return seconds.get(part, 0.0) / total if total else 0.0


def _read(file: Path) -> dict[str, Any] | None:
  """Returns the content of a `goodput.json`; None if there is none, or if it is damaged, which stderr reports."""
  if not file.is_file():
    return None
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
    numbers = [x for seconds in (content['seconds'], *content['saves'].values()) for x in seconds.values()]
    if not all(isinstance(x, int | float) for x in [*numbers, content['written'], content['starts']]):
      raise ValueError('not numbers')
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    print(f'{file} cannot be read ({type(error).__name__}); the time of the run is counted anew', file=sys.stderr)
    return None
  return content
