"""Defines the 1x1 convolution with a gradient of its kernel that is fast on a CPU; everything else is plain.

On a CPU, XLA computes the kernel's gradient as a convolution whose window is the whole map, at a fifth of the rate of
the matrix product that it is (docs/measurements.md, "The training step"). On other platforms the convolution is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Padding = Sequence[tuple[int, int]] | str
_NUMBERS = ('NHWC', 'HWIO', 'NHWC')


def conv_general_dilated(
  x: Array,
  kernel: Array,
  window_strides: Sequence[int],
  padding: Padding,
  *,
  precision: lax.PrecisionLike = None,
  **others: Any,
) -> Array:
  """Computes `lax.conv_general_dilated` of x [B, H, W, C] and a kernel [1, 1, C, D]; for `nn.Conv`.

  `others` are its further arguments with the values that `nn.Conv` gives them by default: no dilation, no groups.

  Raises:
    ValueError: the kernel is not 1x1, or there is padding, dilation or a group.
  """
  dilation = [*others.get('lhs_dilation', ()), *others.get('rhs_dilation', ())]
  plain = set(dilation) <= {1} and others.get('feature_group_count', 1) == 1
  if kernel.shape[:2] != (1, 1) or not plain or not (isinstance(padding, str) or not any(map(any, padding))):
    raise ValueError(
      f'a kernel {kernel.shape} with padding {padding} and {others}; expected 1x1, without padding, dilation or groups'
    )
  # Taken here: the gradient may be traced where another default holds.
  precision = precision if precision is not None else jax.config.jax_default_matmul_precision
  return _convolve(x, kernel, tuple(window_strides), precision)


def _plain(x: Array, kernel: Array, strides: tuple[int, ...], precision: lax.PrecisionLike) -> Array:
  return lax.conv_general_dilated(x, kernel, strides, 'VALID', dimension_numbers=_NUMBERS, precision=precision)


_convolve = jax.custom_vjp(_plain, nondiff_argnums=(2, 3))


def _forward(x: Array, kernel: Array, strides: tuple[int, ...], precision: Any) -> tuple[Array, tuple[Array, Array]]:
  return _plain(x, kernel, strides, precision), (x, kernel)


def _backward(strides: tuple[int, ...], precision: Any, kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
  x, kernel = kept
  convolve = partial(_plain, strides=strides, precision=precision)

  def product(x: Array, dy: Array) -> Array:
    seen = x[:, :: strides[0], :: strides[1]].reshape(-1, x.shape[-1])
    # Summed in float32: bfloat16 stands still after some hundred pixels.
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    gradient = lax.dot_general(
      seen,
      dy.reshape(-1, dy.shape[-1]),
      (((0,), (0,)), ((), ())),
      precision=precision,
      preferred_element_type=dtype,
    )
    return gradient.astype(kernel.dtype)[None, None]

  def convolution(x: Array, dy: Array) -> Array:
    return jax.linear_transpose(lambda kernel: convolve(x, kernel), kernel)(dy)[0]

  dx = jax.linear_transpose(lambda x: convolve(x, kernel), x)(dy)[0]
  return dx, lax.platform_dependent(x, dy, cpu=product, default=convolution)


_convolve.defvjp(_forward, _backward)
