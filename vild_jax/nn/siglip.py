"""Defines the towers of SigLIP and of SigLIP 2 at a fixed resolution (arXiv 2303.15343, 2502.14786).

They differ from CLIP's towers in their pooling. The image tower has no class token: a learned probe attends to all
patches (MAP head). The text tower is not causal and pools at the last position, so all tokens matter, padding too.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vild_jax.nn.transformer import Attention, Block, Transformer, feed_forward, layer_norm, precision_of


class SiglipImageTower(nn.Module):
  """Turns images into embeddings of the transformer's width: patches, blocks, norm, attention of the probe."""

  config: Transformer
  image_size: int
  patch_size: int
  dtype: Any

  @nn.compact
  def __call__(self, images: Float[Array, 'B S S 3'], train: bool = False) -> Float[Array, 'B W']:
    """Does what `clip.ImageTower` says."""
    del train  # this tower has no batch statistics
    c, batch, side = self.config, images.shape[0], self.image_size // self.patch_size
    patches = nn.Conv(
      c.width,
      (self.patch_size,) * 2,
      strides=self.patch_size,
      padding='VALID',
      dtype=self.dtype,
      precision=precision_of(self.dtype),
      name='patch',
    )(images)
    position = self.param('position', nn.initializers.normal(0.02), (side * side, c.width))
    x = patches.reshape(batch, side * side, c.width) + position.astype(self.dtype)[None]
    for i in range(c.layers):
      x = Block(c, self.dtype, name=f'block_{i}')(x, None)
    return _Pool(c, self.dtype, name='pool')(layer_norm(c, self.dtype, 'norm_out')(x))


class _Pool(nn.Module):
  config: Transformer
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'B T W']) -> Float[Array, 'B W']:
    c = self.config
    probe = self.param('probe', nn.initializers.normal(c.width**-0.5), (c.width,))
    query = jnp.broadcast_to(probe.astype(self.dtype), (x.shape[0], 1, c.width))
    x = Attention(c.heads, self.dtype, name='attention')(x, query=query)
    return (x + feed_forward(c, self.dtype, layer_norm(c, self.dtype, 'norm')(x)))[:, 0]


class SiglipTextTower(nn.Module):
  """Turns token ids into embeddings: blocks without a mask, norm, the last position, a dense layer."""

  config: Transformer
  vocab_size: int
  context_length: int
  embedding_dim: int
  dtype: Any

  @nn.compact
  def __call__(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B D']:
    """Returns embeddings, not normalised.

    Args:
      tokens: text, end, padding up to the context length.

    Raises:
      ValueError: if there are fewer or more tokens than the context length.
    """
    c, length = self.config, tokens.shape[1]
    if length != self.context_length:
      raise ValueError(f'texts of {length} tokens; expected {self.context_length}, padded: this tower attends to all')
    position = self.param('position', nn.initializers.normal(c.width**-0.5), (length, c.width))
    x = nn.Embed(
      self.vocab_size, c.width, embedding_init=nn.initializers.normal(c.width**-0.5), dtype=self.dtype, name='token'
    )(tokens)
    x = x + position.astype(self.dtype)[None]
    for i in range(c.layers):
      x = Block(c, self.dtype, name=f'block_{i}')(x, None)
    x = layer_norm(c, self.dtype, 'norm_out')(x)[:, -1]
    return nn.Dense(self.embedding_dim, dtype=self.dtype, precision=precision_of(self.dtype), name='project')(x)
