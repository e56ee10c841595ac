"""Classification against text embeddings (METHOD.md, section 1; ViLD, arXiv 2104.13921, sections 3.2-3.4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vild_jax.core.precision import at_least_float32

# Vectors shorter than this have no direction: they normalise to zero.
MIN_NORM = 1e-8


def normalize(x: Float[Array, '*n d']) -> Float[Array, '*n d']:
  """x / ||x|| over the last axis in float32; zero, with zero gradient, where ||x|| <= 1e-8."""
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
  """cosine(region, class) / temperature, and the same for the background in the last column.

  Args:
    region, classes, background: of any length; normalised here.
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
  base_weight: float = 2 / 3,
) -> Float[Array, 'r c']:
  """Geometric mean of two heads' scores: weights `base_weight`, the rest on base classes, and swapped on novel ones."""
  weight = jnp.where(is_base, base_weight, 1.0 - base_weight)[None, :]
  return jnp.power(text_scores, weight) * jnp.power(image_scores, 1.0 - weight)
