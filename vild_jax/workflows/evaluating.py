"""Evaluates a checkpoint or a bundle on a prepared split, and formats the metrics for the console."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config, defaults, given
from vild_jax.data import class_lists, sources
from vild_jax.data.regions.store import RegionStore
from vild_jax.distill import agreement
from vild_jax.eval import summary
from vild_jax.inference import crop_baselines, evaluation, heads
from vild_jax.inference.detector import load
from vild_jax.runtime import copies, files
from vild_jax.train import bundle_files, checkpoint, sharding, weights
from vild_jax.vocabulary import VocabularyFile
from vild_jax.workflows import folders, scoring

METRICS = (
  'box',
  'mask',
  'masks_not_scored',
  'seconds_per_image',
  'with_objectness',
  *(folder for folder in defaults.HEAD_FOLDERS if folder),
  'teacher_cosine',
)  # keys that `evaluate --json` writes


def evaluate(
  config: Config,
  folder: str | Path,
  data: str,
  split: str,
  out: Path,
  *,
  vocabulary: str | None = None,
  classes: str | None = None,
  scores: str = defaults.MODEL,
  teacher: str | None = None,
  regions: str | Path | None = None,
  step: int | None = None,
  save_logits: Path | None = None,
) -> dict[str, Any] | None:
  """Evaluates a bundle or a checkpoint of a work directory on a prepared split.

  Args:
    config: the experiment that the checkpoint was trained with.
    folder: the work directory or bundle, or the name of a bundle on the hub (`hf://owner/name`).
    data, split: the prepared data set.
    out: folder for results, metrics and plots; locked while they are written.
    vocabulary: file of the classes to detect; by default the training vocabulary.
    classes: instead of a vocabulary: a list of classes (`class_lists.class_list`), such as 'coco' or a text file, whose
      names are embedded by the text tower of the bundle; names of the training vocabulary need no tower.
    scores: one of `defaults.SCORES`: the scores of the model, of the model and of each head of a ViLD-ensemble alone,
      or of a baseline that crops and embeds with `teacher`.
    teacher: folder of the teacher that embeds crops.
    regions: store of the teacher's embeddings for this split. With it the metrics have `teacher_cosine`, the mean
      cosine between the embeddings of model and teacher.
    step: which checkpoint of the work directory; by default the newest.
    save_logits: folder that also gets what post-processing needs of each picture, for `calibrating.calibrate`; only
      with the scores of the model.

  Returns:
    The metrics; None in all processes but the first.

  Raises:
    FolderInUse: another process works in `out`.
    ValueError: an argument, or a file that it names, does not fit the checkpoint; nothing is written then.
  """
  if scores not in defaults.SCORES:
    raise ValueError(f'--scores is {scores!r}; expected one of {", ".join(defaults.SCORES)}')
  if scores in defaults.BY_CROPS and not teacher:
    raise ValueError(
      f'--scores {scores} crops and embeds with a teacher; expected --teacher DIR or a teacher in the config'
    )
  post = config.model.postprocess
  if scores in defaults.BY_CROPS and (post.temperature is not None or post.objectness_weight):
    raise ValueError(
      f'--scores {scores} takes neither model.postprocess.temperature nor objectness_weight, which are of the '
      "detector's own scores; expected the defaults of both"
    )
  if save_logits and scores != defaults.MODEL:
    raise ValueError(f'--save-logits keeps those of the model; expected --scores {defaults.MODEL}, not {scores}')
  if regions and jax.process_count() > 1:
    raise ValueError(
      f'--regions compares in one process, and this is one of {jax.process_count()}; expected evaluate '
      'without it, or one process'
    )
  folder = weights.folder_of(folder)
  check_same = bundle_files.watched(folder)
  config = checkpoint.same_model(config, folder)
  dataset = sources.open_dataset(copies.cached(given(data, '--data'), config.data.cache), split)
  trained_on = vocabulary_lib.load(folder / checkpoint.VOCABULARY_FILE)
  if vocabulary and classes:
    raise ValueError('--vocabulary and --classes both say what to detect; expected one of them')
  words = vocabulary_lib.load(vocabulary) if vocabulary else trained_on
  if classes:
    words = _embedded(folder, class_lists.class_list(classes).names, trained_on)
  vocabulary_lib.check_teacher(words.teacher, trained_on.teacher, 'the vocabulary')
  predict, how = None, scores
  if scores == defaults.HEADS:
    predict = heads.predictions
  elif scores in defaults.BY_CROPS:
    tower = crop_baselines.crop_tower(teacher, config, trained_on, scores)
    predict = partial(crop_baselines.predictions, scores=scores, tower=tower)
    how = f'{scores} by {tower.identity}'
  mesh = sharding.make_mesh(config.mesh)
  variables = checkpoint.load_variables(folder, config, mesh, step)
  check_same()
  with folders.locked(out):
    cosine = {}
    if regions:
      store = RegionStore(copies.cached(regions, config.data.cache))
      cosine = {
        'teacher_cosine': agreement.distillation_cosine(
          config, variables, trained_on, dataset, store, mesh=mesh, regions_per_image=store.max_regions
        )
      }
    metrics = evaluation.evaluate(
      config,
      variables,
      words,
      trained_on,
      dataset,
      out,
      mesh=mesh,
      predict=predict,
      folders=defaults.HEAD_FOLDERS if scores == defaults.HEADS else crop_baselines.folders(scores),
      scores=how,
      on_scored=scoring.write_page,
      logits=save_logits,
    )
    if metrics is None:
      return None
    if cosine:
      files.write(out / summary.COSINE_FILE, json.dumps(cosine, indent=2) + '\n')
  return metrics | cosine


def _embedded(folder: Path, names: Sequence[str], trained_on: VocabularyFile) -> VocabularyFile:
  """The vocabulary of names by the text tower of a bundle."""
  padded = load(folder).classes(names)
  rows, is_base = (np.asarray(values)[: len(names)] for values in (padded.embeddings, padded.is_base))
  return VocabularyFile(rows, tuple(names), is_base, trained_on.teacher, f'the text tower of {folder}')


def metrics_text(metrics: dict[str, Any]) -> str:
  """Returns lines for the console from the result of `evaluate`: AP in per cent, and the mean cosines."""
  lines = [summary.table(metrics)]
  if 'with_objectness' in metrics:
    lines += ['the same times objectness', summary.table(metrics['with_objectness'])]
  for head in defaults.HEAD_FOLDERS[1:]:
    if head in metrics:
      lines += [f'its {head.replace("_", " ")} alone', summary.table(metrics[head])]
  if cosine := metrics.get('teacher_cosine'):
    means = ', '.join(f'{group} {value:.3f}' for group, value in cosine.items() if isinstance(value, float))
    lines.append(f'mean cosine to the teacher: {means}')
  return '\n'.join(lines)
