"""Counts the floating-point operations of a program over all devices: matrix products and convolutions."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.extend import core


def count(jaxpr: Any) -> int:
  """Counts the operations of a traced program (a ClosedJaxpr or Jaxpr); a multiplication and its addition are two.

  A loop of unknown length counts once, a Pallas kernel (of RoIAlign's gradient) not at all. What is computed again for
  the backward pass counts again.
  """
  jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    return _dot(equation)
  if name == 'conv_general_dilated':
    return _convolution(equation)
  if name == 'pallas_call':  # how often its body runs is known on the device alone
    return 0
  inner = [count(sub) for value in params.values() for sub in _jaxprs(value)]
  if name == 'cond':
    return max(inner)
  times = params['length'] if name == 'scan' else _shards(equation) if name == 'shard_map' else 1
  return times * sum(inner)


def _jaxprs(value: Any) -> list[Any]:
  values = value if isinstance(value, tuple | list) else [value]
  return [v for v in values if isinstance(v, core.ClosedJaxpr | core.Jaxpr)]


def _shards(equation: Any) -> int:
  """Into how many parts a shard_map splits its inputs; devices along an axis that no input names do the same work."""
  mesh = equation.params['mesh']
  named = {
    axis
    for spec in equation.params['in_specs']
    for part in spec
    if part is not None
    for axis in (part if isinstance(part, tuple) else (part,))
  }
  return math.prod(mesh.shape[axis] for axis in named)


def _dot(equation: Any) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
  return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
  """FLOPs of a convolution, without products with padding or with the gaps of a dilated input."""
  params, (left, right) = equation.params, (v.aval.shape for v in equation.invars)
  numbers: jax.lax.ConvDimensionNumbers = params['dimension_numbers']
  out = equation.outvars[0].aval.shape
  products = 1
  for axis, (low, _) in enumerate(params['padding']):
    size, width = left[numbers.lhs_spec[2 + axis]], right[numbers.rhs_spec[2 + axis]]
    starts = np.arange(out[numbers.out_spec[2 + axis]]) * params['window_strides'][axis] - low
    places = starts[:, None] + np.arange(width) * params['rhs_dilation'][axis]
    step = params['lhs_dilation'][axis]
    products *= int(((places >= 0) & (places % step == 0) & (places // step < size)).sum())
  features = right[numbers.rhs_spec[0]] * right[numbers.rhs_spec[1]]
  return 2 * products * features * left[numbers.lhs_spec[0]] // params['batch_group_count']
