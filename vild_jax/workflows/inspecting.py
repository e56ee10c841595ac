"""Inspects a prepared data set before training: counts, looks for what smells, draws pictures, writes a page."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

import numpy as np

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config
from vild_jax.data import batch as batches
from vild_jax.data import contents as contents_lib
from vild_jax.data import duplicates, smells, sources
from vild_jax.data import pictures as pictures_lib
from vild_jax.data.contents import Contents
from vild_jax.data.regions import targets as region_targets
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.smells import Smell
from vild_jax.data.sources import PreparedDataset
from vild_jax.inference import drawing
from vild_jax.report import inspection as report_lib
from vild_jax.report.inspection import Inspection
from vild_jax.runtime import progress
from vild_jax.vocabulary import VocabularyFile
from vild_jax.workflows import inspect_pictures
from vild_jax.workflows.inspect_pictures import Training

MOST_LOOKED_AT = 2000  # pictures that are decoded, to compare them and their masks
_TWINS, _SMALL = 6, 256  # pairs that the page shows, and pixels of their longer sides


def inspect(
  data: str | Path,
  out: str | Path,
  *,
  split: str | None = None,
  config: Config | None = None,
  regions: str | Path | None = None,
  vocabulary: str | Path | None = None,
  pictures: int = 12,
  seed: int = 0,
) -> Inspection:
  """Writes a page about one split of a data set, and returns what it shows.

  Args:
    data: a prepared data set.
    out: the HTML file.
    split: default: train if the data set has it, else its first one.
    config: of the training whose pictures are shown beside the annotated ones; None shows these alone.
    regions: a region store of the split, whose regions to distil are shown too; needs the config.
    vocabulary: tells base classes from novel ones; default: that of the config, if it names one. Without any, all
      categories are shown as if they were trained on.
    pictures: how many are shown.
    seed: of their choice and of their augmentation.

  Raises:
    ValueError: data, config, vocabulary and regions do not fit together.
  """
  dataset = _open(data, split)
  vocabulary = vocabulary or (config.vocabulary if config else '')
  words = vocabulary_lib.load(vocabulary) if vocabulary else None
  training = None if config is None else _training(dataset, config, words, regions, seed)
  labels = progress.track(dataset.labels(), 'count', total=len(dataset), unit='img')
  found = contents_lib.count(dataset.categories, labels)
  limits = {} if config is None else {'image_size': config.data.image_size, 'max_instances': config.data.max_instances}
  smelt = smells.of_contents(found, words, **limits)
  looked_at, more, twins = _look(dataset)
  kinds = found.kinds(words)
  views = [
    inspect_pictures.view(dataset[index], index, dataset.categories, kinds, training)
    for index in progress.track(_chosen(found, pictures, seed), 'draw', unit='img')
  ]
  page = Inspection(
    title=f'{dataset.folder.parent.name}/{dataset.split}: what is in it',
    summary=contents_lib.summary(found, words, dataset.notes),
    smells=[(smell.text, smell.grave) for smell in [*smelt, *more]],
    categories=[
      (c.name, int(n), kind) for c, n, kind in zip(dataset.categories, found.objects_of(), kinds, strict=True)
    ],
    histograms=contents_lib.histograms(found),
    views=views,
    how=_how(training, len(views), seed),
    twins=[
      (
        f'Images {dataset[i].image_id} and {dataset[j].image_id}',
        *(drawing.resized(pictures_lib.decode_example(dataset[k]), _SMALL) for k in (i, j)),
      )
      for i, j in twins[:_TWINS]
    ],
    twins_found=len(twins),
    facts=_facts(dataset, looked_at, words, training),
  )
  report_lib.write_html(out, page)
  return page


def _open(data: str | Path, split: str | None) -> PreparedDataset:
  if split is None:
    splits = sources.read_metadata(sources.prepared_folder(data))[1]
    split = 'train' if 'train' in splits else min(splits)
  return sources.open_dataset(data, split)


def _training(
  dataset: PreparedDataset, config: Config, words: VocabularyFile | None, regions: str | Path | None, seed: int
) -> Training:
  """What makes training pictures; without a vocabulary all categories count as base."""
  store = RegionStore(regions) if regions else None
  if store is not None:
    region_targets.check_store(store, dataset, words.embeddings.shape[1] if words else store.embedding_dim)
    if words is not None:
      vocabulary_lib.check_regions(regions, store.teacher, words)
  names = words.names if words else tuple(category.name for category in dataset.categories)
  is_base = words.is_base if words else np.ones(len(names), bool)
  labels = batches.label_map(dataset.categories, names, is_base, novel=config.assignment.novel_labels)
  return Training(dataclasses.replace(config, seed=seed), labels, store)


def _look(dataset: PreparedDataset) -> tuple[int, list[Smell], list[tuple[int, int]]]:
  """Decodes pictures, drawn evenly: how many, what smells about them, and pairs of nearly equal ones."""
  indices = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), MOST_LOOKED_AT)).astype(int)).tolist()
  copies, misfitting, masks = [], {}, 0
  for index in progress.track(indices, 'look at pictures', unit='img'):
    example = dataset[index]
    copies.append(duplicates.small_copy(pictures_lib.decode_example(example)))
    masks += sum(map(bool, example.objects.segmentations))
    if ids := smells.misfits(example):
      misfitting[example.image_id] = ids
  found = smells.of_misfits(misfitting, masks)
  twins = [(indices[i], indices[j]) for i, j in duplicates.pairs(copies)]
  if twins:
    text = f'{len({index for pair in twins for index in pair}):,} of {len(indices):,} pictures are nearly the same as '
    found.append(Smell('twins', text + 'another one; if some of them are in the validation split too, it says little'))
  return len(indices), found, twins


def _chosen(found: Contents, pictures: int, seed: int) -> list[int]:
  """Draws pictures that show objects, as long as there are any; others follow."""
  rng, objects = np.random.default_rng(seed), found.objects_in() > 0
  order = np.concatenate([rng.permutation(np.flatnonzero(shown)) for shown in (objects, ~objects)])
  return sorted(order[:pictures].tolist())


def _how(training: Training | None, pictures: int, seed: int) -> str:
  text = (
    f'{pictures} pictures, drawn with seed {seed} among those that show objects. A star and a dashed box mark novel '
    'classes, grey marks crowds. Labels are left out where they would hide each other.'
  )
  if training is None:
    return text + ' With --config, they would stand beside what the network sees in training.'
  return text + (
    ' Beside each stands what the network gets in one step of training: scaled, mirrored and cut at random as the '
    'config says, with the boxes and masks of the batch. A plain area at the right or below is padding.'
  )


def _facts(
  dataset: PreparedDataset, looked_at: int, words: VocabularyFile | None, training: Training | None
) -> list[tuple[str, str]]:
  total = len(dataset)
  how = f'all {total:,}' if looked_at == total else f'{looked_at:,} of {total:,}, drawn evenly'
  entries = [
    ('data set', str(dataset.folder)),
    ('split', f'{dataset.split} of {", ".join(dataset.splits)}'),
    ('identity', dataset.identity),
    ('counted', f'the annotations of all {total:,} pictures'),
    ('decoded', f'{how}: to find masks that do not fit and pictures that are nearly the same'),
    ('vocabulary', vocabulary_lib.describe(words) if words else 'none: no class counts as novel'),
  ]
  if training is not None:
    data = training.config.data
    low, high = data.scale_range
    entries.append(
      (
        'config',
        f'{training.config.name}: {data.image_size} pixels, scaled by {low:g} to {high:g}, '
        f'{"mirrored or not" if data.flip else "not mirrored"}, at most {data.max_instances} objects',
      )
    )
    if training.regions is not None:
      entries.append(('regions', str(training.regions.path)))
  entries += [('repaired', note) for note in dataset.notes]
  return [*entries, ('command', shlex.join(['vild-jax', *sys.argv[1:]]))]
