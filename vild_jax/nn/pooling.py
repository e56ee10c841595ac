"""Defines the max pooling of a ResNet with a gradient that is fast on a CPU.

XLA:CPU computes the gradient of a max pooling window by window, with the index of each maximum: it takes two to three
times as long as comparing nine shifted maps with the maxima.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
_SIZE = 3


def _plain(x: Array) -> Array:
  return nn.max_pool(x, window_shape=(_SIZE, _SIZE), strides=(2, 2), padding='SAME')


@jax.custom_vjp
def max_pool(x: Array) -> Array:
  """Returns the largest of each 3x3 window at stride 2: [B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), C], 'SAME'.

  The gradient of a window goes to its first largest value, row by row, as XLA's does.
  """
  return _plain(x)


def _forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
  pooled = _plain(x)
  return pooled, (x, pooled)


def _backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array]:
  plain = lambda x, pooled, gradient: jax.vjp(_plain, x)[1](gradient)[0]
  return (lax.platform_dependent(*kept, gradient, cpu=by_comparison, default=plain),)


max_pool.defvjp(_forward, _backward)


def by_comparison(x: Array, pooled: Array, gradient: Array) -> Array:
  """Returns the gradient of `max_pool` at x, where it is `pooled` and `gradient` is that of its result."""
  height, width = x.shape[1:3]
  rows, columns = pooled.shape[1:3]
  # 'SAME' begins one row before the map if the number of rows is odd, else with its first row.
  top, left = height % 2, width % 2
  padded = jnp.pad(x, ((0, 0), (top, 1), (left, 1), (0, 0)), constant_values=-jnp.inf)
  taken = jnp.zeros(pooled.shape, bool)
  parts = {}
  for i in range(_SIZE):
    for j in range(_SIZE):
      here = padded[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] == pooled
      parts[i, j] = jnp.where(here & ~taken, gradient, 0)
      taken = taken | here
  by_column = [_interleaved([parts[i, j] for i in range(_SIZE)], axis=1) for j in range(_SIZE)]
  whole = _interleaved(by_column, axis=2)
  return whole[:, top : top + height, left : left + width]


def _interleaved(places: list[Array], axis: int) -> Array:
  """Adds up what windows at stride 2 have at each of their three places, where the window reads it; n -> 2n + 2.

  As sums of padded maps: where the axis is split over devices, stacks of even and odd rows would be exchanged.
  """
  total = 2 * places[0].shape[axis] + 2
  padded = []
  for place, part in enumerate(places):
    around = [(0, 0, 0)] * part.ndim
    around[axis] = (place, total - 2 * part.shape[axis] + 1 - place, 1)  # the last: one cell between neighbours
    padded.append(lax.pad(part, jnp.zeros((), part.dtype), around))
  return sum(padded)
