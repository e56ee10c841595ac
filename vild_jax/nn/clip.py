"""CLIP's two towers: a ViT for images and a causal transformer for text (Radford et al. 2021, arXiv 2103.00020).

Parameters and nothing else: files, names and tokenizers are the business of `interop.hf_clip` and `teacher`.
The variables of `Clip` are {'image': those of `ImageTower`, 'text': those of `TextTower`, 'logit_scale': []}, so that
one tower can be used alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@dataclass(frozen=True)
class Transformer:
  """Sizes of one transformer. `activation`: quick_gelu (OpenAI's weights), gelu (exact) or gelu_pytorch_tanh."""

  width: int
  layers: int
  heads: int
  mlp_width: int
  activation: str = 'quick_gelu'
  epsilon: float = 1e-5


@dataclass(frozen=True)
class ClipConfig:
  """Sizes of a CLIP model.

  `end_id` is the token at which the text is pooled; None pools at the largest id of each text (files that say
  `eos_token_id: 2`, whose end token is the last of the vocabulary).
  """

  embedding_dim: int
  image: Transformer
  image_size: int
  patch_size: int
  text: Transformer
  vocab_size: int
  context_length: int = 77
  end_id: int | None = None


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_pytorch_tanh': lambda x: jax.nn.gelu(x, approximate=True),
}


def _precision(dtype: Any) -> jax.lax.Precision | None:
  """float32 means float32: accelerators would otherwise round the inputs of a matmul to fewer bits."""
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


class _Attention(nn.Module):
  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'B T W'], mask: Bool[Array, 'T T'] | None) -> Float[Array, 'B T W']:
    width, precision = x.shape[-1], _precision(self.dtype)
    head = width // self.heads

    def project(name: str) -> Float[Array, 'B T H h']:
      return nn.Dense(width, dtype=self.dtype, precision=precision, name=name)(x).reshape(*x.shape[:2], -1, head)

    query, key, value = project('query') * head**-0.5, project('key'), project('value')
    logits = jnp.einsum('bqhd,bkhd->bhqk', query, key, precision=precision, preferred_element_type=jnp.float32)
    if mask is not None:
      logits = jnp.where(mask[None, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
    mixed = jnp.einsum('bhqk,bkhd->bqhd', weights, value, precision=precision).reshape(x.shape)
    return nn.Dense(width, dtype=self.dtype, precision=precision, name='out')(mixed)


class _Block(nn.Module):
  config: Transformer
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'B T W'], mask: Bool[Array, 'T T'] | None) -> Float[Array, 'B T W']:
    c = self.config
    norm = lambda name: _norm(c, self.dtype, name)
    dense = lambda size, name: nn.Dense(size, dtype=self.dtype, precision=_precision(self.dtype), name=name)
    x = x + _Attention(c.heads, self.dtype, name='attention')(norm('norm1')(x), mask)
    hidden = ACTIVATIONS[c.activation](dense(c.mlp_width, 'fc1')(norm('norm2')(x)))
    return x + dense(c.width, 'fc2')(hidden)


def _norm(config: Transformer, dtype: Any, name: str) -> nn.LayerNorm:
  return nn.LayerNorm(config.epsilon, dtype=dtype, use_fast_variance=False, name=name)


class ImageTower(nn.Module):
  """Images -> embeddings: patches, class token, pre-norm, blocks, norm of the class token, projection."""

  config: ClipConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'B S S 3']) -> Float[Array, 'B D']:
    """`images`: float32, side `image_size`, normalised by the teacher's own mean and deviation. Not normalised out."""
    c, t = self.config, self.config.image
    side, precision = c.image_size // c.patch_size, _precision(self.dtype)
    if images.shape[1:] != (c.image_size, c.image_size, 3):
      raise ValueError(f'images are {images.shape}; expected [B, {c.image_size}, {c.image_size}, 3]')
    patches = nn.Conv(t.width, (c.patch_size,) * 2, strides=c.patch_size, padding='VALID', use_bias=False,
                      dtype=self.dtype, precision=precision, name='patch')(images)
    token = self.param('class_token', nn.initializers.normal(t.width**-0.5), (t.width,))
    position = self.param('position', nn.initializers.normal(0.02), (side * side + 1, t.width))
    tokens = jnp.broadcast_to(token.astype(self.dtype), (len(images), 1, t.width))
    x = jnp.concatenate([tokens, patches.reshape(len(images), side * side, t.width)], axis=1)
    x = _norm(t, self.dtype, 'norm_in')(x + position.astype(self.dtype)[None])
    for i in range(t.layers):
      x = _Block(t, self.dtype, name=f'block_{i}')(x, None)
    pooled = _norm(t, self.dtype, 'norm_out')(x[:, 0])
    return nn.Dense(c.embedding_dim, use_bias=False, dtype=self.dtype, precision=precision, name='project')(pooled)


class TextTower(nn.Module):
  """Token ids -> embeddings: causal blocks, norm, the state at the end token, projection."""

  config: ClipConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B D']:
    """`tokens`: start, text, end, then padding, which no result depends on; T <= context length. Not normalised out."""
    c, t = self.config, self.config.text
    length = tokens.shape[1]
    if length > c.context_length:
      raise ValueError(f'texts of {length} tokens; expected at most {c.context_length}, the context of this tower')
    position = self.param('position', nn.initializers.normal(0.01), (c.context_length, t.width))
    x = nn.Embed(c.vocab_size, t.width, embedding_init=nn.initializers.normal(0.02), dtype=self.dtype,
                 name='token')(tokens)
    x = x + position[None, :length].astype(self.dtype)
    causal = jnp.tril(jnp.ones((length, length), bool))
    for i in range(t.layers):
      x = _Block(t, self.dtype, name=f'block_{i}')(x, causal)
    x = _norm(t, self.dtype, 'norm_out')(x)
    end = jnp.argmax(tokens if c.end_id is None else tokens == c.end_id, axis=1)
    pooled = jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]
    return nn.Dense(c.embedding_dim, use_bias=False, dtype=self.dtype, precision=_precision(self.dtype),
                    name='project')(pooled)


class Clip(nn.Module):
  """Both towers and the logarithm of the inverse temperature, for contrastive training."""

  config: ClipConfig
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: Float[Array, 'B S S 3'], tokens: Int[Array, 'N T']
               ) -> tuple[Float[Array, 'B D'], Float[Array, 'N D'], Float[Array, '']]:
    """Unit image embeddings, unit text embeddings, and the factor of their cosine."""
    image = ImageTower(self.config, self.dtype, name='image')(images)
    text = TextTower(self.config, self.dtype, name='text')(tokens)
    scale = self.param('logit_scale', nn.initializers.constant(jnp.log(1 / 0.07)), ())
    return normalize(image), normalize(text), jnp.exp(scale)


def normalize(x: Float[Array, '*batch D']) -> Float[Array, '*batch D']:
  """Rows of unit length, float32."""
  x = x.astype(jnp.float32)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
