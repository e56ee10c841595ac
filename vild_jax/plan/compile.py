"""Compiles the train step for devices that are not present, and measures it: memory, operations, collectives.

Nothing is allocated: state, batch and vocabulary are shapes, types and shardings. Results are kept by the hash of the
lowered program, because the compiler for TPUs takes minutes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vild_jax.config import Config, defaults, with_embedding_dim
from vild_jax.data.transforms import MASK_BITS, MASK_SIZE
from vild_jax.plan import flops, hlo
from vild_jax.plan.topology import Target, devices
from vild_jax.runtime import compiler, files, messages, reading
from vild_jax.structs import Batch, MaskBits, RegionTargets, Vocabulary
from vild_jax.train import ahead, optim, retention, sharding, state
from vild_jax.train.step import make_train_step

_VERSION = 2  # of the kept results; those of another version are not used
_STATE = r'state\.(params|opt_state)\b'
_LARGEST = 10
SMALL = 2**16  # bytes; smaller collectives are of batch statistics and losses rather than of gradients
# GiB of one device, as libtpu 0.0.42 reports when it refuses a program. The compiler decides whether a program fits.
_HBM = {'v4': 15.25, 'v5e': 15.75, 'v5p': 95.74, 'v6e': 31.25}


def abstract_batch(config: Config, mesh: Mesh) -> Batch:
  """Returns shapes, types and shardings of a global batch as `train` uses it."""
  count, side, objects = config.data.batch_size, config.data.image_size, config.data.max_instances
  small = config.data.transfer == 'uint8'
  of = lambda dtype, *shape: jax.ShapeDtypeStruct((count, *shape), dtype)
  regions = None
  if config.distillation.weight:
    number = config.distillation.regions_per_image
    regions = RegionTargets(
      boxes=of(np.float32, number, 4),
      valid=of(np.bool_, number),
      embeddings=of(np.float16 if small else np.float32, number, config.model.embedding_dim),
    )
  masks = of(np.uint8, objects, MASK_SIZE, MASK_SIZE)
  if small:
    masks = MaskBits(of(np.uint8, objects, *MASK_BITS), of(np.float32, objects, 2, MASK_SIZE))
  batch = Batch(
    image=of(config.data.transfer, side, side, 3),
    image_size=of(np.float32, 2),
    boxes=of(np.float32, objects, 4),
    labels=of(np.int32, objects),
    masks=masks if config.model.masks else None,
    valid=of(np.bool_, objects),
    has_mask=of(np.bool_, objects) if config.model.masks else None,
    regions=regions,
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), batch, sharding.batch_shardings(mesh, batch)
  )


def abstract_vocabulary(config: Config, mesh: Mesh, classes: int) -> Vocabulary:
  """Returns shapes, types and shardings of a vocabulary with `classes` rows."""
  of = lambda dtype, *shape: jax.ShapeDtypeStruct((classes, *shape), dtype, sharding=sharding.replicated(mesh))
  return Vocabulary(
    embeddings=of(np.float32, config.model.embedding_dim),
    is_base=of(np.bool_),
    valid=of(np.bool_),
    labelled=of(np.bool_) if config.train.retention else None,
  )


def program(config: Config, mesh: Mesh, classes: int) -> tuple[Callable, tuple[Any, ...]]:
  """Returns the jit function that `train` calls, and abstract arguments for it."""
  arguments = state.abstract(config, mesh), abstract_batch(config, mesh), abstract_vocabulary(config, mesh, classes)
  start = retention.abstract(config, mesh)
  return make_train_step(config, mesh), arguments if start is None else (*arguments, start)


def plan(
  config: Config,
  of: Target,
  *,
  classes: int = defaults.CLASSES,
  hbm: int | None = None,
  effort: float = 0.0,
  cache: Path | None = None,
) -> dict[str, Any]:
  """Compiles the train step of a config for devices that are not present, and measures it.

  Args:
    config: the experiment; `data.batch_size` is the global batch.
    of: the devices.
    classes: rows of the vocabulary.
    hbm: bytes of memory on each device; None takes the known size for this kind of device.
    effort: of the compiler, from -1 (fast) to 1; 0 is the compiler's default.
    cache: a folder where results are kept and looked up; None keeps none.

  Returns:
    What `--json` writes: sizes in bytes on one device, FLOPs of one step on all devices. XLA's own numbers, `xla_flops`
    and `bytes_accessed`, count the body of a loop once.
  """
  config = with_embedding_dim(config, defaults.EMBEDDING_DIM)
  mesh = sharding.make_mesh(config.mesh, devices(of))
  sharding.check_batch_size(mesh, config.data.batch_size, 'data.batch_size', accumulate=config.train.accumulate)
  train_step, arguments = program(config, mesh, classes)
  start = time.monotonic()
  traced = train_step.trace(*arguments)
  lowered = traced.lower()
  lowering = time.monotonic() - start
  options = compiler.with_effort(effort)
  file = cache and cache / f'{_key(lowered.as_text(), of, options)}.json'
  found = _kept(file)
  if found is None:
    found = _measured(lowered, mesh, options)
    found['model_flops'] = _model_flops(config, mesh, classes, traced)
    if file:
      cache.mkdir(parents=True, exist_ok=True)
      files.write(file, json.dumps(found, indent=2) + '\n')
  # One more than are made ahead: that of a step which is dispatched while the one before it runs.
  waiting = (ahead.COUNT + 1) * sharding.bytes_per_device(arguments[1])
  needed = found['memory']['needed'] + waiting
  found = found | {'memory': found['memory'] | {'needed': needed, 'batches_ahead': waiting}}
  return {
    'config': config.name,
    'topology': of.topology,
    'platform': of.platform,
    'mesh': dict(mesh.shape),
    'batch': config.data.batch_size,
    'rate': optim.described(config),
    'lowering_seconds': lowering,
    'batch_per_device': config.data.batch_size / mesh.size,
    'state_bytes': sharding.bytes_per_device(arguments[0]),
  } | _fitted(found, hbm, of)


def _model_flops(config: Config, mesh: Mesh, classes: int, traced: Any) -> int:
  """FLOPs of one step on all devices, without what is computed twice to save memory."""
  backbone = dataclasses.replace(config.model.backbone, remat=False)
  plain = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, backbone=backbone),
    train=dataclasses.replace(config.train, accumulate=1),
  )
  if plain != config:
    train_step, arguments = program(plain, mesh, classes)
    traced = train_step.trace(*arguments)
  return flops.count(traced.jaxpr)


def _fitted(found: dict[str, Any], hbm: int | None, of: Target) -> dict[str, Any]:
  """Adds the available memory, whether the program fits, and who decided that: the compiler or the sum of the parts.

  The last two are None if they are not known. A compiler for TPUs refuses a program that does not fit. The sum of the
  parts is less exact, because not all parts are in memory at the same time; it decides if `hbm` is given.
  """
  known = int(_HBM[of.kind] * 2**30) if of.platform == 'tpu' and of.kind in _HBM else None
  memory = {'available': hbm or known} | found['memory']
  if hbm:  # a compiler that refuses the program reports its own limit
    memory['available'] = min(hbm, memory['available'])
  if not found['compiled']:
    fits = False
  elif hbm:
    fits = memory['needed'] <= hbm
  else:
    fits = True if of.platform == 'tpu' else None
  judge = None if fits is None else 'sum' if hbm and found['compiled'] else 'compiler'
  return found | {'memory': memory, 'fits': fits, 'judge': judge}


def _key(text: str, of: Target, options: dict[str, Any]) -> str:
  """A hash of the lowered program and of everything else that its compilation depends on."""
  versions = [jax.__version__, importlib.metadata.version('jaxlib')]
  if of.platform == 'tpu':
    versions.append(importlib.metadata.version('libtpu'))
  else:
    versions.append(os.environ.get('XLA_FLAGS', ''))
  parts = json.dumps([_VERSION, dataclasses.asdict(of), options, versions])
  return hashlib.sha256(f'{parts}\n{text}'.encode()).hexdigest()


def _kept(file: Path | None) -> dict[str, Any] | None:
  """The kept result, None if there is none or it cannot be read."""
  if not (file and file.is_file()):
    return None
  try:
    found = reading.json_file(file, 'a kept result')
  except ValueError:
    return None
  return found | {'cached': True} if isinstance(found, dict) and 'memory' in found else None


def _measured(lowered: Any, mesh: Mesh, options: dict[str, Any]) -> dict[str, Any]:
  start = time.monotonic()
  try:
    with messages.stderr_of_libraries() as said:
      compiled = lowered.compile(compiler_options=options or None)
  except jax.errors.JaxRuntimeError as error:
    memory = hlo.refused(f'{said[0]}\n{error}')
    if memory is None:
      raise
    return {'cached': False, 'compiled': False, 'compile_seconds': time.monotonic() - start, 'memory': memory}
  seconds = time.monotonic() - start
  cost, text = compiled.cost_analysis(), hlo.parse(compiled.as_text())
  collectives = hlo.collectives(text, dict(mesh.shape), _STATE)
  return {
    'cached': False,
    'compiled': True,
    'compile_seconds': seconds,
    'memory': _memory(compiled.memory_analysis()),
    'xla_flops': cost['flops'] * mesh.size,
    'bytes_accessed': cost['bytes accessed'],
    'collectives': _by_kind(collectives),
    'gathered': [dataclasses.asdict(c) for c in collectives if _suspicious(c)],
    'rematerialised_by_the_partitioner': hlo.rematerialised(said[0]),
    'largest': [{'bytes': size, 'type': kind, 'from': where} for size, kind, where in hlo.largest(text, _LARGEST)],
  }


def _memory(stats: Any) -> dict[str, int]:
  """Bytes on one device. Donated arguments become results and are counted once."""
  parts = {
    'arguments': stats.argument_size_in_bytes,
    'results': stats.output_size_in_bytes,
    'shared': stats.alias_size_in_bytes,
    'temporaries': stats.temp_size_in_bytes,
    'code': stats.generated_code_size_in_bytes,
  }
  total = sum(parts.values()) - 2 * parts['shared']
  return {'needed': total, 'peak': getattr(stats, 'peak_memory_in_bytes', 0) or total, **parts}


def _suspicious(collective: hlo.Collective) -> bool:
  """Whether a collective may gather the pictures of other devices, which the step does not need."""
  along = collective.axes is None or set(collective.axes) & set(sharding.BATCH_AXES)
  return collective.kind == 'all-gather' and bool(along) and not collective.of_state


def _by_kind(collectives: list[hlo.Collective]) -> list[dict[str, Any]]:
  """One entry for each kind, axes, and small or not: places in the program, times in a step, bytes of all times."""
  places, times, size = Counter(), Counter(), Counter()
  for c in collectives:
    key = c.kind, c.axes, c.bytes < SMALL
    places[key] += 1
    times[key] += c.times
    size[key] += c.times * c.bytes
  return [
    {
      'kind': key[0],
      'axes': key[1] and list(key[1]),
      'small': key[2],
      'places': places[key],
      'times': times[key],
      'bytes': size[key],
    }
    for key in sorted(places, key=lambda key: -size[key])
  ]
