"""Writes the programs of a portable model as SavedModels of TensorFlow, by jax2tf.

A SavedModel holds the StableHLO of the program, which TensorFlow compiles when it is called. Its reader knows neither
JAX's top_k, in whose place the program sorts, nor types that StableHLO has learnt since.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax

from vild_jax.core import ranking
from vild_jax.portable import program
from vild_jax.runtime import messages

_LONGEST = 200  # characters of a library's message


def check() -> None:
  """Raises ValueError if what writes a SavedModel is not installed."""
  if importlib.util.find_spec('tensorflow') is None:
    raise ValueError("--format savedmodel needs TensorFlow; expected it from: pip install 'vild_jax[tf]'")
  if importlib.util.find_spec('jax.experimental.jax2tf') is None:
    raise ValueError(
      f'--format savedmodel needs jax2tf, which jax {jax.__version__} does not have; expected jax 0.10.2'
    )


def write(folder: Path, source: program.Source) -> dict[str, str]:
  """Writes the programs of a model into a folder and returns {program: its folder}.

  Raises ValueError if this version of JAX or TensorFlow cannot.
  """
  fewest, written = program.fewest_classes(source.config.model), {}
  for one in program.programs(source):
    try:
      with messages.stderr_of_libraries():  # TensorFlow reports at length that there is no GPU
        _save(folder / one.name, one, fewest)
        _check_runs(folder / one.name, one, fewest)
    except Exception as error:  # both libraries raise many types, with messages of many lines
      reason = ' '.join(str(error).split())[:_LONGEST]
      raise ValueError(
        f'--format savedmodel does not work with jax {jax.__version__} and this TensorFlow ({reason}); expected jax '
        '0.10.2 and TensorFlow 2.21, or --format stablehlo'
      ) from error
    written[one.name] = one.name
  return written


def _save(path: Path, one: program.Program, fewest: int) -> None:
  import tensorflow
  from jax.experimental import jax2tf

  def named(*inputs: jax.Array) -> dict[str, jax.Array]:
    return dict(zip(one.outputs, one.call(*inputs), strict=True))

  shapes = [shape for _, shape in one.inputs.values()]
  converted = jax2tf.convert(
    named,
    polymorphic_shapes=[f'({", ".join(map(str, shape))},)' for shape in shapes],
    polymorphic_constraints=[f'c >= {fewest}'] if any('c' in shape for shape in shapes) else [],
    with_gradient=False,
    native_serialization_platforms=('cpu', 'cuda', 'tpu'),
  )
  function = tensorflow.function(
    converted,
    autograph=False,
    input_signature=[
      tensorflow.TensorSpec([size if isinstance(size, int) else None for size in shape], dtype, name=name)
      for name, (dtype, shape) in one.inputs.items()
    ],
  )
  with ranking.by_sorting():
    tensorflow.saved_model.save(tensorflow.Module(), str(path), signatures=function.get_concrete_function())


def _check_runs(path: Path, one: program.Program, fewest: int) -> None:
  """Runs a program on one black picture: only when it is called does TensorFlow read and compile its StableHLO."""
  import tensorflow

  function = tensorflow.saved_model.load(str(path)).signatures['serving_default']
  sizes = {'b': 1, 'c': fewest}
  function(
    **{
      name: tensorflow.zeros([sizes.get(size, size) for size in shape], dtype)
      for name, (dtype, shape) in one.inputs.items()
    }
  )
