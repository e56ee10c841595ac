"""Computes proposals, region embeddings and detections: one forward pass for training, evaluation and export.

It has the two stages of Mask R-CNN (docs/method.md, 2):

  first_stage   image -> feature pyramid -> objectness and deltas of every anchor -> proposals
  second_stage  boxes -> RoI features -> region embedding -> cosine with the vocabulary -> class logits, box deltas
                (ViLD-ensemble: a second head, trained by the teacher alone, gives its own logits)
  masks         boxes -> RoI features -> one class-agnostic mask for each box

`predict` runs both stages and the masks on one picture. Batched functions take `per_image`, which maps a function of
one image over the batch: `jax.vmap`, or `train.sharding.per_image(mesh)` for a sharded batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vild_jax.config import Config, Model
from vild_jax.core import anchors, boxes, nms, openvocab, precision, proposals, roi_align
from vild_jax.nn.fpn import FPN
from vild_jax.nn.heads import MaskHead, RegionHead, RPNHead
from vild_jax.nn.layers import BACKGROUND_INIT
from vild_jax.nn.resnet import ResNet
from vild_jax.structs import Detections, FirstStage, Proposals, RegionTargets, SecondStage, Vocabulary

Array = jax.Array
PerImage = Callable[[Callable], Callable]

# Weights of the second-stage deltas (dy, dx, dh, dw): encoding multiplies by them, decoding divides by them.
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class ViLD(nn.Module):
  """Holds all parameters of the detector; each method applies one of its networks."""

  model: Model

  def setup(self):
    model = self.model
    # None computes in the type of the inputs and parameters: float32, or float64 where a test asks for it.
    dtype = jnp.bfloat16 if model.dtype == 'bfloat16' else None
    common = {'dtype': dtype, 'momentum': model.batch_norm_momentum}
    head, rpn = model.region_head, model.rpn
    self.backbone = ResNet(model.backbone.depth, model.backbone.width, model.backbone.remat, **common)
    self.fpn = FPN(model.pyramid.min_level, model.pyramid.max_level, model.pyramid.channels, **common)
    per_location = len(model.anchors.aspect_ratios) * model.anchors.num_scales
    self.rpn_head = RPNHead(rpn.num_convs, rpn.channels, per_location, **common)
    region_head = partial(
      RegionHead,
      num_convs=head.num_convs,
      conv_channels=head.conv_channels,
      num_fcs=head.num_fcs,
      fc_channels=head.fc_channels,
      embedding_dim=model.embedding_dim,
      **common,
    )
    self.region_head = region_head()
    if model.image_head:
      self.image_head = region_head(predict_boxes=False)
    self.mask_head = MaskHead(model.mask_head.num_convs, model.mask_head.channels, **common)
    self.background = self.param('background', BACKGROUND_INIT, (model.embedding_dim,))

  def features(self, image: Array, *, train: bool) -> dict[int, Array]:
    """Applies backbone and pyramid: [B, S, S, 3] -> {level: [B, H_l, W_l, C]}."""
    return self.fpn(self.backbone(image, train=train), train=train)

  def propose(self, features: dict[int, Array], *, train: bool) -> tuple[dict[int, Array], dict[int, Array]]:
    """Applies the proposal network -> objectness {level: [B, N_l]}, deltas {level: [B, N_l, 4]}."""
    return self.rpn_head(features, train=train)

  def regions(self, roi_features: Array, valid: Array, *, train: bool) -> tuple[Array, Array]:
    """Applies the region head: [N, s, s, C], validity [N] -> embeddings [N, D], deltas [N, 4]."""
    return self.region_head(roi_features, valid, train=train)

  def image_regions(self, roi_features: Array, valid: Array, *, train: bool) -> Array:
    """Applies the image head of a ViLD-ensemble: [N, s, s, C], validity [N] -> embeddings [N, D]."""
    return self.image_head(roi_features, valid, train=train)[0]

  def masks(self, roi_features: Array, valid: Array, *, train: bool) -> Array:
    """Applies the mask head: [N, s, s, C], validity [N] -> mask logits [N, 2s, 2s]."""
    return self.mask_head(roi_features, valid, train=train)

  def everything(self, image: Array) -> None:
    """Uses every parameter once, for `init`; the parameters do not depend on the size of the image."""
    features = self.features(image, train=False)
    self.propose(features, train=False)
    one, channels = jnp.ones((1,), bool), self.model.pyramid.channels
    heads = [(self.model.region_head.roi_size, self.regions), (self.model.mask_head.roi_size, self.masks)]
    if self.model.image_head:
      heads.append((self.model.region_head.roi_size, self.image_regions))
    for size, network in heads:
      network(jnp.zeros((1, size, size, channels), image.dtype), one, train=False)


def init(config: Config, key: Array) -> Any:
  """Returns new variables {'params', 'batch_stats'} of the configured model."""
  side = 2 ** (config.model.pyramid.max_level + 1)
  return ViLD(config.model).init(key, jnp.zeros((1, side, side, 3)), method=ViLD.everything)


def model_anchors(model: Model, image_size: tuple[int, int]) -> dict[int, Array]:
  """Returns the anchors {level: [N_l, 4]} of a padded input of `image_size` = (height, width)."""
  return anchors.pyramid_anchors(
    image_size,
    min_level=model.pyramid.min_level,
    max_level=model.pyramid.max_level,
    aspect_ratios=model.anchors.aspect_ratios,
    num_scales=model.anchors.num_scales,
    anchor_size=model.anchors.size,
  )


def first_stage(
  model: Model, variables: Any, image: Array, *, train: bool, per_image: PerImage = jax.vmap
) -> tuple[FirstStage, Any]:
  """Turns images [B, S, S, 3] into proposals and the outputs that they come from.

  Returns:
    (outputs, variables); with `train` the variables have updated batch statistics.
  """
  features, variables = _apply(model, variables, ViLD.features, image, train=train)
  (objectness, deltas), variables = _apply(model, variables, ViLD.propose, features, train=train)
  rpn = model.rpn
  propose = partial(
    proposals.propose,
    anchors=model_anchors(model, image.shape[1:3]),
    image_size=image.shape[1:3],
    pre_nms_top_k=rpn.train_pre_nms_top_k if train else rpn.test_pre_nms_top_k,
    max_per_level=rpn.max_per_level,
    max_proposals=rpn.max_proposals,
    nms_threshold=rpn.nms_threshold,
  )
  found = per_image(lambda logits, deltas: propose(logits, deltas))(*jax.lax.stop_gradient((objectness, deltas)))
  return FirstStage(features, objectness, deltas, found), variables


def second_stage(
  model: Model,
  variables: Any,
  features: dict[int, Array],
  rois: Array,
  valid: Array,
  vocabulary: Vocabulary | None,
  *,
  train: bool,
  distilled: RegionTargets | None = None,
  per_image: PerImage = jax.vmap,
) -> tuple[SecondStage, Any]:
  """Turns boxes [B, R, 4] with validity [B, R] into embeddings, class logits (None without vocabulary) and box deltas.

  Invalid rows are left out of batch statistics. The regions to distil (`distilled`) go through the head that learns
  from them. With an image head this is the image head, and in training it gets nothing else. Without one it is the
  region head, which gets them together with the R boxes, so that all of them share its batch statistics.

  Returns:
    (outputs, variables); with `train` the variables have updated batch statistics.
  """
  size, count, student = model.region_head.roi_size, rois.shape[1], None
  head = partial(_on_regions, model, train=train)
  if distilled is not None and not model.image_head:
    rois = jnp.concatenate([rois, distilled.boxes.astype(rois.dtype)], axis=1)
    valid = jnp.concatenate([valid, distilled.valid], axis=1)
  pool = partial(_pool, size=size, train=train, per_image=per_image)
  pooled = pool(features, rois)
  (embeddings, deltas), variables = head(variables, ViLD.regions, pooled, valid)
  if distilled is not None and model.image_head:
    student, variables = head(variables, ViLD.image_regions, pool(features, distilled.boxes), distilled.valid)
  elif distilled is not None:
    embeddings, student, deltas = embeddings[:, :count], embeddings[:, count:], deltas[:, :count]
  detects = model.image_head and not train
  image_embeddings = head(variables, ViLD.image_regions, pooled, valid)[0] if detects else None
  outputs = SecondStage(embeddings, None, deltas, None, image_embeddings, student)
  return outputs if vocabulary is None else classify(model, variables, outputs, vocabulary), variables


def classify(model: Model, variables: Any, second: SecondStage, vocabulary: Vocabulary) -> SecondStage:
  """Returns `second` with the class logits of a vocabulary, which its embeddings do not depend on."""
  logits = partial(class_logits, model, variables, vocabulary=vocabulary)
  of_image = None if second.image_embeddings is None else logits(second.image_embeddings)[..., :-1]
  return second.replace(logits=logits(second.embeddings), image_logits=of_image)


def features(model: Model, variables: Any, image: Array) -> dict[int, Array]:
  """Returns the pyramid {level: [B, H_l, W_l, C]} of images [B, S, S, 3], at inference."""
  return _apply(model, variables, ViLD.features, image, train=False)[0]


def student_embeddings(
  model: Model, variables: Any, image: Array, rois: Array, valid: Array, *, per_image: PerImage = jax.vmap
) -> Array:
  """Returns the embeddings [B, M, D], at inference, of the head that learns from the teacher, not normalised.

  `image` is [B, S, S, 3]; `rois` [B, M, 4] has validity `valid` [B, M].
  """
  maps = features(model, variables, image)
  network = ViLD.image_regions if model.image_head else ViLD.regions
  pooled = _pool(maps, rois, size=model.region_head.roi_size, train=False, per_image=per_image)
  outputs = _on_regions(model, variables, network, pooled, valid, train=False)[0]
  return outputs if model.image_head else outputs[0]


def class_logits(model: Model, variables: Any, embeddings: Array, vocabulary: Vocabulary) -> Array:
  """Returns cosine over temperature [B, R, C + 1]; column C is the background, the vocabulary's or else the learnt."""
  background = variables['params']['background'] if vocabulary.background is None else vocabulary.background
  logits = partial(openvocab.cosine_logits, temperature=model.temperature, valid=vocabulary.valid)
  return jax.vmap(lambda e: logits(e, vocabulary.embeddings, background))(embeddings)


