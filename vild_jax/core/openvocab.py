"""Classifies regions by text embeddings (docs/method.md, 1 and 4; arXiv 2104.13921, sections 3.3-3.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vild_jax.core.precision import at_least_float32

# Shorter vectors are treated as having no direction: they are normalised to zero.
MIN_NORM = 1e-8


def normalize(x: Float[Array, '*n d']) -> Float[Array, '*n d']:
  """Returns x / ||x|| over the last axis in float32; zero, with zero gradient, where ||x|| <= 1e-8."""
  x = at_least_float32(x)
  squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  has_direction = squared > MIN_NORM**2
  return jnp.where(has_direction, x * jax.lax.rsqrt(jnp.where(has_direction, squared, 1.0)), 0.0)


def cosine_logits(
  region: Float[Array, 'r d'],
  classes: Float[Array, 'c d'],
  background: Float[Array, 'd'],
  *,
  temperature: float | Float[Array, ''],
  valid: Bool[Array, 'c'] | None = None,
) -> Float[Array, 'r c+1']:
  """Returns cosine(region, class) / temperature, with the background in the last column.

  Args:
    region, classes, background: vectors of any length; they are normalised here.
    temperature: positive.
    valid: False for padding rows of `classes`, whose logits are -inf.
  """
  rows = jnp.concatenate([normalize(classes), normalize(background)[None, :]])
  logits = jnp.matmul(normalize(region), rows.T, precision=jax.lax.Precision.HIGHEST) / temperature
  if valid is None:
    return logits
  shown = jnp.concatenate([valid, jnp.ones((1,), bool)])
  return jnp.where(shown[None, :], logits, -jnp.inf)


def ensemble_scores(
  text_scores: Float[Array, 'r c'],
  image_scores: Float[Array, 'r c'],
  is_base: Bool[Array, 'c'],
  *,
  base_weight: float | Float[Array, ''] = 2 / 3,
  novel_weight: float | Float[Array, ''] | None = None,
) -> Float[Array, 'r c']:
  """Returns the weighted geometric mean of the scores of two heads.

  The text head has the weight `base_weight` on base classes, and the image head `novel_weight` (None: `base_weight`) on
  novel ones; the other head has the rest to 1 (arXiv 2104.13921, section 3.4, with one weight for both).
  """
  novel_weight = base_weight if novel_weight is None else novel_weight
  weight = jnp.where(is_base, base_weight, 1.0 - novel_weight)[None, :]
  return jnp.power(text_scores, weight) * jnp.power(image_scores, 1.0 - weight)


def class_scores(
  text_logits: Float[Array, 'r k'],
  image_logits: Float[Array, 'r c'] | None,
  is_base: Bool[Array, 'c'],
  *,
  background: bool = True,
  sharpness: float | Float[Array, ''] = 1.0,
  base_weight: float | Float[Array, ''] = 2 / 3,
  novel_weight: float | Float[Array, ''] | None = None,
) -> Float[Array, 'r c']:
  """Returns scores of every class in [0, 1] (docs/method.md, 4), from one head or from the ensemble of two.

  Args:
    text_logits: of the region head, k = c + 1 columns: the background is the last one.
    image_logits: of the image head, without background; None if there is none.
    is_base: which classes are base, for the ensemble.
    background: whether the region head has learnt the background. If so, its softmax runs over the background and all
      classes, and the background is dropped afterwards; otherwise it is left out.
    sharpness: multiplied with all logits: the temperature of training over that of inference.
    base_weight, novel_weight: of `ensemble_scores`.
  """
  if not background:
    return jax.nn.softmax(text_logits[..., :-1] * sharpness, axis=-1)
  scores = jax.nn.softmax(text_logits * sharpness, axis=-1)[..., :-1]
  if image_logits is None:
    return scores
  of_image = jax.nn.softmax(image_logits * sharpness, axis=-1)
  return ensemble_scores(scores, of_image, is_base, base_weight=base_weight, novel_weight=novel_weight)


def with_objectness(
  scores: Float[Array, '*r c'], objectness: Float[Array, '*r'], weight: float
) -> Float[Array, '*r c']:
  """Returns scores times the objectness of their regions to the power of `weight`; 0 leaves them as they are."""
  return scores * jnp.power(objectness, weight)[..., None] if weight else scores


def attribute_scores(
  region: Float[Array, 'r d'],
  attributes: Float[Array, 'a d'],
  *,
  temperature: float | Float[Array, ''],
  valid: Bool[Array, 'a'] | None = None,
) -> Float[Array, 'r a']:
  """Returns p(attribute | region): a softmax over the attributes of cosine(region, attribute) / temperature.

  Given the region, the attribute is taken to be independent of the class, as in the paper's expansion of a vocabulary
  (docs/method.md, 4): p(class, attribute | region) is the class's score times this. A row sums to 1 if an attribute is
  valid; there may be none.

  Args:
    region, attributes: vectors of any length; they are normalised here.
    temperature: positive.
    valid: False for padding rows of `attributes`, whose probability is 0.
  """
  cosine = jnp.matmul(normalize(region), normalize(attributes).T, precision=jax.lax.Precision.HIGHEST)
  return jax.nn.softmax(cosine / temperature, axis=-1, where=None if valid is None else valid[None, :])
