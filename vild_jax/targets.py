"""Decides what anchors and sampled regions should learn, from proposals and ground truth (docs/method.md, 1)."""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vild_jax import detector
from vild_jax.config import Assignment, Config
from vild_jax.core import boxes, masks, matching, sampling
from vild_jax.core import losses as core_losses
from vild_jax.detector import BOX_WEIGHTS, PerImage
from vild_jax.structs import Batch, FirstStage, MaskBits, Proposals, RegionTargets, Vocabulary

Array = jax.Array


@flax.struct.dataclass
class Targets:
  """Holds the training targets of B images: N_l anchors at level l, R regions and K masks for each image.

  Attributes:
    rpn_labels: {level: int32 [B, N_l]}, 1 object, 0 background, -1 not sampled or ignored.
    rpn_deltas: {level: [B, N_l, 4]}.
    rpn_positive: {level: bool [B, N_l]}, every positive anchor, sampled or not: all of them learn their box.
    rois: [B, R, 4], the sampled regions, yxyx in pixels of the network input; valid and foreground: bool [B, R].
    labels: int32 [B, R], rows of the vocabulary, C for the background.
    deltas: [B, R, 4], 0 for regions that are not foreground.
    mask_rois: [B, K, 4]; mask_valid and mask_foreground, those that learn a mask: bool [B, K].
    masks: [B, K, 28, 28] in [0, 1]; this and the three before are None if no masks are learnt.
    regions: the teacher's embeddings of M further regions of each image; None without distillation.
  """

  rpn_labels: dict[int, Array]
  rpn_deltas: dict[int, Array]
  rpn_positive: dict[int, Array]
  rois: Array
  valid: Array
  foreground: Array
  labels: Array
  deltas: Array
  mask_rois: Array | None = None
  mask_valid: Array | None = None
  mask_foreground: Array | None = None
  masks: Array | None = None
  regions: RegionTargets | None = None


def assign(
  config: Config,
  first: FirstStage,
  batch: Batch,
  vocabulary: Vocabulary,
  keys: Array,
  *,
  per_image: PerImage = jax.vmap,
) -> Targets:
  """Samples anchors and regions, and computes the target of each; no gradient flows through it.

  The regions to distil come with the batch: they were chosen before training.

  Args:
    config: the experiment.
    first: outputs of the first stage.
    batch: B pictures with their ground truth.
    vocabulary: the training vocabulary; its padded size is the label of the background.
    keys: random keys [B, ...], one for each image: `jax.random.split(key of the step, B)`.
    per_image: maps a function of one image over the batch (see `detector`).
  """
  rules = config.assignment
  background = vocabulary.embeddings.shape[0]
  anchors = detector.model_anchors(config.model, batch.image.shape[1:3])

  def of_one_image(
    found: Proposals,
    gt_boxes: Array,
    gt_labels: Array,
    gt_masks: Array | MaskBits | None,
    gt_valid: Array,
    gt_has_mask: Array | None,
    key: Array,
  ) -> Targets:
    anchor_key, region_key = jax.random.split(key)
    regions, matched = _assign_regions(rules, found, gt_boxes, gt_labels, gt_valid, background, region_key)
    if config.model.masks:
      regions |= _assign_masks(config, regions, matched, gt_boxes, gt_masks, gt_has_mask)
    return Targets(**_assign_anchors(rules, anchors, gt_boxes, gt_valid, anchor_key), **regions)

  ground_truth = (batch.boxes, batch.labels, batch.masks, batch.valid, batch.has_mask)
  targets = per_image(of_one_image)(first.proposals, *ground_truth, keys)
  distils = config.distillation.weight > 0
  return jax.lax.stop_gradient(targets.replace(regions=batch.regions if distils else None))


def count(targets: Targets) -> dict[str, Any]:
  """Returns the number of elements by which each loss is divided; targets may have further axes before B."""
  number = lambda mask: jnp.sum(mask, dtype=jnp.float32)
  numbers = core_losses.rpn_box_mask(targets.rpn_deltas, targets.rpn_positive)
  return {
    'images': math.prod(targets.valid.shape[:-1]),
    'rpn_box': {level: number(mask) for level, mask in numbers.items()},
    'class': number(targets.valid),
    'box': number(targets.foreground),
    'mask': None if targets.mask_foreground is None else number(targets.mask_foreground),
    'retention': number(targets.valid & ~targets.foreground),
    'distillation': None if targets.regions is None else number(targets.regions.valid),
  }


