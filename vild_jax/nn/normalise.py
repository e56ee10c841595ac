"""Normalises by the statistics of a batch: few passes over the activations, few exchanges between devices.

A training step on a TPU is bound by the bytes that it moves. What automatic differentiation makes of the plain
formula reads the activations once for the mean, once for the variance, and once more for each gradient of the two.
Here the sums of a direction do not depend on each other, so that the compiler can take them in one pass, or in none
where it adds up what it writes anyway, and exchanges them between devices in one all-reduce.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

EPSILON = 1e-4


def apply(x: Array, mean: Array, var: Array, scale: Array, bias: Array, dtype: Any) -> Array:
  """Returns (x - mean) / sqrt(var + 1e-4) * scale + bias in `dtype`.

  x is [..., C], the others are [C]; or x is [..., P·C], P pixels beside each other with C channels each.
  """
  mean, var, scale, bias = _as_rows(x, mean, var, scale, bias)
  return ((x - mean) * (jax.lax.rsqrt(var + EPSILON) * scale) + bias).astype(dtype)


def _as_rows(x: Array, *channels: Array) -> list[Array]:
  """Returns [C] arrays as [1, ..., 1, C], with the axes of x; P times one after another if x has P·C."""
  return [jnp.tile(c, x.shape[-1] // c.shape[0]).reshape((1,) * (x.ndim - 1) + x.shape[-1:]) for c in channels]


def statistics(x: Array, mask: Array | None, near: Array) -> tuple[Array, Array]:
  """Returns mean and variance [C] of x [..., C] or [..., P·C] over all pixels, at least float32.

  Activations of float32 or more take two passes, because E[x²] - E[x]² loses digits. Those of fewer bits take one,
  by the sums of x - near and (x - near)² in float32. The variance is then exact to a few times 2^-24 of itself plus
  (mean - near)², which is less than what rounding to bfloat16, 2^-9 of every x, has changed in it.

  Args:
    x: activations.
    mask: bool, broadcasts to x: which of them count. None: all.
    near: [C], a guess of the mean that does not depend on x.
  """
  average = partial(_over_pixels, jnp.mean, channels=near.shape[0], mask=mask)
  if x.dtype.itemsize >= 4:
    mean = average(x)
    return mean, average(jnp.square(x - _as_rows(x, mean)[0]))
  x = x.astype(jnp.float32) - _as_rows(x, near)[0]
  mean, square = average(x), average(jnp.square(x))
  return mean + near, jnp.maximum(square - jnp.square(mean), 0.0)


def _over_pixels(reduce: Callable, x: Array, *, channels: int, mask: Array | None = None) -> Array:
  """Mean or sum [C] of x [..., C] or [..., P·C] over all pixels, of which `mask` says which count."""
  axes = tuple(range(x.ndim - 1))
  if x.shape[-1] == channels:
    return reduce(x, axis=axes, where=mask)

  def in_rows(x: Array, mask: Array | None) -> Array:
    return reduce(reduce(x, axis=axes, where=mask).reshape(-1, channels), axis=0)

  def one_by_one(x: Array, mask: Array | None) -> Array:
    mask = None if mask is None else mask[..., None]
    return reduce(x.reshape(*x.shape[:-1], -1, channels), axis=(*axes, x.ndim - 1), where=mask)

  # A TPU would copy x to take its last axis apart; on a CPU short rows are the faster ones.
  return jax.lax.platform_dependent(x, mask, tpu=in_rows, default=one_by_one)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def by_batch(
  x: Array, scale: Array, bias: Array, mask: Array | None, near: Array, dtype: Any
) -> tuple[Array, Array, Array]:
  """Returns (x normalised by its own statistics, mean, variance); arguments are those of `apply` and `statistics`.

  No gradient flows through the mean and the variance that are returned.
  """
  return _forward(x, scale, bias, mask, near, dtype)[0]


def _forward(x: Array, scale: Array, bias: Array, mask: Array | None, near: Array, dtype: Any) -> tuple[Any, Any]:
  mean, var = statistics(x, mask, near)
  return (apply(x, mean, var, scale, bias, dtype), mean, var), (x, scale, bias, mask, mean, var)


def _backward(dtype: Any, kept: Any, cotangents: tuple[Array, Array, Array]) -> tuple[Array | None, ...]:
  x, scale, bias, mask, mean, var = kept
  # A compiler for TPUs copies x to the layout of the gradients. Without the barrier it converts to float32 before that.
  x = jax.lax.optimization_barrier(x)
  mean, inverse, factor = _as_rows(x, mean, jax.lax.rsqrt(var + EPSILON), scale)
  channels = scale.shape[0]
  total = partial(_over_pixels, jnp.sum, channels=channels)
  dy, normal = cotangents[0].astype(mean.dtype), (x - mean) * inverse
  dbias, dscale = total(dy), total(dy * normal)
  count = x.size // channels
  if mask is not None:
    count = jnp.sum(jnp.broadcast_to(mask, (*x.shape[:-1], x.shape[-1] // channels)), dtype=mean.dtype)
  of_mean, of_deviation = _as_rows(x, dbias, dscale)
  through = (of_mean + normal * of_deviation) / count
  # Values that do not count are normalised too: their gradients reach the statistics, but none comes back from these.
  through = through if mask is None else jnp.where(mask, through, 0.0)
  dx = (dy - through) * (inverse * factor)
  return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype), None, None


by_batch.defvjp(_forward, _backward)
