"""Defines the two layers that all networks here use, with the reference's conventions (docs/method.md, 2)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

from vild_jax.nn import normalise, pointwise

Array = jax.Array

# Initialisers (docs/method.md, 3), named after the part of the network that uses them.
BACKBONE_INIT = initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
GLOROT_INIT = initializers.glorot_uniform()
RPN_INIT = initializers.normal(0.01)
HEAD_INIT = initializers.variance_scaling(2.0, 'fan_out', 'normal')
BOX_INIT = initializers.normal(0.001)
BACKGROUND_INIT = initializers.normal(0.01)


class BatchNorm(nn.Module):
  """Normalises over all axes except the last; under `jit` the statistics are those of the global batch.

  Rows of the first axis that are not `valid` are left out of the batch statistics (docs/departures.md, 3). With a
  sharded batch the mean is global because it is computed under `jit` (`normalise.statistics` says how exactly). The
  last axis holds the channels of `pixels` pixels, one pixel after another.
  """

  dtype: jax.typing.DTypeLike | None = None
  momentum: float = 0.997
  pixels: int = 1

  @nn.compact
  def __call__(self, x: Array, *, train: bool, valid: Array | None = None) -> Array:
    mask = None
    if valid is not None:
      # Without a valid row all rows count, because the mean over an empty set would be NaN.
      mask = (valid | ~jnp.any(valid)).reshape(valid.shape + (1,) * (x.ndim - 1))
    return _Normalisation(self.dtype, self.momentum, self.pixels, name='bn')(x, mask, train)


class _Normalisation(nn.Module):
  """Holds scale, bias and moving statistics, with the names that `nn.BatchNorm` gives them."""

  dtype: jax.typing.DTypeLike | None
  momentum: float
  pixels: int

  @nn.compact
  def __call__(self, x: Array, mask: Array | None, train: bool) -> Array:
    size = (x.shape[-1] // self.pixels,)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, size, jnp.float32)
    var = self.variable('batch_stats', 'var', jnp.ones, size, jnp.float32)
    scale = self.param('scale', initializers.ones, size, jnp.float32)
    bias = self.param('bias', initializers.zeros, size, jnp.float32)
    dtype = nn.dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)
    if not train:
      return normalise.apply(x, mean.value, var.value, scale, bias, dtype)
    y, *found = normalise.by_batch(x, scale, bias, mask, mean.value, dtype)
    if not self.is_initializing():
      for moving, value in zip((mean, var), found, strict=True):
        moving.value = self.momentum * moving.value + (1 - self.momentum) * value
    return y


def conv(
  features: int, size: int, *, stride: int = 1, use_bias: bool, init, dtype, name: str | None = None, convolve=None
) -> nn.Conv:
  """Returns a convolution, padded SAME at stride 1 and by (size − 1) / 2 on all sides at stride > 1.

  `convolve` computes it in the place of `lax.conv_general_dilated`.
  """
  pad = (size - 1) // 2
  padding = 'SAME' if stride == 1 else [(pad, pad), (pad, pad)]
  return nn.Conv(
    features,
    (size, size),
    strides=stride,
    padding=padding,
    use_bias=use_bias,
    kernel_init=init,
    dtype=dtype,
    conv_general_dilated=pointwise.conv_general_dilated if size == 1 else convolve,
    name=name,
  )
