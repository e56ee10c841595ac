"""Compiles programs for the platform that they run on, with the compiler options that make convolutions fast on a CPU.

XLA's CPU compiler hands convolutions to the library YNNPACK. Its gradient of a kernel takes two to four times as long
as that of XLA's own convolution (docs/measurements.md, "The training step"), so convolutions stay with XLA here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

# What is left to YNNPACK: sums, which XLA computes far slower, and matrix products, where small ones gain.
_ON_CPU = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'}


def jit(function: Callable, *, platform: str | None = None, **options: Any) -> Callable:
  """Returns `jax.jit(function, **options)`, compiled with `compiler_options(platform)`.

  The result can be called, traced and lowered, but not from inside another compiled function: JAX takes compiler
  options for the outermost program only.
  """
  return jax.jit(function, compiler_options=dict(compiler_options(platform)), **options)


def compiler_options(platform: str | None = None) -> Mapping[str, Any]:
  """Returns options for programs that run on a platform ('cpu', 'gpu', 'tpu'; by default that of the default device).

  They are empty except on a CPU, and there too if this version of XLA does not know them.
  """
  return _known() if (platform or jax.default_backend()) == 'cpu' else {}


@functools.cache
def _known() -> Mapping[str, Any]:
  try:
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
      jax.jit(lambda: 0, compiler_options=_ON_CPU).lower().compile()
  except jax.errors.JaxRuntimeError:  # an option without effect on results: a compiler without it is only slower
    return {}
  return _ON_CPU