def class_scores(model: Model, second: SecondStage, vocabulary: Vocabulary) -> Array:
  """Returns scores [B, R, C] of every class, of the text head, of ViLD-image's one head, or of the ensemble of both."""
  post = model.postprocess
  scores = partial(
    openvocab.class_scores,
    background=model.background,
    sharpness=model.sharpness,
    base_weight=post.base_weight,
    novel_weight=post.novel_weight,
  )
  return jax.vmap(scores, in_axes=(0, 0, None))(second.logits, second.image_logits, vocabulary.is_base)


def attribute_scores(model: Model, second: SecondStage, vocabulary: Vocabulary, regions: Array) -> Array | None:
  """Returns the probability [B, K, A] of each attribute in the regions [B, K]; None if the vocabulary has none.

  It comes from the head that learns from the teacher's image tower: the image head, where there is one.
  """
  if vocabulary.attributes is None:
    return None
  embeddings = second.embeddings if second.image_embeddings is None else second.image_embeddings
  chosen = jnp.take_along_axis(embeddings, regions[..., None], axis=1)
  scores = partial(openvocab.attribute_scores, temperature=model.temperature / model.sharpness)
  attributes = vocabulary.attributes
  return jax.vmap(lambda e: scores(e, attributes.embeddings, valid=attributes.valid))(chosen)


