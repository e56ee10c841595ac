"""The two layers that every network here is made of, with the reference's conventions (METHOD.md, section 2)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn import initializers

Array = jax.Array

# Initialisers of METHOD.md, section 3, by the part of the network that uses them.
BACKBONE_INIT = initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')
GLOROT_INIT = initializers.glorot_uniform()
RPN_INIT = initializers.normal(0.01)
HEAD_INIT = initializers.variance_scaling(2.0, 'fan_out', 'normal')
BOX_INIT = initializers.normal(0.001)
BACKGROUND_INIT = initializers.normal(0.01)


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last, over the global batch under `jit`.

  `valid` masks rows of the first axis out of the batch statistics (METHOD.md, section 4.3). Under `jit` with a sharded
  batch the mean is a global one by construction. The variance takes two passes: E[x²] − E[x]² loses digits.
  """

  dtype: jax.typing.DTypeLike | None = None
  momentum: float = 0.997

  @nn.compact
  def __call__(self, x: Array, *, train: bool, valid: Array | None = None) -> Array:
    mask = None
    if valid is not None:
      # Without a single valid row there is nothing to normalise by, and a mean over nothing would be NaN.
      mask = (valid | ~jnp.any(valid)).reshape(valid.shape + (1,) * (x.ndim - 1))
    return nn.BatchNorm(
      use_running_average=not train,
      momentum=self.momentum,
      epsilon=1e-4,
      use_fast_variance=False,
      dtype=self.dtype,
      name='bn',
    )(x, mask=mask)


def conv(features: int, size: int, *, stride: int = 1, use_bias: bool, init, dtype, name: str | None = None) -> nn.Conv:
  """A convolution: SAME at stride 1, symmetric padding (size − 1) / 2 at stride > 1, whatever the input's parity."""
  pad = (size - 1) // 2
  padding = 'SAME' if stride == 1 else [(pad, pad), (pad, pad)]
  return nn.Conv(
    features, (size, size), strides=stride, padding=padding, use_bias=use_bias, kernel_init=init, dtype=dtype, name=name
  )
