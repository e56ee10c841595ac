"""Freezes parameters and batch statistics in a training step (`train.freeze`).

A frozen parameter has no gradient, and the optimiser leaves it as it is (`optim.optimizer`). A batch normalisation
whose scale and bias are both frozen normalises by its stored statistics and does not update them, as at inference.
Without patterns nothing changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from vild_jax.config import matches
from vild_jax.nn.layers import BatchNorm
from vild_jax.train import optim

Patterns = tuple[str, ...]


def stopped(patterns: Patterns, params: Any) -> Any:
  """Returns the parameters; no gradient flows into those that are frozen, so that none is computed for them."""
  if not patterns:
    return params
  stop = lambda frozen, value: jax.lax.stop_gradient(value) if frozen else value
  return jax.tree.map(stop, optim.frozen(patterns, params), params)


@contextlib.contextmanager
def stored_statistics(patterns: Patterns) -> Iterator[None]:
  """Makes frozen batch normalisations work as at inference, in all that is traced in this context."""

  def call(function: Any, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
    module = context.module
    if isinstance(module, BatchNorm) and context.method_name == '__call__':
      kwargs = {**kwargs, 'train': kwargs['train'] and not _is_frozen(patterns, '/'.join((*module.path, 'bn')))}
    return function(*args, **kwargs)

  if not patterns:
    yield
    return
  with nn.intercept_methods(call):
    yield


def kept_statistics(patterns: Patterns, before: Any, after: Any) -> Any:
  """Returns the batch statistics `after` a step, but those `before` it of frozen batch normalisations."""

  def of(path: tuple, old: jax.Array, new: jax.Array) -> jax.Array:
    return old if _is_frozen(patterns, optim.path_name(path[:-1])) else new

  return jax.tree_util.tree_map_with_path(of, before, after)


def _is_frozen(patterns: Patterns, normalisation: str) -> bool:
  return all(matches(patterns, f'{normalisation}/{leaf}') for leaf in ('scale', 'bias'))
