"""Padding conventions against the reference, and statistics that padding does not touch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.nn import layers
from vild_jax.nn.fpn import upsample_nearest
from vild_jax.nn.heads import Deconv2x2, PixelLogits, flatten_by_matmul, interleave


@pytest.mark.parametrize(
  ('size', 'variable', 'output'), [(3, 'conv2d', 'fixed3'), (7, 'conv2d_1', 'fixed7'), (1, 'conv2d_2', 'fixed1')]
)
def test_strided_convolutions_pad_as_the_reference(golden, size, variable, output):
  values = golden('conv_padding')
  layer = layers.conv(2, size, stride=2, use_bias=False, init=layers.HEAD_INIT, dtype=None)
  found = layer.apply({'params': {'kernel': values[f'in_{variable}__kernel']}}, values['in_x'])
  np.testing.assert_allclose(found, values[f'out_{output}'], rtol=1e-5, atol=1e-6)


def test_deconvolution_is_the_references(golden):
  values = golden('conv_padding')
  kernel = values['in_conv2d_transpose__kernel'].transpose(0, 1, 3, 2)  # the reference has [h, w, out, in]
  placed = Deconv2x2(kernel.shape[-1]).apply(
    {'params': {'kernel': kernel, 'bias': values['in_conv2d_transpose__bias']}}, values['in_x']
  )
  np.testing.assert_allclose(interleave(placed), values['out_deconv2'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('platform', 'train'), [('tpu', True), ('cpu', True), ('cpu', False)])
@pytest.mark.parametrize(('dtype', 'step'), [('float32', 2**-20), ('bfloat16', 2**-7)])
def test_the_logits_of_pixels_beside_each_other_are_those_of_a_convolution(dtype, step, platform, train, as_on):
  as_on(platform)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 3, 5, 4 * 6)), dtype)
  plain, module = layers.conv(1, 1, use_bias=True, init=layers.HEAD_INIT, dtype=dtype), PixelLogits(dtype)
  variables = module.init(jax.random.key(0), x, train=train)
  drawn = {'kernel': rng.normal(size=(1, 1, 6, 1)).astype(np.float32), 'bias': np.float32([0.7])}
  assert jax.tree.map(jnp.shape, variables['params']) == jax.tree.map(jnp.shape, drawn)
  cotangent = jnp.asarray(rng.normal(size=(2, 6, 10, 1)), dtype)

  def both_directions(logits):
    y, back = jax.vjp(logits, drawn, x)
    return jax.tree.leaves((y, back(cotangent)))

  found = both_directions(lambda params, x: interleave(module.apply({'params': params}, x, train=train)))
  expected = both_directions(lambda params, x: plain.apply({'params': params}, interleave(x)))
  for a, b in zip(found, expected, strict=True):
    a, b = (np.asarray(value, np.float64) for value in (a, b))
    np.testing.assert_allclose(a, b, rtol=0, atol=step * np.abs(b).max())


def test_upsampling_is_nearest(golden):
  values = golden('nearest_upsampling')
  np.testing.assert_array_equal(upsample_nearest(values['in_x']), values['out'])


def test_batch_statistics_ignore_what_is_not_valid():
  """docs/departures.md, 3: padding is in no batch statistic, and its gradient is finite."""
  x = np.random.default_rng(0).normal(size=(6, 3, 3, 4)).astype(np.float32)
  valid = np.array([True, True, False, True, False, True])
  norm = layers.BatchNorm()
  variables = norm.init(jax.random.PRNGKey(0), x, train=False)
  apply = lambda x, valid: norm.apply(variables, x, train=True, valid=valid, mutable=['batch_stats'])
  found, updated = apply(x, valid)
  expected, expected_stats = apply(x[valid], None)
  np.testing.assert_allclose(found[valid], expected, rtol=1e-5, atol=1e-6)
  for a, b in zip(jax.tree.leaves(updated), jax.tree.leaves(expected_stats), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  wild = np.where(valid[:, None, None, None], x, 1e6)
  np.testing.assert_allclose(apply(wild, valid)[0][valid], expected, rtol=1e-5, atol=1e-6)
  nothing = jax.grad(lambda x: jnp.sum(apply(x, np.zeros(6, bool))[0]))(x)
  assert np.isfinite(nothing).all()


def test_moving_statistics_are_biased_and_slow():
  """The moving variance is without Bessel's correction, the momentum 0.997 (docs/method.md, 3)."""
  x = np.random.default_rng(1).normal(2.0, 3.0, size=(5, 4)).astype(np.float32)
  norm = layers.BatchNorm()
  variables = norm.init(jax.random.PRNGKey(0), x, train=False)
  _, updated = norm.apply(variables, x, train=True, mutable=['batch_stats'])
  np.testing.assert_allclose(updated['batch_stats']['bn']['var'], 0.997 + 0.003 * x.var(axis=0), rtol=1e-5)
  np.testing.assert_allclose(updated['batch_stats']['bn']['mean'], 0.003 * x.mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize(
  ('shape', 'fields'),
  [((2, 3, 4, 3), 1), ((1, 1, 1, 1), 1), ((0, 2, 2, 3), 1), ((1, 5, 130, 3), 1), ((2, 3, 4, 12), 4)],
)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_rows_of_few_channels_are_flattened_without_rounding(shape, fields, dtype):
  rng = np.random.default_rng(0)
  x, cotangent = (jnp.asarray(rng.normal(size=shape) * 10.0 ** rng.integers(-9, 9, shape), dtype) for _ in range(2))
  flatten = jax.jit(lambda x: flatten_by_matmul(x, fields))
  found, back = jax.vjp(flatten, x)
  np.testing.assert_array_equal(found, x.reshape(shape[0], int(np.prod(shape[1:])) // fields, fields))
  np.testing.assert_array_equal(back(cotangent.reshape(found.shape))[0], cotangent)
  # A TPU would round to bfloat16; here nothing but the program says so.
  assert 'precision = [HIGHEST, HIGHEST]' in flatten.lower(x).as_text()
