"""Defines CLIP's two towers: a ViT for images, a causal transformer for text (Radford et al. 2021, arXiv 2103.00020).

The image tower may be a ModifiedResNet instead of a ViT (`nn.modified_resnet`), and both towers may be SigLIP's
(`nn.siglip`). This file holds parameters only; files, parameter names and tokenizers are handled in `teacher`.
The variables of `Clip` are {'image': variables of `ImageTower`, 'text': variables of `TextTower`, 'logit_scale': []},
so each tower can be used alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vild_jax.nn.modified_resnet import ModifiedResNet, ResNetTower, with_statistics
from vild_jax.nn.siglip import SiglipImageTower, SiglipTextTower
from vild_jax.nn.transformer import ACTIVATIONS, Block, Transformer, layer_norm, precision_of

__all__ = [
  'ACTIVATIONS',
  'Clip',
  'ClipConfig',
  'ImageTower',
  'ModifiedResNet',
  'TextTower',
  'Transformer',
  'normalize',
  'with_statistics',
]


@dataclass(frozen=True)
class ClipConfig:
  """Holds the sizes of a CLIP model.

  Attributes:
    embedding_dim: D of both towers; for SigLIP it is the width of the image tower.
    image: a ViT or a ModifiedResNet.
    image_size: side of the input in pixels.
    patch_size: side of a patch in pixels; None for a ModifiedResNet.
    text: the text transformer.
    vocab_size: number of tokens.
    context_length: the largest number of tokens in a text; SigLIP's texts always have this many.
    end_id: the token at which the text is pooled; None pools at the largest id of each text, for files with
      `eos_token_id: 2`, whose end token is the last of the vocabulary. Not used for SigLIP.
    sigmoid: whether both towers are SigLIP's.
  """

  embedding_dim: int
  image: Transformer | ModifiedResNet
  image_size: int
  patch_size: int | None
  text: Transformer
  vocab_size: int
  context_length: int = 77
  end_id: int | None = None
  sigmoid: bool = False


class ImageTower(nn.Module):
  """Turns images into embeddings, with the kind of tower that `config.image` describes."""

  config: ClipConfig
  dtype: Any = jnp.float32

  def setup(self):
    c = self.config
    if isinstance(c.image, ModifiedResNet):
      self.tower = ResNetTower(c.image, c.image_size, c.embedding_dim, self.dtype)
    elif c.sigmoid:
      self.tower = SiglipImageTower(c.image, c.image_size, c.patch_size, self.dtype)
    else:
      self.tower = _VisionTransformer(c, self.dtype)
    nn.share_scope(self, self.tower)  # parameter names do not depend on the kind of tower

  def __call__(self, images: Float[Array, 'B S S 3'], train: bool = False) -> Float[Array, 'B D']:
    """Returns embeddings, not normalised.

    Args:
      images: float32, side `image_size`, normalised by the teacher's mean and standard deviation.
      train: normalise by the batch; only for a ModifiedResNet that is trained (see `nn.modified_resnet`).

    Raises:
      ValueError: if the images have another size.
    """
    size = self.config.image_size
    if images.shape[1:] != (size, size, 3):
      raise ValueError(f'images are {images.shape}; expected [B, {size}, {size}, 3]')
    return self.tower(images, train)


class _VisionTransformer(nn.Module):
  """Computes patches, class token, pre-norm, blocks, norm of the class token, projection."""

  config: ClipConfig
  dtype: Any

  @nn.compact
  def __call__(self, images: Float[Array, 'B S S 3'], train: bool) -> Float[Array, 'B D']:
    del train  # this tower has no batch statistics
    c, t = self.config, self.config.image
    side, precision = c.image_size // c.patch_size, precision_of(self.dtype)
    patches = nn.Conv(
      t.width,
      (c.patch_size,) * 2,
      strides=c.patch_size,
      padding='VALID',
      use_bias=False,
      dtype=self.dtype,
      precision=precision,
      name='patch',
    )(images)
    token = self.param('class_token', nn.initializers.normal(t.width**-0.5), (t.width,))
    position = self.param('position', nn.initializers.normal(0.02), (side * side + 1, t.width))
    tokens = jnp.broadcast_to(token.astype(self.dtype), (len(images), 1, t.width))
    x = jnp.concatenate([tokens, patches.reshape(len(images), side * side, t.width)], axis=1)
    x = layer_norm(t, self.dtype, 'norm_in')(x + position.astype(self.dtype)[None])
    for i in range(t.layers):
      x = Block(t, self.dtype, name=f'block_{i}')(x, None)
    pooled = layer_norm(t, self.dtype, 'norm_out')(x[:, 0])
    return nn.Dense(c.embedding_dim, use_bias=False, dtype=self.dtype, precision=precision, name='project')(pooled)


class TextTower(nn.Module):
  """Turns token ids into embeddings, with the kind of tower that the configuration describes."""

  config: ClipConfig
  dtype: Any = jnp.float32

  def setup(self):
    c = self.config
    if c.sigmoid:
      self.tower = SiglipTextTower(c.text, c.vocab_size, c.context_length, c.embedding_dim, self.dtype)
    else:
      self.tower = _CausalTransformer(c, self.dtype)
    nn.share_scope(self, self.tower)

  def __call__(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B D']:
    """Returns embeddings, not normalised.

    Args:
      tokens: for CLIP: start, text, end, then padding, which has no influence; T <= context length. For SigLIP: text,
        end, then the padding of the tokenizer, which has influence; T = context length.

    Raises:
      ValueError: if T is not as said above.
    """
    return self.tower(tokens)


class _CausalTransformer(nn.Module):
  """Computes causal blocks, norm, the state at the end token, projection."""

  config: ClipConfig
  dtype: Any

  @nn.compact
  def __call__(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B D']:
    c, t = self.config, self.config.text
    length = tokens.shape[1]
    if length > c.context_length:
      raise ValueError(f'texts of {length} tokens; expected at most {c.context_length}, the context of this tower')
    position = self.param('position', nn.initializers.normal(0.01), (c.context_length, t.width))
    x = nn.Embed(c.vocab_size, t.width, embedding_init=nn.initializers.normal(0.02), dtype=self.dtype, name='token')(
      tokens
    )
    x = x + position[None, :length].astype(self.dtype)
    causal = jnp.tril(jnp.ones((length, length), bool))
    for i in range(t.layers):
      x = Block(t, self.dtype, name=f'block_{i}')(x, causal)
    x = layer_norm(t, self.dtype, 'norm_out')(x)
    end = jnp.argmax(tokens if c.end_id is None else tokens == c.end_id, axis=1)
    pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    return nn.Dense(
      c.embedding_dim, use_bias=False, dtype=self.dtype, precision=precision_of(self.dtype), name='project'
    )(pooled)


class Clip(nn.Module):
  """Combines both towers and the logarithm of the inverse temperature, for contrastive training."""

  config: ClipConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B S S 3'], tokens: Int[Array, 'N T'], train: bool = False
  ) -> tuple[Float[Array, 'B D'], Float[Array, 'N D'], Float[Array, '']]:
    """Returns unit image embeddings, unit text embeddings, and the factor of their cosine.

    `train` is that of `ImageTower`. A sigmoid model also multiplies the cosine by the factor and then adds its
    parameter `logit_bias`. Neither changes the ranking of classes.
    """
    image = ImageTower(self.config, self.dtype, name='image')(images, train)
    text = TextTower(self.config, self.dtype, name='text')(tokens)
    scale = self.param('logit_scale', nn.initializers.constant(jnp.log(1 / 0.07)), ())
    if self.config.sigmoid:
      self.param('logit_bias', nn.initializers.constant(-10.0), ())
    return normalize(image), normalize(text), jnp.exp(scale)


def normalize(x: Float[Array, '*batch D']) -> Float[Array, '*batch D']:
  """Returns rows of unit length, float32."""
  x = x.astype(jnp.float32)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
