"""Makes the mesh and decides which device holds which part of each array. The only file that names mesh axes.

  data      splits the pictures of the batch
  fsdp      splits the pictures of the batch, and parameters and momentum, which are gathered for each step
  spatial   splits the rows of a picture in the first stage: convolutions exchange the rows at the border with
            neighbouring devices. A region may lie anywhere in its picture, so the second stage needs all rows: each
            device along this axis computes it for the same pictures

To add a `model` axis, add it to AXES and use it in the rules below.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vild_jax.config import Mesh as MeshSettings
from vild_jax.structs import MaskBits
from vild_jax.train.optim import first_match, path_name

AXES = ('data', 'fsdp', 'spatial')
BATCH_AXES = ('data', 'fsdp')
REPLICATED, BATCH_SPEC = PartitionSpec(), PartitionSpec(BATCH_AXES)
# A leaf with fewer elements is replicated: gathering it would cost more than splitting it saves.
MIN_SPLIT = 4096


def split_largest(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """Returns the spec that splits the largest dimension that `fsdp` divides (the last one of equal size).

  A small array, or one without such a dimension, is replicated.
  """
  size = mesh.shape['fsdp']
  divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
  if size == 1 or not divisible or np.prod(shape) < MIN_SPLIT:
    return REPLICATED
  largest = max(divisible, key=lambda axis: (shape[axis], axis))
  return PartitionSpec(*(None,) * largest, 'fsdp')


# The first match of a leaf's name counts; every leaf must match. A function decides by the shape of the leaf.
STATE_RULES = (
  (r'(params|opt_state)/.*', split_largest),
  (r'batch_stats/.*|step|key', REPLICATED),
)
BATCH_RULES = (
  (r'image', PartitionSpec(BATCH_AXES, 'spatial')),
  (r'image_size|labels|masks(/(bits|weights))?|has_mask|factors|(regions/)?(boxes|embeddings|valid)', BATCH_SPEC),
)


def make_mesh(settings: MeshSettings, devices: list[jax.Device] | None = None) -> Mesh:
  """Makes a mesh over `devices` (by default all).

  Raises ValueError if the sizes of the axes do not fit the number of devices or of processes.
  """
  devices = sorted(jax.devices() if devices is None else devices, key=lambda d: (d.process_index, d.id))
  count, others = len(devices), settings.fsdp * settings.spatial
  if settings.data == -1 and count % others:
    raise ValueError(
      f'mesh.fsdp is {settings.fsdp} and mesh.spatial {settings.spatial}, which do not divide '
      f'{count} devices; expected {count} to be a multiple of their product, {others}'
    )
  sizes = (count // others if settings.data == -1 else settings.data, settings.fsdp, settings.spatial)
  needed, processes = int(np.prod(sizes)), {d.process_index for d in devices}
  if needed > count or (needed < count and len(processes) > 1):
    bound = 'at most that many' if len(processes) == 1 else f'all of those of {len(processes)} processes'
    raise ValueError(
      f'mesh.data is {sizes[0]}, fsdp {sizes[1]}, spatial {sizes[2]}: {needed} devices, but there are '
      f'{count}; expected {bound}, or mesh.data = -1'
    )
  if len(processes) > 1 and (count // len(processes)) % settings.spatial:
    raise ValueError(
      f'mesh.spatial is {settings.spatial}, but a process has {count // len(processes)} devices; '
      'expected a divisor of that: a picture is read by one process'
    )
  return Mesh(np.asarray(devices[:needed]).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def state_shardings(mesh: Mesh, state: Any) -> Any:
  """Returns a sharding for each leaf of the (abstract) state, by STATE_RULES."""
  return _by_rules(mesh, STATE_RULES, state)


def batch_shardings(mesh: Mesh, batch: Any) -> Any:
  """Returns a sharding for each field of a (host or abstract) batch, by BATCH_RULES."""
  return _by_rules(mesh, BATCH_RULES, batch)


def _by_rules(mesh: Mesh, rules: tuple[tuple[str, Any], ...], tree: Any) -> Any:
  def of_leaf(path: tuple, leaf: Any) -> NamedSharding:
    rule = first_match(rules, path_name(path), 'sharding')
    return NamedSharding(mesh, rule(np.shape(leaf), mesh) if callable(rule) else rule)

  return jax.tree_util.tree_map_with_path(of_leaf, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays [B, ...] that are split along the first axis only."""
  return NamedSharding(mesh, BATCH_SPEC)


def image_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of pictures [B, S, S, 3]: split along the first axis, and along the rows over `spatial`."""
  return NamedSharding(mesh, first_match(BATCH_RULES, 'image', 'sharding'))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that every device holds whole, such as vocabularies and scalars."""
  return NamedSharding(mesh, REPLICATED)


