"""Begins an evaluation, or goes on with one that was killed, in one or several processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vild_jax.config import Config
from vild_jax.data.schema import DataError
from vild_jax.eval.shards import Entry, Shards
from vild_jax.vocabulary import VocabularyFile

DETECTOR = ('config', 'weights', 'training vocabulary')  # what of a description tells detectors apart


def detect_missing(
  shards: Shards,
  job: Mapping[str, Any],
  detect: Callable[[np.ndarray], Iterator[Entry]],
  begin: Callable[[], None] = lambda: None,
) -> None:
  """Writes the shards that are not there yet; all processes call this.

  Args:
    shards: those of the evaluation.
    job: what decides the detections (`description`); only that of the first process counts.
    detect: takes the places of pictures in the data set and yields the results of those that are this process's.
    begin: called by the first process before anything is written; it may raise as this does.

  Raises DataError in every process if the shards are of another job, OSError if the folder cannot be written.
  """
  process, problem = jax.process_index(), None
  missing = np.zeros(shards.count, bool)
  if process == 0:
    try:
      begin()
      shards.open(job)
      missing = ~shards.finished()
    except (DataError, OSError) as error:
      problem = error
  if jax.process_count() > 1:
    # All processes must detect on the same batches, so the first one decides which are left.
    told = multihost_utils.broadcast_one_to_all(np.array([problem is None, *missing], np.int32)).astype(bool)
    missing = np.asarray(told[1:])
    if not told[0] and problem is None:
      problem = DataError(f'process 0 cannot begin the job in {shards.folder}; expected its output to say why')
  if problem:
    raise problem
  if process == 0 and not missing.all():
    print(f'going on with {(~missing).sum()} of {shards.count} shards detected already', file=sys.stderr)
  if missing.any():
    shards.write(process, missing, detect(shards.pictures(missing)))


def description(
  config: Config,
  variables: Any,
  classes: VocabularyFile,
  trained_on: VocabularyFile,
  image_ids: Sequence[int],
  **more: Any,
) -> dict[str, Any]:
  """Returns what decides the detections, as hashes, for the `job.json` of shards; `more` stands there too."""
  return of_detector(config, variables, trained_on) | {
    'batch size': config.evaluation.batch_size,
    'vocabulary': _of_vocabulary(classes),
    'pictures': hashlib.sha256(repr(list(map(int, image_ids))).encode()).hexdigest(),
    **more,
  }


def of_detector(config: Config, variables: Any, trained_on: VocabularyFile) -> dict[str, str]:
  """Returns the part of `description` that tells detectors apart, `DETECTOR`, which `metrics.json` keeps."""
  # Not of a whole config: a setting that a later version adds elsewhere would make another detector of each.
  decides = {'model': dataclasses.asdict(config.model), 'image_size': config.data.image_size}
  weights = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    weights.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(jax.device_get(leaf)).tobytes())
  return {
    'config': hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(),
    'weights': weights.hexdigest(),
    'training vocabulary': _of_vocabulary(trained_on),
  }


def _of_vocabulary(words: VocabularyFile) -> str:
  content = repr((words.names, words.is_base.tolist())).encode() + np.ascontiguousarray(words.embeddings).tobytes()
  return hashlib.sha256(content + (b'' if words.background is None else words.background.tobytes())).hexdigest()
