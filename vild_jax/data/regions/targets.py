"""Regions join their picture: what the teacher says about offline proposals, moved as the training picture was moved.

Proposals and embeddings lie in a region store in pixels of the original picture (`data.regions`). Here they are
mirrored, scaled and cut with it, and those that are still to be seen are candidates to distil (METHOD.md, section 4).
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
_MIN_SIDE = 2.0  # pixels of the square: less of a region than this says nothing


class RegionSource(Protocol):
  """Regions by image id, picklable for the workers: `regions.RegionStore`, or a dictionary."""

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
  """Raises DataError unless a region store holds embeddings of that dimension for all pictures of that data set.

  The pictures are not looked up one by one, which would read the whole data set: the identity and the number of both
  agree, and one that the store lacks all the same is named when its turn comes.
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
  """The regions of one picture, how many to take and how, and the random stream that chooses among them."""

  found: Regions
  settings: Distillation
  rng: np.random.Generator


def draw_of(store: RegionSource, settings: Distillation, image_id: int, seed: int, index: int) -> RegionDraw:
  """The draw for example `index` of the endless stream, which is of picture `image_id`.

  Its random stream is keyed by (seed, index) as that of the augmentation, and is another one: what else is drawn does
  not change when regions are switched on. Raises DataError for a picture that the store lacks.
  """
  rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 1)))
  return RegionDraw(store[image_id], settings, rng)


def region_targets(draw: RegionDraw, width: float, flip: bool, resized: transforms.ResizedImage) -> Arrays:
  """The regions to distil of one training picture, placed in the square.

  A region is valid if the crop leaves the fraction `min_visible` of its area or more, and both its sides 2 pixels or
  more; it then goes by its clipped box. Of more than `regions_per_image` valid ones as many are drawn at random, each
  as likely as any other; they stay in the order of the store, padding after them.

  Args:
    draw: of `draw_of`.
    width: of the original picture, in pixels.
    flip: whether the picture was mirrored before it was resized.
    resized: the training picture and where the original went.

  Returns:
    boxes float32 [M, 4], embeddings float32 [M, D], valid bool [M]; M = `regions_per_image`, 0 and False on padding.
  """
  found, settings = draw.found, draw.settings
  boxes = transforms.flip_boxes(found.boxes, width) if flip else found.boxes
  whole, clipped = transforms.move_boxes(boxes, resized), transforms.to_square(boxes, resized)
  sides = clipped[:, 2:] - clipped[:, :2]
  visible = sides.prod(1) >= settings.min_visible * (whole[:, 2:] - whole[:, :2]).prod(1)
  # A number for each region, seen or not: what one region gets does not hang on what the crop does to others.
  ranks = draw.rng.random(len(boxes))
  valid = np.flatnonzero(visible & (sides >= _MIN_SIDE).all(1))
  chosen = np.sort(valid[np.argsort(ranks[valid], kind='stable')[: settings.regions_per_image]])

  slots, count = settings.regions_per_image, len(chosen)
  embeddings = np.asarray(found.embeddings)[chosen].astype(np.float32)
  targets = {
    'boxes': np.zeros((slots, 4), np.float32),
    'embeddings': np.zeros((slots, embeddings.shape[1]), np.float32),
    'valid': np.arange(slots) < count,
  }
  targets['boxes'][:count] = clipped[chosen]
  targets['embeddings'][:count] = embeddings
  return targets