def check_batch_size(mesh: Mesh, batch_size: int, key: str, *, accumulate: int = 1) -> None:
  """Raises ValueError unless the global batch, in `accumulate` parts, splits evenly over the mesh."""
  groups = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
  if batch_size % (groups * accumulate):
    parts = f' in {accumulate} microbatches' if accumulate > 1 else ''
    raise ValueError(
      f'{key} is {batch_size}, which {groups} devices (data x fsdp) cannot share evenly{parts}; '
      f'expected a multiple of {groups * accumulate}'
    )


def put_batch(mesh: Mesh, arrays: Any) -> Any:
  """Turns host arrays (this process's part of the global batch) into global arrays, sharded by BATCH_RULES.

  The slots that `data.batch` has not sent of a `Batch` with masks as bits are added on the devices.
  """
  put = lambda x, sharding: jax.make_array_from_process_local_data(sharding, np.asarray(x))
  if not isinstance(masks := getattr(arrays, 'masks', None), MaskBits):
    return jax.tree.map(put, arrays, batch_shardings(mesh, arrays))
  others = put_batch(mesh, arrays.replace(masks=None))
  return others.replace(masks=jax.tree.map(lambda x: _with_all_slots(x, others.valid), masks))


def _with_all_slots(x: np.ndarray, like: jax.Array) -> jax.Array:
  """Puts this process's part, [b, K, ...], beside `like`, [B, N], as [B, N, ...] with zeros in the slots from K on.

  K may differ from process to process, so that each device adds its slots alone.
  """
  starts = {shard.device: shard.index[0].start or 0 for shard in like.addressable_shards}
  first, parts = min(starts.values()), []
  for shard in like.addressable_shards:
    start = starts[shard.device] - first
    part = jax.device_put(x[start : start + shard.data.shape[0]], shard.device)
    parts.append(_pad_slots(part, like.shape[1] - x.shape[1]))
  return jax.make_array_from_single_device_arrays((*like.shape, *x.shape[2:]), like.sharding, parts)


@functools.partial(jax.jit, static_argnums=1)
def _pad_slots(x: jax.Array, missing: int) -> jax.Array:
  return jnp.pad(x, ((0, 0), (0, missing)) + ((0, 0),) * (x.ndim - 2))


def gathered(mesh: Mesh, tree: Any) -> Any:
  """Replicates every leaf on every device, inside a compiled program.

  Split parameters are gathered before they are used, because otherwise the partitioner may gather activations and split
  channels instead.
  """
  return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def split_like_params(mesh: Mesh, gradients: Any) -> Any:
  """Gives gradients the shardings of their parameters, inside a compiled program."""
  return jax.lax.with_sharding_constraint(gradients, state_shardings(mesh, {'params': gradients})['params'])


def everywhere(mesh: Mesh, tree: Any) -> Any:
  """Replicates arrays, so that every process holds all of each. All processes must call it."""
  if jax.process_count() == 1:
    return tree
  return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def local_part(tree: Any) -> Any:
  """Turns global arrays, split along their first axis, into NumPy arrays of this process's rows.

  It is the inverse of `put_batch`.
  """

  def rows(x: jax.Array) -> np.ndarray:
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}  # drops repeated shards
    return np.concatenate([parts[start] for start in sorted(parts)])

  return jax.tree.map(rows, tree) if jax.process_count() > 1 else jax.device_get(tree)


def per_image(mesh: Mesh) -> Callable[[Callable], Callable]:
  """Returns a function that maps a function of one image over a sharded batch; each device maps over its own images.

  Without `shard_map`, the partitioner turns a batched top-k into an all-gather of the whole batch, and a vmapped
  while-loop into an all-reduce in every iteration.
  """
  # Gradients are summed over every axis that the spec leaves out; naming an axis of size 1 avoids a needless sum.
  spec = BATCH_SPEC if mesh.shape['spatial'] > 1 else PartitionSpec(AXES)

  def wrap(function: Callable) -> Callable:
    return jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)

  return wrap


def bytes_per_device(tree: Any) -> int:
  """Returns how many bytes of an (abstract) tree of sharded arrays one device holds."""
  return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def describe(mesh: Mesh, state: Any) -> str:
  """Returns one line of text: the axes, and the bytes of the (abstract) state on one device."""
  axes = ' x '.join(f'{size} {axis}' for axis, size in mesh.shape.items())
  held = ', '.join(
    f'{name} {bytes_per_device(tree) / 2**20:,.1f} MiB'
    for name, tree in (('parameters', state.params), ('optimiser', state.opt_state))
  )
  return f'mesh {axes} of {mesh.devices.flat[0].device_kind}; on each device: {held}'
