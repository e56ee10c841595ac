"""Saves and restores checkpoints with Orbax, on any number of devices; a checkpoint that does not fit is an error.

A work directory holds `config.json` (the resolved config), `vocabulary.npz` and `checkpoints/STEP/`; a bundle has
`variables/` in place of the checkpoints.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as managers

from vild_jax import config as config_lib
from vild_jax.config import Config
from vild_jax.config import Mesh as MeshSettings
from vild_jax.runtime import digests, files
from vild_jax.structs import TrainState
from vild_jax.train import sealed, sharding, weights
from vild_jax.train.state import abstract, variables
from vild_jax.train.weights import CHECKPOINTS, CONFIG_FILE, read_config

VOCABULARY_FILE = 'vocabulary.npz'
DAMAGED = 'damaged'  # in a work directory: checkpoints that `set_aside_damaged` has moved
# Settings that a resume may change: they affect neither what is learnt nor the shape of the state.
# Paths are among them, because data, vocabulary and region store may move; their content is checked when they are
# opened.
_FREE = (
  'name',
  'vocabulary',
  'teacher',
  'distillation.store',
  'data.train',
  'data.val',
  'data.val_split',
  'data.workers',
  'data.cache',
  'train.log_every',
  'train.checkpoint_every',
  'train.keep',
  'train.keep_best',
  'train.on_nan',
  'train.pictures',
  'train.pictures_every',
  'model.backbone.remat',
  *(f'mesh.{field}' for field in MeshSettings.__dataclass_fields__),
  *(f'evaluation.{field}' for field in config_lib.Evaluation.__dataclass_fields__),
)


class Checkpoints:
  """Saves and restores the checkpoints of one work directory.

  Keeps the newest `keep` checkpoints and the `keep_best` with the lowest loss. Saves are asynchronous; `close` waits
  for the last one.
  """

  def __init__(self, workdir: Path, *, keep: int = 3, keep_best: int = 0):
    loss = lambda metrics: metrics['loss']
    # `best_fn` only makes Orbax store the loss. Together with `max_to_keep` it would delete the newest checkpoint.
    policy = managers.AnyPreservationPolicy(
      [
        managers.LatestN(n=keep),
        managers.BestN(get_metric_fn=loss, reverse=True, n=keep_best, keep_checkpoints_without_metrics=False),
      ]
    )
    folder, in_bucket = files.absolute(workdir) / CHECKPOINTS, files.is_remote(workdir)
    # What is not kept gets another name before it is removed, file by file: a kill must not leave a part of a step.
    self._removed = None if in_bucket else files.temporary_name(Path(folder) / 'removed')
    options = ocp.CheckpointManagerOptions(
      best_fn=loss,
      best_mode='min',
      preservation_policy=policy,
      create=True,
      # In a bucket a save has no temporary name: what a killed one left is removed before another writes in its place.
      cleanup_tmp_directories=in_bucket,
      todelete_subdir=self._removed and self._removed.name,
    )
    if self._is_first:
      files.sweep(self._removed.parent)
    weights.check_losses(workdir)
    self._manager = ocp.CheckpointManager(folder, options=options, item_handlers={'state': sealed.Handler()})
    vocabulary = files.path(workdir) / VOCABULARY_FILE
    self._beside = {VOCABULARY_FILE: digests.sha256(files.fetched(vocabulary))} if vocabulary.is_file() else {}

  def latest_step(self) -> int | None:
    """Returns the step of the newest complete checkpoint, or None; an interrupted save does not count."""
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, loss: float) -> None:
    """Saves the state and its loss, unless `step` is saved already.

    `step` is an argument because reading `state.step` would wait for the device.
    """
    if step not in self._manager.all_steps():
      about = {'step': step, 'loss': loss, 'beside': self._beside}
      with weights.saving(self._manager.directory):
        if self._is_first:
          self._manager.wait_until_finished()  # as `save` does: the one before still moves what it removes
          files.clear(self._removed)
        self._manager.save(
          step, args=ocp.args.Composite(state=sealed.Save(state, about=about)), metrics={'loss': loss}, force=True
        )

  def restore(self, config: Config, mesh: Mesh) -> TrainState:
    """Restores the newest state onto `mesh`; it may have been saved on other devices.

    Raises ValueError if the checkpoint is damaged, of another architecture or not finite; the message names the first
    difference.
    """
    step, expected = self.latest_step(), abstract(config, mesh)
    folder = files.path(self._manager.directory) / str(step)
    weights.check_step(folder / 'state')
    weights.check(folder / 'state', variables(expected))
    with weights.reading(folder):
      state = self._manager.restore(step, args=ocp.args.Composite(state=sealed.Restore(expected)))['state']
    weights.check_finite(state, folder)
    return state

  def close(self) -> None:
    """Waits for the last save and frees the manager."""
    with weights.saving(self._manager.directory):
      self._manager.wait_until_finished()
      self._manager.close()
    if self._is_first:
      files.clear(self._removed)

  @property
  def _is_first(self) -> bool:
    """Whether this is the process that removes checkpoints, of those on a file system."""
    return self._removed is not None and jax.process_index() == 0


def claim_workdir(workdir: Path, config: Config) -> None:
  """Writes the resolved config into a work directory that is new, or of the same config (see `check_workdir`).

  Every process checks; only the first one writes. Raises OSError if the directory cannot be written.
  """
  check_workdir(workdir, config)
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    files.write(workdir / CONFIG_FILE, config_lib.to_text(config))


def check_workdir(workdir: Path, config: Config) -> None:
  """Raises ValueError if a work directory belongs to another config; the message names what differs."""
  if (workdir / CONFIG_FILE).is_file():
    saved = read_config(workdir)
    used = [_with_rates(of) for of in (saved, config)]
    differences = [d for d in config_lib.difference(*used) if d.partition(':')[0] not in _FREE]
    if differences:
      more = f' (and {len(differences) - 1} more)' if len(differences) > 1 else ''
      raise ValueError(
        f'{workdir} was made with another config: {differences[0]} differ{more}; '
        'expected the same config or a new --workdir'
      )
  elif jax.process_index() == 0 and (workdir / CHECKPOINTS).is_dir():
    raise ValueError(f'{workdir} holds {CHECKPOINTS}/ but no {CONFIG_FILE}; expected both, or a new --workdir')


def _with_rates(config: Config) -> Config:
  """Returns the config with the rates of its batch, however they are given."""
  return dataclasses.replace(config, optimizer=config.optimizer.of_batch(config.data.batch_size))


def same_model(config: Config, folder: Path) -> Config:
  """Returns the config with the embedding dimension of `folder`, a work directory or a bundle.

  `model.masks` is off if no masks were learnt there; it may be off in the config alone, which then gives boxes alone.
  Raises ValueError if the folder was trained with another model. Weights of equal shapes are not enough: settings such
  as anchors, temperature and input size change what the weights mean, so they must be equal too.
  """
  saved = read_config(folder)
  config = config_lib.with_embedding_dim(config, saved.model.embedding_dim)
  config = config_lib.with_masks(config, saved.model.masks)
  if differences := model_differences(saved, config):
    raise ValueError(
      f'{folder} was trained with another model: {differences[0]} differ; expected the config that it '
      'was trained with, overrides included (its config.json can be given as CONFIG)'
    )
  return config


def model_differences(saved: Config, config: Config) -> list[str]:
  """Returns a line for each setting that differs and changes what weights mean, such as anchors and temperature."""
  return [
    d
    for d in config_lib.difference(saved, config)
    if d.startswith(('model.', 'data.image_size'))
    and not d.startswith(('model.masks:', 'model.postprocess.', 'model.backbone.remat:', 'model.precision:'))
  ]


def has_checkpoint(workdir: Path) -> bool:
  """Says whether a training in `workdir` would resume: whether it holds a complete checkpoint."""
  try:
    weights.find(workdir)
  except ValueError:
    return False
  return True


def set_aside_damaged(workdir: Path) -> None:
  """Moves damaged checkpoints into WORKDIR/damaged/, and says so on stderr.

  These are all that are newer than the newest whole one, and older ones whose loss is damaged.

  Checkpoints in a bucket have no checksums of their own, so that none of them is known to be damaged.

  Raises ValueError if no checkpoint is whole; nothing is moved then.
  """
  if files.is_remote(workdir) or not has_checkpoint(workdir):
    return
  there, found = weights.steps(workdir), {}
  for step in reversed(there):
    problem = next(sealed.problems(weights.find(workdir, step)), '')
    if not problem:
      break
    found[step] = problem
  else:
    raise ValueError(f'none of the checkpoints in {workdir} is whole: {problem}; expected one, or a new --workdir')
  for step in there:  # Orbax reads the loss of each
    if step not in found and (problem := sealed.loss_problem(weights.find(workdir, step))):
      found[step] = problem
  for step, problem in found.items():
    source, target = workdir / CHECKPOINTS / str(step), workdir / DAMAGED / str(step)
    target.parent.mkdir(exist_ok=True)
    while target.exists():
      target = target.with_name(f'{target.name}_')
    files.move(source, target)
    print(f'{problem}: the checkpoint of step {step} is now {target}', file=sys.stderr)


def load_variables(folder: Path, config: Config, mesh: Mesh | None = None, step: int | None = None) -> dict[str, Any]:
  """Loads {'params', 'batch_stats'} of a bundle or of a checkpoint of a work directory, without optimiser state.

  Args:
    folder: the bundle or work directory.
    config: the experiment, which determines the expected weights.
    mesh: devices that get the weights, replicated; by default one device.
    step: which checkpoint of the work directory; by default the newest.

  Raises ValueError if there is no checkpoint or it is of another architecture; the message names the first difference.
  """
  path = weights.locate(folder, step)
  return weights.restore(path, abstract_variables(config, mesh))


def abstract_variables(config: Config, mesh: Mesh | None = None) -> dict[str, Any]:
  """Returns shapes, types and shardings of {'params', 'batch_stats'}, replicated on `mesh` (by default one device)."""
  mesh = sharding.make_mesh(MeshSettings(), jax.devices()[:1]) if mesh is None else mesh
  whole = sharding.replicated(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), variables(abstract(config, mesh))
  )


def save_variables(folder: Path, variables: dict[str, Any]) -> None:
  """Writes {'params', 'batch_stats'}, without optimiser state, into the folder of a bundle."""
  weights.save(Path(folder) / weights.VARIABLES, variables)
