"""Writes region stores: the proposals of a checkpoint, and a teacher's embeddings of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vild_jax.config import Config, defaults, given
from vild_jax.data import sources
from vild_jax.data.regions.imported import ImportedRegions
from vild_jax.data.regions.store import RegionStore
from vild_jax.distill import embed
from vild_jax.distill import propose as propose_lib
from vild_jax.runtime import copies
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.train import bundle_files, checkpoint, weights


def propose(
  config: Config,
  folder: str | Path,
  data: str,
  split: str,
  out: Path,
  *,
  max_proposals: int = defaults.MAX_PROPOSALS,
  images_per_shard: int = defaults.PROPOSAL_IMAGES_PER_SHARD,
  step: int | None = None,
) -> dict[str, Any]:
  """Writes the proposals of a work directory's or bundle's checkpoint for a prepared split.

  Args:
    config: the experiment that the checkpoint was trained with.
    folder: the work directory or bundle, or the name of a bundle on the hub (`hf://owner/name`).
    data, split: the prepared data set; one in a bucket is read from a copy in `data.cache`.
    out: folder of the store, or its address in a bucket.
    max_proposals, images_per_shard: see `distill.propose.propose`.
    step: which checkpoint of the work directory; by default the newest.

  Returns, raises: as `distill.propose.propose`; also ValueError if the checkpoint does not fit the config.
  """
  folder = weights.folder_of(folder)
  check_same = bundle_files.watched(folder)
  config = checkpoint.same_model(config, folder)
  dataset = sources.open_dataset(copies.cached(given(data, '--data'), config.data.cache), split)
  mesh = propose_lib.local_mesh(config)
  variables = checkpoint.load_variables(folder, config, mesh, step)
  check_same()
  return propose_lib.propose(
    config, variables, dataset, out, max_proposals=max_proposals, images_per_shard=images_per_shard, mesh=mesh
  )


def embed_regions(
  teacher: str,
  data: str,
  split: str,
  proposals: str,
  out: Path,
  *,
  max_regions: int = defaults.MAX_REGIONS,
  dtype: str | None = None,
  batch_size: int = defaults.CROP_BATCH,
  images_per_shard: int = defaults.REGION_IMAGES_PER_SHARD,
  cache: str = '',
) -> dict[str, Any]:
  """Writes a teacher's embeddings of the proposals of a prepared split.

  Args:
    teacher: folder of the teacher.
    data, split: the prepared data set.
    proposals: the store that `propose` wrote for it.
    out: folder of the store, or its address in a bucket.
    max_regions, dtype, batch_size, images_per_shard: see `distill.embed.embed_regions`.
    cache: where `data` and `proposals` that are in a bucket are copied to.

  Returns, raises: as `distill.embed.embed_regions`.
  """
  if batch_size < 1:
    raise ValueError(f'--batch-size is {batch_size}; expected at least 1')
  dataset = sources.open_dataset(copies.cached(data, cache), split)
  store = RegionStore(copies.cached(given(proposals, '--proposals'), cache))
  return embed.embed_regions(
    teacher_checkpoint.load_teacher(given(teacher, '--teacher')),
    dataset,
    store,
    out,
    max_regions=max_regions,
    dtype=dtype,
    batch_size=batch_size,
    images_per_shard=images_per_shard,
  )


def import_regions(
  arrays: str,
  data: str,
  split: str,
  out: Path,
  *,
  max_regions: int = defaults.MAX_REGIONS,
  images_per_shard: int = defaults.REGION_IMAGES_PER_SHARD,
  cache: str = '',
) -> dict[str, Any]:
  """Writes boxes and embeddings from `.npz` files: `arrays` is a file or a folder.

  The other arguments, results and errors are those of `distill.embed.import_regions`.
  """
  dataset = sources.open_dataset(copies.cached(data, cache), split)
  return embed.import_regions(
    ImportedRegions(arrays), dataset, out, max_regions=max_regions, images_per_shard=images_per_shard
  )
