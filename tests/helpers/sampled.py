"""Proposals made up for the batches of `tiny`, and what `targets.assign` makes of them."""

from __future__ import annotations

import jax
import numpy as np

from tests.helpers import tiny
from vild_jax import structs, targets
from vild_jax.structs import Proposals


def assign(batch, proposals, config=None, key=0):
  """`assign` on given proposals; the other outputs of the first stage play no part in it."""
  config = config or tiny.config()
  first = structs.FirstStage({}, {}, {}, proposals)
  return jax.device_get(
    jax.jit(targets.assign, static_argnums=0)(
      config, first, batch, tiny.vocabulary(), jax.random.split(jax.random.PRNGKey(key), len(batch.image))
    )
  )


def proposals(batch, count=30, valid=20, seed=1):
  """Boxes near the ground truth and far from it; the last ones are padding."""
  rng = np.random.default_rng(seed)
  size, instances = batch.valid.shape
  near = batch.boxes[np.arange(size)[:, None], rng.integers(0, instances, (size, count))]
  jitter = rng.uniform(-3, 3, near.shape)
  far = np.sort(rng.uniform(0, 63, (size, count, 2, 2)), axis=2).reshape(size, count, 4)
  mixed = np.where(rng.random((size, count, 1)) < 0.5, near + jitter, far).clip(0, 63).astype(np.float32)
  mixed[..., 2:] = np.maximum(mixed[..., 2:], mixed[..., :2] + 2)  # every real proposal has an area; padding has none
  mask = np.tile(np.arange(count) < valid, (size, 1))
  return Proposals(mixed * mask[..., None], mask.astype(np.float32), mask)


def with_some_masks(share):
  batch = tiny.batch()
  return batch.replace(has_mask=batch.valid & (np.random.default_rng(5).random(batch.valid.shape) < share))
