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
from vild_jax.config import Config, given, matches, with_embedding_dim, with_frozen, with_masks
from vild_jax.data import batch as batches
from vild_jax.data import class_lists, label_files, sources
from vild_jax.data.regions import targets as region_targets
from vild_jax.data.regions import verified
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.schema import DataError
from vild_jax.inference import evaluation
from vild_jax.runtime import copies, files, reading
from vild_jax.structs import TrainState
from vild_jax.train import checkpoint, loop, retention, sharding, state, timing, weights
from vild_jax.workflows import folders

# Parameters that fit the embeddings of one teacher alone.
_OF_THE_TEACHER = ('region_head/projection/', 'image_head/projection/', 'background')
_SAME_EMBEDDING = 1e-3  # difference of unit rows that machines may make, unlike prompts
DATA_FILE = 'data.json'  # in a work directory: the identities of its training data and region store


def train(
  config: Config, workdir: Path, *, clock: timing.Clock | None = None, profile: int = 0, fallback: bool = False
) -> TrainState:
  """Trains, or resumes, in `workdir` and returns the final state; errors as `open_training` and `train_on`.

  The vocabulary is copied into the work directory, so that the checkpoints stay usable without the original file.
  `clock` and `profile` are those of `loop.train`, and `fallback` that of `train_on`; the clock starts here by default.
  """
  clock, workdir = clock or timing.Clock(), files.path(workdir)
  return train_on(open_training(config, workdir), workdir, clock=clock, profile=profile, fallback=fallback)


