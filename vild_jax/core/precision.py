"""Sets the precision of small, sensitive arithmetic, whatever the dtype of the network."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def at_least_float32(x: Float[Array, '...']) -> Float[Array, '...']:
  """Turns bfloat16 into float32; keeps float32, and float64, which tests of whole runs for equality use."""
  return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
