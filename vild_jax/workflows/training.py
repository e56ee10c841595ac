"""Trains, or resumes, in a work directory; opens data, vocabulary and regions and checks that they fit together."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vild_jax import objective, structs
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config, given, matches, with_embedding_dim, with_masks
from vild_jax.data import batch as batches
from vild_jax.data import class_lists, sources
from vild_jax.data.regions import targets as region_targets
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.schema import DataError
from vild_jax.inference import evaluation
from vild_jax.runtime import files
from vild_jax.structs import TrainState
from vild_jax.train import checkpoint, loop, sharding, state
from vild_jax.workflows import folders

_DATA_FILE = 'data.json'  # in a work directory: the identities of its training data and region store


def train(config: Config, workdir: Path) -> TrainState:
  """Trains, or resumes, in `workdir` and returns the final state; errors as `open_training` and `train_on`.

  The vocabulary is copied into the work directory, so that the checkpoints stay usable without the original file.
  """
  return train_on(open_training(config), workdir)


@dataclass(frozen=True)
class Training:
  """Holds what a training reads; made by `open_training`, which checks that the parts fit together.

  Attributes:
    config: the experiment, with the embedding dimension of the vocabulary, and with `model.masks` off if no object to
      learn has a mask.
    dataset: the prepared split.
    shown: the pictures of it that are trained on: all, or with `data.only_with_objects` those that show an object.
    vocabulary: the training vocabulary.
    regions: the store to distil from, or None.
    labels: maps each category that training may use to its row of the vocabulary.
  """

  config: Config
  dataset: sources.PreparedDataset
  shown: sources.PreparedDataset | sources.Subset
  vocabulary: vocabulary_lib.VocabularyFile
  regions: RegionStore | None
  labels: batches.LabelMap

  def classes(self) -> structs.Vocabulary:
    """Returns the vocabulary for the training step; `labelled` says which classes the data set has as categories."""
    classes = vocabulary_lib.to_struct(self.vocabulary)
    if not len(self.unlabelled):
      return classes
    return classes.replace(labelled=~np.isin(np.arange(len(classes.valid)), self.unlabelled))

  @functools.cached_property
  def unlabelled(self) -> np.ndarray:
    """Returns the rows of the vocabulary that training would use, but that are not categories of the data set."""
    trained = self.vocabulary.is_base | self.config.assignment.novel_labels
    return np.setdiff1d(np.flatnonzero(trained), list(self.labels.rows.values()))

  def stream(self, start_step: int) -> Iterator[batches.Arrays]:
    """Yields this process's part of each training batch, from the one after `start_step` steps on."""
    return batches.train_batches(
      self.shown,
      self.labels,
      self.config,
      regions=self.regions,
      start_step=start_step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )


def open_training(config: Config) -> Training:
  """Opens the data, vocabulary and regions of the config; raises ValueError if they do not fit together."""
  dataset = sources.open_dataset(given(config.data.train, 'data.train'), config.data.train_split)
  vocabulary = vocabulary_lib.load(given(config.vocabulary, 'vocabulary'))
  config = with_embedding_dim(config, vocabulary.embeddings.shape[1])
  vocabulary_lib.check_dimension(vocabulary, config)
  store = _open_regions(config, dataset, vocabulary)
  labels = batches.label_map(
    dataset.categories, vocabulary.names, vocabulary.is_base, novel=config.assignment.novel_labels
  )
  shown = dataset
  if config.data.only_with_objects:
    what = 'a class that training may use (data.only_with_objects)'
    shown = sources.showing(dataset, labels.rows, what, quiet=jax.process_index() > 0)
  _check_objects(dataset, labels)
  config = with_masks(config, not config.model.masks or _has_masks(config, dataset, labels))
  return Training(config, dataset, shown, vocabulary, store, labels)


def train_on(
  opened: Training, workdir: Path, *, stream: Callable[[int], Iterator[Mapping]] | None = None, writer: Any = None
) -> TrainState:
  """Trains, or resumes, in `workdir` and returns the final state.

  Args:
    opened: what `open_training` returned.
    workdir: the work directory; see `train`.
    stream: takes the start step and returns the batches, for a pipeline of your own; by default `opened.stream`.
    writer: as in `loop.train`.

  Raises:
    FolderInUse: another process trains in `workdir`.
    ValueError, FloatingPointError, Preempted: see `checkpoint.claim_workdir` and `loop.train`.
  """
  config, vocabulary = opened.config, opened.vocabulary
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch_size(mesh, config.data.batch_size, 'data.batch_size', accumulate=config.train.accumulate)
  report = '' if checkpoint.has_checkpoint(workdir) else state.check_start(config, mesh)
  pictures = None
  if config.train.pictures:
    shown = sources.open_dataset(config.data.val, config.data.val_split) if config.data.val else opened.dataset
    pictures = evaluation.picture_drawer(config, vocabulary, shown, config.train.pictures)
  # The directory comes last, so that earlier errors leave it unchanged.
  with folders.locked(workdir):
    checkpoint.check_workdir(workdir, config)
    _keep_vocabulary(workdir / checkpoint.VOCABULARY_FILE, vocabulary)
    _keep_identity(workdir / _DATA_FILE, opened.dataset, opened.regions)
    checkpoint.claim_workdir(workdir, config)  # after all checks, since it overwrites the config that stands there
    categories = opened.dataset.categories
    names = set(vocabulary.names)
    dropped = sorted({c.name for c in categories if class_lists.known_as(c.name, names) is None})
    notes = [report, *_meaning(config, vocabulary)] if report else []
    if dropped:
      notes.append(
        f'{len(dropped)} of {len(categories)} categories of the data are not in the vocabulary, '
        f'{dropped[0]!r} for one; nothing is learnt of them'
      )
    if len(opened.unlabelled):
      notes.append(
        f'{len(opened.unlabelled)} of {len(vocabulary.names)} classes of the vocabulary are not categories of the '
        f'data, {vocabulary.names[opened.unlabelled[0]]!r} for one; regions without a label may show them, and do not '
        'teach that they are background (docs/finetuning.md)'
      )
    if notes and jax.process_index() == 0:
      print(*notes, sep='\n', file=sys.stderr)
    return loop.train(
      config,
      workdir,
      opened.classes(),
      stream or opened.stream,
      mesh=mesh,
      writer=writer,
      pictures=pictures,
    )


