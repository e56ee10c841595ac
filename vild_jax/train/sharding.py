"""The mesh and who holds what on it. The only file that names mesh axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vild_jax.config import Mesh as MeshSettings
from vild_jax.train.optim import first_match, path_name

# First match wins, over the names of the abstract state; every leaf must match. Data parallel: all is replicated.
STATE_RULES = (
  (r'(params|batch_stats|opt_state)/.*', PartitionSpec()),
  (r'step|key', PartitionSpec()),
)
BATCH_SPEC = PartitionSpec('data')


def make_mesh(settings: MeshSettings, devices: list[jax.Device] | None = None) -> Mesh:
  """A mesh over `devices` (all by default). Raises ValueError if the axes do not multiply to their number."""
  devices = jax.devices() if devices is None else devices
  data = len(devices) if settings.data == -1 else settings.data
  if data > len(devices):
    raise ValueError(f'mesh.data is {data}, but there are {len(devices)} devices; expected at most that many, or -1')
  return Mesh(np.asarray(devices[:data]), ('data',), axis_types=(AxisType.Auto,))


def state_shardings(mesh: Mesh, state: Any) -> Any:
  """A sharding for each leaf of the (abstract) state, by STATE_RULES."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: NamedSharding(mesh, first_match(STATE_RULES, path_name(path), 'sharding')), state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batches are split over their first axis."""
  return NamedSharding(mesh, BATCH_SPEC)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same array on every device: vocabularies, scalars."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(mesh: Mesh, batch_size: int, key: str) -> None:
  """Raises ValueError unless the global batch splits evenly over the mesh."""
  if batch_size % mesh.size:
    raise ValueError(f'{key} is {batch_size}, which {mesh.size} devices cannot share evenly; expected a multiple')


def put_batch(mesh: Mesh, arrays: Any) -> Any:
  """Host arrays of this process (its part of the global batch) -> one global, sharded array each."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), arrays)


def everywhere(mesh: Mesh, tree: Any) -> Any:
  """The same arrays, with all of each in every process. All processes must call it."""
  if jax.process_count() == 1:
    return tree
  return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def local_part(tree: Any) -> Any:
  """Global arrays, split over their first axis -> NumPy arrays of this process's rows; undoes `put_batch`."""

  def rows(x: jax.Array) -> np.ndarray:
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}  # one of each that is repeated
    return np.concatenate([parts[start] for start in sorted(parts)])

  return jax.tree.map(rows, tree) if jax.process_count() > 1 else jax.device_get(tree)


def per_image(mesh: Mesh) -> Callable[[Callable], Callable]:
  """Maps a function of one image over a sharded batch, each device over its own images.

  Without `shard_map`, the partitioner turns a batched top-k into an all-gather of the whole batch, and a vmapped
  while-loop into an all-reduce in every round.
  """

  def wrap(function: Callable) -> Callable:
    return jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=BATCH_SPEC, out_specs=BATCH_SPEC, check_vma=False)

  return wrap
