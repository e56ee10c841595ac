"""A region store for a prepared data set without a teacher: boxes at random, embeddings around one direction."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vild_jax.data import regions
from vild_jax.data.sources import PreparedDataset


def write(path: Path, dataset: PreparedDataset, /, *, teacher: str, dim: int = 16, each: int = 12, seed: int = 0,
          **changed) -> Path:
  """Writes the store and returns its path; `changed` are fields of its `regions.Job`, kind='proposals' among them."""
  kind = changed.get('kind', regions.EMBEDDINGS)
  job = {'kind': kind, 'dataset': dataset.identity, 'split': dataset.split, 'images': len(dataset),
         'max_regions': each, 'images_per_shard': 3}
  if kind == regions.EMBEDDINGS:
    job |= {'proposals': 'made up', 'teacher': teacher, 'image_teacher': teacher, 'embedding_dim': dim}
  rng = np.random.default_rng(seed)
  mean = rng.normal(size=dim)
  job = regions.Job(**{**job, **changed})
  with regions.StoreWriter(path, job) as writer:
    for shard in writer.missing():
      writer.write(shard, [(dataset[i].image_id, _regions(dataset[i], each, dim, mean, kind, rng))
                           for i in job.examples(shard)])
    writer.finish()
  return path


def content(path: Path) -> dict[str, bytes]:
  """All files of a store."""
  return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def _regions(example, each: int, dim: int, mean: np.ndarray, kind: str, rng: np.random.Generator) -> regions.Regions:
  corners = np.sort(rng.random((each, 2, 2)), axis=1) * (example.height, example.width)
  rows = mean + 0.3 * rng.normal(size=(each, dim))
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  return regions.Regions(corners.reshape(each, 4).astype(np.float32), np.linspace(1, 0.1, each, dtype=np.float32),
                         rows.astype(np.float16) if kind == regions.EMBEDDINGS else None)
