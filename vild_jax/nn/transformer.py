"""Defines the transformer of all CLIP-like towers (pre-norm blocks; Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@dataclass(frozen=True)
class Transformer:
  """Holds the sizes of one transformer.

  `activation` is quick_gelu (OpenAI's weights), gelu (exact) or gelu_pytorch_tanh.
  """

  width: int
  layers: int
  heads: int
  mlp_width: int
  activation: str = 'quick_gelu'
  epsilon: float = 1e-5


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
  'gelu': lambda x: jax.nn.gelu(x, approximate=False),
  'gelu_pytorch_tanh': lambda x: jax.nn.gelu(x, approximate=True),
}


def precision_of(dtype: Any) -> jax.lax.Precision | None:
  """Returns the matmul precision for a dtype: the highest for float32, which accelerators would otherwise round."""
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


class Attention(nn.Module):
  """Computes multi-head attention; `out_width` is the width of the result, by default that of the input."""

  heads: int
  dtype: Any
  out_width: int | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'B T W'], mask: Bool[Array, 'T T'] | None = None, query: Float[Array, 'B Q W'] | None = None
  ) -> Float[Array, 'B Q V']:
    """Mixes the rows of `x`, once for each row of `query` (by default `x` itself).

    `mask` [Q, T] is True where a row of `query` may attend to a row of `x`; None means everywhere.
    """
    width, precision = x.shape[-1], precision_of(self.dtype)
    head = width // self.heads

    def project(y: Array, name: str) -> Float[Array, 'B T H h']:
      return nn.Dense(width, dtype=self.dtype, precision=precision, name=name)(y).reshape(*y.shape[:2], -1, head)

    queries = project(x if query is None else query, 'query') * head**-0.5
    keys, values = project(x, 'key'), project(x, 'value')
    logits = jnp.einsum('bqhd,bkhd->bhqk', queries, keys, precision=precision, preferred_element_type=jnp.float32)
    if mask is not None:
      logits = jnp.where(mask[None, None], logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
    mixed = jnp.einsum('bhqk,bkhd->bqhd', weights, values, precision=precision)
    mixed = mixed.reshape(*mixed.shape[:2], width)
    return nn.Dense(self.out_width or width, dtype=self.dtype, precision=precision, name='out')(mixed)


class Block(nn.Module):
  """Computes attention, then two dense layers; each takes a normalised input, and its result is added to the input."""

  config: Transformer
  dtype: Any

  @nn.compact
  def __call__(self, x: Float[Array, 'B T W'], mask: Bool[Array, 'T T'] | None) -> Float[Array, 'B T W']:
    c = self.config
    x = x + Attention(c.heads, self.dtype, name='attention')(layer_norm(c, self.dtype, 'norm1')(x), mask)
    return x + feed_forward(c, self.dtype, layer_norm(c, self.dtype, 'norm2')(x))


def layer_norm(config: Transformer, dtype: Any, name: str) -> nn.LayerNorm:
  """Returns a layer normalisation with the epsilon of `config`."""
  return nn.LayerNorm(config.epsilon, dtype=dtype, use_fast_variance=False, name=name)


def feed_forward(config: Transformer, dtype: Any, x: Float[Array, 'B T W']) -> Float[Array, 'B T W']:
  """Applies the dense layers `fc1` and `fc2` of the module that calls this, with the activation between them."""
  dense = lambda size, name: nn.Dense(size, dtype=dtype, precision=precision_of(dtype), name=name)
  return dense(config.width, 'fc2')(ACTIVATIONS[config.activation](dense(config.mlp_width, 'fc1')(x)))
