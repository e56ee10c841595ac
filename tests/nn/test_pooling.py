"""Max pooling: its gradient equals that of XLA's own pooling, whatever the sizes, types and ties."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.nn import pooling


def plain(x):
  return nn.max_pool(x, (3, 3), (2, 2), 'SAME')


def maps(kind, shape, dtype=np.float32):
  x = np.random.default_rng([*shape]).normal(size=shape)
  return jnp.asarray({'random': x, 'ties': np.round(x), 'zeros': 0 * x, 'relu': np.maximum(x, 0)}[kind], dtype)


def with_gradient(pool, x):
  out, back = jax.vjp(pool, x)
  weights = jnp.asarray(np.random.default_rng(0).integers(-9, 10, out.shape), out.dtype)  # their sums are exact
  return out, back(weights)[0], weights


@pytest.mark.parametrize('kind', ['random', 'ties', 'zeros', 'relu'])
@pytest.mark.parametrize('shape', [(2, 8, 8, 3), (1, 7, 5, 4), (2, 6, 9, 1), (1, 1, 1, 2), (1, 2, 3, 2), (1, 1, 8, 1)])
@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_the_plain_pooling(kind, shape, dtype):
  x = maps(kind, shape, dtype)
  (out, gradient, _), (expected, of_plain, _) = with_gradient(pooling.max_pool, x), with_gradient(plain, x)
  assert out.dtype == gradient.dtype == dtype
  np.testing.assert_array_equal(out, expected)
  np.testing.assert_array_equal(gradient, of_plain)


@pytest.mark.parametrize('shape', [(2, 6, 7, 2), (1, 5, 8, 3)])
def test_a_gradient_goes_to_the_first_largest_value_of_its_window(shape):
  x = maps('ties', shape)
  _, found, weights = with_gradient(pooling.max_pool, x)
  expected, (height, width) = np.zeros(shape), shape[1:3]
  for b, i, j, c in np.ndindex(weights.shape):
    top, left = 2 * i - height % 2, 2 * j - width % 2
    places = [(y, z) for y in range(top, top + 3) for z in range(left, left + 3) if 0 <= y < height and 0 <= z < width]
    best = max(places, key=lambda place: x[b, *place, c])  # the first of those that are equal
    expected[b, *best, c] += weights[b, i, j, c]
  np.testing.assert_array_equal(found, expected)


def test_an_empty_batch_has_an_empty_gradient():
  _, gradient, _ = with_gradient(pooling.max_pool, jnp.zeros((0, 4, 4, 3)))
  assert gradient.shape == (0, 4, 4, 3)