def _has_masks(config: Config, dataset: sources.PreparedDataset, labels: batches.LabelMap) -> bool:
  """Tells whether the detector will have masks; stderr reports how many objects do, unless all have one.

  It will if an object to learn has one, or if it keeps the mask head of the detector that it starts from.
  """
  if dataset.has_masks:
    return True
  kept = bool(config.train.init) and matches(config.train.freeze, 'mask_head/')
  objects, masked = batches.count_learnt(dataset.labels(), labels)
  if jax.process_index() == 0:
    without = 'the frozen mask head stays' if kept else 'boxes alone are learnt, without the loss of masks'
    what = 'the others train boxes alone' if masked else without
    print(f'{dataset.folder}: {masked:,} of {objects:,} objects to learn have a mask; {what}', file=sys.stderr)
  return masked > 0 or kept


def _meaning(config: Config, vocabulary: vocabulary_lib.VocabularyFile) -> list[str]:
  """Returns lines about what differs between `config` and the detector of `train.init` and no shape shows."""
  folder, lines = Path(config.train.init), []
  if (folder / checkpoint.CONFIG_FILE).is_file():
    saved = checkpoint.read_config(folder)
    lines += [f'  settings differ: {d}, that of the folder first' for d in checkpoint.model_differences(saved, config)]
  if (folder / checkpoint.VOCABULARY_FILE).is_file():
    teacher = vocabulary_lib.load(folder / checkpoint.VOCABULARY_FILE).teacher
    if teacher != vocabulary.teacher:
      lines.append(f'  its classes are embedded by another teacher: {teacher}, here {vocabulary.teacher}')
  return lines


def _check_objects(dataset: sources.PreparedDataset, labels: batches.LabelMap) -> None:
  """Refuses a split without an object to learn: every picture would train as background."""
  objects = crowds = 0
  for example in dataset.labels():
    usable = labels(example.objects.category_ids) >= 0
    if (usable & ~example.objects.is_crowd).any():
      return
    objects, crowds = objects + len(usable), crowds + int(usable.sum())
  raise DataError(
    f'{dataset.folder}, split {dataset.split!r}: nothing to learn; of {objects} objects, {objects - crowds} are of no '
    f'class that training may use and {crowds} are crowds; expected at least one of a base class that is no crowd'
  )


def _open_regions(
  config: Config, dataset: sources.PreparedDataset, vocabulary: vocabulary_lib.VocabularyFile
) -> RegionStore | None:
  """Opens the store to distil from; returns None if the weight is 0, so that an override makes any config ViLD-text."""
  path = config.distillation.store
  objective.check_distillation(config, has_regions=bool(path))
  if config.distillation.weight == 0:
    if path:
      print(f'distillation.weight is 0: the regions in {path} are not used', file=sys.stderr)
    return None
  store = RegionStore(path)
  region_targets.check_store(store, dataset, config.model.embedding_dim)
  vocabulary_lib.check_regions(path, store.teacher, vocabulary)
  return store


def _keep_identity(path: Path, dataset: sources.PreparedDataset, store: RegionStore | None) -> None:
  """Stores the identities of data set and region store, or checks those of the run that is resumed.

  A data set or store may have been made again under the same path; a resume on other content would mix two runs.
  """
  content = {'identity': dataset.identity, 'split': dataset.split, 'examples': len(dataset)}
  described = {'identity': ('a data set', dataset.folder)}
  if store is not None:
    content |= {'proposals': store.boxes_identity, 'regions': store.identity}
    described |= {'proposals': ('proposals', store.path), 'regions': ('a region store', store.path)}
  if not path.is_file():
    if jax.process_index() == 0:
      files.write(path, json.dumps(content) + '\n')
    return
  try:
    kept = json.loads(path.read_text(encoding='utf-8'))
    identities = {key: str(kept[key]) for key in described}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{path} is damaged ({type(error).__name__}); expected what `vild-jax train` wrote, or no such file'
    ) from error
  for key, (what, where) in described.items():
    if identities[key] != content[key]:
      raise ValueError(
        f'{path.parent} was trained on {what} with identity {identities[key][:12]}, and {where} has '
        f'{content[key][:12]}; expected the same data, or a new --workdir'
      )


def _keep_vocabulary(path: Path, vocabulary: vocabulary_lib.VocabularyFile) -> None:
  """Writes the vocabulary into a new work directory, or checks that the one there is the same."""
  if path.is_file():
    kept = vocabulary_lib.load(path)
    if (kept.names, kept.teacher) != (vocabulary.names, vocabulary.teacher) or not (
      np.array_equal(kept.embeddings, vocabulary.embeddings) and np.array_equal(kept.is_base, vocabulary.is_base)
    ):
      raise ValueError(
        f'{path} differs from the given vocabulary; expected the one training began with, or a new --workdir'
      )
  elif jax.process_index() == 0:
    vocabulary_lib.save(path, vocabulary)
