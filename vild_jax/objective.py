"""Computes the training objective from detector outputs and a batch: targets, then losses (docs/method.md, 1 and 3).

`targets.assign` decides what every anchor and region should learn, and `losses` measures how far the outputs are from
it. `objective` runs all steps in order: first stage, `assign`, second stage on the sampled regions, `losses`. With
microbatches (`train.accumulate`), `loss_of` gets the element counts of the whole batch, by which its losses are
normalised.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vild_jax import detector
from vild_jax import targets as targets_lib
from vild_jax.config import Config, matches
from vild_jax.core import losses as core_losses
from vild_jax.data import transforms
from vild_jax.detector import PerImage
from vild_jax.structs import Batch, FirstStage, SecondStage, Vocabulary
from vild_jax.targets import Targets

Array = jax.Array


@flax.struct.dataclass
class Outputs:
  """Holds the detector's outputs for the anchors and regions of `Targets`: both stages, mask logits [B, K, 28, 28].

  The mask logits are None if no masks are learnt. `kept` is what the starting detector says of the same regions
  (`train.retention`); None without.
  """

  first: FirstStage
  second: SecondStage
  mask_logits: Array | None
  kept: SecondStage | None = None


def network_input(image: Array, image_size: Array) -> Array:
  """Returns pictures as the network takes them: float32 [B, S, S, 3], normalised, zero outside the content.

  Args:
    image: such pictures, or uint8 ones (`data.transfer`), which are normalised here.
    image_size: [B, 2], (height, width) of the content of each.
  """
  if image.dtype != jnp.uint8:
    return image
  rows, columns = (
    jnp.arange(side, dtype=jnp.float32)[None] < image_size[:, axis, None] for axis, side in enumerate(image.shape[1:3])
  )
  content = rows[:, :, None, None] & columns[:, None, :, None]
  factor, shift = (x.reshape(1, 1, 1, 3) for x in (transforms.FACTOR, transforms.SHIFT))
  return jnp.where(content, image.astype(jnp.float32) * factor - shift, 0)


def objective(
  config: Config,
  variables: Any,
  batch: Batch,
  vocabulary: Vocabulary,
  key: Array,
  *,
  start: Any = None,
  per_image: PerImage = jax.vmap,
) -> tuple[Array, tuple[dict[str, Array], Any]]:
  """Computes the loss and metrics of a batch, by one forward pass in training mode.

  Args:
    config: the experiment.
    variables: {'params', 'batch_stats'}.
    batch: B pictures with their ground truth.
    vocabulary: the training vocabulary; novel rows are masked out of the softmax, unless
      `assignment.novel_labels` is set.
    key: random key of this step; it is split into one key for each image.
    start: variables of the starting detector, for `train.retention`; None without.
    per_image: maps a function of one image over the batch (see `detector`).

  Returns:
    (loss to minimise, ({metric name: scalar}, updated batch statistics)). The loss is without weight decay, which the
    optimiser applies.

  Raises ValueError, before anything is computed, if `check_distillation` does.
  """
  check_distillation(config, has_regions=batch.regions is not None)
  image = network_input(batch.image, batch.image_size)
  first, variables = detector.first_stage(config.model, variables, image, train=True, per_image=per_image)
  keys = jax.random.split(key, batch.image.shape[0])
  targets = targets_lib.assign(config, first, batch, vocabulary, keys, per_image=per_image)
  kept = kept_of(config, start, image, first, targets, vocabulary, per_image=per_image)
  counts = targets_lib.count(targets)
  return loss_of(config, variables, first, targets, vocabulary, counts, kept=kept, per_image=per_image)


def loss_of(
  config: Config,
  variables: Any,
  first: FirstStage,
  targets: Targets,
  vocabulary: Vocabulary,
  counts: dict[str, Any],
  *,
  kept: SecondStage | None = None,
  per_image: PerImage = jax.vmap,
) -> tuple[Array, tuple[dict[str, Array], Any]]:
  """Computes the part of `objective` that follows after `targets.assign`: second stage, losses and metrics.

  Loss and metrics are sums divided by `counts`. With the counts of the whole batch, the results of its microbatches add
  up to those of the whole batch. `kept` is what `kept_of` returns.
  """
  outputs, variables = outputs_of(config, variables, first, targets, vocabulary, per_image=per_image)
  outputs = outputs.replace(kept=kept)
  parts = losses(config, outputs, targets, vocabulary, counts)
  total = sum(parts.values())
  positive = sum(jnp.sum(p, dtype=jnp.float32) for p in targets.rpn_positive.values())
  metrics = {
    'loss': total,
    **parts,
    'foreground_regions': jnp.sum(targets.foreground, dtype=jnp.float32) / counts['images'],
    'positive_anchors': positive / counts['images'],
  }
  return total, (metrics, variables['batch_stats'])


def outputs_of(
  config: Config,
  variables: Any,
  first: FirstStage,
  targets: Targets,
  vocabulary: Vocabulary,
  *,
  per_image: PerImage = jax.vmap,
) -> tuple[Outputs, Any]:
  """Runs the detector on the regions of `targets` in training mode; returns its outputs and the updated variables."""
  model = config.model
  second, variables = detector.second_stage(
    model,
    variables,
    first.features,
    targets.rois,
    targets.valid,
    vocabulary,
    train=True,
    distilled=targets.regions,
    per_image=per_image,
  )
  mask_logits, variables = detector.masks(
    model, variables, first.features, targets.mask_rois, targets.mask_valid, train=True, per_image=per_image
  )
  return Outputs(first, second, mask_logits), variables


def kept_of(
  config: Config,
  start: Any,
  image: Array,
  first: FirstStage,
  targets: Targets,
  vocabulary: Vocabulary,
  *,
  per_image: PerImage = jax.vmap,
) -> SecondStage | None:
  """Returns what the starting detector says of the regions of `targets`, as at inference; None without `start`.

  If `start` has no pyramid of its own, because it is frozen, the features are those of `first`.
  """
  if start is None:
    return None
  model, features = dataclasses.replace(config.model, image_head=False), first.features
  if 'fpn' in start['params']:
    features = detector.features(model, start, image)
  second, _ = detector.second_stage(
    model, start, features, targets.rois, targets.valid, vocabulary, train=False, per_image=per_image
  )
  return jax.lax.stop_gradient(second)


def losses(
  config: Config, outputs: Outputs, targets: Targets, vocabulary: Vocabulary, counts: dict[str, Any] | None = None
) -> dict[str, Array]:
  """Returns the five losses of ViLD-text and, with distillation, the loss of ViLD-image (docs/method.md, 3).

  Without masks (`model.masks=False`) there is no `mask_loss`.

  Each is normalised over the global batch, by `counts` (default: the counts of `targets`). The last one is multiplied
  by `distillation.weight`, the others have a weight of 1. ViLD-image (`model.background=False`) has no `class_loss`: it
  learns its embeddings from the teacher alone.
  """
  counts = targets_lib.count(targets) if counts is None else counts
  logits, novel = outputs.second.logits, config.assignment.novel_labels
  allowed = vocabulary.valid if novel else vocabulary.valid & vocabulary.is_base
  unlabelled = None
  if vocabulary.labelled is not None:
    unlabelled = jnp.append(allowed & ~vocabulary.labelled, False)
  kept = outputs.kept
  if config.assignment.novel_logits_zero:
    # The reference keeps novel classes in the softmax with logit 0 (docs/departures.md, 6).
    trained = jnp.append(allowed, True).reshape(1, 1, -1)
    logits, allowed = jnp.where(trained, logits, 0), vocabulary.valid
    kept = kept and kept.replace(logits=jnp.where(trained, kept.logits, 0))
  parts = {
    'rpn_score_loss': core_losses.rpn_score(
      outputs.first.objectness,
      targets.rpn_labels,
      samples_per_image=config.assignment.rpn_samples,
      images=counts['images'],
    ),
    'rpn_box_loss': core_losses.rpn_box(
      outputs.first.deltas, targets.rpn_deltas, targets.rpn_positive, counts=counts['rpn_box']
    ),
    'class_loss': core_losses.region_class(
      logits,
      targets.labels,
      targets.valid,
      jnp.append(allowed, True),
      unlabelled=unlabelled,
      count=counts['class'],
    ),
    'box_loss': core_losses.region_box(outputs.second.deltas, targets.deltas, targets.foreground, count=counts['box']),
  }
  if config.model.masks:
    parts['mask_loss'] = core_losses.mask(
      outputs.mask_logits, targets.masks, targets.mask_foreground, count=counts['mask']
    )
  if not config.model.background:
    del parts['class_loss']
  if config.train.retention:
    if kept is None or unlabelled is None:
      raise ValueError(
        f'train.retention is {config.train.retention:g}, but what the starting detector says, or which classes have no '
        'labels, is not given; expected both, as `vild-jax train` gives them'
      )
    regions = targets.valid & ~targets.foreground, jnp.append(allowed, True), unlabelled
    loss = core_losses.retention(logits, kept.logits, *regions, count=counts['retention'])
    parts['retention_loss'] = config.train.retention * loss
    # By the foreground, as the loss of boxes; a sum over all regions of a batch without any would be huge.
    count = jnp.where(counts['box'] > 0, counts['box'], counts['class'])
    loss = core_losses.retention_box(outputs.second.deltas, kept.deltas, kept.logits, *regions, count=count)
    parts['retention_box_loss'] = config.train.retention * loss
  if targets.regions is not None:
    parts['distillation_loss'] = config.distillation.weight * core_losses.distillation(
      outputs.second.student, targets.regions.embeddings, targets.regions.valid, count=counts['distillation']
    )
  return parts


def check_distillation(config: Config, *, has_regions: bool) -> None:
  """Raises ValueError if a configured head needs the teacher's embeddings and would not get them.

  `has_regions` says whether batches hold regions to distil.
  """
  weight = config.distillation.weight
  if weight > 0 and not has_regions:
    raise ValueError(
      f'distillation.weight is {weight}, but the data holds no regions with embeddings of the teacher; '
      'expected a region store (distillation.store), or a weight of 0 (ViLD-text)'
    )
  # The name that only a pattern of the whole head matches.
  if config.model.image_head and weight == 0 and not matches(config.train.freeze, 'image_head/'):
    raise ValueError(
      'model.image_head is true, but distillation.weight is 0, so that nothing would train that head; '
      'expected a positive weight, no image head, or one that stays as it is (train.freeze=image_head/*)'
    )
  if not config.model.background and weight == 0:
    raise ValueError(
      'model.background is false (ViLD-image), but distillation.weight is 0, so that nothing would '
      'train the embeddings; expected a positive weight, or a background'
    )
