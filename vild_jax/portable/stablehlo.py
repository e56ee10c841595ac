"""Writes the functions of a portable model as exports of JAX: StableHLO for CPUs, GPUs of NVIDIA, and TPUs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jax
from jax import export

from vild_jax.portable import program
from vild_jax.runtime import files

PLATFORMS = ('cpu', 'cuda', 'tpu')
SUFFIX = '.stablehlo'


def check() -> None:
  """Raises ValueError if what writes an export is not installed."""
  if importlib.util.find_spec('flatbuffers') is None:
    raise ValueError('--format stablehlo needs flatbuffers, which is not installed; expected: pip install flatbuffers')


def exported(one: program.Program, fewest: int) -> export.Exported:
  """Returns an export of a program for all `PLATFORMS`, any number of pictures, and `fewest` or more classes."""
  used = {size for _, shape in one.inputs.values() for size in shape if isinstance(size, str)}
  scope = export.SymbolicScope([f'c >= {fewest}'] if 'c' in used else [])
  names = sorted(used)
  sizes: dict[Any, Any] = dict(zip(names, export.symbolic_shape(', '.join(names), scope=scope), strict=True))
  inputs = [
    jax.ShapeDtypeStruct(tuple(sizes.get(size, size) for size in shape), dtype) for dtype, shape in one.inputs.values()
  ]
  return export.export(jax.jit(one.call), platforms=PLATFORMS)(*inputs)


def write(folder: Path, source: program.Source) -> dict[str, str]:
  """Writes the programs of a model into a folder and returns {program: its file}."""
  fewest, written = program.fewest_classes(source.config.model), {}
  for one in program.programs(source):
    written[one.name] = f'{one.name}{SUFFIX}'
    files.write(folder / written[one.name], bytes(exported(one, fewest).serialize()))
  return written
