"""Measures how well the student's region embeddings agree with the teacher's, on held-out pictures."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vild_jax import detector
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config, defaults
from vild_jax.data import batch as batches
from vild_jax.data import class_lists, sources, transforms
from vild_jax.data.regions import targets as region_targets
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.schema import Example
from vild_jax.runtime import compiler, progress
from vild_jax.train import sharding
from vild_jax.vocabulary import VocabularyFile

BASE, NOVEL, OTHER, ALL = GROUPS = ('base', 'novel', 'other', 'all')
_MIN_IOU = 0.5


def distillation_cosine(
  config: Config,
  variables: Any,
  trained_on: VocabularyFile,
  dataset: sources.PreparedDataset,
  store: RegionStore,
  *,
  regions_per_image: int = defaults.MAX_REGIONS,
  mesh: Mesh,
) -> dict[str, Any]:
  """Returns the mean cosine between the student's and the teacher's embeddings of the same regions.

  The student is the head that learns from the teacher: the image head if the model has one. A region belongs to the
  ground-truth object that it overlaps most. If their IoU is at least 0.5, the region is base or novel like the category
  of that object; otherwise it is "other". Crowds do not count as ground truth.

  Args:
    config: the experiment.
    variables: {'params', 'batch_stats'}, replicated on `mesh`.
    trained_on: the training vocabulary, which decides what is base and what is novel.
    dataset: a prepared split of held-out pictures.
    store: the embeddings of its regions, as `vild-jax embed-regions` writes them.
    regions_per_image: how many regions of each picture are compared, the best first.
    mesh: devices to run on.

  Returns:
    {'base', 'novel', 'other', 'all'}: the mean over the regions of the group in all pictures, None for an empty group;
    and under `regions` the number of regions in each group.

  Raises ValueError if the store holds no embeddings, or embeddings of another data set, teacher or dimension.
  """
  region_targets.check_store(store, dataset, config.model.embedding_dim)
  vocabulary_lib.check_regions(store.path, store.teacher, trained_on)
  size = config.evaluation.batch_size
  sharding.check_batch_size(mesh, size, 'evaluation.batch_size')
  batch, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  embed = compiler.jit(
    partial(detector.student_embeddings, config.model, per_image=sharding.per_image(mesh)),
    in_shardings=(replicated, sharding.image_sharding(mesh), batch, batch),
    out_shardings=batch,
  )
  is_base = dict(
    zip(
      (c.id for c in dataset.categories),
      vocabulary_lib.is_base(
        [class_lists.known_as(c.name, trained_on.names) or c.name for c in dataset.categories], trained_on
      ),
      strict=True,
    )
  )
  cosines: dict[str, list[float]] = {group: [] for group in GROUPS}
  number = 0
  with progress.bar(len(dataset), 'compare embeddings', unit='image') as bar:
    for arrays in batches.eval_batches(dataset, config, batch_size=size):
      real = np.flatnonzero(arrays['real'])
      boxes = np.zeros((size, regions_per_image, 4), np.float32)
      teacher = np.zeros((size, regions_per_image, config.model.embedding_dim), np.float64)
      for i in real:
        regions = store[int(arrays['image_id'][i])]
        count = min(len(regions.boxes), regions_per_image)
        boxes[i, :count], teacher[i, :count] = regions.boxes[:count], regions.embeddings[:count]
      square = np.clip(boxes * np.tile(arrays['scale'], 2)[:, None], 0, config.data.image_size - 1).astype(np.float32)
      valid = transforms.is_visible(square.reshape(-1, 4)).reshape(square.shape[:2])
      put = sharding.put_batch(mesh, {'image': arrays['image'], 'boxes': square, 'valid': valid})
      student = jax.device_get(embed(variables, put['image'], put['boxes'], put['valid']))
      cosine = np.sum(_unit(student.astype(np.float64)) * _unit(teacher), axis=-1)
      for i in real:
        groups = _groups(boxes[i, valid[i]], dataset[number], is_base)
        for group, value in zip(groups, cosine[i, valid[i]].tolist(), strict=True):
          cosines[group].append(value)
          cosines[ALL].append(value)
        number += 1
        bar.update()
  means = {group: float(np.mean(values)) if values else None for group, values in cosines.items()}
  return means | {'regions': {group: len(values) for group, values in cosines.items()}}


def _groups(boxes: np.ndarray, example: Example, is_base: dict[int, bool]) -> list[str]:
  """Returns the group of each region [N, 4] (yxyx, pixels of the picture): base, novel or other."""
  objects = example.objects
  truth, categories = objects.boxes[~objects.is_crowd], objects.category_ids[~objects.is_crowd]
  if not len(truth):
    return [OTHER] * len(boxes)
  overlap = _iou(boxes.astype(np.float64), truth.astype(np.float64))
  best = overlap.argmax(axis=1)
  return [
    (BASE if is_base[int(categories[j])] else NOVEL) if overlap[i, j] >= _MIN_IOU else OTHER for i, j in enumerate(best)
  ]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
  both = np.prod(np.maximum(sides, 0), axis=-1)
  areas = [np.prod(np.maximum(x[:, 2:] - x[:, :2], 0), axis=-1) for x in (a, b)]
  union = areas[0][:, None] + areas[1][None] - both
  return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def _unit(rows: np.ndarray) -> np.ndarray:
  return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-8)
