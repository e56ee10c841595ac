"""Defines OpenAI's ModifiedResNet image tower (RN50 ... RN50x64; Radford et al. 2021, arXiv 2103.00020, section 2.4).

It differs from an ordinary ResNet in three ways. The stem has three 3x3 convolutions. Strides are taken by average
pooling: in the block before its last convolution, in the shortcut before its projection. Attention replaces the global
average: the query is the mean of the last feature map, keys and values are the mean and all cells.

The batch normalisation is that of a frozen teacher: `mean` and `var` are parameters like `scale` and `bias`, so a tower
is one tree of parameters, as in the other families. To train a tower from scratch, apply it with `train=True` and
`mutable=['batch_stats']`. It then normalises by the batch and returns the batch's means and variances, and
`with_statistics` blends these into the parameters after each step (the gradient of both is zero).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vild_jax.nn import pointwise
from vild_jax.nn.transformer import Attention, precision_of

_EPSILON = 1e-5  # of torch's batch normalisation
_STATISTICS = 'batch_stats'
_EXPANSION = 4  # the output of a bottleneck block has 4 times the channels of its inner convolutions


@dataclass(frozen=True)
class ModifiedResNet:
  """Holds the sizes of the tower.

  Attributes:
    layers: number of blocks of each stage.
    width: channels after the stem.
    heads: attention heads of the pooling.
  """

  layers: tuple[int, ...] = (3, 4, 6, 3)
  width: int = 64
  heads: int = 32

  @property
  def stride(self) -> int:
    """Returns the pixels between two cells of the last feature map: 32 for four stages."""
    return 4 * 2 ** (len(self.layers) - 1)

  @property
  def channels(self) -> int:
    """Returns the channels of the last feature map."""
    return _EXPANSION * self.width * 2 ** (len(self.layers) - 1)


class _BatchNorm(nn.Module):
  dtype: Any
  scale_init: Any = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W C'], train: bool) -> Float[Array, 'B H W C']:
    size = x.shape[-1:]
    scale, bias = self.param('scale', self.scale_init, size), self.param('bias', nn.initializers.zeros, size)
    mean, var = self.param('mean', nn.initializers.zeros, size), self.param('var', nn.initializers.ones, size)
    x = x.astype(jnp.float32)
    if train:
      mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
      for name, value in (('mean', mean), ('var', var)):
        self.sow(_STATISTICS, name, jax.lax.stop_gradient(value), reduce_fn=lambda _, new: new, init_fn=lambda: 0.0)
    else:
      mean, var = jax.lax.stop_gradient((mean, var))
    factor = scale * jax.lax.rsqrt(var + _EPSILON)
    mean, factor, bias = (v.reshape(1, 1, 1, -1) for v in (mean, factor, bias))
    return ((x - mean) * factor + bias).astype(self.dtype)


def _conv_norm(
  x: Array,
  features: int,
  size: int,
  dtype: Any,
  train: bool,
  name: str,
  stride: int = 1,
  scale_init: Any = nn.initializers.ones,
) -> Array:
  """Applies a convolution without bias, padded by size // 2 on all sides, and batch normalisation `{name}_bn`."""
  x = nn.Conv(
    features,
    (size, size),
    strides=stride,
    padding=size // 2,
    use_bias=False,
    dtype=dtype,
    precision=precision_of(dtype),
    kernel_init=nn.initializers.he_normal(),
    conv_general_dilated=_convolution(x, size),
    name=name,
  )(x)
  return _BatchNorm(dtype, scale_init, name=f'{name}_bn')(x, train)


def _convolution(x: Array, size: int) -> Any:
  """Returns how the convolution with a kernel of `size` is computed for maps like x; None: as JAX does."""
  if size == 1:
    return pointwise.conv_general_dilated
  # XLA:CPU computes convolutions of maps that are smaller than the kernel ten times slower than this.
  return _by_slices if min(x.shape[1:3]) < size else None


def _by_slices(x: Array, kernel: Array, strides: Any, padding: Any, *, precision: Any = None, **_: Any) -> Array:
  """Computes the convolution at stride 1, padded to the same size, as one matrix product of shifted maps."""
  height, width, size = *x.shape[1:3], kernel.shape[0]
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  shifted = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
  return jnp.matmul(jnp.concatenate(shifted, -1), kernel.reshape(-1, kernel.shape[-1]), precision=precision)


def _halved(x: Array) -> Array:
  return nn.avg_pool(x, (2, 2), strides=(2, 2))


class _Block(nn.Module):
  channels: int
  stride: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'B H W C'], train: bool) -> Float[Array, 'B h w D']:
    out = _EXPANSION * self.channels
    shortcut = x
    if self.stride > 1 or x.shape[-1] != out:
      shortcut = _conv_norm(_halved(x) if self.stride > 1 else x, out, 1, self.dtype, train, 'projection')
    x = nn.relu(_conv_norm(x, self.channels, 1, self.dtype, train, 'conv1'))
    x = nn.relu(_conv_norm(x, self.channels, 3, self.dtype, train, 'conv2'))
    x = _halved(x) if self.stride > 1 else x
    # With scale 0 a new block computes its shortcut alone, so deep towers train from the first step.
    x = _conv_norm(x, out, 1, self.dtype, train, 'conv3', scale_init=nn.initializers.zeros)
    return nn.relu(x + shortcut)


class ResNetTower(nn.Module):
  """Turns images into embeddings."""

  config: ModifiedResNet
  image_size: int
  embedding_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'B S S 3'], train: bool = False) -> Float[Array, 'B D']:
    """Does what `clip.ImageTower` says; for `train` see the top of this file."""
    c = self.config
    x = images.astype(self.dtype)
    for name, features, stride in (('stem1', c.width // 2, 2), ('stem2', c.width // 2, 1), ('stem3', c.width, 1)):
      x = nn.relu(_conv_norm(x, features, 3, self.dtype, train, name, stride))
    x = _halved(x)
    for stage, blocks in enumerate(c.layers):
      for i in range(blocks):
        x = _Block(c.width * 2**stage, 2 if stage and not i else 1, self.dtype, name=f'stage{stage + 1}_block{i}')(
          x, train
        )
    cells = x.reshape(x.shape[0], -1, x.shape[-1])
    position = self.param(
      'position', nn.initializers.normal(c.channels**-0.5), ((self.image_size // c.stride) ** 2 + 1, c.channels)
    )
    tokens = jnp.concatenate([cells.mean(axis=1, keepdims=True), cells], axis=1) + position.astype(self.dtype)[None]
    return Attention(c.heads, self.dtype, self.embedding_dim, name='pool')(tokens, query=tokens[:, :1])[:, 0]


def with_statistics(params: Mapping[str, Any], batch_stats: Mapping[str, Any], momentum: float = 0.9) -> dict[str, Any]:
  """Returns `params` with running means and variances = momentum * old + (1 - momentum) * those of a batch.

  Args:
    params: parameters of the tower, or of a module that contains it.
    batch_stats: the collection that `apply(..., train=True, mutable=['batch_stats'])` of the same module returned.
    momentum: the weight of the old statistics.
  """
  flat = flax.traverse_util.flatten_dict(params)
  for path, new in flax.traverse_util.flatten_dict(batch_stats).items():
    flat[path] = momentum * flat[path] + (1 - momentum) * new
  return flax.traverse_util.unflatten_dict(flat)
