"""Defines the feature pyramid network (docs/method.md, 2)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from vild_jax.nn.layers import GLOROT_INIT, BatchNorm, conv

Array = jax.Array


def upsample_nearest(x: Array) -> Array:
  """Repeats each value 2x2: [B, H, W, C] -> [B, 2H, 2W, C]."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class FPN(nn.Module):
  """Turns backbone features {level: [B, H_l, W_l, any]} into {level: [B, H_l, W_l, channels]}.

  The result has the levels min_level..max_level. Batch normalisation comes last, without an activation after it, so
  features may be negative.
  """

  min_level: int
  max_level: int
  channels: int
  dtype: jax.typing.DTypeLike | None = None
  momentum: float = 0.997

  @nn.compact
  def __call__(self, backbone: dict[int, Array], *, train: bool) -> dict[int, Array]:
    top = max(backbone)
    lateral = {
      level: conv(self.channels, 1, use_bias=True, init=GLOROT_INIT, dtype=self.dtype, name=f'lateral{level}')(x)
      for level, x in backbone.items()
      if level >= self.min_level
    }
    for level in range(top - 1, self.min_level - 1, -1):
      lateral[level] = lateral[level] + upsample_nearest(lateral[level + 1])
    features = {
      level: conv(self.channels, 3, use_bias=True, init=GLOROT_INIT, dtype=self.dtype, name=f'output{level}')(x)
      for level, x in lateral.items()
    }
    for level in range(top + 1, self.max_level + 1):
      below = features[level - 1] if level == top + 1 else nn.relu(features[level - 1])
      # SAME, not symmetric padding: for even sizes the row of zeros comes after the picture, as in the reference.
      features[level] = nn.Conv(
        self.channels,
        (3, 3),
        strides=2,
        padding='SAME',
        kernel_init=GLOROT_INIT,
        dtype=self.dtype,
        name=f'output{level}',
      )(below)
    return {
      level: BatchNorm(self.dtype, self.momentum, name=f'output{level}_bn')(features[level], train=train)
      for level in range(self.min_level, self.max_level + 1)
    }