def refine(rois: Array, deltas: Array, image_size: Array) -> Array:
  """Decodes the deltas [R, 4] of one image's proposals [R, 4]; clips to the picture, `image_size` (height, width)."""
  # The reference clips to the padded square (docs/departures.md, 10). A region of the padding is left without area;
  # `choose` drops it, because suppression cannot: its IoU is 0, even with itself.
  return boxes.clip(boxes.decode(deltas, rois, weights=BOX_WEIGHTS), image_size)


def choose(model: Model, rois: Array, valid: Array, scores: Array) -> Detections:
  """Chooses the best detections of one image from boxes [R, 4], validity [R] and scores [R, C].

  Suppression is class-wise; a box that is invalid or without area gives no detection (docs/departures.md, 10 and 11).
  The result is without masks; `masks` computes them.
  """
  post = model.postprocess
  index, label, score, valid = nms.classwise_nms(
    rois,
    scores,
    iou_threshold=post.nms_threshold,
    score_threshold=post.score_threshold,
    max_outputs=post.max_detections,
    valid=valid & (boxes.area(rois) > 0),
    pre_nms_top_k=post.pre_nms_top_k,
  )
  kept = jnp.where(valid[:, None], rois[index], 0)
  return Detections(boxes=kept, labels=label, scores=score, valid=valid, masks=None, regions=index)


def masks(
  model: Model,
  variables: Any,
  features: dict[int, Array],
  rois: Array,
  valid: Array,
  *,
  train: bool,
  per_image: PerImage = jax.vmap,
) -> tuple[Array | None, Any]:
  """Returns (mask logits [B, K, 28, 28], variables as in `second_stage`) for boxes [B, K, 4], validity [B, K].

  The logits are None if the model has no masks (`model.masks=False`).
  """
  if not model.masks:
    return None, variables
  pooled = _pool(features, rois, size=model.mask_head.roi_size, train=train, per_image=per_image)
  return _on_regions(model, variables, ViLD.masks, pooled, valid, train=train)


def detect(
  model: Model,
  variables: Any,
  first: FirstStage,
  deltas: Array,
  scores: Array,
  image_size: Array,
  per_image: PerImage,
  min_score: Array | None = None,
) -> Detections:
  """Returns the detections, with mask logits, for the proposals of `first`, deltas [B, R, 4] and scores [B, R, C].

  Those below the `min_score` [C] of their class are left out before the best of all classes are chosen.
  """

  def of_one(found: Proposals, deltas: Array, scores: Array, image_size: Array) -> Detections:
    scores = openvocab.with_objectness(scores, found.scores, model.postprocess.objectness_weight)
    if min_score is not None:  # a score of 0 is below every `postprocess.score_threshold`
      scores = jnp.where(scores >= min_score[None, :], scores, 0.0)
    return choose(model, refine(found.boxes, deltas, image_size), found.valid, scores)

  chosen = per_image(of_one)(first.proposals, deltas, scores, image_size)
  logits, _ = masks(model, variables, first.features, chosen.boxes, chosen.valid, train=False, per_image=per_image)
  return chosen.replace(masks=logits)


