"""Splits the forward pass where the words come in, so that a picture can be asked for other words without its network.

`look` is backbone, pyramid, proposals and the region heads: what costs most, and no word changes. `find` is the cosine
with the classes, suppression, and the masks of what is found.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import numpy as np

from vild_jax import detector
from vild_jax.config import Model
from vild_jax.data import transforms
from vild_jax.runtime import compiler
from vild_jax.structs import Detections, FirstStage, Proposals, SecondStage, Vocabulary

Array = jax.Array

_FEWEST_MASKS = 16


@flax.struct.dataclass
class Regions:
  """Holds what the words are compared with, of one picture, or with an axis B of several.

  Attributes:
    image_size: float32 [2], (height, width) of the picture inside the square.
    proposals: R boxes.
    second: embeddings of both heads and box deltas, without logits.
    features: the pyramid {level: [H_l, W_l, C]}, from which masks are computed; empty for a model without masks.
  """

  image_size: Array
  proposals: Proposals
  second: SecondStage
  features: dict[int, Array]


@dataclass(frozen=True, eq=False)
class Prepared:
  """Holds a picture as the network takes it: float32 [S, S, 3] in `square`, and its own `size`, (height, width)."""

  square: transforms.ResizedImage
  size: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Looked:
  """Holds what the network made of a picture, on the device; returned by `Detector.look`, and taken by `Detector.find`.

  Attributes:
    regions: what the words are compared with.
    scale: float32 [2] along (y, x), from pixels of the picture to those of the network.
    size: (height, width) of the picture.
  """

  regions: Regions
  scale: np.ndarray
  size: tuple[int, int]

  @property
  def nbytes(self) -> int:
    """Returns the bytes that it takes on the device: 90 MB for 1,024 pixels, mostly of the pyramid."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(self.regions))


def prepare(picture: np.ndarray, side: int) -> Prepared:
  """Returns a picture, uint8 [H, W, 3], in the square of the network."""
  return Prepared(transforms.resize_and_pad(picture, side), picture.shape[:2])


def look(model: Model, variables: Any, prepared: Sequence[Prepared]) -> list[Looked]:
  """Runs the network on pictures, all of them together, and waits for it.

  A program is compiled for each power of two: others are filled up with a picture of zeros.
  """
  rows = compiler.bucket(len(prepared))
  images = np.zeros((rows, *prepared[0].square.image.shape), np.float32)
  sizes = np.zeros((rows, 2), np.float32)
  for row, one in enumerate(prepared):
    images[row], sizes[row] = one.square.image, one.square.size
  regions = jax.block_until_ready(_looking()(model, variables, images, sizes))
  return [Looked(each, one.square.scale, one.size) for each, one in zip(regions, prepared, strict=False)]


def find(
  model: Model,
  variables: Any,
  regions: Regions,
  vocabulary: Vocabulary,
  min_score: Any,
  *,
  masks: bool,
  most: int | None = None,
) -> Detections:
  """Returns the best `most` detections of one picture (None: all), on the host.

  Masks cost more than all else here, so they are computed for what is found alone; programs are compiled for 16, 32,
  64, ... of them.
  """
  found = jax.device_get(_finding()(model, variables, regions, vocabulary, min_score))
  count = len(np.flatnonzero(found.valid)[:most])  # the valid ones are the first
  if not (masks and model.masks):
    return jax.tree.map(lambda x: x[:count], found)
  rows = compiler.bucket(count, _FEWEST_MASKS)
  found = jax.tree.map(lambda x: x[:rows], found)
  valid = np.arange(len(found.valid)) < count
  logits = jax.device_get(_masking()(model, variables, regions.features, found.boxes, valid))
  return found.replace(valid=valid, masks=logits)


@functools.cache
def _looking() -> Callable:
  return compiler.jit(_look, static_argnums=0)


@functools.cache
def _finding() -> Callable:
  return compiler.jit(_find, static_argnums=0)


@functools.cache
def _masking() -> Callable:
  return compiler.jit(_mask, static_argnums=0)


def _look(model: Model, variables: Any, images: Array, sizes: Array) -> list[Regions]:
  first, _ = detector.first_stage(model, variables, images, train=False)
  found = first.proposals
  second, _ = detector.second_stage(model, variables, first.features, found.boxes, found.valid, None, train=False)
  together = Regions(sizes, found, second, first.features if model.masks else {})
  # Each picture gets arrays of its own, so that one can be given back without the others.
  return [jax.tree.map(lambda x, row=row: x[row], together) for row in range(len(images))]


def _find(model: Model, variables: Any, regions: Regions, vocabulary: Vocabulary, min_score: Array) -> Detections:
  of = jax.tree.map(lambda x: x[None], regions)
  first = FirstStage({}, {}, {}, of.proposals)
  second = detector.classify(model, variables, of.second, vocabulary)
  scores = detector.class_scores(model, second, vocabulary)
  boxes_alone = dataclasses.replace(model, masks=False)
  found = detector.detect(boxes_alone, variables, first, second.deltas, scores, of.image_size, jax.vmap, min_score)
  found = found.replace(attributes=detector.attribute_scores(model, second, vocabulary, found.regions))
  return jax.tree.map(lambda x: x[0], found)


def _mask(model: Model, variables: Any, features: dict[int, Array], boxes: Array, valid: Array) -> Array:
  features, boxes, valid = jax.tree.map(lambda x: x[None], (features, boxes, valid))
  return detector.masks(model, variables, features, boxes, valid, train=False)[0][0]
