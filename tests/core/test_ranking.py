"""The largest values, by top_k and by sorting: the same, with the same choice among ties."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from vild_jax.core import ranking


def test_sorting_finds_what_top_k_finds():
  x = np.random.default_rng(0).integers(0, 5, (3, 20)).astype(np.float32)
  x[0, 4] = -np.inf
  order = np.argsort(-x, axis=-1, kind='stable')[:, :7]
  found = ranking.top_k(jnp.asarray(x), 7)
  with ranking.by_sorting():
    sorted_ = ranking.top_k(jnp.asarray(x), 7)
  for values, indices in (found, sorted_):
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, -1))
  assert sorted_[1].dtype == found[1].dtype == jnp.int32
