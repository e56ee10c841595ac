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
    embeddings: float32 or float16 [B, M, D], of any length; the loss normalises them.
    valid: bool [B, M], False on padding.
  """

  boxes: Array
  embeddings: Array
  valid: Array


@flax.struct.dataclass
class MaskBits:
  """Holds soft masks as the pixels between which they were sampled (`data.transforms.mask_bits`; always batched).

  In host memory there may be fewer slots than N: those beyond them are not in use, and `train.sharding` adds them.

  Attributes:
    bits: uint8 [B, N, 28, 224], 8 rows a byte.
    weights: float32 [B, N, 2, 112], along (y, x).
  """

  bits: Array
  weights: Array


@flax.struct.dataclass
class Batch:
  """Holds what the data pipeline delivers for training (always batched).

  Attributes:
    image: float32 [B, S, S, 3], RGB, normalised by ImageNet statistics, zero-padded at bottom and right; or uint8, of
      which `objective.network_input` makes that.
    image_size: float32 [B, 2], (height, width) of the picture inside the square.
    boxes: float32 [B, N, 4] ground truth of base categories, clipped to the square.
    labels: int32 [B, N], rows of the vocabulary.
    masks: uint8 [B, N, 112, 112], 255 times the soft mask inside its box, or float [B, N, 112, 112] in [0, 1], or its
      bits; None if no masks are learnt (`model.masks`).
    valid: bool [B, N], False on padding.
    regions: what to distil from the teacher, M regions for each image; None without distillation.
    has_mask: bool [B, N], which objects have a mask to learn; None if all have.
  """

  image: Array
  image_size: Array
  boxes: Array
  labels: Array
  masks: Array | MaskBits | None
  valid: Array
  regions: RegionTargets | None = None
  has_mask: Array | None = None


@flax.struct.dataclass
class Attributes:
  """Holds attributes that objects of any class may have, such as colours, of which one is to be chosen.

  Attributes:
    embeddings: float32 [A, D], one row for each attribute; the forward pass normalises them.
    valid: bool [A], False on padding rows, which have probability 0.
  """

  embeddings: Array
  valid: Array


@flax.struct.dataclass
class Vocabulary:
  """Holds the classes to detect, as data: an argument of every forward pass.

  Attributes:
    embeddings: float32 [C, D], one row for each class; the forward pass normalises them.
    is_base: bool [C], True for the classes of the training vocabulary's base set.
    valid: bool [C], False on padding rows, which are never detected and are left out of every softmax.
    labelled: bool [C], in training: False for classes whose objects have no labels in the data; None: all have.
    background: float32 [D], a fixed row in place of the learnt background, in training too; None: the learnt one.
    attributes: what else to ask of each detection; None: nothing.
  """

  embeddings: Array
  is_base: Array
  valid: Array
  labelled: Array | None = None
  background: Array | None = None
  attributes: Attributes | None = None


@flax.struct.dataclass
class Proposals:
  """Holds the class-agnostic proposals: boxes [R, 4], scores [R] in (0, 1), valid [R]."""

  boxes: Array
  scores: Array
  valid: Array


@flax.struct.dataclass
class FirstStage:
  """Holds the outputs before any region is chosen; dictionaries are keyed by level, with N_l anchors each.

  Attributes:
    features: [B, H_l, W_l, C].
    objectness: logits [B, N_l].
    deltas: [B, N_l, 4].
    proposals: boxes [B, R, 4], scores and valid [B, R]; no gradient flows through them.
  """

  features: dict[int, Array]
  objectness: dict[int, Array]
  deltas: dict[int, Array]
  proposals: Proposals


@flax.struct.dataclass
class SecondStage:
  """Holds the outputs for R boxes of each image.

  Attributes:
    embeddings: [B, R, D], not normalised.
    logits: [B, R, C + 1], cosine over temperature; the background is column C. None without a vocabulary.
    deltas: [B, R, 4], to be decoded with `detector.BOX_WEIGHTS`.
    image_logits: [B, R, C] of the image head, without background; None in training, and without an image head.
    image_embeddings: [B, R, D] of the image head, not normalised; None as `image_logits`.
    student: [B, M, D], embeddings of the regions to distil, not normalised; None without distillation.
  """

  embeddings: Array
  logits: Array | None
  deltas: Array
  image_logits: Array | None = None
  image_embeddings: Array | None = None
  student: Array | None = None


@flax.struct.dataclass
class Detections:
  """Holds final detections, best first, padded to the configured maximum K.

  Attributes:
    boxes: float32 [K, 4], clipped to the picture inside the square.
    labels: int32 [K], rows of the vocabulary.
    scores: float32 [K] in [0, 1].
    masks: float32 [K, 28, 28], mask logits inside each box; None if they are not computed, or were not learnt.
    valid: bool [K].
    regions: int32 [K], the proposal that each comes from, among those of the picture.
    attributes: float32 [K, A], probability of each attribute; None if the vocabulary has none.
  """

  boxes: Array
  labels: Array
  scores: Array
  masks: Array | None
  valid: Array
  regions: Array | None = None
  attributes: Array | None = None


@flax.struct.dataclass
class TrainState:
  """Holds all that training needs to continue: step, model, optimiser and the root key of all random draws."""

  step: Array
  params: Any
  batch_stats: Any
  opt_state: Any
  key: Array
