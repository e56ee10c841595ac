"""Fills a fixed number of slots from masks, so that shapes stay static (docs/method.md, 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def first_true(mask: Bool[Array, 'n'], num: int) -> tuple[Int[Array, '{num}'], Bool[Array, '{num}']]:
  """Returns the indices of the first `num` True entries, ascending, and validity; unused slots: 0 and False."""
  # The k-th True is where the running count first reaches k; this needs comparisons only, no sort and no scatter.
  counts = jnp.cumsum(mask, dtype=jnp.int32)
  slots = jnp.sum(counts[None, :] < jnp.arange(1, num + 1)[:, None], axis=1, dtype=jnp.int32)
  valid = slots < mask.shape[0]
  return jnp.where(valid, slots, 0), valid


def _best(mask, priority, num, quota):
  """Marks the `min(quota, num)` entries of `mask` with the highest priority; ties go to the lower index."""
  num = min(num, mask.shape[0])
  if num == 0:
    return jnp.zeros_like(mask)
  values, indices = jax.lax.top_k(jnp.where(mask, priority, -jnp.inf), num)
  taken = (values > -jnp.inf) & (jnp.arange(num) < quota)
  return jnp.zeros_like(mask).at[jnp.where(taken, indices, mask.shape[0])].set(True, mode='drop')


def _balanced(positive, negative, priority, num_samples, positive_fraction):
  # Without the barrier a TPU's compiler fuses the random numbers into both selections, which takes it minutes.
  priority = jax.lax.optimization_barrier(priority)
  max_positives = int(num_samples * positive_fraction)
  positive = _best(positive, priority, max_positives, max_positives)
  quota = num_samples - jnp.sum(positive, dtype=jnp.int32)
  return positive, _best(negative, priority, num_samples, quota)


def sample_balanced(
  positive: Bool[Array, 'n'],
  negative: Bool[Array, 'n'],
  priority: Float[Array, 'n'],
  *,
  num_samples: int,
  positive_fraction: float,
) -> tuple[Int[Array, '{num_samples}'], Bool[Array, '{num_samples}']]:
  """Draws at most floor(num_samples * positive_fraction) positives and fills the rest with negatives.

  Args:
    positive, negative: the candidates of each kind; an entry that is neither is never drawn.
    priority: finite; the highest are drawn first (ties: the lower index). With `jax.random.uniform` the draw is random.
    num_samples: slots of the result.
    positive_fraction: from 0 to 1.

  Returns:
    Indices in ascending order, valid slots first, and which slots are valid (an unused slot holds index 0).
  """
  chosen = _balanced(positive, negative, priority, num_samples, positive_fraction)
  return first_true(chosen[0] | chosen[1], num_samples)


def sample_labels(
  labels: Int[Array, 'n'], priority: Float[Array, 'n'], *, num_samples: int, positive_fraction: float
) -> Int[Array, 'n']:
  """Keeps the drawn labels 1 (positive) and 0 (negative) and sets all others to -1 (ignored); see `sample_balanced`."""
  positive, negative = _balanced(labels == 1, labels == 0, priority, num_samples, positive_fraction)
  return jnp.where(positive, 1, jnp.where(negative, 0, -1)).astype(labels.dtype)
