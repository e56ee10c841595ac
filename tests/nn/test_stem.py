from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vild_jax.nn import stem

_NUMBERS = ('NHWC', 'HWIO', 'NHWC')


def _plain(x, kernel):
  reach = (kernel.shape[0] - 1) // 2
  return lax.conv_general_dilated(x, kernel, (2, 2), [(reach, reach)] * 2, dimension_numbers=_NUMBERS)


@pytest.mark.parametrize(('size', 'sides'), [(7, (8, 10)), (7, (11, 7)), (5, (9, 12)), (3, (1, 2))])
@pytest.mark.parametrize(('dtype', 'step'), [('float32', 2**-20), ('bfloat16', 2**-7)])
def test_blocks_give_the_plain_convolution_and_its_gradients(size, sides, dtype, step):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  x, kernel = draw(2, *sides, 3), draw(size, size, 3, 5)
  cotangent = draw(2, *(-(-side // 2) for side in sides), 5)

  def both_directions(convolve):
    y, back = jax.vjp(convolve, x, kernel)
    return y, *back(cotangent)

  found, expected = (jax.jit(both_directions, static_argnums=0)(f) for f in (stem.by_blocks, _plain))
  for a, b in zip(found, expected, strict=True):
    assert a.dtype == b.dtype
    a, b = (np.asarray(value, np.float64) for value in (a, b))
    np.testing.assert_allclose(a, b, rtol=0, atol=step * np.abs(b).max())


def test_only_a_tpu_computes_on_blocks():
  x, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((7, 7, 3, 4))
  convolve = jax.jit(lambda x, k: stem.conv_general_dilated(x, k, (2, 2), [(3, 3), (3, 3)]))
  lowered = {of: convolve.trace(x, kernel).lower(lowering_platforms=(of,)).as_text() for of in ('cpu', 'tpu')}
  assert 'tensor<1x4x4x12xf32>' in lowered['tpu']
  assert 'tensor<1x4x4x12xf32>' not in lowered['cpu']
  np.testing.assert_array_equal(convolve(x, kernel), _plain(x, kernel))


def test_other_strides_are_refused():
  with pytest.raises(ValueError, match='strides'):
    stem.conv_general_dilated(jnp.ones((1, 8, 8, 3)), jnp.ones((7, 7, 3, 4)), (1, 1), [(3, 3), (3, 3)])
