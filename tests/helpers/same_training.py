"""A few steps of training that must come out the same however the devices, and the processes, are arranged.

`main` makes it a program, for processes of their own: `tests.helpers.child_processes`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.once import once
from vild_jax.config import Config
from vild_jax.runtime import processes
from vild_jax.structs import Batch, TrainState
from vild_jax.train import accumulate, checkpoint, sharding, state, step
from vild_jax.train.optim import path_name

# Two levels compile in half the time of five; pictures of 128 px have the rows that `spatial` asks for.
BASE = (
  'model.pyramid.min_level=4',
  'model.pyramid.max_level=5',
  'model.anchors.size=1.5',
  'data.image_size=128',
  'distillation.weight=0.5',
)


def batch(seed: int = 0) -> Batch:
  """A global batch of eight, on the host."""
  regions = tiny.distilled_batch(seed).regions
  regions.valid[:3] = False  # the devices hold different numbers of regions; the mean is over all of them
  return tiny.batch(seed, side=128).replace(regions=regions)


def wide(x: Any) -> Any:
  """float64 for float32."""
  return x.astype(np.float64) if x.dtype == np.float32 else x


def start(config: Config, mesh: jax.sharding.Mesh, cast=lambda x: x) -> TrainState:
  """A state at step 0 of drawn weights: compiling the initialisers on every mesh would take longer than the rest."""
  drawn = jax.device_get(tiny.variables(config, deltas=0.1))
  abstract = state.abstract(config, mesh)
  begun = abstract.replace(
    step=np.int32(0),
    key=np.asarray(jax.random.PRNGKey(0)),
    params=drawn['params'],
    batch_stats=drawn['batch_stats'],
    opt_state=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract.opt_state),
  )
  return jax.tree.map(lambda x, a: jax.device_put(cast(x), a.sharding), begun, abstract)


def noisy_start(config: Config, mesh: jax.sharding.Mesh) -> TrainState:
  """A state no leaf of which is what it begins as."""
  rng = np.random.default_rng(0)
  return start(config, mesh, lambda x: np.asarray(x + 100 * rng.normal(size=x.shape)).astype(x.dtype))


def first_gradients(config: Config) -> tuple[dict, Any]:
  """(metrics, gradients) of the first step in float64, on the host.

  In float32 the order of sums alone makes up to 1.2e-5 of a gradient's norm, depending on the processor: a difference
  in meaning would have to be large to show.
  """
  mesh = sharding.make_mesh(config.mesh)
  with jax.enable_x64(True):
    program, arguments = _first_step(config, mesh, wide)
    gradients, metrics, _ = program(*arguments)
    assert metrics['loss'].dtype == np.float64
    return jax.device_get(metrics), jax.device_get(sharding.everywhere(mesh, gradients))


def program_text(config: Config) -> str:
  """The compiled program of the first step in float32, as users run it: in float64 it is partitioned otherwise."""
  program, arguments = _first_step(config, sharding.make_mesh(config.mesh), lambda x: x)
  return program.lower(*arguments).compile().as_text()


def _first_step(config: Config, mesh: jax.sharding.Mesh, cast: Callable) -> tuple[Any, tuple]:
  vocabulary = jax.device_put(jax.tree.map(cast, tiny.vocabulary()), sharding.replicated(mesh))
  arguments = start(config, mesh, cast), _put(mesh, jax.tree.map(cast, batch())), vocabulary
  return jax.jit(lambda *args: accumulate.gradients(config, mesh, *args)), arguments


def assert_same_first_step(one: dict[str, Any], many: dict[str, Any]) -> None:
  """The metrics and gradients of two arrangements, as of `load`, agree to 1e-9 of each norm."""
  for name, value in one['metrics'].items():
    np.testing.assert_allclose(many['metrics'][name], value, rtol=1e-9, err_msg=name)
  assert one['gradients'].keys() == many['gradients'].keys()
  whole = np.sqrt(sum(np.linalg.norm(g) ** 2 for g in one['gradients'].values()))
  for name, a in one['gradients'].items():
    # A bias in front of a batch normalisation has no gradient but rounding: there the floor decides.
    difference = np.linalg.norm(a - many['gradients'][name])
    assert difference <= 1e-9 * max(np.linalg.norm(a), 1e-3 * whole), name


def ten_steps(config: Config) -> tuple[Any, Any]:
  """The parameters before and after ten steps in float64, on the host; x64 must be on.

  In float32 a rounding can flip a top-k, which says nothing about the arrangement.
  """
  mesh = sharding.make_mesh(config.mesh)
  current = start(config, mesh, wide)
  before, train_step = jax.device_get(sharding.everywhere(mesh, current.params)), step.make_train_step(config, mesh)
  vocabulary = jax.device_put(jax.tree.map(wide, tiny.vocabulary()), sharding.replicated(mesh))
  for seed in range(10):
    current, metrics = train_step(current, _put(mesh, jax.tree.map(wide, batch(seed))), vocabulary)
  assert metrics['loss'].dtype == np.float64
  return before, jax.device_get(sharding.everywhere(mesh, current.params))


def assert_same_end(one: Any, many: Any, before: Any) -> None:
  """Parameters of two arrangements agree to 1e-6, and have moved."""
  distance = lambda a, b: max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), a, b)))
  assert distance(one, before) > 1e-3
  assert distance(one, many) < 1e-6


def assert_restored(folder: Path, saved: TrainState, *meshes: Sequence[str]) -> None:
  """The newest checkpoint in a folder is this state, on each of the meshes."""
  for overrides in meshes:
    config = tiny.config(*BASE, *overrides)
    mesh = sharding.make_mesh(config.mesh)
    found = checkpoint.Checkpoints(folder).restore(config, mesh)
    for a, b, expected in zip(*map(jax.tree.leaves, (found, saved, state.abstract(config, mesh))), strict=True):
      np.testing.assert_array_equal(a, b)
      assert a.sharding == expected.sharding


def _put(mesh: jax.sharding.Mesh, whole: Batch) -> Batch:
  """This process hands in its part of the batch."""
  count, index = jax.process_count(), jax.process_index()
  return sharding.put_batch(mesh, jax.tree.map(lambda x: np.split(np.asarray(x), count)[index], whole))


def on_one_device(factory: pytest.TempPathFactory, *, ten: bool) -> dict[str, dict[str, np.ndarray]]:
  """What one device computes, as `load` gives it back; made once in a run of the tests."""
  make = lambda folder: save(folder / 'found.npz', tiny.config(*BASE, 'mesh.data=1'), ten=ten)
  folder, _ = once(factory, f'one-device-{"ten-steps" if ten else "first-step"}', make)
  return load(folder / 'found.npz')


def save(file: Path, config: Config, *, ten: bool) -> None:
  """The first process writes the leaves of {'metrics', 'gradients'} or of {'before', 'after'}, of ten steps."""
  if ten:
    with jax.enable_x64(True):
      found = dict(zip(('before', 'after'), ten_steps(config), strict=True))
  else:
    found = dict(zip(('metrics', 'gradients'), first_gradients(config), strict=True))
  if jax.process_index() == 0:
    np.savez(file, **{f'{part}/{name}': leaf for part in found for name, leaf in named(found[part]).items()})


def named(tree: Any) -> dict[str, np.ndarray]:
  """The leaves by their names, in the order of the names."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def main(words: Sequence[str]) -> int:
  """Writes what one arrangement computes to --out, see `save`; with --save rather a checkpoint of `noisy_start`."""
  parser = argparse.ArgumentParser()
  parser.add_argument('overrides', nargs='*')
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--ten-steps', action='store_true')
  parser.add_argument('--save', action='store_true')
  parser.add_argument('--coordinator-address')
  for name in ('--num-processes', '--process-id', '--heartbeat-seconds'):
    parser.add_argument(name, type=int)
  of = parser.parse_args(words)
  processes.join(of.coordinator_address, of.num_processes, of.process_id)
  config = tiny.config(*BASE, *of.overrides)
  if of.save:
    checkpoints = checkpoint.Checkpoints(of.out)
    checkpoints.save(3, noisy_start(config, sharding.make_mesh(config.mesh)), 1.0)
    checkpoints.close()
    return 0
  save(of.out, config, ten=of.ten_steps)
  return 0


def load(file: Path) -> dict[str, dict[str, np.ndarray]]:
  """What `main` wrote: {part: {leaf: array}}."""
  found: dict[str, dict[str, np.ndarray]] = {}
  with np.load(file) as leaves:
    for name in leaves:
      part, _, leaf = name.partition('/')
      found.setdefault(part, {})[leaf] = leaves[name]
  return found
