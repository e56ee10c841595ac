"""Moves regions with their training picture: offline proposals and the teacher's embeddings of them, to distil.

A region store has them in pixels of the original picture. Here they are mirrored, scaled and cut as the training
picture was, and those that are still visible are candidates to distil (docs/departures.md, 1 and 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vild_jax.config import Distillation
from vild_jax.data import transforms
from vild_jax.data.regions.records import Regions
from vild_jax.data.schema import DataError

Arrays = dict[str, np.ndarray]
_MIN_SIDE = 2.0  # pixels of the square: a smaller part of a region shows too little


class RegionSource(Protocol):
  """Gives regions by image id and can be pickled for the workers: `store.RegionStore`, or a dictionary."""

  def __getitem__(self, image_id: int) -> Regions: ...


class _Store(Protocol):
  path: Path
  kind: str
  dataset: str
  embedding_dim: int

  def __len__(self) -> int: ...


class _Dataset(Protocol):
  folder: Path
  identity: str

  def __len__(self) -> int: ...


def check_store(store: _Store, dataset: _Dataset, embedding_dim: int) -> None:
  """Raises DataError unless a region store holds embeddings of the given dimension for all pictures of a data set.

  Pictures are not looked up one by one, which would read the whole data set: identity and number of pictures must
  agree. A picture that is missing all the same raises an error when it is read.
  """
  if store.kind != 'embeddings':
    raise DataError(
      f'{store.path} is a store of {store.kind} without embeddings; expected one of `vild-jax embed-regions`'
    )
  if store.dataset != dataset.identity:
    raise DataError(
      f'{store.path} is of a data set with identity {store.dataset[:12]}, and {dataset.folder} has '
      f'{dataset.identity[:12]}; expected the regions of that one'
    )
  if len(store) != len(dataset):
    raise DataError(
      f'{store.path} holds the regions of {len(store)} pictures; expected {len(dataset)}, all of {dataset.folder}'
    )
  if store.embedding_dim != embedding_dim:
    raise DataError(
      f'{store.path} has embeddings of dimension {store.embedding_dim}; expected {embedding_dim}, '
      'model.region_head.embedding_dim'
    )


@dataclass(frozen=True)
class RegionDraw:
  """Holds the regions of one picture, the settings, and the random stream that chooses among the regions."""

  found: Regions
  settings: Distillation
  rng: np.random.Generator


def draw_of(store: RegionSource, settings: Distillation, image_id: int, seed: int, index: int) -> RegionDraw:
  """Returns the draw for example `index` of the endless stream, which shows picture `image_id`.

  Its random stream is keyed by (seed, index), like that of the augmentation, but is separate: nothing else that is
  drawn changes when regions are switched on. Raises DataError if the store does not have the picture.
  """
  rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 1)))
  return RegionDraw(store[image_id], settings, rng)


def region_targets(
  draw: RegionDraw, width: float, flip: bool, resized: transforms.ResizedImage, dtype: type = np.float32
) -> Arrays:
  """Returns the regions to distil of one training picture, placed in the square.

  A region is valid if at least the fraction `min_visible` of its area is inside the crop, and both sides of that part
  have at least 2 pixels; its box is then the clipped one. If more than `regions_per_image` are valid, that many are
  drawn at random, all equally likely. They keep the order of the store; padding follows.

  Args:
    draw: from `draw_of`.
    width: of the original picture, in pixels.
    flip: whether the picture was mirrored before it was resized.
    resized: the training picture and where the original went.
    dtype: of the embeddings; a store has float16.

  Returns:
    boxes float32 [M, 4], embeddings [M, D], valid bool [M]; M = `regions_per_image`, 0 and False on padding.
  """
  found, settings = draw.found, draw.settings
  boxes = transforms.flip_boxes(found.boxes, width) if flip else found.boxes
  whole, clipped = transforms.move_boxes(boxes, resized), transforms.to_square(boxes, resized)
  sides = clipped[:, 2:] - clipped[:, :2]
  visible = sides.prod(1) >= settings.min_visible * (whole[:, 2:] - whole[:, :2]).prod(1)
  # One number for each region, visible or not: it does not depend on what the crop does to other regions.
  ranks = draw.rng.random(len(boxes))
  valid = np.flatnonzero(visible & (sides >= _MIN_SIDE).all(1))
  chosen = np.sort(valid[np.argsort(ranks[valid], kind='stable')[: settings.regions_per_image]])

  slots, count = settings.regions_per_image, len(chosen)
  embeddings = np.asarray(found.embeddings)[chosen]
  targets = {
    'boxes': np.zeros((slots, 4), np.float32),
    'embeddings': np.zeros((slots, embeddings.shape[1]), dtype),
    'valid': np.arange(slots) < count,
  }
  targets['boxes'][:count] = clipped[chosen]
  targets['embeddings'][:count] = embeddings
  return targets
