"""The 1x1 convolution: values and gradients equal those of XLA's own, whatever the strides, sizes and types."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.nn import layers, pointwise

plain = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def arrays(batch, height, width, inputs, outputs, dtype=np.float32):
  rng = np.random.default_rng([batch, height, width, inputs, outputs])
  x = jnp.asarray(rng.normal(size=(batch, height, width, inputs)), dtype)
  return x, jnp.asarray(rng.normal(size=(1, 1, inputs, outputs)), dtype)


def gradients(convolve, x, kernel, strides, padding='VALID'):
  """Output and gradients (x, kernel) of a weighted sum of it."""
  out, back = jax.vjp(lambda x, kernel: convolve(x, kernel, strides, padding), x, kernel)
  weights = jnp.asarray(np.random.default_rng(0).normal(size=out.shape), out.dtype)
  return out, *back(weights)


@pytest.mark.parametrize('strides', [(1, 1), (2, 2), (1, 2), (3, 2)])
@pytest.mark.parametrize('shape', [(2, 7, 5, 3, 4), (1, 1, 1, 8, 1), (3, 8, 8, 1, 16), (2, 9, 2, 5, 5)])
def test_values_and_gradients_are_those_of_the_plain_convolution(shape, strides):
  x, kernel = arrays(*shape)
  for ours, expected in zip(
    gradients(pointwise.conv_general_dilated, x, kernel, strides), gradients(plain, x, kernel, strides), strict=True
  ):
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_kernel_gradient_is_that_of_numpy():
  x, kernel = arrays(2, 6, 7, 3, 4)
  out, _, gradient = gradients(pointwise.conv_general_dilated, x, kernel, (2, 2))
  weights = np.random.default_rng(0).normal(size=out.shape)
  expected = np.einsum('bhwc,bhwd->cd', np.asarray(x, np.float64)[:, ::2, ::2], weights)
  np.testing.assert_allclose(gradient[0, 0], expected, rtol=1e-5, atol=1e-5)


def test_an_empty_batch_gives_a_gradient_of_zero():
  x, kernel = arrays(0, 4, 4, 3, 2)
  out, dx, gradient = gradients(pointwise.conv_general_dilated, x, kernel, (1, 1))
  assert out.shape == (0, 4, 4, 2) and dx.shape == x.shape
  assert np.array_equal(gradient, np.zeros((1, 1, 3, 2)))


def test_bfloat16_sums_the_kernel_gradient_in_float32():
  """Ones summed in bfloat16 stand still at 256."""
  x, kernel = jnp.ones((1, 64, 64, 1), jnp.bfloat16), jnp.ones((1, 1, 1, 1), jnp.bfloat16)
  gradient = jax.grad(lambda k: pointwise.conv_general_dilated(x, k, (1, 1), 'VALID').astype(jnp.float32).sum())(kernel)
  assert gradient.dtype == jnp.bfloat16
  assert float(gradient.reshape(())) == 64 * 64


def test_float64_stays_float64():
  with jax.enable_x64(True):
    x, kernel = arrays(2, 5, 5, 3, 4, np.float64)
    for ours, expected in zip(
      gradients(pointwise.conv_general_dilated, x, kernel, (1, 1)), gradients(plain, x, kernel, (1, 1)), strict=True
    ):
      assert ours.dtype == np.float64
      np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


def test_only_a_cpu_program_has_the_product():
  x, kernel = arrays(2, 8, 8, 3, 4)
  gradient = jax.jit(lambda x, k: gradients(pointwise.conv_general_dilated, x, k, (1, 1))[2])
  by_platform = {p: gradient.trace(x, kernel).lower(lowering_platforms=(p,)).as_text() for p in ('cpu', 'tpu', 'cuda')}
  assert [('dot_general' in text) for text in by_platform.values()] == [True, False, False]
  assert [text.count('stablehlo.convolution') for text in by_platform.values()] == [0, 1, 1]


@pytest.mark.parametrize(
  ('kernel', 'padding', 'others'),
  [
    ((3, 3, 3, 4), 'VALID', {}),
    ((1, 1, 3, 4), [(1, 1), (0, 0)], {}),
    ((1, 1, 3, 4), 'VALID', {'rhs_dilation': (2, 2)}),
    ((1, 1, 1, 3), 'VALID', {'feature_group_count': 3}),
  ],
)
def test_anything_but_a_plain_1x1_is_refused(kernel, padding, others):
  with pytest.raises(ValueError, match='expected 1x1, without padding, dilation or groups'):
    pointwise.conv_general_dilated(jnp.zeros((1, 4, 4, 3)), jnp.zeros(kernel), (1, 1), padding, **others)


@pytest.mark.parametrize('stride', [1, 2])
def test_a_layer_of_size_1_keeps_the_parameters_and_values_of_flax(stride):
  options = {'stride': stride, 'use_bias': True, 'init': layers.GLOROT_INIT, 'dtype': None}
  x, _ = arrays(2, 7, 6, 3, 4)
  ours = layers.conv(4, 1, **options)
  theirs = nn.Conv(4, (1, 1), strides=stride, padding='VALID', kernel_init=layers.GLOROT_INIT)
  variables = theirs.init(jax.random.key(0), x)
  assert jax.tree.structure(ours.init(jax.random.key(0), x)) == jax.tree.structure(variables)
  np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), rtol=1e-6, atol=1e-6)