def _assign_anchors(
  rules: Assignment, anchors: dict[int, Array], gt_boxes: Array, gt_valid: Array, key: Array
) -> dict[str, dict[int, Array]]:
  every = jnp.concatenate(list(anchors.values()))
  labels, matched = matching.match_anchors(
    every, gt_boxes, gt_valid, positive_iou=rules.rpn_positive_iou, negative_iou=rules.rpn_negative_iou
  )
  sampled = sampling.sample_labels(
    labels,
    jax.random.uniform(key, labels.shape),
    num_samples=rules.rpn_samples,
    positive_fraction=rules.rpn_positive_fraction,
  )
  positive = labels == 1
  deltas = boxes.encode(matching.take_boxes(gt_boxes, matched), every, plus_one=rules.rpn_targets_plus_one)
  deltas = jnp.where(positive[:, None], deltas, 0)
  ends = np.cumsum([a.shape[0] for a in anchors.values()])[:-1]
  split = lambda x: dict(zip(anchors, jnp.split(x, ends), strict=True))
  return {'rpn_labels': split(sampled), 'rpn_deltas': split(deltas), 'rpn_positive': split(positive)}


def _assign_regions(
  rules: Assignment,
  found: Proposals,
  gt_boxes: Array,
  gt_labels: Array,
  gt_valid: Array,
  background: int,
  key: Array,
) -> tuple[dict[str, Array], Array]:
  """Returns the targets of the regions, and the row of the ground truth [R] that each is matched with."""
  # Ground-truth boxes are candidates too, but their padding is not (docs/departures.md, 3).
  candidates = jnp.concatenate([found.boxes, gt_boxes.astype(found.boxes.dtype)])
  valid = jnp.concatenate([found.valid, gt_valid])
  matched, iou = matching.match_regions(candidates, gt_boxes, gt_valid)
  chosen, valid = sampling.sample_balanced(
    valid & (iou > rules.roi_positive_iou),
    valid & (iou < rules.roi_positive_iou),
    jax.random.uniform(key, valid.shape),
    num_samples=rules.roi_samples,
    positive_fraction=rules.roi_positive_fraction,
  )
  rois, matched = candidates[chosen], matched[chosen]
  foreground = valid & (iou[chosen] > rules.roi_positive_iou)
  deltas = boxes.encode(gt_boxes[matched], rois, weights=BOX_WEIGHTS)
  targets = {
    'rois': rois,
    'valid': valid,
    'foreground': foreground,
    'labels': jnp.where(foreground, gt_labels[matched], background),
    'deltas': jnp.where(foreground[:, None], deltas, 0),
  }
  return targets, matched


def _assign_masks(
  config: Config,
  regions: dict[str, Array],
  matched: Array,
  gt_boxes: Array,
  gt_masks: Array | MaskBits,
  gt_has_mask: Array | None,
) -> dict[str, Array]:
  rois, learns = regions['rois'], regions['foreground']
  if gt_has_mask is not None:
    learns &= gt_has_mask[matched]
  index, foreground, valid = masks.select_mask_regions(learns, regions['valid'], num=config.assignment.mask_samples)
  size = 2 * config.model.mask_head.roi_size
  return {
    'mask_rois': rois[index],
    'mask_valid': valid,
    'mask_foreground': foreground,
    'masks': masks.mask_targets(_as_fraction(gt_masks), gt_boxes, rois[index], matched[index], size=size),
  }


def _as_fraction(gt_masks: Array | MaskBits) -> Array:
  """Turns masks of uint8, the type that saves bandwidth to the device, or bits into fractions of coverage in [0, 1]."""
  if isinstance(gt_masks, MaskBits):
    return masks.soft_masks(gt_masks.bits, gt_masks.weights)
  return gt_masks.astype(jnp.float32) / 255 if gt_masks.dtype == jnp.uint8 else gt_masks
