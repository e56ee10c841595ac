"""Writes the programs of a portable model as ONNX, by jax2onnx, in an environment of its own.

jax2onnx wants an older Orbax than this package, so that another interpreter runs this file as a program: it gets the
weights as a plain .npz, and needs this package (installed without its requirements), jax, flax, jaxtyping and jax2onnx
alone. ONNX has a fixed number of classes here, and one picture: jax2onnx translates neither symbolic size of it.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from vild_jax import config as config_lib
from vild_jax.portable import program
from vild_jax.runtime import files

SUFFIX = '.onnx'
_SOURCE, _WEIGHTS = 'source.json', 'weights.npz'
_RECIPE = "--onnx-python PYTHON of an environment with jax2onnx and this package (docs/export.md, 'ONNX')"


def check(python: str) -> None:
  """Raises ValueError if the interpreter has not what writes ONNX."""
  try:
    done = subprocess.run(
      [python, '-c', 'import importlib.util as i, vild_jax.portable.onnx; assert i.find_spec("jax2onnx")'],
      capture_output=True,
      check=False,
    )
  except OSError as error:
    raise ValueError(f'--onnx-python is {python!r}, which does not run ({error}); expected {_RECIPE}') from None
  if done.returncode:
    raise ValueError(f'--format onnx needs jax2onnx, which {python} does not have; expected {_RECIPE}')


def write(folder: Path, source: program.Source, python: str) -> dict[str, str]:
  """Writes the programs of a model into a folder, by another interpreter, and returns {program: its file}.

  Raises ValueError with the last line of what it said if it fails.
  """
  given = {'config': config_lib.to_text(source.config), 'suppress': source.suppress, 'sizes': source.sizes}
  leaves = {_name(path): value for path, value in jax.tree_util.tree_flatten_with_path(source.variables)[0]}
  background = {} if source.background is None else {'background': source.background}
  with files.temporary_folder(folder / 'source') as temporary:
    (temporary / _SOURCE).write_text(json.dumps(given))
    np.savez(temporary / _WEIGHTS, **leaves, **background)
    command = [python, '-m', 'vild_jax.portable.onnx', str(temporary), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    said = (done.stderr.strip().splitlines() or ['no message'])[-1]
    raise ValueError(f'--format onnx: {python} could not write the model ({said}); expected {_RECIPE}')
  return {one.name: f'{one.name}{SUFFIX}' for one in program.programs(source)}


def _name(path: tuple[Any, ...]) -> str:
  return '/'.join(part.key for part in path)


def read(folder: Path) -> program.Source:
  """Returns the source that `write` has written into a folder for the other interpreter."""
  given = json.loads((folder / _SOURCE).read_text(encoding='utf-8'))
  variables: dict[str, Any] = {}
  with np.load(folder / _WEIGHTS, allow_pickle=False) as stored:
    leaves = {name: stored[name] for name in stored.files}
  background = leaves.pop('background', None)
  for name, value in leaves.items():
    *parents, last = name.split('/')
    place = variables
    for parent in parents:
      place = place.setdefault(parent, {})
    place[last] = value
  config = config_lib.from_text(given['config'])
  return program.Source(config, variables, background, given['suppress'], given['sizes'])


def evaluate(traced: core.ClosedJaxpr, *arrays: jax.Array) -> list[jax.Array]:
  """Computes a traced program, with maxima of windows in the place of pooling.

  jax2onnx makes a pooling of four axes of it, which onnxruntime does not have.
  """
  values = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
  values |= zip(traced.jaxpr.invars, arrays, strict=True)
  value = lambda x: x.val if isinstance(x, core.Literal) else values[x]
  for step in traced.jaxpr.eqns:
    given = map(value, step.invars)
    if step.primitive.name == 'reduce_window_max':
      found = [_pool(*given, step.params)]
    else:
      found = step.primitive.bind(*given, **step.primitive.get_bind_params(step.params))
      found = found if step.primitive.multiple_results else [found]
    values |= zip(step.outvars, found, strict=True)
  return list(map(value, traced.jaxpr.outvars))


def _pool(x: jax.Array, params: Mapping[str, Any]) -> jax.Array:
  """The maximum of every window of x [B, H, W, C], as the elementwise maximum of its shifted and strided copies."""
  sides, strides, padding = (params[key] for key in ('window_dimensions', 'window_strides', 'padding'))
  x = jax.lax.pad(x, jnp.array(-jnp.inf, x.dtype), [(before, after, 0) for before, after in padding])
  copies = []
  for first in itertools.product(*map(range, sides)):
    last = [size - side + start + 1 for size, side, start in zip(x.shape, sides, first, strict=True)]
    copies.append(jax.lax.slice(x, first, last, strides))
  return functools.reduce(jax.lax.max, copies)


def main(folder: Path, out: Path) -> None:
  """Writes the programs of the source in `folder`; runs in the interpreter that has jax2onnx."""
  to_onnx = importlib.import_module('jax2onnx').to_onnx  # no requirement of this package: the two exclude each other
  for one in program.programs(read(folder)):
    inputs = [jax.ShapeDtypeStruct(shape, dtype) for dtype, shape in one.inputs.values()]
    # Traced before jax2onnx replaces functions of jax.numpy and flax by its own, of which some lack arguments or vmap.
    traced = jax.make_jaxpr(one.call)(*inputs)
    run = functools.partial(evaluate, traced)
    path = out / f'{one.name}{SUFFIX}'
    to_onnx(
      run,
      inputs,
      return_mode='file',
      output_path=str(path),
      input_names=list(one.inputs),
      output_names=list(one.outputs),
    )


if __name__ == '__main__':
  main(Path(sys.argv[1]), Path(sys.argv[2]))
