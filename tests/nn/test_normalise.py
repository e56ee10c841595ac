"""Against `nn.BatchNorm` of Flax, which differentiates the plain formula."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.nn import layers, normalise

_VALID = np.array([True, False, True, True, False])


def _ours(x, params, stats, valid):
  variables = {'params': {'bn': params}, 'batch_stats': {'bn': stats}}
  pixels = x.shape[-1] // len(params['scale'])
  norm = layers.BatchNorm(x.dtype, pixels=pixels)
  return norm.apply(variables, x, train=True, valid=valid, mutable=['batch_stats'])


def _flax(x, params, stats, valid):
  if x.shape[-1] > len(params['scale']):
    y, after = _flax(x.reshape(*x.shape[:-1], -1, len(params['scale'])), params, stats, valid)
    return y.reshape(x.shape), after
  mask = None if valid is None else valid.reshape(-1, *(1,) * (x.ndim - 1))
  settings = {'momentum': 0.997, 'epsilon': 1e-4, 'use_fast_variance': False, 'dtype': x.dtype}
  module = nn.BatchNorm(use_running_average=False, **settings)
  with jax.numpy_rank_promotion('allow'):
    return module.apply({'params': params, 'batch_stats': stats}, x, mask=mask, mutable=['batch_stats'])


@pytest.mark.parametrize(
  ('shape', 'pixels', 'platform'),
  [((5, 7, 3, 9), 1, 'cpu'), ((5, 7, 3, 9), 3, 'cpu'), ((5, 7, 3, 9), 3, 'tpu'), ((5, 1), 1, 'cpu')],
)
@pytest.mark.parametrize('valid', [None, _VALID], ids=['all', 'some'])
@pytest.mark.parametrize(('dtype', 'step'), [('float32', 2**-20), ('bfloat16', 2**-7)])
def test_values_gradients_and_statistics_are_those_of_the_plain_formula(
  shape, pixels, platform, valid, dtype, step, as_on
):
  as_on(platform)
  rng = np.random.default_rng(0)
  draw = lambda *size: jnp.asarray(rng.normal(size=size), jnp.float32)
  x, cotangent = (3 * draw(*shape) + 2).astype(dtype), draw(*shape).astype(dtype)
  channels = shape[-1] // pixels
  params = {'scale': draw(channels), 'bias': draw(channels)}
  stats = {'mean': draw(channels), 'var': draw(channels) ** 2}

  def both_directions(normalise):
    y, back, after = jax.vjp(lambda x, p: normalise(x, p, stats, valid), x, params, has_aux=True)
    return jax.tree.leaves((y, back(cotangent), after))

  found, expected = (jax.jit(both_directions, static_argnums=0)(of) for of in (_ours, _flax))
  assert [f.dtype for f in found] == [e.dtype for e in expected]
  for a, b in zip(found, expected, strict=True):
    a, b = (np.asarray(value, np.float64) for value in (a, b))
    np.testing.assert_allclose(a, b, rtol=step, atol=step * max(np.abs(b).max(), 1))


@pytest.mark.parametrize('offset', [0.0, 1.0, 30.0, 1000.0])
def test_one_pass_costs_the_variance_less_than_rounding_to_bfloat16_does(offset):
  """Even where the moving mean is still 0 and the mean is 1,000 standard deviations away from it."""
  exact = offset + np.random.default_rng(0).normal(size=(4, 64, 64, 3))
  x = jnp.asarray(exact, jnp.bfloat16)
  rounded = np.asarray(x, np.float64)
  axes = (0, 1, 2)
  mean, var = normalise.statistics(x, None, jnp.zeros(3))
  error = np.abs(var - rounded.var(axes))
  assert (error <= 2**-20 * (rounded.var(axes) + rounded.mean(axes) ** 2)).all()
  assert error.max() <= max(np.abs(rounded.var(axes) - exact.var(axes)).max(), 2**-20)
  np.testing.assert_allclose(mean, rounded.mean(axes), rtol=1e-6, atol=1e-6)
  near = normalise.statistics(x, None, jnp.full(3, offset))
  np.testing.assert_allclose(near[1], rounded.var(axes), rtol=2**-18)
