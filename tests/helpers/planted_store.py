"""A region store for a prepared data set without a teacher: boxes at random, embeddings around one direction."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vild_jax.data.regions.records import EMBEDDINGS, PROPOSALS, Job, Regions
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.regions.writer import StoreWriter
from vild_jax.data.sources import PreparedDataset


def write(
  path: Path, dataset: PreparedDataset, /, *, teacher: str, dim: int = 16, each: int = 12, seed: int = 0, **changed
) -> Path:
  """Writes the store and returns its path; `changed` are fields of its `Job`, kind='proposals' among them."""
  kind = changed.get('kind', EMBEDDINGS)
  job = {
    'kind': kind,
    'dataset': dataset.identity,
    'split': dataset.split,
    'images': len(dataset),
    'max_regions': each,
    'images_per_shard': 3,
  }
  if kind == EMBEDDINGS:
    job |= {'proposals': 'made up', 'teacher': teacher, 'image_teacher': teacher, 'embedding_dim': dim}
  rng = np.random.default_rng(seed)
  mean = rng.normal(size=dim)
  job = Job(**{**job, **changed})
  with StoreWriter(path, job) as writer:
    for shard in writer.missing():
      writer.write(
        shard, [(dataset[i].image_id, _regions(dataset[i], each, dim, mean, kind, rng)) for i in job.examples(shard)]
      )
    writer.finish()
  return path


def content(path: Path) -> dict[str, bytes]:
  """All files of a store."""
  return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def boxes_of(index: int, height: int, width: int) -> Regions:
  """None in picture 3, 7 or more in the others; some reach beyond the picture."""
  rng = np.random.default_rng(index)
  corners = rng.uniform(-0.2, 1.2, (0 if index == 3 else 7 + index % 5, 2, 2)) * [height, width]
  boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
  return Regions(boxes, np.sort(rng.uniform(size=len(boxes)).astype(np.float32))[::-1].copy())


def write_proposals(path: Path, dataset, count: int | None = None) -> RegionStore:
  """A store for the first `count` pictures of a data set."""
  count = len(dataset) if count is None else count
  job = Job(PROPOSALS, dataset=dataset.identity, split=dataset.split, images=count, max_regions=20)
  with StoreWriter(path, job) as writer:
    examples = [dataset[i] for i in range(count)]
    writer.write(0, ((e.image_id, boxes_of(i, e.height, e.width)) for i, e in enumerate(examples)))
    assert writer.finish()
  return RegionStore(path)


def _regions(example, each: int, dim: int, mean: np.ndarray, kind: str, rng: np.random.Generator) -> Regions:
  corners = np.sort(rng.random((each, 2, 2)), axis=1) * (example.height, example.width)
  rows = mean + 0.3 * rng.normal(size=(each, dim))
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  return Regions(
    corners.reshape(each, 4).astype(np.float32),
    np.linspace(1, 0.1, each, dtype=np.float32),
    rows.astype(np.float16) if kind == EMBEDDINGS else None,
  )
