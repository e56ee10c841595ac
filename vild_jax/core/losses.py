"""Computes the losses in float32: a whole batch in, a scalar out (docs/method.md, 3).

A loss to which nothing contributes is 0, and so is its gradient. Each loss is divided by the number of elements that
contribute, or by the number that the caller gives (`count`, `counts`, `images`). If a batch is processed in parts and
each part gets the number of the whole batch, the losses of the parts add up to the loss of the batch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vild_jax.core import openvocab
from vild_jax.core.precision import at_least_float32


def _mean(values, mask, count=None):
  """Mean of `values` where `mask` is true, 0 if it is true nowhere. Other values may be anything, NaN included."""
  count = jnp.sum(mask, dtype=jnp.float32) if count is None else count
  return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(count, 1.0)


def _huber(error, delta):
  """Quadratic up to `delta`, then linear with slope `delta`."""
  size = jnp.abs(error)
  return jnp.where(size <= delta, 0.5 * jnp.square(error), delta * size - 0.5 * delta**2)


def _cross_entropy(logits, targets):
  """Binary cross-entropy with logits; targets may be soft."""
  return jax.nn.softplus(logits) - targets * logits


def rpn_score(
  logits: dict[int, Float[Array, 'b _']],
  labels: dict[int, Int[Array, 'b _']],
  *,
  samples_per_image: int = 256,
  images: int | None = None,
) -> Float[Array, '']:
  """Returns the objectness loss: binary cross-entropy summed over anchors / (images * samples_per_image).

  Labels are 1 (object), 0 (background) or -1 (ignored).
  """
  total = jnp.zeros((), jnp.float32)
  for level, level_logits in logits.items():
    label = labels[level]
    level_logits = jnp.where(label >= 0, at_least_float32(level_logits), 0.0)
    entropy = _cross_entropy(level_logits, (label == 1).astype(jnp.float32))
    total += jnp.sum(jnp.where(label >= 0, entropy, 0.0)) / ((images or label.shape[0]) * samples_per_image)
  return total


def rpn_box(
  deltas: dict[int, Float[Array, 'b _ 4']],
  targets: dict[int, Float[Array, 'b _ 4']],
  positive: dict[int, Bool[Array, 'b _']],
  *,
  counts: dict[int, Float[Array, '']] | None = None,
) -> Float[Array, '']:
  """Returns the loss of anchor regression: Huber (delta 1/9), a mean for each level, summed over levels.

  The mean is over the elements of positive anchors. An element whose target is exactly 0 is left out of the sum and of
  the count, as in the reference.
  """
  mask = rpn_box_mask(targets, positive)
  total = jnp.zeros((), jnp.float32)
  for level, level_deltas in deltas.items():
    error = jnp.where(mask[level], at_least_float32(level_deltas) - targets[level], 0.0)
    total += _mean(_huber(error, 1.0 / 9.0), mask[level], None if counts is None else counts[level])
  return total


def rpn_box_mask(
  targets: dict[int, Float[Array, '*b _ 4']], positive: dict[int, Bool[Array, '*b _']]
) -> dict[int, Bool[Array, '*b _ 4']]:
  """Marks the elements of `targets` that contribute to `rpn_box`."""
  return {level: positive[level][..., None] & (targets[level] != 0.0) for level in targets}


def region_class(
  logits: Float[Array, 'b r columns'],
  labels: Int[Array, 'b r'],
  valid: Bool[Array, 'b r'],
  allowed: Bool[Array, 'columns'],
  *,
  unlabelled: Bool[Array, 'columns'] | None = None,
  count: Float[Array, ''] | None = None,
) -> Float[Array, '']:
  """Returns the classification loss L_text: softmax cross-entropy, mean over valid regions.

  A region without a label shows the background, or an object of a class that nobody labels: its probability is the sum
  over the background and the `unlabelled` classes (arXiv 2002.00718), so that these are not taught to be background.

  Args:
    logits: background in the last column; logits of classes that are not allowed may be -inf.
    labels: class index 0..C-1, background C; the label of a valid region is always allowed.
    allowed: the columns in the softmax; novel and padding classes are left out (docs/departures.md, 6).
    unlabelled: those of the allowed classes whose objects have no labels in the data; None: all have.
  """
  logits = jnp.where(valid[..., None] & allowed[None, None, :], at_least_float32(logits), -jnp.inf)
  # A padding row adds nothing to the loss, but it must stay finite: otherwise its gradient would be NaN.
  logits = jnp.where(valid[..., None], logits, 0.0)
  label_logit = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  if unlabelled is not None:
    background = logits.shape[-1] - 1
    unknown = unlabelled | (jnp.arange(background + 1) == background)
    of_unknown = jax.nn.logsumexp(jnp.where(unknown[None, None, :], logits, -jnp.inf), axis=-1)
    label_logit = jnp.where(labels == background, of_unknown, label_logit)
  return _mean(jax.nn.logsumexp(logits, axis=-1) - label_logit, valid, count)


def retention(
  logits: Float[Array, 'b r columns'],
  start: Float[Array, 'b r columns'],
  valid: Bool[Array, 'b r'],
  allowed: Bool[Array, 'columns'],
  unlabelled: Bool[Array, 'columns'],
  *,
  count: Float[Array, ''] | None = None,
) -> Float[Array, '']:
  """Returns how far class probabilities are from those of the starting detector: KL divergence, mean over regions.

  Both are distributions over the unlabelled classes and "anything else", which is the sum over the background and the
  labelled classes (arXiv 2002.00718, equation 8, with the labelled classes on both sides).

  Args:
    logits: of the model; `start`: of the detector that training started from. Both as in `region_class`.
    valid: the regions without a label.
    allowed: the columns in the softmax; the background is the last one.
    unlabelled: those of the allowed classes whose objects have no labels in the data.
    count: the number by which the sum is divided; None: that of the valid regions.
  """
  model, start = (_log_groups(x, valid, allowed, unlabelled) for x in (logits, jax.lax.stop_gradient(start)))
  share = jnp.exp(start)
  # A column that is left out has -inf in both; its share is 0.
  terms = jnp.where(share > 0, share * (jnp.where(share > 0, start, 0.0) - jnp.where(share > 0, model, 0.0)), 0.0)
  return _mean(jnp.sum(terms, axis=-1), valid, count)


def retention_box(
  deltas: Float[Array, 'b r 4'],
  start: Float[Array, 'b r 4'],
  start_logits: Float[Array, 'b r columns'],
  valid: Bool[Array, 'b r'],
  allowed: Bool[Array, 'columns'],
  unlabelled: Bool[Array, 'columns'],
  *,
  count: Float[Array, ''] | None = None,
) -> Float[Array, '']:
  """Returns how far boxes are from those of the starting detector: Huber (delta 1) of the four numbers of each region.

  A region counts by the probability that the starting detector gives to all unlabelled classes together; elsewhere its
  box means nothing. The other arguments are those of `retention`, `count` the number of regions that the sum is divided
  by (None: of the valid ones).
  """
  # Not 1 less that of all others, which is rounding, and at times negative, where the share is small.
  share = jnp.sum(jnp.exp(_log_groups(start_logits, valid, allowed, unlabelled)[..., :-1]), axis=-1)
  mask = jnp.broadcast_to(valid[..., None], deltas.shape)
  error = jnp.where(mask, at_least_float32(deltas) - start, 0.0)
  kept = jax.lax.stop_gradient(share)[..., None] * _huber(error, 1.0)
  return _mean(kept, mask, None if count is None else 4 * count)


def _log_groups(logits, valid, allowed, unlabelled):
  """Log-probabilities [B, R, columns] of the unlabelled classes; the last column is that of all others together."""
  logits = jnp.where(valid[..., None], at_least_float32(logits), 0.0)
  logits = jnp.where(allowed[None, None, :], logits, -jnp.inf)
  logits -= jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  kept = allowed & unlabelled
  rest = jax.nn.logsumexp(jnp.where((allowed & ~kept)[None, None, :], logits, -jnp.inf), axis=-1)
  return jnp.where(kept[None, None, :], logits, -jnp.inf).at[..., -1].set(rest)


def region_box(
  deltas: Float[Array, 'b r 4'],
  targets: Float[Array, 'b r 4'],
  foreground: Bool[Array, 'b r'],
  *,
  count: Float[Array, ''] | None = None,
) -> Float[Array, '']:
  """Returns the loss of box refinement: Huber (delta 1), mean over the four numbers of each foreground region.

  `count` is the number of foreground regions.
  """
  counts = jnp.broadcast_to(foreground[..., None], deltas.shape)
  return _mean(
    _huber(jnp.where(counts, at_least_float32(deltas) - targets, 0.0), 1.0),
    counts,
    None if count is None else 4 * count,
  )


def mask(
  logits: Float[Array, 'b k s s'],
  targets: Float[Array, 'b k s s'],
  foreground: Bool[Array, 'b k'],
  *,
  count: Float[Array, ''] | None = None,
) -> Float[Array, '']:
  """Returns the mask loss: binary cross-entropy with soft targets, mean over the pixels of foreground regions.

  `count` is the number of foreground regions.
  """
  counts = jnp.broadcast_to(foreground[..., None, None], logits.shape)
  return _mean(
    _cross_entropy(jnp.where(counts, at_least_float32(logits), 0.0), targets),
    counts,
    None if count is None else logits.shape[-1] * logits.shape[-2] * count,
  )


def distillation(
  student: Float[Array, 'b m d'],
  teacher: Float[Array, 'b m d'],
  valid: Bool[Array, 'b m'],
  *,
  count: Float[Array, ''] | None = None,
) -> Float[Array, '']:
  """Returns the distillation loss L_image, unweighted: L1 distance of unit embeddings, mean over valid regions."""
  # Padding may hold anything, and NaN times a zero cotangent is still NaN.
  student = jnp.where(valid[..., None], student, 0.0)
  difference = openvocab.normalize(student) - openvocab.normalize(teacher)
  return _mean(jnp.sum(jnp.abs(difference), axis=-1), valid, count)
