"""The training loop: resumes, runs steps, logs and saves. The computation is in `step`; the caller opens the data.

The next two batches are on the devices before they are needed (`ahead`), and every second of the loop is counted as one
part of the run's time (`timing`).
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vild_jax.config import Config
from vild_jax.runtime import files, progress
from vild_jax.runtime.processes import Preempted
from vild_jax.structs import Batch, MaskBits, RegionTargets, TrainState, Vocabulary
from vild_jax.train import optim, retention, sharding, timing
from vild_jax.train import state as state_lib
from vild_jax.train.ahead import Ahead
from vild_jax.train.checkpoint import Checkpoints
from vild_jax.train.preemption import Notice
from vild_jax.train.recorder import Recorder
from vild_jax.train.step import make_train_step
from vild_jax.train.writers import WorkdirWriter

PROFILE_FOLDER = 'profile'  # in a work directory
_BEFORE_PROFILE = 3  # steps; the first ones are not like the others


def train(
  config: Config,
  workdir: Path,
  vocabulary: Vocabulary,
  batches: Callable[[int], Iterator[Mapping]],
  *,
  mesh: Mesh,
  start_from: Path | None = None,
  writer: Any = None,
  pictures: Callable[[Any], Mapping[str, np.ndarray]] | None = None,
  clock: timing.Clock | None = None,
  profile: int = 0,
) -> TrainState:
  """Trains until step `config.train.steps`, from the newest checkpoint in `workdir` if there is one.

  Args:
    config: the experiment.
    workdir: a work directory of this config (`checkpoint.claim_workdir`); gets checkpoints, `metrics.jsonl` and
      TensorBoard files.
    vocabulary: the training vocabulary.
    batches: takes the start step and returns an iterator over this process's part of each global batch from that step
      on. A batch is a dictionary of NumPy arrays with the names of `structs.Batch`, of which those that may be None may
      be left out (other names are ignored); its entries `regions`, for distillation, and `masks`, if they are bits, are
      dictionaries of their own. The same start step must give the same batches.
    mesh: devices to train on; the batch must split evenly over them (`sharding.check_batch_size`).
    start_from: the folder of the weights that a new training starts from, by default as in `state.create_on`.
    writer: an object with the methods of clu's MetricWriter; by default a `WorkdirWriter`. Only the first process
      writes.
    pictures: takes the variables and returns {title: uint8 [H, W, 3]}; called every `config.train.pictures_every`
      steps and at the end.
    clock: counts the time that was spent before the loop; by default it starts here.
    profile: number of steps, from the fourth on, of which each process writes a trace into `workdir`/profile, for XProf
      (TensorBoard) or Perfetto.

  Returns:
    The final state.

  Raises:
    ValueError: the newest checkpoint is of another architecture, or damaged.
    FloatingPointError: a loss or a gradient norm is not finite.
    Preempted: the process got SIGTERM; the state after the last complete step is saved.
  """
  first = jax.process_index() == 0
  clock = clock or timing.Clock()
  checkpoints = Checkpoints(workdir, keep=config.train.keep, keep_best=config.train.keep_best)
  try:
    with clock.part(timing.RESTORE):
      resumed = checkpoints.latest_step()
      new = resumed is None
      state = state_lib.create_on(config, mesh, start_from) if new else checkpoints.restore(config, mesh)
      before = retention.opened(config, workdir, mesh, state if new else None)
  except BaseException:
    if jax.process_count() == 1:
      checkpoints.close()  # otherwise its threads print long tracebacks when the process ends
    raise
  start = int(state.step)
  if first:
    print(
      f'{config.name}: steps {start} to {config.train.steps} of {config.data.batch_size} pictures on {mesh.size} x '
      f'{mesh.devices.flat[0].device_kind}, in {workdir}\n{sharding.describe(mesh, state)}\n{optim.described(config)}',
      file=sys.stderr,
    )
  with contextlib.ExitStack() as closing:  # what is entered last is closed first, whatever fails
    notice = closing.enter_context(Notice(start))  # a signal during a last save does not interrupt it
    closing.push(functools.partial(_close, checkpoints, clock))
    own_writer = writer is None and first
    writer = (WorkdirWriter(workdir, resume_step=start) if own_writer else writer) if first else None
    if own_writer:
      closing.callback(writer.close)  # tensorboardX writes in its own thread; `flush` may miss the last events
    if first:
      closing.callback(writer.flush)
    goodput = timing.Goodput(workdir, clock, resumed) if first else None
    vocabulary = jax.device_put(vocabulary, sharding.replicated(mesh))
    train_step = make_train_step(config, mesh)
    further = () if before is None else (before,)

    def place(arrays: Mapping[str, Any]) -> tuple[Batch, Any]:
      return sharding.put_batch(mesh, to_batch(arrays)), arrays.get('image_id')

    recorder = Recorder(config, writer, start, clock)
    batches_ahead = Ahead(batches(start) if start < config.train.steps else iter(()), place)
    closing.callback(batches_ahead.close)
    trace = _Trace(workdir / PROFILE_FOLDER, start, profile)
    closing.callback(trace.end)
    bar = progress.bar(config.train.steps, 'train', unit='step', initial=start, disable=not first)
    closing.enter_context(bar)
    clock.switch(timing.STEP)
    for step in range(start + 1, config.train.steps + 1):
      batch, image_ids = _next(batches_ahead, recorder, clock)
      trace.before(step, recorder)
      with clock.part(timing.COMPILE if step == start + 1 else timing.STEP):
        state, metrics = train_step(state, batch, vocabulary, *further)
      if summary := recorder.add(step, metrics, image_ids):
        shown = f'loss {summary.get("loss", np.nan):.3f}, {summary.get("images_per_second", 0):.1f} images/s'
        bar.set_postfix_str(f'{shown}, {100 * recorder.waited:.0f} % waiting for data', refresh=False)
        if first:
          goodput.write(step)
      if first and step == start + 1:
        print(clock.start_up(), file=sys.stderr)
      trace.after(step, recorder)
      preempted, last = notice.reached(step), step == config.train.steps
      if step % config.train.checkpoint_every == 0 or last or preempted:
        # `loss_since_save` raises if a step was not finite, so that a broken state is never saved.
        loss = recorder.loss_since_save()
        with clock.part(timing.SAVE):
          if own_writer:
            writer.upload()  # before the checkpoint, so that a run that goes on from it has all lines
          checkpoints.save(step, state, loss=loss)
        if first:
          goodput.write(step, saved=True)
      if preempted and not last:
        raise Preempted(
          f'told to end (SIGTERM); step {step} of {config.train.steps} is saved in {workdir}: the same '
          'command goes on from there'
        )
      if pictures is not None and (step % config.train.pictures_every == 0 or last):
        with clock.part(timing.PICTURES):
          # All processes must call `everywhere`: each may hold a part of the variables.
          variables = sharding.everywhere(mesh, state_lib.variables(state))
          if first:
            writer.write_images(step, pictures(variables))
        recorder.restart_clock()
      bar.update()
  if first and start < config.train.steps:
    goodput.write(config.train.steps, saved=True)
    print(goodput, file=sys.stderr)
  return state


def _next(batches_ahead: Ahead[tuple[Batch, Any]], recorder: Recorder, clock: timing.Clock) -> tuple[Batch, Any]:
  if batches_ahead.ready:
    return next(batches_ahead)
  # Only when the devices have finished do they wait for data. Which process comes here is chance, so that nothing is
  # checked: an error of one process alone would leave the others in a step that never ends.
  recorder.wait()
  with clock.part(timing.DATA):
    return next(batches_ahead)


def _close(checkpoints: Checkpoints, clock: timing.Clock, kind: Any, error: BaseException | None, _: Any) -> None:
  """Waits for the last save, unless this process alone has failed: it would wait for the others for ever."""
  if jax.process_count() > 1 and error is not None and not isinstance(error, FloatingPointError | Preempted):
    return
  with clock.part(timing.SAVE):
    checkpoints.close()


class _Trace:
  """Writes a trace of `count` steps, the first ones after `start` left out; each process has a folder of its own."""

  def __init__(self, folder: Path, start: int, count: int):
    self._folder = folder / f'process_{jax.process_index()}' if jax.process_count() > 1 else folder
    self._closing = contextlib.ExitStack()
    self._first, self._last, self._runs = start + 1 + _BEFORE_PROFILE, start + _BEFORE_PROFILE + count, False

  def before(self, step: int, recorder: Recorder) -> None:
    if step == self._first <= self._last:
      recorder.settle()
      jax.profiler.start_trace(str(self._closing.enter_context(files.growing(self._folder))))
      self._runs = True

  def after(self, step: int, recorder: Recorder) -> None:
    if self._runs and step == self._last:
      recorder.settle()
      self.end()

  def end(self) -> None:
    """Ends the trace if it runs."""
    if not self._runs:
      return
    self._runs = False
    with self._closing:
      jax.profiler.stop_trace()
    print(
      f'{self._folder} holds a trace; `tensorboard --logdir {self._folder.parent}` shows it with the plugin XProf, and '
      'so does ui.perfetto.dev',
      file=sys.stderr,
    )


def to_batch(arrays: Mapping[str, Any]) -> Batch:
  """Returns the batch of a dictionary as `train` takes it."""
  fields = {'masks': None} | {key: arrays[key] for key in Batch.__dataclass_fields__ if arrays.get(key) is not None}
  for key, kind in (('regions', RegionTargets), ('masks', MaskBits)):
    if isinstance(value := fields.get(key), Mapping):
      fields[key] = kind(**value)
  return Batch(**fields)
