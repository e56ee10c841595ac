"""The training loop: resume, step, log, save. What it computes is in `step`; what it reads is handed in."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import metrics as clu_metrics
from jax.sharding import Mesh

from vild_jax import progress
from vild_jax.config import Config
from vild_jax.structs import Batch, RegionTargets, TrainState, Vocabulary
from vild_jax.train import sharding
from vild_jax.train import state as state_lib
from vild_jax.train.checkpoint import Checkpoints, claim_workdir
from vild_jax.train.step import make_train_step
from vild_jax.train.writers import WorkdirWriter

_BATCH_FIELDS = tuple(Batch.__dataclass_fields__)


def train(config: Config, workdir: Path, vocabulary: Vocabulary, batches: Callable[[int], Iterator[Mapping]], *,
          mesh: Mesh | None = None, writer: Any = None,
          pictures: Callable[[Any], Mapping[str, np.ndarray]] | None = None) -> TrainState:
  """Trains to `config.train.steps`, from the newest checkpoint in `workdir` if there is one.

  Args:
    config: the experiment.
    workdir: gets the config, checkpoints, `metrics.jsonl` and TensorBoard files.
    vocabulary: the training vocabulary.
    batches: start step -> iterator over this process's part of each global batch, from that step on: numpy arrays
      under the names of `structs.Batch` (others are ignored), the regions to distil in a dictionary of their own. The
      same start gives the same batches.
    mesh: devices to train on; all by default.
    writer: anything with clu's MetricWriter methods; a `WorkdirWriter` by default.
    pictures: variables -> {title: uint8 [H, W, 3]}, drawn every `config.train.pictures_every` steps and at the end.

  Returns:
    The final state. Raises ValueError if `workdir` belongs to another config, FloatingPointError on a loss that is
    not finite.
  """
  mesh = sharding.make_mesh(config.mesh) if mesh is None else mesh
  sharding.check_batch_size(mesh, config.data.batch_size, 'data.batch_size', accumulate=config.train.accumulate)
  claim_workdir(workdir, config)
  checkpoints = Checkpoints(workdir, keep=config.train.keep)
  try:
    resumed = checkpoints.latest_step() is not None
    state = checkpoints.restore(config, mesh) if resumed else state_lib.create_on(config, mesh)
  except BaseException:
    checkpoints.close()  # its threads would end with a wall of noise
    raise
  start = int(state.step)
  print(f'{config.name}: steps {start} to {config.train.steps} of {config.data.batch_size} pictures on {mesh.size} x '
        f'{mesh.devices.flat[0].device_kind}, in {workdir}', file=sys.stderr)
  print(sharding.describe(mesh, state), file=sys.stderr)
  own_writer = writer is None
  writer = WorkdirWriter(workdir, resume_step=start) if own_writer else writer
  vocabulary = jax.device_put(vocabulary, sharding.replicated(mesh))
  train_step = make_train_step(config, mesh)

  recorder = _Recorder(config, writer)
  iterator = batches(start) if start < config.train.steps else iter(())
  try:
    with progress.bar(config.train.steps, 'train', unit='step', initial=start) as bar:
      for step in range(start + 1, config.train.steps + 1):
        batch = sharding.put_batch(mesh, _batch(next(iterator)))
        state, metrics = train_step(state, batch, vocabulary)
        if summary := recorder.add(step, metrics):
          bar.set_postfix_str(f'loss {summary["loss"]:.3f}, {summary.get("images_per_second", 0):.1f} images/s',
                              refresh=False)
        if step % config.train.checkpoint_every == 0 or step == config.train.steps:
          _check_finite(metrics, step, step)  # a resume starts from what is saved: never from a broken state
          checkpoints.save(step, state)
        if pictures is not None and (step % config.train.pictures_every == 0 or step == config.train.steps):
          writer.write_images(step, pictures(state_lib.variables(state)))
          recorder.restart_clock()
        bar.update()
  finally:
    checkpoints.close()
    writer.flush()
    if own_writer:
      writer.close()  # tensorboardX writes in a thread of its own, whose last events a flush alone may miss
    if hasattr(iterator, 'close'):
      iterator.close()
  return state


def _batch(arrays: Mapping[str, Any]) -> Batch:
  fields = {field: arrays[field] for field in _BATCH_FIELDS if field in arrays}
  if isinstance(regions := fields.get('regions'), Mapping):
    fields['regions'] = RegionTargets(**regions)
  return Batch(**fields)


class _Recorder:
  """Averages metrics on the device between two log steps, and measures images a second over the same steps."""

  def __init__(self, config: Config, writer: Any):
    self._config, self._writer = config, writer
    self._compiled = False
    self._running: clu_metrics.Collection | None = None
    self._steps = 0
    self._last_loss: jax.Array | None = None
    self.restart_clock()

  def restart_clock(self) -> None:
    self._start, self._timed_steps = time.perf_counter(), 0

  def add(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float] | None:
    """Takes one step's metrics; at a log step writes and returns the averages since the last one."""
    if self._last_loss is not None:
      self._last_loss.block_until_ready()  # the host stays at most one step ahead of the device
    self._last_loss = metrics['loss']
    collection = clu_metrics.Collection.create(**{key: clu_metrics.Average.from_output(key) for key in metrics})
    update = collection.single_from_model_output(**metrics)
    self._running = update if self._running is None else self._running.merge(update)
    self._steps, self._timed_steps = self._steps + 1, self._timed_steps + 1
    if not self._compiled:  # the first step waits for the compiler, and says nothing of the speed
      metrics['loss'].block_until_ready()
      self._compiled = True
      self.restart_clock()
    if step % self._config.train.log_every and step != self._config.train.steps:
      return None
    summary = {key: float(value) for key, value in self._running.compute().items()}
    _check_finite(summary, step - self._steps + 1, step)
    summary['learning_rate'] = float(metrics['learning_rate'])
    if self._timed_steps:
      summary['images_per_second'] = (self._timed_steps * self._config.data.batch_size
                                      / (time.perf_counter() - self._start))
    self._writer.write_scalars(step, summary)
    self._writer.flush()
    self._running, self._steps = None, 0
    self.restart_clock()
    return summary


def _check_finite(metrics: Mapping[str, Any], first: int, last: int) -> None:
  """Raises FloatingPointError unless loss and gradient norm of steps `first` to `last` are finite."""
  if np.isfinite(float(metrics['loss'])) and np.isfinite(float(metrics['gradient_norm'])):
    return
  steps = f'step {first}' if first == last else f'steps {first} to {last}'
  parts = ', '.join(f'{key} {float(value):.4g}' for key, value in metrics.items()
                    if key.endswith('loss') or key == 'gradient_norm')
  raise FloatingPointError(f'training is not finite in {steps}: {parts}; expected finite numbers '
                           '(the last checkpoint before is kept)')
