"""Averages metrics for the log, raises on a step that is not finite, and warns of devices that wait for data."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from clu import metrics as clu_metrics

from vild_jax.config import Config
from vild_jax.train import timing

_SKIPS_IN_A_ROW = 100  # after so many, another finite step is unlikely
SKIPPED = 'skipped_steps'
_TOO_LONG = 0.1  # the share of the time of a line in which the devices may wait for data without a warning
_SHORT = 2.0  # seconds of waiting that are nothing to warn of


class Recorder:
  """Averages metrics between two log steps, and measures images per second and the time by part over the same steps.

  Loss and gradient norm of a step are checked one step later, so that the device already has the next step to compute;
  `settle` and `loss_since_save` check the last step at once, and must be called at the same steps in all processes. All
  other metrics leave the device at a log step.

  `waited` is the share of the time before the last log step in which the devices waited for data. Above a tenth of it a
  warning says what to do, once.

  The check raises FloatingPointError if loss or gradient norm is not finite; with `train.on_nan=skip` only after 100
  such steps in a row.
  """

  def __init__(self, config: Config, writer: Any, step: int = 0, clock: timing.Clock | None = None):
    """Takes the writer of metrics (None: nothing is written), the step that training starts from, and its clock."""
    self._config, self._writer = config, writer
    self._skips = config.train.on_nan == 'skip'
    self._seen, self._saved = step, step  # the last checked step, and that of the last checkpoint
    self._pending: tuple[int, dict[str, jax.Array], Any] | None = None
    self._compiled = False
    self._running: list[dict[str, jax.Array]] = []
    self._skipped, self._in_a_row = 0, 0
    self._losses: list[float] = []
    self._clock, self.waited, self._warned = clock or timing.Clock(), 0.0, False
    self._line = self._clock.seconds()
    self.restart_clock()

  def restart_clock(self) -> None:
    """Starts the measurement of speed again; the time until now does not count."""
    self._start, self._timed_steps = time.perf_counter(), 0

  def add(self, step: int, metrics: Mapping[str, jax.Array], image_ids: Any = None) -> dict[str, float] | None:
    """Records the metrics of one step; at a log step writes and returns the averages since the last log step.

    `image_ids` are those of this process's part of the batch; the error message names them if the step is not finite.
    """
    self.settle()  # waits for the previous step: the host is at most one step ahead of the device
    # Metrics are the same in all processes; each process uses its local copy.
    metrics = {key: value.addressable_data(0) for key, value in metrics.items()}
    for key in ('loss', 'gradient_norm'):
      metrics[key].copy_to_host_async()
    self._pending = step, metrics, image_ids
    self._timed_steps += 1
    if not self._compiled:  # the first step includes the compilation, so it is not part of the speed
      metrics['loss'].block_until_ready()
      self._compiled = True
      self._line = self._clock.seconds()  # nor of what a line says about time
      self.restart_clock()
    if step % self._config.train.log_every and step != self._config.train.steps:
      return None
    self.settle()
    with self._clock.part(timing.LOG):
      return self._log(step, float(metrics['learning_rate']))

  def _log(self, step: int, learning_rate: float) -> dict[str, float]:
    """Writes a line and returns it; empties what it is made of."""
    summary = averages(jax.device_get(self._running))
    if self._skips:
      summary[SKIPPED] = float(self._skipped)
    summary['learning_rate'] = learning_rate
    if self._timed_steps:
      summary['images_per_second'] = (
        self._timed_steps * self._config.data.batch_size / (time.perf_counter() - self._start)
      )
    seconds = self._clock.seconds()
    spent = {part: seconds[part] - self._line[part] for part in timing.PARTS}
    summary |= {f'{part}_seconds': spent[part] for part in timing.LINES}
    self._warn_if_starved(spent)
    if self._writer is not None:
      self._writer.write_scalars(step, summary)
      self._writer.flush()
    self._running, self._skipped, self._line = [], 0, seconds
    self.restart_clock()
    return summary

  def _warn_if_starved(self, spent: Mapping[str, float]) -> None:
    self.waited = timing.share(spent, timing.DATA)
    if self._warned or self.waited <= _TOO_LONG or spent[timing.DATA] < _SHORT:
      return
    self._warned = True
    workers = self._config.data.workers
    process = '' if jax.process_count() == 1 else f'process {jax.process_index()}: '
    print(
      f'{process}{100 * self.waited:.0f} % of the time since the last line of the log ({spent[timing.DATA]:.1f} of '
      f'{sum(spent.values()):.1f} s) the devices waited for data; more workers (data.workers={workers}, of '
      f'{os.cpu_count()} cores) or a faster disk help (docs/scale.md, "Where the time goes")',
      file=sys.stderr,
    )

  def loss_since_save(self) -> float:
    """Returns the mean loss of the steps since the last call; infinity if all of them were skipped."""
    self.settle()
    losses, self._losses, self._saved = self._losses, [], self._seen
    return float(np.mean(losses)) if losses else float('inf')

  def wait(self) -> None:
    """Waits until the devices have computed the pending step, if there is one; does not check it."""
    if self._pending is not None:
      self._pending[1]['loss'].block_until_ready()

  def settle(self) -> None:
    """Checks and averages the pending step, if there is one."""
    if self._pending is None:
      return
    (step, metrics, image_ids), self._pending = self._pending, None
    self._seen = step
    loss, norm = float(metrics['loss']), float(metrics['gradient_norm'])
    if np.isfinite(loss) and np.isfinite(norm):
      self._in_a_row = 0
      self._losses.append(loss)
      self._running.append(metrics)
      return
    self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
    if not self._skips or self._in_a_row >= _SKIPS_IN_A_ROW:
      raise FloatingPointError(self._message(step, metrics, image_ids))

  def _message(self, step: int, metrics: Mapping[str, jax.Array], image_ids: Any) -> str:
    parts = ', '.join(
      f'{key} {float(value):.4g}' for key, value in metrics.items() if key.endswith('loss') or key == 'gradient_norm'
    )
    process = '' if jax.process_count() == 1 else f' of process {jax.process_index()}'
    ids = '' if image_ids is None else f'; images{process} {", ".join(str(int(i)) for i in image_ids)}'
    kept = f'the checkpoint of step {self._saved} is kept' if self._saved else 'there is no checkpoint yet'
    row = f', the {self._in_a_row}th such step in a row' if self._skips else ''
    return f'training is not finite in step {step}{row}: {parts}{ids}; expected finite numbers ({kept})'


def averages(steps: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
  """Returns the mean of each metric over steps; {} without a step."""
  if not steps:
    return {}
  values = {key: np.stack([metrics[key] for metrics in steps]) for key in steps[0]}
  collection = clu_metrics.Collection.create(**{key: clu_metrics.Average.from_output(key) for key in values})
  return {key: float(value) for key, value in collection.single_from_model_output(**values).compute().items()}
