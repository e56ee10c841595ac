"""Defines ResNet v1.5, with the stride on the 3x3 convolution (docs/method.md, 2)."""

from __future__ import annotations

import flax.linen as nn
import jax

from vild_jax.nn import pooling, stem
from vild_jax.nn.layers import BACKBONE_INIT, BatchNorm, conv

Array = jax.Array

# depth -> (blocks in each of the four groups, bottleneck blocks?)
LAYOUTS = {
  10: ((1, 1, 1, 1), False),
  14: ((1, 1, 1, 1), True),
  18: ((2, 2, 2, 2), False),
  26: ((2, 2, 2, 2), True),
  34: ((3, 4, 6, 3), False),
  50: ((3, 4, 6, 3), True),
  101: ((3, 4, 23, 3), True),
  152: ((3, 8, 36, 3), True),
}


class Block(nn.Module):
  """Computes a residual block; the first block of each group projects its input, even at stride 1."""

  channels: int
  stride: int
  bottleneck: bool
  project: bool
  dtype: jax.typing.DTypeLike | None
  momentum: float

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    def conv_bn(x: Array, channels: int, size: int, stride: int, name: str) -> Array:
      x = conv(channels, size, stride=stride, use_bias=False, init=BACKBONE_INIT, dtype=self.dtype, name=name)(x)
      return BatchNorm(self.dtype, self.momentum, name=f'{name}_bn')(x, train=train)

    out = self.channels * (4 if self.bottleneck else 1)
    shortcut = conv_bn(x, out, 1, self.stride, 'projection') if self.project else x
    if self.bottleneck:
      x = nn.relu(conv_bn(x, self.channels, 1, 1, 'conv1'))
      x = nn.relu(conv_bn(x, self.channels, 3, self.stride, 'conv2'))
      x = conv_bn(x, out, 1, 1, 'conv3')
    else:
      x = nn.relu(conv_bn(x, self.channels, 3, self.stride, 'conv1'))
      x = conv_bn(x, out, 3, 1, 'conv2')
    return nn.relu(x + shortcut)


class ResNet(nn.Module):
  """Turns images [B, S, S, 3] into {level: [B, S / 2**level, S / 2**level, channels]} for levels 2 to 5.

  `remat` changes what is kept in memory for the gradient; the names of parameters stay the same.
  """

  depth: int
  width: int = 64
  remat: bool = False
  dtype: jax.typing.DTypeLike | None = None
  momentum: float = 0.997

  @nn.compact
  def __call__(self, image: Array, *, train: bool) -> dict[int, Array]:
    groups, bottleneck = LAYOUTS[self.depth]
    block_type = nn.remat(Block, static_argnums=2) if self.remat else Block  # argument 2 of __call__: train
    # Elsewhere than in training, programs are exported for platforms and formats that have no choice by platform.
    convolve = stem.conv_general_dilated if train else None
    first = conv(
      self.width, 7, stride=2, use_bias=False, init=BACKBONE_INIT, dtype=self.dtype, name='stem', convolve=convolve
    )
    x = first(image)
    x = nn.relu(BatchNorm(self.dtype, self.momentum, name='stem_bn')(x, train=train))
    x = pooling.max_pool(x)
    features = {}
    for group, blocks in enumerate(groups):
      for block in range(blocks):
        x = block_type(
          channels=self.width * 2**group,
          stride=2 if group > 0 and block == 0 else 1,
          bottleneck=bottleneck,
          project=block == 0,
          dtype=self.dtype,
          momentum=self.momentum,
          name=f'group{group + 1}_block{block + 1}',
        )(x, train)
      features[group + 2] = x
    return features
