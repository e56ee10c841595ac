"""Defines the pytrees that the packages exchange. All boxes are yxyx float32, pixels of the padded network input.

Shapes below are those of one image; a batched value has a leading batch axis B. Every padded axis has a `valid` mask.
"""

from __future__ import annotations

from typing import Any

import flax.struct
import jax

Array = jax.Array


@flax.struct.dataclass
class RegionTargets:
  """Holds offline proposals and the teacher's embedding of each, in the order of a batch (always batched).

  Attributes:
    boxes: float32 [B, M, 4].
    embeddings: float32 [B, M, D], of any length; the loss normalises them.
    valid: bool [B, M], False on padding.
  """

  boxes: Array
  embeddings: Array
  valid: Array


@flax.struct.dataclass
class Batch:
  """Holds what the data pipeline delivers for training (always batched).

  Attributes:
    image: float32 [B, S, S, 3], RGB, normalised by ImageNet statistics, zero-padded at bottom and right.
    image_size: float32 [B, 2], (height, width) of the picture inside the square.
    boxes: float32 [B, N, 4] ground truth of base categories, clipped to the square.
    labels: int32 [B, N], rows of the vocabulary.
    masks: uint8 [B, N, 112, 112], 255 times the soft mask inside its box, or float [B, N, 112, 112] in [0, 1]; None if
      no masks are learnt (`model.masks`).
    valid: bool [B, N], False on padding.
    regions: what to distil from the teacher, M regions for each image; None without distillation.
    has_mask: bool [B, N], which objects have a mask to learn; None if all have.
  """

  image: Array
  image_size: Array
  boxes: Array
  labels: Array
  masks: Array | None
  valid: Array
  regions: RegionTargets | None = None
  has_mask: Array | None = None


@flax.struct.dataclass
class Vocabulary:
  """Holds the classes to detect, as data: an argument of every forward pass.

  Attributes:
    embeddings: float32 [C, D], one row for each class; the forward pass normalises them.
    is_base: bool [C], True for the classes of the training vocabulary's base set.
    valid: bool [C], False on padding rows, which are never detected and are left out of every softmax.
    labelled: bool [C], in training: False for classes whose objects have no labels in the data; None: all have.
  """

  embeddings: Array
  is_base: Array
  valid: Array
  labelled: Array | None = None


@flax.struct.dataclass
class Proposals:
  """Holds the class-agnostic proposals: boxes [R, 4], scores [R] in (0, 1), valid [R]."""

  boxes: Array
  scores: Array
  valid: Array


@flax.struct.dataclass
class Detections:
  """Holds final detections, best first, padded to the configured maximum K.

  Attributes:
    boxes: float32 [K, 4], clipped to the picture inside the square.
    labels: int32 [K], rows of the vocabulary.
    scores: float32 [K] in [0, 1].
    masks: float32 [K, 28, 28], mask logits inside each box; None if they are not computed, or were not learnt.
    valid: bool [K].
  """

  boxes: Array
  labels: Array
  scores: Array
  masks: Array | None
  valid: Array


@flax.struct.dataclass
class TrainState:
  """Holds all that training needs to continue: step, model, optimiser and the root key of all random draws."""

  step: Array
  params: Any
  batch_stats: Any
  opt_state: Any
  key: Array