@dataclass(frozen=True)
class Training:
  """Holds what a training reads; made by `open_training`, which checks that the parts fit together.

  Attributes:
    config: the experiment, with the embedding dimension of the vocabulary. If no object to learn has a mask, the mask
      head of `train.init` is frozen in it, and without one `model.masks` is off.
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


def open_training(config: Config, workdir: Path | None = None) -> Training:
  """Opens the data, vocabulary and regions of the config; raises ValueError if they do not fit together.

  `workdir` is the work directory, if it is known: a training that is resumed keeps its mask head even if the folder of
  `train.init` is gone.
  """
  folder = copies.cached(given(config.data.train, 'data.train'), config.data.cache)
  dataset = sources.open_dataset(folder, config.data.train_split)
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
  config = _with_learnt_masks(config, dataset, labels, workdir)
  opened = Training(config, dataset, shown, vocabulary, store, labels)
  if config.train.retention and not len(opened.unlabelled):
    raise ValueError(
      f'train.retention is {config.train.retention:g}, but every class that is trained is a category of '
      f'{dataset.folder}; expected some that are not, whose knowledge is kept, or train.retention=0'
    )
  return opened


def train_on(
  opened: Training,
  workdir: Path,
  *,
  stream: Callable[[int], Iterator[Mapping]] | None = None,
  writer: Any = None,
  clock: timing.Clock | None = None,
  profile: int = 0,
  fallback: bool = False,
) -> TrainState:
  """Trains, or resumes, in `workdir` and returns the final state.

  Args:
    opened: what `open_training` returned.
    workdir: the work directory; see `train`.
    stream: takes the start step and returns the batches, for a pipeline of your own; by default `opened.stream`.
    writer, clock, profile: as in `loop.train`.
    fallback: whether to set damaged checkpoints aside and go on from the newest one that is whole.

  Raises:
    FolderInUse: another process trains in `workdir`.
    ValueError, FloatingPointError, Preempted: see `checkpoint.claim_workdir` and `loop.train`.
  """
  config, vocabulary = opened.config, opened.vocabulary
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch_size(mesh, config.data.batch_size, 'data.batch_size', accumulate=config.train.accumulate)
  start = None if checkpoint.has_checkpoint(workdir) else state.check_start(config, mesh)
  if start:
    retention.check(config, mesh, start.given)
  notes = [start.report, *_meaning(config, vocabulary, start)] if start and start.report else []
  pictures = None
  if config.train.pictures:
    shown = opened.dataset
    if config.data.val:
      shown = sources.open_dataset(copies.cached(config.data.val, config.data.cache), config.data.val_split)
    pictures = evaluation.picture_drawer(config, vocabulary, shown, config.train.pictures)
  # The directory comes last, so that earlier errors leave it unchanged.
  with folders.locked(workdir):
    checkpoint.check_workdir(workdir, config)
    if fallback:
      folders.by_the_first(lambda: checkpoint.set_aside_damaged(workdir), 'set damaged checkpoints aside')
    _keep_vocabulary(workdir / checkpoint.VOCABULARY_FILE, vocabulary)
    _keep_identity(workdir / DATA_FILE, opened.dataset, opened.regions)
    checkpoint.claim_workdir(workdir, config)  # after all checks, since it overwrites the config that stands there
    notes += _on_classes(opened)
    if notes and jax.process_index() == 0:
      print(*notes, sep='\n', file=sys.stderr)
    with verified.Verification(opened.regions, jax.process_index(), jax.process_count()) as verification:
      trained = loop.train(
        config,
        workdir,
        opened.classes(),
        verification.watched(stream or opened.stream),
        mesh=mesh,
        start_from=start.path if start else None,
        writer=writer,
        pictures=pictures,
        clock=clock,
        profile=profile,
      )
      verification.wait()
      return trained


def _with_learnt_masks(
  config: Config, dataset: sources.PreparedDataset, labels: batches.LabelMap, workdir: Path | None
) -> Config:
  """Returns the config of what the masks of the data allow; stderr reports how many objects have one, unless all do.

  Without any, the mask head that training starts from stays as it is, and a new one is left out.
  """
  counts = _learnt(dataset, labels)
  objects, masked = sum(of.objects for of in counts), sum(of.masked for of in counts)
  as_expected = dataset.has_masks if config.model.masks else not masked
  if as_expected:
    return config
  frozen = matches(config.train.freeze, 'mask_head/')
  kept = config.model.masks and not masked and _starts_with_masks(config, workdir, frozen)
  if not config.model.masks:
    what = 'model.masks is false, and they are not learnt'
  elif masked:
    what = 'the others train boxes alone'
  elif kept:
    what = 'the frozen mask head stays' + ('' if frozen else ' (mask_head/* is added to train.freeze)')
  else:
    what = 'boxes alone are learnt, without the loss of masks'
  if jax.process_index() == 0:
    print(f'{dataset.folder}: {masked:,} of {objects:,} objects to learn have a mask; {what}', file=sys.stderr)
  if kept:
    return config if frozen else with_frozen(config, 'mask_head/*')
  return with_masks(config, masked > 0)


def _starts_with_masks(config: Config, workdir: Path | None, frozen: bool) -> bool:
  """Tells whether the training has a mask head that has learnt masks: its own of before, or that of `train.init`.

  If neither has a config that says so, it has one if that is to be `frozen`.
  """
  if not config.train.init:
    return False
  if workdir and (workdir / checkpoint.CONFIG_FILE).is_file():
    return checkpoint.read_config(workdir).model.masks
  folder = weights.folder_of(config.train.init)
  if not (folder / checkpoint.CONFIG_FILE).is_file():
    return frozen
  saved = checkpoint.read_config(folder).model
  return saved.masks and (saved.mask_head, saved.pyramid) == (config.model.mask_head, config.model.pyramid)


def _meaning(config: Config, vocabulary: vocabulary_lib.VocabularyFile, start: state.Start) -> list[str]:
  """Returns lines about what differs between `config` and the detector of `train.init` and no shape shows.

  Raises ValueError if what is frozen fits the embeddings of another teacher alone.
  """
  folder, lines = weights.folder_of(config.train.init), []
  if (folder / checkpoint.CONFIG_FILE).is_file():
    saved = checkpoint.read_config(folder)
    differences = checkpoint.model_differences(saved, config)
    if saved.model.masks != config.model.masks:
      differences.append(f'model.masks: {saved.model.masks} and {config.model.masks}')
    lines += [f'  settings differ: {d}, that of the folder first' for d in differences]
  if not (folder / checkpoint.VOCABULARY_FILE).is_file():
    return lines
  known = vocabulary_lib.load(folder / checkpoint.VOCABULARY_FILE)
  if known.background is not None and vocabulary.background is None:
    lines.append('  it was trained with a fixed background, which the vocabulary lacks; here it is learnt anew')
  if known.teacher != vocabulary.teacher:
    tied = next((name for name in start.frozen if name.startswith(_OF_THE_TEACHER)), None)
    if tied:
      raise ValueError(
        f'train.freeze: {tied} is frozen, and in {folder} it fits the embeddings of another teacher: {known.teacher}, '
        f'here {vocabulary.teacher}; expected the same teacher, or other patterns'
      )
    lines.append(f'  its classes are embedded by another teacher: {known.teacher}, here {vocabulary.teacher}')
    if config.train.retention:
      lines.append('  train.retention keeps what it says of these embeddings, which it has never seen: likely noise')
    return lines
  rows = dict(zip(known.names, known.embeddings, strict=True))
  for name, row in zip(vocabulary.names, vocabulary.embeddings, strict=True):
    if name in rows and not np.allclose(row, rows[name], rtol=0, atol=_SAME_EMBEDDING):
      lines.append(f'  {name!r} for one has another embedding there; were the --prompts of embed-text others?')
      break
  return lines


def _on_classes(opened: Training) -> list[str]:
  """Returns lines about categories and classes of which nothing is learnt, or not what one might expect."""
  dataset, names, lines = opened.dataset, opened.vocabulary.names, []
  known = set(names)
  if dropped := sorted({c.name for c in dataset.categories if class_lists.known_as(c.name, known) is None}):
    lines.append(
      f'{len(dropped)} of {len(dataset.categories)} categories of the data are not in the vocabulary, '
      f'{dropped[0]!r} for one; nothing is learnt of them'
    )
  if len(opened.unlabelled):
    lines.append(
      f'{len(opened.unlabelled)} of {len(names)} classes of the vocabulary are not categories of the '
      f'data, {names[opened.unlabelled[0]]!r} for one; regions without a label may show them, and do not '
      'teach that they are background (docs/finetuning.md)'
    )
    if opened.config.train.init and not opened.config.train.retention:
      lines.append(
        '  the detector of train.init forgets part of what it knows of them, unless train.retention keeps it'
      )
    if not matches(opened.config.train.freeze, 'rpn_head/'):
      lines.append('  but their objects are background to the proposal network, unless train.freeze has rpn_head/*')
  counts, rows = dataset.counts(), opened.labels.rows
  shown = {row for category, row in rows.items() if counts[category].objects}
  if absent := sorted(set(rows.values()) - shown):
    lines.append(
      f'{len(absent)} of {len(set(rows.values()))} categories to learn have no object in the split, '
      f'{names[absent[0]]!r} for one; that no region shows them is learnt all the same (docs/finetuning.md)'
    )
  return lines


def _learnt(dataset: sources.PreparedDataset, labels: batches.LabelMap) -> list[label_files.Counts]:
  """Returns the counts of the categories that training may use."""
  counts = dataset.counts(quiet=jax.process_index() > 0)
  return [counts[category] for category in labels.rows]


def _check_objects(dataset: sources.PreparedDataset, labels: batches.LabelMap) -> None:
  """Refuses a split without an object to learn: every picture would train as background."""
  counts = _learnt(dataset, labels)
  if any(of.objects for of in counts):
    return
  objects, crowds = sum(of.objects + of.crowds for of in dataset.counts().values()), sum(of.crowds for of in counts)
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
  store = RegionStore(copies.cached(path, config.data.cache))
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
  kept = reading.json_object(path, expected := 'what `vild-jax train` wrote, or no such file')
  with reading.parsing(path, expected, problem='is damaged'):
    identities = {key: str(kept[key]) for key in described}
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
      np.array_equal(kept.embeddings, vocabulary.embeddings)
      and np.array_equal(kept.is_base, vocabulary.is_base)
      and np.array_equal(kept.background, vocabulary.background)
    ):
      raise ValueError(
        f'{path} differs from the given vocabulary; expected the one training began with, or a new --workdir'
      )
  elif jax.process_index() == 0:
    vocabulary_lib.save(path, vocabulary)
