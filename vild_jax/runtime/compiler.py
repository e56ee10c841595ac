"""Compiles programs for the platform that they run on, with the compiler options that make convolutions fast on a CPU.

Several processes start a program of theirs together, however long each of them has compiled it.

XLA's CPU compiler hands convolutions to the library YNNPACK. Its gradient of a kernel takes two to four times as long
as that of XLA's own convolution (docs/measurements.md, "The training step"), so convolutions stay with XLA here.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

# What is left to YNNPACK: sums, which XLA computes far slower, and matrix products, where small ones gain.
_ON_CPU = {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'}
_effort = 0.0  # of `use_effort`
_NUMBERS = itertools.count()
_PATIENCE = 86_400  # seconds that one process may compile longer than another; the heartbeat detects dead processes


def jit(function: Callable, *, mesh: Mesh | None = None, **options: Any) -> Callable:
  """Returns `jax.jit(function, **options)`, compiled with the `compiler_options` of the mesh's platform.

  The result can be called, traced and lowered, but not from inside another compiled function: JAX takes compiler
  options for the outermost program only.

  Args:
    function, options: as `jax.jit` takes them.
    mesh: the devices; by default the default device alone. All processes that they belong to must call the program, in
      the same order as other such programs.
  """
  platform = mesh.devices.flat[0].platform if mesh is not None else None
  compiled = jax.jit(function, compiler_options=dict(compiler_options(platform)), **options)
  processes = {device.process_index for device in mesh.devices.flat} if mesh is not None else ()
  return _Together(compiled) if len(processes) > 1 else compiled


def bucket(count: int, fewest: int = 1) -> int:
  """Returns the power of two to which `count` rows are padded, at least `fewest`, so that few programs are compiled."""
  return max(fewest, 1 << max(count - 1, 0).bit_length())


def keep_programs(folder: Path) -> None:
  """Keeps compiled programs in a folder, from which later processes read them instead of compiling.

  Call it before anything is compiled. Programs that compile in less than a second are not kept. What was compiled for
  another kind of device, by another version of JAX or with other options has another name, so that processes of all
  kinds may share a folder. Of several processes of one run the first writes. Raises OSError if it cannot be made.
  """
  folder.mkdir(parents=True, exist_ok=True)
  jax.config.update('jax_compilation_cache_dir', str(folder.absolute()))


class _Together:
  """A compiled function of several processes whose first call starts when every process has compiled it.

  Without it the fastest process waits for the others inside its first collective operation, which gives up: Gloo, of a
  CPU, after 30 s. One process may find a program in the compilation cache which another has to compile.
  """

  def __init__(self, compiled: Callable):
    self._compiled, self._waits = compiled, True

  def __call__(self, *arguments: Any, **named: Any) -> Any:
    if self._waits:
      self._compiled.lower(*arguments, **named).compile()  # JAX keeps the program for the call
      _wait_for_all()
      self._waits = False
    return self._compiled(*arguments, **named)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._compiled, name)


def _wait_for_all() -> None:
  from orbax.checkpoint import multihost  # slow to import, and needed by several processes alone

  multihost.get_barrier_sync_fn()(key=f'compiled-{next(_NUMBERS)}', timeout_ms=1000 * _PATIENCE)


def use_effort(effort: float) -> None:
  """Sets the effort of the compiler for programs compiled from now on: from -1 (least time) to 1; 0 is its default."""
  global _effort
  _effort = effort


def compiler_options(platform: str | None = None) -> Mapping[str, Any]:
  """Returns options for programs that run on a platform ('cpu', 'gpu', 'tpu'; by default that of the default device).

  Without an effort they are empty except on a CPU, and there too if this version of XLA does not know them.
  """
  of_platform = _known() if (platform or jax.default_backend()) == 'cpu' else {}
  return {**of_platform, **with_effort(_effort)}


def with_effort(effort: float) -> dict[str, float]:
  """Returns the compiler options of an effort, as `use_effort` takes it."""
  return {'exec_time_optimization_effort': effort} if effort else {}


@functools.cache
def _known() -> Mapping[str, Any]:
  try:
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
      jax.jit(lambda: 0, compiler_options=_ON_CPU).lower().compile()
  except jax.errors.JaxRuntimeError:  # an option without effect on results: a compiler without it is only slower
    return {}
  return _ON_CPU