def predict_batch(
  model: Model,
  variables: Any,
  image: Array,
  image_size: Array,
  vocabulary: Vocabulary,
  *,
  min_score: Array | None = None,
  per_image: PerImage = jax.vmap,
) -> tuple[Detections, dict[str, Any]]:
  """Returns (detections [B, K, ...], batched intermediates of `predict`) for images [B, S, S, 3], sizes [B, 2].

  `min_score` is that of `detect`.
  """
  first, _ = first_stage(model, variables, image, train=False, per_image=per_image)
  found = first.proposals
  second, _ = second_stage(
    model, variables, first.features, found.boxes, found.valid, vocabulary, train=False, per_image=per_image
  )
  scores = class_scores(model, second, vocabulary)
  detections = detect(model, variables, first, second.deltas, scores, image_size, per_image, min_score)
  detections = detections.replace(attributes=attribute_scores(model, second, vocabulary, detections.regions))
  return detections, {
    'features': first.features,
    'proposals': found,
    'text_logits': second.logits,
    'image_logits': second.image_logits,
    'box_deltas': second.deltas,
    'mask_logits': detections.masks,
  }


def predict(
  config: Config,
  variables: Any,
  image: Array,
  image_size: Array,
  vocabulary: Vocabulary,
  *,
  return_intermediates: bool = False,
) -> Detections | tuple[Detections, dict[str, Any]]:
  """Detects on one picture; a pure function that can be compiled with `jax.jit`.

  Args:
    config: the experiment's configuration; only `config.model` is used.
    variables: {'params', 'batch_stats'}.
    image: float32 [S, S, 3], normalised and padded.
    image_size: (height, width) in pixels of the rescaled picture inside the square.
    vocabulary: the classes to detect, C of them.
    return_intermediates: also returns `features`, `proposals`, `text_logits` [R, C + 1], `image_logits` [R, C] (None
      without an image head), `box_deltas` [R, 4], `mask_logits` [K, 28, 28] (or None).

  Returns:
    Detections in network pixels, K = config.model.postprocess.max_detections rows, best first.
  """
  size = jnp.asarray(image_size, jnp.float32)
  outputs = jax.tree.map(lambda x: x[0], predict_batch(config.model, variables, image[None], size[None], vocabulary))
  return outputs if return_intermediates else outputs[0]


def _pool(features: dict[int, Array], rois: Array, *, size: int, train: bool, per_image: PerImage) -> Array:
  """RoI features [B, R' >= R, size, size, C] of boxes [B, R, 4]; no gradient flows into the boxes."""
  filler = -rois.shape[1] % 8 if train else 0
  if 50 * filler <= rois.shape[1]:  # a TPU's tiles have 8 rows: with other numbers it copies all to merge B and R
    rois = jnp.pad(rois, ((0, 0), (0, filler), (0, 0)))
  # No choice by platform at inference, as exports cannot hold one, nor without shard_map, which the kernel needs.
  pool = partial(roi_align.multilevel_roi_align, output_size=size, by_platform=train and per_image is not jax.vmap)
  return per_image(lambda features, rois: pool(features, rois))(features, jax.lax.stop_gradient(rois))


def _on_regions(model: Model, variables: Any, network: Callable, pooled: Array, valid: Array, *, train: bool) -> tuple:
  """Runs a head on what `_pool` returns for R boxes of B images, validity [B, R]: [B, R, ...]. Filler never counts."""
  (batch, count), rows = valid.shape, pooled.shape[1]
  valid = jnp.pad(valid | ~jnp.any(valid), ((0, 0), (0, rows - count))) if rows > count else valid
  flat = pooled.reshape(batch * rows, *pooled.shape[2:])
  outputs, variables = _apply(model, variables, network, flat, valid.reshape(-1), train=train)
  return jax.tree.map(lambda x: x.reshape(batch, rows, *x.shape[1:])[:, :count], outputs), variables


def _apply(model: Model, variables: Any, method: Callable, *args: Any, train: bool) -> tuple[Any, Any]:
  """Applies one network; in training the returned variables carry the updated batch statistics."""
  with precision.matmuls(model.precision):
    if not train:
      return ViLD(model).apply(variables, *args, train=False, method=method), variables
    outputs, updated = ViLD(model).apply(variables, *args, train=True, method=method, mutable=['batch_stats'])
  return outputs, {**variables, **updated}
