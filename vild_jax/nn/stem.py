"""Defines the first convolution of a network as a TPU likes it: the same sums over fewer, deeper pixels.

A TPU pads the three channels of a picture to 128 in memory. Blocks of 2x2 pixels, taken as pixels of 12 channels, need
a quarter of that, and a convolution at stride 2 has stride 1 on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
_NUMBERS = ('NHWC', 'HWIO', 'NHWC')


def conv_general_dilated(
  x: Array,
  kernel: Array,
  window_strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  *,
  precision: lax.PrecisionLike = None,
  **_: Any,
) -> Array:
  """Computes `lax.conv_general_dilated` of x [B, H, W, C] and a kernel [K, K, C, D]; for `nn.Conv`.

  K is odd, the stride 2, the padding (K - 1) / 2 on all sides; there is no dilation and no group. On a TPU the terms of
  a sum have another order.

  Raises ValueError for other strides or padding.
  """
  reach = (kernel.shape[0] - 1) // 2
  if (*window_strides, *map(tuple, padding)) != (2, 2, (reach, reach), (reach, reach)):
    raise ValueError(f'strides {window_strides} and padding {padding}; expected 2 and ({reach}, {reach})')
  plain = lambda x, kernel: lax.conv_general_dilated(
    x, kernel, (2, 2), padding, dimension_numbers=_NUMBERS, precision=precision
  )
  return lax.platform_dependent(x, kernel, tpu=lambda x, kernel: by_blocks(x, kernel, precision), default=plain)


def by_blocks(x: Array, kernel: Array, precision: lax.PrecisionLike = None) -> Array:
  """Returns the convolution at stride 2, padded by (K - 1) / 2, of x [B, H, W, C] and a kernel [K, K, C, D], K odd."""
  height, width, size = *x.shape[1:3], kernel.shape[0]
  # Place u of the kernel reads row 2i + u - reach, which is in block i + floor((u - reach) / 2).
  reach = (size - 1) // 2
  before, after = (reach + 1) // 2, reach // 2
  unread = 2 * before - reach  # rows of the first block that no place reads; in the last one it is 1 - unread
  around = (unread, 2 * (before + after + 1) - size - unread)
  deep = _blocks(jnp.pad(kernel, (around, around, (0, 0), (0, 0))), (0, 1))
  x = _blocks(jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0))), (1, 2))
  # Without the barrier the compiler takes the gradient of the kernel back to the picture and its padding.
  x = lax.optimization_barrier(x)
  return lax.conv_general_dilated(
    x, deep, (1, 1), [(before, after)] * 2, dimension_numbers=_NUMBERS, precision=precision
  )


def _blocks(x: Array, axes: tuple[int, int]) -> Array:
  """Halves two neighbouring axes: the four places of a 2x2 block go into the axis after them."""
  parts = []
  for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
    index = [slice(None)] * x.ndim
    for axis, start in zip(axes, place, strict=True):
      index[axis] = slice(start, None, 2)
    parts.append(x[tuple(index)])
  return jnp.concatenate(parts, axis=axes[1] + 1)
