"""CLIP's two towers: a ViT for images and a causal transformer for text (Radford et al. 2021, arXiv 2103.00020).

A ModifiedResNet may take the ViT's place (`nn.modified_resnet`), and SigLIP's towers that of both (`nn.siglip`).
Parameters and nothing else: files, names and tokenizers are the business of `interop.hf_clip` and `teacher`.
The variables of `Clip` are {'image': those of `ImageTower`, 'text': those of `TextTower`, 'logit_scale': []}, so that
one tower can be used alone.
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
  """Sizes of a CLIP model.

  `image` is a ViT or a ModifiedResNet; `patch_size` is None for the latter. `end_id` is the token at which the text is
  pooled; None pools at the largest id of each text (files that say `eos_token_id: 2`, whose end token is the last of
  the vocabulary). `sigmoid`: both towers are SigLIP's; `end_id` is of no use then, `embedding_dim` is the image tower's
  width, and texts come with all `context_length` tokens.
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
  """Images -> embeddings, by the kind of tower that `config.image` describes."""

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
    nn.share_scope(self, self.tower)  # its parameters are this module's own, whatever the kind

  def __call__(self, images: Float[Array, 'B S S 3'], train: bool = False) -> Float[Array, 'B D']:
    """Embeddings, not normalised.

    Args:
      images: float32, side `image_size`, normalised by the teacher's own mean and deviation.
      train: only for a ModifiedResNet that is trained: normalise by the batch (see `nn.modified_resnet`).
    """
    size = self.config.image_size
    if images.shape[1:] != (size, size, 3):
      raise ValueError(f'images are {images.shape}; expected [B, {size}, {size}, 3]')
    return self.tower(images, train)


class _VisionTransformer(nn.Module):
  """Patches, class token, pre-norm, blocks, norm of the class token, projection."""

  config: ClipConfig
  dtype: Any

  @nn.compact
  def __call__(self, images: Float[Array, 'B S S 3'], train: bool) -> Float[Array, 'B D']:
    del train  # nothing here depends on it
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
  """Token ids -> embeddings, by the kind of tower that the configuration describes."""

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
    """Embeddings, not normalised.

    CLIP's `tokens`: start, text, end, then padding, which no result depends on; T <= context length. SigLIP's: text,
    end, then the tokenizer's own padding, on which results do depend; T = context length. Else ValueError.
    """
    return self.tower(tokens)


class _CausalTransformer(nn.Module):
  """Causal blocks, norm, the state at the end token, projection."""

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
  """Both towers and the logarithm of the inverse temperature, for contrastive training."""

  config: ClipConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'B S S 3'], tokens: Int[Array, 'N T'], train: bool = False
  ) -> tuple[Float[Array, 'B D'], Float[Array, 'N D'], Float[Array, '']]:
    """Unit image embeddings, unit text embeddings, and the factor of their cosine. `train`: as in `ImageTower`.

    The factor of a sigmoid model multiplies the cosine as well; its `logit_bias`, a parameter beside `logit_scale`, is
    then added. No ranking of classes depends on either.
    """
    image = ImageTower(self.config, self.dtype, name='image')(images, train)
    text = TextTower(self.config, self.dtype, name='text')(tokens)
    scale = self.param('logit_scale', nn.initializers.constant(jnp.log(1 / 0.07)), ())
    if self.config.sigmoid:
      self.param('logit_bias', nn.initializers.constant(-10.0), ())
    return normalize(image), normalize(text), jnp.exp(scale)


def normalize(x: Float[Array, '*batch D']) -> Float[Array, '*batch D']:
  """Rows of unit length, float32."""
  x = x.astype(jnp.float32)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
