"""Trains, or resumes, in a work directory: opens data, vocabulary and regions, checks that they belong together."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vild_jax import objective
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config, given, with_embedding_dim
from vild_jax.data import batch as batches
from vild_jax.data import sources
from vild_jax.data.regions import targets as region_targets
from vild_jax.data.regions.store import RegionStore
from vild_jax.inference import evaluation
from vild_jax.runtime import files
from vild_jax.structs import TrainState
from vild_jax.train import checkpoint, loop, sharding, state

_DATA_FILE = 'data.json'  # of a work directory: which pictures, annotations and regions it is trained on


def train(config: Config, workdir: Path) -> TrainState:
  """Trains, or resumes, in `workdir`; the vocabulary is copied beside the checkpoints, so that they stay usable."""
  return train_on(open_training(config), workdir)


@dataclass(frozen=True)
class Training:
  """What a training reads, opened and found to belong together.

  Attributes:
    config: the experiment, with the embedding dimension of the vocabulary.
    dataset: the prepared split.
    vocabulary: the training vocabulary.
    regions: the store to distil from, or None.
    labels: the vocabulary's row of each category that training may see.
  """

  config: Config
  dataset: sources.PreparedDataset
  vocabulary: vocabulary_lib.VocabularyFile
  regions: RegionStore | None
  labels: batches.LabelMap

  def stream(self, start_step: int) -> Iterator[batches.Arrays]:
    """This process's part of each training batch from `start_step` on."""
    return batches.train_batches(
      self.dataset,
      self.labels,
      self.config,
      regions=self.regions,
      start_step=start_step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )


def open_training(config: Config) -> Training:
  """Opens the data, vocabulary and regions of the config; ValueError if they do not belong together."""
  dataset = sources.open_dataset(given(config.data.train, 'data.train'), config.data.train_split)
  vocabulary = vocabulary_lib.load(given(config.vocabulary, 'vocabulary'))
  config = with_embedding_dim(config, vocabulary.embeddings.shape[1])
  vocabulary_lib.check_dimension(vocabulary, config)
  store = _open_regions(config, dataset, vocabulary)
  labels = batches.label_map(
    dataset.categories, vocabulary.names, vocabulary.is_base, novel=config.assignment.novel_labels
  )
  if not dataset.has_masks:
    raise ValueError(f'{config.data.train} holds objects without a segmentation; expected one for each to train masks')
  return Training(config, dataset, vocabulary, store, labels)


def train_on(
  opened: Training, workdir: Path, *, stream: Callable[[int], Iterator[Mapping]] | None = None, writer: Any = None
) -> TrainState:
  """Trains, or resumes, in `workdir`.

  Args:
    opened: what `open_training` returned.
    workdir: the work directory, see `train`.
    stream: start step -> batches, for who has put a pipeline of their own around `opened.stream`, the default.
    writer: as in `loop.train`.

  Raises:
    FolderInUse: another process trains in `workdir`.
    ValueError, FloatingPointError, Preempted: see `checkpoint.claim_workdir` and `loop.train`.
  """
  config, vocabulary = opened.config, opened.vocabulary
  mesh = sharding.make_mesh(config.mesh)
  sharding.check_batch_size(mesh, config.data.batch_size, 'data.batch_size', accumulate=config.train.accumulate)
  state.check_start(config, mesh)
  pictures = None
  if config.train.pictures:
    shown = sources.open_dataset(config.data.val, config.data.val_split) if config.data.val else opened.dataset
    pictures = evaluation.picture_drawer(config, vocabulary, shown, config.train.pictures)
  # Last: what fails before leaves the directory as it was. Of several processes the first locks it.
  with files.locked(workdir, hold=jax.process_index() == 0):
    checkpoint.claim_workdir(workdir, config)
    _keep_vocabulary(workdir / checkpoint.VOCABULARY_FILE, vocabulary)
    _keep_identity(workdir / _DATA_FILE, opened.dataset, opened.regions)
    categories = opened.dataset.categories
    dropped = sorted({c.name for c in categories} - set(vocabulary.names))
    if dropped and jax.process_index() == 0:
      print(
        f'{len(dropped)} of {len(categories)} categories of the data are not in the vocabulary, '
        f'{dropped[0]!r} for one; nothing is learnt of them',
        file=sys.stderr,
      )
    return loop.train(
      config,
      workdir,
      vocabulary_lib.to_struct(vocabulary),
      stream or opened.stream,
      mesh=mesh,
      writer=writer,
      pictures=pictures,
    )


def _open_regions(
  config: Config, dataset: sources.PreparedDataset, vocabulary: vocabulary_lib.VocabularyFile
) -> RegionStore | None:
  """The store to distil from; None at a weight of 0, so that ViLD-text can be an override of any config."""
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
  """What is made anew under the same path is another data set or store: a resume on it would be neither run."""
  content = {'identity': dataset.identity, 'split': dataset.split, 'examples': len(dataset)}
  sources_of = {'identity': ('a data set', dataset.folder)}
  if store is not None:
    content |= {'proposals': store.boxes_identity, 'regions': store.identity}
    sources_of |= {'proposals': ('proposals', store.path), 'regions': ('a region store', store.path)}
  if not path.is_file():
    if jax.process_index() == 0:
      files.write(path, json.dumps(content) + '\n')
    return
  try:
    kept = json.loads(path.read_text(encoding='utf-8'))
    identities = {key: str(kept[key]) for key in sources_of}
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'{path} is damaged ({type(error).__name__}); expected what `vild-jax train` wrote, or no such file'
    ) from error
  for key, (what, where) in sources_of.items():
    if identities[key] != content[key]:
      raise ValueError(
        f'{path.parent} was trained on {what} with identity {identities[key][:12]}, and {where} has '
        f'{content[key][:12]}; expected the same data, or a new --workdir'
      )


def _keep_vocabulary(path: Path, vocabulary: vocabulary_lib.VocabularyFile) -> None:
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
