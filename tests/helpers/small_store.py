"""A region store of seven pictures, which a test can write whole, in parts, or up to an interruption."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vild_jax.data.regions.records import Job, Regions
from vild_jax.data.regions.writer import StoreWriter

IDS = [11, 5, 7, 300, 2, 2**40, 9]  # in the order of the data set, which is not theirs
JOB = Job(
  'embeddings',
  dataset='d' * 64,
  split='train',
  images=len(IDS),
  max_regions=6,
  images_per_shard=2,
  proposals='p' * 64,
  teacher='text',
  image_teacher='image',
  embedding_dim=3,
  recipe={'scales': [1, 1.5]},
)


def regions(image_id: int, dim: int = 3) -> Regions:
  rng = np.random.default_rng(image_id)
  count = image_id % 7 if image_id != 7 else 0  # a picture without any region too
  boxes = rng.uniform(0, 100, (count, 4)).astype(np.float32)
  scores = np.sort(rng.uniform(size=count).astype(np.float32))[::-1].copy()
  return Regions(boxes, scores, rng.normal(size=(count, dim)).astype(np.float16) if dim else None)


def make(path: Path, job: Job = JOB, *, part: tuple[int, int] = (0, 1), stop_after: int | None = None) -> bool:
  """Writes the store or this part of it, or stops in the middle of its shard number `stop_after`."""

  def found(shard, stop):
    for i in job.examples(shard):
      yield IDS[i], regions(IDS[i], job.embedding_dim)
      if stop:
        raise KeyboardInterrupt

  with StoreWriter(path, job, process_index=part[0], process_count=part[1]) as writer:
    for done, shard in enumerate(writer.missing()):
      writer.write(shard, found(shard, done == stop_after))
    return writer.finish()
