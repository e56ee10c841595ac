"""Finds the largest values, by the operation that the compiler of the program knows."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_SORTS = contextvars.ContextVar('sorts', default=False)


@contextlib.contextmanager
def by_sorting() -> Iterator[None]:
  """Makes `top_k` sort while a program is traced inside: TensorFlow's reader of StableHLO does not know JAX's top_k."""
  token = _SORTS.set(True)
  try:
    yield
  finally:
    _SORTS.reset(token)


def top_k(x: Float[Array, '*n m'], k: int) -> tuple[Float[Array, '*n k'], Int[Array, '*n k']]:
  """Returns the k largest values of the last axis, descending, and their indices; ties: the lower index first."""
  if not _SORTS.get():
    return tuple(jax.lax.top_k(x, k))
  order = jnp.argsort(x, axis=-1, descending=True, stable=True)[..., :k]
  return jnp.take_along_axis(x, order, axis=-1), order
