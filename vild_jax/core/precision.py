"""Sets the precision of sensitive arithmetic, whatever the dtype of the network, and that of its products."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def at_least_float32(x: Float[Array, '...']) -> Float[Array, '...']:
  """Turns bfloat16 into float32; keeps float32, and float64, which tests of whole runs for equality use."""
  return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def matmuls(precision: str) -> contextlib.AbstractContextManager:
  """Returns a context in which convolutions and matmuls are traced with a precision, unless they state their own.

  Args:
    precision: 'high' or 'highest' (`jax.lax.Precision`), or 'default', which changes nothing: then a float32 product is
      rounded to bfloat16 on a TPU and to TF32 on a GPU.
  """
  return contextlib.nullcontext() if precision == 'default' else jax.default_matmul_precision(precision)
