"""Defines the three heads: region proposals, regions, masks (docs/method.md, 2)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from vild_jax.core.precision import at_least_float32
from vild_jax.nn import pointwise
from vild_jax.nn.layers import BOX_INIT, GLOROT_INIT, HEAD_INIT, RPN_INIT, BatchNorm, conv

Array = jax.Array


def flatten_by_matmul(x: Array, fields: int) -> Array:
  """Returns the values of `x.reshape(B, -1, fields)`: [B, H, W, A·fields] -> [B, H·W·A, fields].

  A TPU pads rows of few channels to 128 in memory, and its compiler needs up to half a minute for a reshape that
  removes this padding. A matmul by zeros and ones compiles in a second and moves a tenth of the bytes (of 3 channels).
  It is exact, because each sum has one term that is not zero. (A value that is not finite makes its field NaN in the
  whole row of the picture.)
  """
  batch, height, width, channels = x.shape
  per_location = channels // fields
  # Channel first, so that the sum runs over values that are adjacent in memory.
  x = jnp.moveaxis(x, 3, 1).reshape(batch, per_location, fields, height, width)
  ones = jnp.eye(width * per_location, dtype=x.dtype).reshape(width, per_location, -1).swapaxes(0, 1)
  flat = jnp.einsum('bafhw,awk->fbhk', x, ones, precision=jax.lax.Precision.HIGHEST)
  return jnp.moveaxis(flat.reshape(fields, batch, height * width * per_location), 0, 2)


class RPNHead(nn.Module):
  """Predicts objectness {level: [B, H_l·W_l·A]} and deltas {level: [B, H_l·W_l·A, 4]}, float32.

  The input is {level: [B, H_l, W_l, C]}. All levels share the convolutions; each level has its own normalisation.
  """

  num_convs: int
  channels: int
  anchors_per_location: int
  dtype: jax.typing.DTypeLike | None = None
  momentum: float = 0.997

  @nn.compact
  def __call__(self, features: dict[int, Array], *, train: bool) -> tuple[dict[int, Array], dict[int, Array]]:
    def shared(channels: int, size: int, name: str) -> nn.Conv:
      return conv(channels, size, use_bias=True, init=RPN_INIT, dtype=self.dtype, name=name)

    convs = [shared(self.channels, 3, f'conv{i + 1}') for i in range(self.num_convs)]
    objectness = shared(self.anchors_per_location, 1, 'objectness')
    box = shared(4 * self.anchors_per_location, 1, 'box')
    logits, deltas = {}, {}
    for level, x in features.items():
      for i, layer in enumerate(convs):
        x = nn.relu(BatchNorm(self.dtype, self.momentum, name=f'conv{i + 1}_bn{level}')(layer(x), train=train))
      logits[level] = at_least_float32(flatten_by_matmul(objectness(x), 1))[..., 0]
      deltas[level] = at_least_float32(flatten_by_matmul(box(x), 4))
    return logits, deltas


class RegionHead(nn.Module):
  """Turns RoI features [N, s, s, C] and validity [N] into embeddings [N, D] and box deltas [N, 4], float32.

  The embeddings are not normalised here; `core.openvocab.cosine_logits` does it. The box deltas come from the last
  fully connected layer; they are None without `predict_boxes`.
  """

  num_convs: int
  conv_channels: int
  num_fcs: int
  fc_channels: int
  embedding_dim: int
  predict_boxes: bool = True
  dtype: jax.typing.DTypeLike | None = None
  momentum: float = 0.997

  @nn.compact
  def __call__(self, x: Array, valid: Array, *, train: bool) -> tuple[Array, Array | None]:
    for i in range(self.num_convs):
      x = conv(self.conv_channels, 3, use_bias=True, init=HEAD_INIT, dtype=self.dtype, name=f'conv{i + 1}')(x)
      x = nn.relu(BatchNorm(self.dtype, self.momentum, name=f'conv{i + 1}_bn')(x, train=train, valid=valid))
    x = x.reshape(x.shape[0], -1)
    for i in range(self.num_fcs):
      x = nn.Dense(self.fc_channels, kernel_init=GLOROT_INIT, dtype=self.dtype, name=f'fc{i + 1}')(x)
      x = nn.relu(BatchNorm(self.dtype, self.momentum, name=f'fc{i + 1}_bn')(x, train=train, valid=valid))
    embeddings = nn.Dense(self.embedding_dim, kernel_init=GLOROT_INIT, dtype=self.dtype, name='projection')(x)
    if not self.predict_boxes:
      return at_least_float32(embeddings), None
    deltas = nn.Dense(4, kernel_init=BOX_INIT, dtype=self.dtype, name='box')(x)
    return at_least_float32(embeddings), at_least_float32(deltas)


class Deconv2x2(nn.Module):
  """Applies a transposed 2x2 convolution with stride 2: [N, h, w, C] -> [N, h, w, 4·features], see `interleave`.

  At this stride the kernels do not overlap, so it is one 1x1 convolution: XLA:CPU computes its gradient 40 times faster
  than that of `nn.ConvTranspose`. The four pixels of each 2x2 block stay beside each other: putting them in place here
  would copy all channels, and the next layers treat all pixels alike.
  """

  features: int
  dtype: jax.typing.DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Array) -> Array:
    # HEAD_INIT is fan-out normal over [h, w, in, out], the same as for the convolutions before this layer.
    kernel = self.param('kernel', HEAD_INIT, (2, 2, x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    deep = kernel.transpose(2, 0, 1, 3).reshape(1, 1, x.shape[-1], -1)
    return pointwise.conv_general_dilated(x, deep, (1, 1), 'VALID') + jnp.tile(bias, 4).reshape(1, 1, 1, -1)


class PixelLogits(nn.Module):
  """Applies a 1x1 convolution with one output channel to each of four adjacent pixels: [N, h, w, 4·C] -> [N, h, w, 4].

  In training on a TPU a value that is not finite makes all four NaN.
  """

  dtype: jax.typing.DTypeLike | None = None

  @nn.compact
  def __call__(self, x: Array, *, train: bool) -> Array:
    kernel = self.param('kernel', HEAD_INIT, (1, 1, x.shape[-1] // 4, 1))
    bias = self.param('bias', nn.initializers.zeros, (1,))
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
    convolve = partial(pointwise.conv_general_dilated, window_strides=(1, 1), padding='VALID')

    def one_by_one(x: Array, kernel: Array) -> Array:
      n, h, w, c = x.shape
      return convolve(x.reshape(n, h, w * 4, c // 4), kernel).reshape(n, h, w, 4)

    def in_rows(x: Array, kernel: Array) -> Array:
      # Zero from each pixel to the logits of the others: a TPU would copy x to take its last axis apart.
      return convolve(x, jnp.kron(jnp.eye(4, dtype=kernel.dtype), kernel[0, 0])[None, None])

    # Elsewhere than in training, programs are exported for platforms and formats that have no choice by platform.
    logits = jax.lax.platform_dependent(x, kernel, tpu=in_rows, default=one_by_one) if train else one_by_one(x, kernel)
    return logits + bias.reshape(1, 1, 1, 1)


def interleave(x: Array) -> Array:
  """Puts the four pixels of 2x2 blocks where they belong: [N, h, w, 4·D] -> [N, 2h, 2w, D]."""
  n, h, w, channels = x.shape
  return jnp.swapaxes(x.reshape(n, h, w, 2, 2, channels // 4), 2, 3).reshape(n, 2 * h, 2 * w, channels // 4)


class MaskHead(nn.Module):
  """Turns RoI features [N, s, s, C] and validity [N] into class-agnostic mask logits [N, 2s, 2s], float32."""

  num_convs: int
  channels: int
  dtype: jax.typing.DTypeLike | None = None
  momentum: float = 0.997

  @nn.compact
  def __call__(self, x: Array, valid: Array, *, train: bool) -> Array:
    for i in range(self.num_convs):
      x = conv(self.channels, 3, use_bias=True, init=HEAD_INIT, dtype=self.dtype, name=f'conv{i + 1}')(x)
      x = nn.relu(BatchNorm(self.dtype, self.momentum, name=f'conv{i + 1}_bn')(x, train=train, valid=valid))
    x = Deconv2x2(self.channels, self.dtype, name='deconv')(x)
    x = nn.relu(BatchNorm(self.dtype, self.momentum, pixels=4, name='deconv_bn')(x, train=train, valid=valid))
    x = PixelLogits(self.dtype, name='logits')(x, train=train)
    return at_least_float32(interleave(x)[..., 0])
