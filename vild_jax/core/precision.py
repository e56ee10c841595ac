"""In which precision small, delicate arithmetic runs whatever the network's dtype."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def at_least_float32(x: Float[Array, '...']) -> Float[Array, '...']:
  """bfloat16 becomes float32; float32 stays, and so does float64, which equality tests of whole runs use."""
  return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
