"""Describes devices to compile for that are not present: chips of a TPU topology, or CPU devices in their place."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
from dataclasses import dataclass

import jax

_MOST_CHIPS = {'v5e': 256, 'v6e': 256}  # with more chips the compiler aborts the process
# Without these, libtpu waits for the metadata of a TPU, and writes its warnings (the partitioner's too) to files.
_NO_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_STDERR_LOG_LEVEL': '1',
  'TPU_LOG_DIR': 'disabled',
}


@dataclass(frozen=True)
class Target:
  """Names the devices to compile for: those of a TPU `topology` (v5e:16x16), or emulated ones (cpu:8)."""

  topology: str
  platform: str

  @property
  def kind(self) -> str:
    """Returns the kind of the devices, such as v5e or cpu."""
    return self.topology.partition(':')[0]

  @property
  def sizes(self) -> list[int]:
    """Returns the number of chips along each dimension."""
    return [int(size) for size in self.topology.partition(':')[2].split('x')]


def target(topology: str, platform: str | None = None) -> Target:
  """Parses a topology, KIND:NxN; for the platform cpu it stands for as many CPU devices as it has chips.

  Raises:
    ValueError: if the text is not a topology, or has more chips than its kind allows.
  """
  if not re.fullmatch(r'(cpu|v\d+\w*):[1-9]\d*(x[1-9]\d*){0,2}', topology):
    raise ValueError(f'--topology is {topology!r}; expected v5e:16x16, v5p:4x4x4, cpu:8 or the like')
  found = Target(topology, platform or ('cpu' if topology.startswith('cpu:') else 'tpu'))
  if found.platform == 'tpu' and found.kind == 'cpu':
    raise ValueError(
      f'--topology is {topology!r}, which is not a TPU; expected --platform cpu, or v5e:16x16 or the like'
    )
  most = _MOST_CHIPS.get(found.kind, math.inf)
  if found.platform == 'tpu' and math.prod(found.sizes) > most:
    raise ValueError(
      f'--topology is {topology!r}, {math.prod(found.sizes)} chips; expected at most {most} of {found.kind}'
    )
  return found


def devices(of: Target) -> list[jax.Device]:
  """Returns the devices to compile for. Call it before JAX computes anything: it selects the backend of the process.

  Raises ImportError without libtpu; ValueError if the topology does not exist or JAX has started with fewer devices.
  """
  count = math.prod(of.sizes)
  if of.platform == 'cpu':
    with contextlib.suppress(RuntimeError):  # JAX has already started
      jax.config.update('jax_platforms', 'cpu')
      jax.config.update('jax_num_cpu_devices', max(count, jax.config.jax_num_cpu_devices))
    here = jax.devices('cpu')
    if len(here) < count:
      raise ValueError(f'--topology is {of.topology!r}, but JAX runs already with {len(here)} devices')
    return here[:count]
  if importlib.util.find_spec('libtpu') is None:
    raise ImportError("the compiler for TPUs is not installed; expected libtpu: pip install 'vild_jax[tpu]'")
  for name, value in _NO_TPU.items():
    os.environ.setdefault(name, value)
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_platforms', 'cpu')
  from jax.experimental import topologies

  one = {'chips_per_host_bounds': [1] * 3} if count == 1 else {}
  try:
    return list(topologies.get_topology_desc(platform='tpu', topology_name=of.topology, **one).devices)
  except Exception as error:  # the plugin may raise anything
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(f'--topology is {of.topology!r}, which libtpu does not know ({reason})') from error
