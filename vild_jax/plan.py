"""What a training would take on devices that are not here: its very step, compiled for them, and what comes of it.

Nothing is allocated: state, batch and vocabulary are shapes, types and shardings. What was once compiled is kept by the
hash of the lowered program, for a TPU's compiler takes minutes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vild_jax import files
from vild_jax.config import Config, with_embedding_dim
from vild_jax.structs import Batch, RegionTargets, Vocabulary
from vild_jax.train import flops, hlo, sharding, state
from vild_jax.train.step import make_train_step
from vild_jax.train.topology import Target, devices

CLASSES, EMBEDDING_DIM = 1203, 512   # of LVIS v1 and a CLIP ViT-B/32
_MASK_SIDE = 112                     # of `structs.Batch`
_VERSION = 2                         # of what is kept: another one is compiled anew
_STATE = r'state\.(params|opt_state)\b'
_LARGEST = 10
_FARTHEST = 64                       # times the largest batch that fits: no guess goes beyond
_SMALL = 2**16                       # bytes, of batch statistics and losses rather than of gradients
# GiB of a device, as libtpu 0.0.42 says when it refuses a program; whether one fits is for the compiler to decide.
_HBM = {'v4': 15.25, 'v5e': 15.75, 'v5p': 95.74, 'v6e': 31.25}


def abstract_batch(config: Config, mesh: Mesh) -> Batch:
  """A global batch as `train` feeds it: shapes, types and shardings."""
  count, side, objects = config.data.batch_size, config.data.image_size, config.data.max_instances
  of = lambda dtype, *shape: jax.ShapeDtypeStruct((count, *shape), dtype)
  regions = None
  if config.distillation.weight:
    number = config.distillation.regions_per_image
    regions = RegionTargets(boxes=of(np.float32, number, 4), valid=of(np.bool_, number),
                            embeddings=of(np.float32, number, config.model.embedding_dim))
  batch = Batch(image=of(np.float32, side, side, 3), image_size=of(np.float32, 2), boxes=of(np.float32, objects, 4),
                labels=of(np.int32, objects), masks=of(np.uint8, objects, _MASK_SIDE, _MASK_SIDE),
                valid=of(np.bool_, objects), regions=regions)
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), batch,
                      sharding.batch_shardings(mesh, batch))


def abstract_vocabulary(config: Config, mesh: Mesh, classes: int) -> Vocabulary:
  """Shapes, types and shardings of a vocabulary of so many rows."""
  of = lambda dtype, *shape: jax.ShapeDtypeStruct((classes, *shape), dtype, sharding=sharding.replicated(mesh))
  return Vocabulary(embeddings=of(np.float32, config.model.embedding_dim), is_base=of(np.bool_), valid=of(np.bool_))


def program(config: Config, mesh: Mesh, classes: int) -> tuple[Callable, tuple[Any, Batch, Vocabulary]]:
  """The jit function that `train` calls, and abstract arguments for it."""
  arguments = state.abstract(config, mesh), abstract_batch(config, mesh), abstract_vocabulary(config, mesh, classes)
  return make_train_step(config, mesh), arguments


def plan(config: Config, of: Target, *, classes: int = CLASSES, hbm: int | None = None, effort: float = 0.0,
         cache: Path | None = None) -> dict[str, Any]:
  """Compiles the train step of a config for devices that are not here, and measures it.

  Args:
    config: the experiment; `data.batch_size` is the global batch.
    of: the devices.
    classes: rows of the vocabulary.
    hbm: bytes that there are on a device; None for what is known of the kind.
    effort: of the compiler, from -1 (fast) to 1; 0 is its own choice.
    cache: a folder that keeps what was measured.

  Returns:
    What `--json` writes: sizes in bytes of one device, FLOPs of one step. What XLA says, `xla_flops` and
    `bytes_accessed`, has the body of a loop once.
  """
  config = with_embedding_dim(config, EMBEDDING_DIM)
  mesh = sharding.make_mesh(config.mesh, devices(of))
  sharding.check_batch_size(mesh, config.data.batch_size, 'data.batch_size', accumulate=config.train.accumulate)
  train_step, arguments = program(config, mesh, classes)
  start = time.monotonic()
  traced = train_step.trace(*arguments)
  lowered = traced.lower()
  lowering = time.monotonic() - start
  options = {'exec_time_optimization_effort': effort} if effort else {}
  file = cache and cache / f'{_key(lowered.as_text(), of, options)}.json'
  found = _kept(file)
  if found is None:
    found = _measured(lowered, mesh, options)
    found['model_flops'] = _model_flops(config, mesh, classes, traced)
    if file:
      cache.mkdir(parents=True, exist_ok=True)
      files.write(file, json.dumps(found, indent=2) + '\n')
  return {'config': config.name, 'topology': of.topology, 'platform': of.platform,
          'mesh': dict(mesh.shape), 'batch': config.data.batch_size, 'lowering_seconds': lowering,
          'batch_per_device': config.data.batch_size / mesh.size,
          'state_bytes': sharding.bytes_per_device(arguments[0])} | _fitted(found, hbm, of)


def _model_flops(config: Config, mesh: Mesh, classes: int, traced: Any) -> int:
  """Of one step of all devices, without what is computed twice to save memory."""
  backbone = dataclasses.replace(config.model.backbone, remat=False)
  plain = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=backbone),
                              train=dataclasses.replace(config.train, accumulate=1))
  if plain != config:
    train_step, arguments = program(plain, mesh, classes)
    traced = train_step.trace(*arguments)
  return flops.count(traced.jaxpr)


def _fitted(found: dict[str, Any], hbm: int | None, of: Target) -> dict[str, Any]:
  """With what there is of memory, whether it suffices, and who judges: the compiler or the sum; None if nobody knows.

  A compiler for TPUs refuses what does not fit; the sum of the parts, which need not live at once, is no better judge.
  """
  known = int(_HBM[of.kind] * 2**30) if of.platform == 'tpu' and of.kind in _HBM else None
  memory = {'available': hbm or known} | found['memory']
  if hbm:  # a compiler that refuses names its own limit
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
  """Of the lowered program, and of all else that its compilation depends on."""
  versions = [jax.__version__, importlib.metadata.version('jaxlib')]
  if of.platform == 'tpu':
    versions.append(importlib.metadata.version('libtpu'))
  else:
    versions.append(os.environ.get('XLA_FLAGS', ''))
  parts = json.dumps([_VERSION, dataclasses.asdict(of), options, versions])
  return hashlib.sha256(f'{parts}\n{text}'.encode()).hexdigest()


def _kept(file: Path | None) -> dict[str, Any] | None:
  """What was measured before, None if it was not or cannot be read."""
  if not (file and file.is_file()):
    return None
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
  except ValueError:
    return None
  return found | {'cached': True} if isinstance(found, dict) and 'memory' in found else None


def _measured(lowered: Any, mesh: Mesh, options: dict[str, Any]) -> dict[str, Any]:
  start = time.monotonic()
  try:
    with _stderr() as said:
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
    'cached': False, 'compiled': True, 'compile_seconds': seconds,
    'memory': _memory(compiled.memory_analysis()),
    'xla_flops': cost['flops'] * mesh.size, 'bytes_accessed': cost['bytes accessed'],
    'collectives': _by_kind(collectives),
    'gathered': [dataclasses.asdict(c) for c in collectives if _suspicious(c)],
    'rematerialised_by_the_partitioner': hlo.rematerialised(said[0]),
    'largest': [{'bytes': size, 'type': kind, 'from': where} for size, kind, where in hlo.largest(text, _LARGEST)],
  }


def _memory(stats: Any) -> dict[str, int]:
  """Bytes on one device. Donated arguments become results, and count once."""
  parts = {'arguments': stats.argument_size_in_bytes, 'results': stats.output_size_in_bytes,
           'shared': stats.alias_size_in_bytes, 'temporaries': stats.temp_size_in_bytes,
           'code': stats.generated_code_size_in_bytes}
  total = sum(parts.values()) - 2 * parts['shared']
  return {'needed': total, 'peak': getattr(stats, 'peak_memory_in_bytes', 0) or total, **parts}


def _suspicious(collective: hlo.Collective) -> bool:
  """Whether it may bring the pictures of other devices here, which nothing in the step asks for."""
  along = collective.axes is None or set(collective.axes) & set(sharding.BATCH_AXES)
  return collective.kind == 'all-gather' and bool(along) and not collective.of_state


def _by_kind(collectives: list[hlo.Collective]) -> list[dict[str, Any]]:
  """One entry for each kind, axes, and whether small: places in the program, how often in a step, and bytes of all."""
  places, times, size = Counter(), Counter(), Counter()
  for c in collectives:
    key = c.kind, c.axes, c.bytes < _SMALL
    places[key] += 1
    times[key] += c.times
    size[key] += c.times * c.bytes
  return [{'kind': key[0], 'axes': key[1] and list(key[1]), 'small': key[2], 'places': places[key],
           'times': times[key], 'bytes': size[key]} for key in sorted(places, key=lambda key: -size[key])]


@contextlib.contextmanager
def _stderr() -> Iterator[list[str]]:
  """What the compiler, which is C++, says meanwhile; the list has it at the end."""
  said: list[str] = []
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as file:
    os.dup2(file.fileno(), 2)
    try:
      yield said
    finally:
      os.dup2(kept, 2)
      os.close(kept)
      file.seek(0)
      said.append(file.read().decode(errors='replace'))


def report(found: dict[str, Any]) -> str:
  """What `plan` returned, to read."""
  memory, lines = found['memory'], []
  mesh = ' x '.join(f'{size} {axis}' for axis, size in found['mesh'].items())
  lines.append(f'{found["config"]} on {found["topology"]} ({found["platform"]}), mesh {mesh}')
  lines.append(f'batch            {found["batch"]}, {found["batch_per_device"]:g} on a device')
  lines.append(f'memory needed    {_verdict(found)}')
  if found['compiled']:
    lines.append('                 ' + ', '.join(f'{name} {_size(memory[name])}' for name in (
      'peak', 'arguments', 'results', 'shared', 'temporaries', 'code')))
    lines.append(f'FLOPs of a step  model {found["model_flops"]:.3e}, XLA {found["xla_flops"]:.3e}, all devices')
    lines.append(f'bytes accessed   {_size(found["bytes_accessed"])} on a device')
    for c in found['collectives']:
      axes = 'axes not known' if c['axes'] is None else ' x '.join(c['axes']) or 'nobody else'
      small = f', none over {_size(_SMALL)}' if c['small'] else ''
      lines.append(f'{c["kind"]:<16} {_size(c["bytes"])} in {c["times"]} a step, over {axes}{small}')
    lines += [f'large            {_size(row["bytes"])} {row["type"]} {row["from"][-60:]}' for row in found['largest']]
    lines += [f'WARNING          all-gather of no parameter, {_size(c["bytes"])}: {c["op_name"][-60:]}'
              for c in found['gathered']]
    if number := found['rematerialised_by_the_partitioner']:
      lines.append(f'WARNING          involuntary full rematerialisation by the partitioner, {number} times')
  if 'largest_batch' in found:
    lines.append(f'largest batch    {found["largest_batch"]}')
  kept = ' (kept from before)' if found['cached'] else ''
  lines.append(f'compiled in      {found["compile_seconds"]:.0f} s{kept}, lowered in {found["lowering_seconds"]:.0f} s')
  return '\n'.join(lines)


def _verdict(found: dict[str, Any]) -> str:
  """Bytes needed of those there are, and whether they suffice."""
  memory = found['memory']
  available = 'not known (--hbm GIB says)' if memory['available'] is None else _size(memory['available'])
  word = {True: 'fits', False: 'does NOT fit', None: 'see for yourself'}[found['fits']]
  # The compiler may take what is a little more in all: not all parts live at once.
  says = ', says the compiler' if found['judge'] == 'compiler' else ''
  return f'{_size(memory["needed"])} of {available}: {word}{says}'


def _size(number: float) -> str:
  return f'{number / 2**30:.2f} GiB' if number >= 2**30 else f'{number / 2**20:.2f} MiB'


def planned(config: Config, of: Target, *, fit: bool = False, **how: Any) -> dict[str, Any]:
  """`plan`, with `fit` of the largest global batch that fits (of the smallest, where none does).

  `tried` is then {batch: bytes needed on a device}. Raises ValueError if nobody knows what memory there is.
  """
  if not fit:
    return plan(config, of, **how)
  mesh = sharding.make_mesh(config.mesh, devices(of))
  unit = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES) * config.train.accumulate
  plans: dict[int, dict[str, Any]] = {}

  def measure(units: int) -> tuple[bool, int, int]:
    data = dataclasses.replace(config.data, batch_size=units * unit)
    plans[units] = found = plan(dataclasses.replace(config, data=data), of, **how)
    memory = found['memory']
    if memory['available'] is None:
      raise ValueError(f'how much memory a device of {of.topology} has is not known; expected --hbm GIB beside --fit')
    print(f'batch {units * unit}: {_verdict(found)}', file=sys.stderr, flush=True)
    return found['fits'], memory['needed'], memory['available']

  best = largest_that(measure)
  tried = {units * unit: found['memory']['needed'] for units, found in sorted(plans.items())}
  return plans[max(best, 1)] | {'largest_batch': best * unit, 'tried': tried}


def largest_that(measure: Callable[[int], tuple[bool, int, int]]) -> int:
  """The largest number from 1 that fits, if all smaller ones do; 0 if none does.

  A measurement is a compilation of minutes, so the next number to try is where the line through the last two
  measurements reaches what there is. The line is a guess (a compiler that is short of memory computes twice what it
  cannot keep): beyond it steps double, and between a number that fits and one that does not every other guess is the
  middle.

  Args:
    measure: a number -> (whether it fits, bytes needed, bytes available).
  """
  fits, needs, available = {}, [], 0

  def try_out(number: int) -> None:
    nonlocal available
    fits[number], needed, available = measure(number)
    needs.append((number, needed))

  def guess() -> int:
    (a, of_a), (b, of_b) = sorted(needs[-2:])
    return b + (available - of_b) * (b - a) // (of_b - of_a) if of_b > of_a else 2 * b

  try_out(1)
  if fits[1]:
    try_out(2)
  step, middle = 0, False
  while True:
    good = max((number for number, fit in fits.items() if fit), default=0)
    bad = min((number for number, fit in fits.items() if not fit), default=None)
    if bad is None:
      number, step = max(min(guess(), _FARTHEST * good), good + max(step, 1)), 2 * step or 1
    elif bad - good == 1:
      return good
    else:
      number = guess()
      if middle or not good < number < bad:
        number = (good + bad) // 2
      middle = not middle
    try_out(number)
