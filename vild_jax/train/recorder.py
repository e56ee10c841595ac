"""Averages metrics for the log and raises on a step that is not finite."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from clu import metrics as clu_metrics

from vild_jax.config import Config

_SKIPS_IN_A_ROW = 100  # after so many, another finite step is unlikely
SKIPPED = 'skipped_steps'


class Recorder:
  """Averages metrics between two log steps, and measures images per second over the same steps.

  The numbers of a step are checked one step later, so that the device already has the next step to compute.
  `loss_since_save` checks the last step at once.

  The check raises FloatingPointError if loss or gradient norm is not finite; with `train.on_nan=skip` only after 100
  such steps in a row.
  """

  def __init__(self, config: Config, writer: Any, step: int = 0):
    """Takes the writer of metrics (None: nothing is written) and the step that training starts from."""
    self._config, self._writer = config, writer
    self._skips = config.train.on_nan == 'skip'
    self._seen, self._saved = step, step  # the last checked step, and that of the last checkpoint
    self._pending: tuple[int, dict[str, jax.Array], Any] | None = None
    self._compiled = False
    self._running: clu_metrics.Collection | None = None
    self._skipped, self._in_a_row = 0, 0
    self._losses: list[float] = []
    self.restart_clock()

  def restart_clock(self) -> None:
    """Starts the measurement of speed again; the time until now does not count."""
    self._start, self._timed_steps = time.perf_counter(), 0

  def add(self, step: int, metrics: Mapping[str, jax.Array], image_ids: Any = None) -> dict[str, float] | None:
    """Records the metrics of one step; at a log step writes and returns the averages since the last log step.

    `image_ids` are those of this process's part of the batch; the error message names them if the step is not finite.
    """
    self._settle()  # waits for the previous step: the host is at most one step ahead of the device
    # Metrics are the same in all processes; each process uses its local copy.
    metrics = {key: value.addressable_data(0) for key, value in metrics.items()}
    self._pending = step, metrics, image_ids
    self._timed_steps += 1
    if not self._compiled:  # the first step includes the compilation, so it is not part of the speed
      metrics['loss'].block_until_ready()
      self._compiled = True
      self.restart_clock()
    if step % self._config.train.log_every and step != self._config.train.steps:
      return None
    self._settle()
    summary = {key: float(value) for key, value in self._running.compute().items()} if self._running else {}
    if self._skips:
      summary[SKIPPED] = float(self._skipped)
    summary['learning_rate'] = float(metrics['learning_rate'])
    if self._timed_steps:
      summary['images_per_second'] = (
        self._timed_steps * self._config.data.batch_size / (time.perf_counter() - self._start)
      )
    if self._writer is not None:
      self._writer.write_scalars(step, summary)
      self._writer.flush()
    self._running, self._skipped = None, 0
    self.restart_clock()
    return summary

  def loss_since_save(self) -> float:
    """Returns the mean loss of the steps since the last call; infinity if all of them were skipped."""
    self._settle()
    losses, self._losses, self._saved = self._losses, [], self._seen
    return float(np.mean(losses)) if losses else float('inf')

  def _settle(self) -> None:
    """Checks and averages the pending step, if there is one."""
    if self._pending is None:
      return
    (step, metrics, image_ids), self._pending = self._pending, None
    self._seen = step
    loss, norm = float(metrics['loss']), float(metrics['gradient_norm'])
    if np.isfinite(loss) and np.isfinite(norm):
      self._in_a_row = 0
      self._losses.append(loss)
      collection = clu_metrics.Collection.create(**{key: clu_metrics.Average.from_output(key) for key in metrics})
      update = collection.single_from_model_output(**metrics)
      self._running = update if self._running is None else self._running.merge(update)
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
