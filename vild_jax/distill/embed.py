"""Computes the teacher's embedding of every proposal of a data set, once; a student learns to predict it.

`vild-jax embed-regions` crops the proposals of each picture (`data.regions`) at 1x and 1.5x, embeds the crops
(`teacher.crops`) and writes boxes and embeddings into another store. It can also take both from arrays that exist
already (`data.regions.imported`).
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vild_jax.config import defaults
from vild_jax.data import pictures as pictures_lib
from vild_jax.data import sources
from vild_jax.data.regions.imported import ImportedRegions
from vild_jax.data.regions.records import EMBEDDINGS, Job, Regions
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.regions.writer import StoreWriter
from vild_jax.data.schema import DataError
from vild_jax.distill.propose import outcome, readable
from vild_jax.runtime import progress
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import crops

_AHEAD = 3  # pictures that are decoded ahead, while the tower embeds the crops of one
_FIRST = 4  # pictures after which the remaining time is estimated; the first one, with the compilation, is left out


def embed_regions(
  teacher: teacher_checkpoint.Teacher,
  dataset: sources.PreparedDataset,
  proposals: RegionStore,
  out: str | Path,
  *,
  max_regions: int = defaults.MAX_REGIONS,
  dtype: Any = jnp.float32,
  batch_size: int = defaults.CROP_BATCH,
  images_per_shard: int = defaults.REGION_IMAGES_PER_SHARD,
) -> dict[str, Any]:
  """Writes the embeddings of the best proposals of each picture; another call continues an interrupted store.

  On equal devices the finished store has the same bytes, whatever the number of interruptions and processes.

  Args:
    teacher: a teacher with both towers; vocabularies of its text tower fit the store.
    dataset: the prepared split of the proposals.
    proposals: boxes and scores; any store with the same boxes gives the same result.
    out: folder of the store; an interrupted store is continued.
    max_regions: how many proposals of a picture are kept, the best ones.
    dtype: arithmetic of the image tower; embeddings are stored in float16.
    batch_size: crops of one picture that the tower embeds at a time.
    images_per_shard: pictures in a file.

  Returns:
    A dictionary: whole (False while other processes have shards to write), seconds, images and crops (of this call),
    and for a whole store identity, boxes (its `boxes_identity`), regions and bytes.

  Raises:
    ValueError: the proposals are of another data set or lack one of its pictures; the teacher has no image tower, or
      its embeddings are not finite; `out` holds another job (with another teacher, for example) or something else, or
      another process writes there; a picture or shard is damaged.
  """
  if (proposals.dataset, proposals.split) != (dataset.identity, dataset.split):
    raise DataError(
      f'{proposals.path} is of the data set {proposals.dataset[:12]}, split {proposals.split!r}; '
      f'expected {dataset.identity[:12]}, split {dataset.split!r}, which is {_name(dataset)}'
    )
  tower = crops.CropTower(teacher, dtype, batch_size=batch_size)
  job = Job(
    EMBEDDINGS,
    dataset=dataset.identity,
    split=dataset.split,
    images=len(dataset),
    max_regions=max_regions,
    images_per_shard=images_per_shard,
    proposals=proposals.boxes_identity,
    teacher=teacher.text_identity,
    image_teacher=tower.identity,
    embedding_dim=tower.embedding_dim,
    recipe=tower.recipe,
  )

  def embedded(examples: Iterable[int]) -> Iterator[tuple[int, Regions]]:
    with contextlib.closing(_ahead(lambda i: _read(dataset, proposals, i, max_regions), examples)) as pictures:
      for image_id, image, regions in pictures:
        try:
          rows = tower.embed(image, regions.boxes).astype(np.float16)
        except ValueError as error:
          raise DataError(f'image {image_id}: {error}') from error
        yield image_id, Regions(regions.boxes, regions.scores, rows)

  at_most = min(proposals.regions, len(dataset) * max_regions)
  return _write(Path(out), job, embedded, at_most, len(crops.SCALES))


def import_regions(
  arrays: ImportedRegions,
  dataset: sources.PreparedDataset,
  out: str | Path,
  *,
  max_regions: int = defaults.MAX_REGIONS,
  images_per_shard: int = defaults.REGION_IMAGES_PER_SHARD,
) -> dict[str, Any]:
  """Writes a store of embeddings that were computed elsewhere; arguments, results and errors as in `embed_regions`.

  Also raises ValueError for arrays that lack a picture of the data set, have a picture that it lacks, or hold boxes
  outside of their picture or numbers that are not finite.
  """
  if len(arrays.image_ids) != len(dataset):  # with equal numbers, the lookups below find every difference
    known = {example.image_id for example in dataset.labels()}
    missing, unknown = sorted(known - arrays.image_ids), sorted(arrays.image_ids - known)
    what = f'has no image {missing[0]}' if missing else f'has an image {unknown[0]} that is not in {_name(dataset)}'
    raise DataError(
      f'{arrays.path} {what} ({len(missing)} missing, {len(unknown)} unknown); expected the '
      f'{len(dataset)} images of the data set, also those without regions'
    )
  job = Job(
    EMBEDDINGS,
    dataset=dataset.identity,
    split=dataset.split,
    images=len(dataset),
    max_regions=max_regions,
    images_per_shard=images_per_shard,
    teacher=arrays.teacher,
    image_teacher=arrays.image_teacher,
    embedding_dim=arrays.embedding_dim,
    recipe={'imported': arrays.digest},
  )

  def read(examples: Iterable[int]) -> Iterator[tuple[int, Regions]]:
    for i in examples:
      example = dataset[i]
      regions = arrays.of(example)
      yield (
        example.image_id,
        Regions(regions.boxes[:max_regions], regions.scores[:max_regions], regions.embeddings[:max_regions]),
      )

  return _write(Path(out), job, read, len(dataset) * max_regions, 0)


def _write(
  out: Path,
  job: Job,
  make: Callable[[Iterable[int]], Iterator[tuple[int, Regions]]],
  at_most: int,
  crops_per_region: int,
) -> dict[str, Any]:
  """Writes the missing shards of a store that will have `at_most` regions; `make` yields the regions of examples."""
  with StoreWriter(out, job, process_index=jax.process_index(), process_count=jax.process_count()) as writer:
    missing = writer.missing()
    examples = [i for shard in missing for i in job.examples(shard)]
    share = len(examples) / job.images
    size = at_most * (20 + 2 * job.embedding_dim) + 20 * job.images
    print(
      f'{out}: {job.images} images, at most {at_most} regions of dimension {job.embedding_dim} and '
      f'{readable(size)} in {job.shards} shards; to do: {len(missing)} shards, {len(examples)} images'
      + (f', at most {round(share * at_most * crops_per_region)} crops' if crops_per_region else ''),
      file=sys.stderr,
    )
    with (
      progress.bar(len(examples), 'embed' if crops_per_region else 'import', unit='image') as bar,
      contextlib.closing(make(examples)) as items,
    ):
      meter = _Meter(bar, len(examples), crops_per_region)
      for shard in missing:
        writer.write(shard, meter.count(itertools.islice(items, len(job.examples(shard)))))
    whole = writer.finish()
  made = {'images': len(examples), 'crops': meter.crops, 'seconds': meter.seconds}
  return made | outcome(out, whole)


class _Meter:
  """Counts images and crops, shows crops per second in the bar, and estimates the remaining time once."""

  def __init__(self, bar: Any, total: int, crops_per_region: int):
    self._bar, self._total, self._per_region = bar, total, crops_per_region
    self._start, self._after_first, self.images, self.crops = time.perf_counter(), 0.0, 0, 0

  @property
  def seconds(self) -> float:
    return time.perf_counter() - self._start

  def count(self, items: Iterator[tuple[int, Regions]]) -> Iterator[tuple[int, Regions]]:
    for item in items:
      yield item
      self.images += 1
      self.crops += self._per_region * len(item[1].boxes)
      if self.images == 1:
        self._after_first = self.seconds
      if self._per_region:
        self._bar.set_postfix_str(f'{self.crops / self.seconds:.0f} crops/s', refresh=False)
        if self.images == _FIRST < self._total:
          left = (self.seconds - self._after_first) / (_FIRST - 1) * (self._total - _FIRST)
          self._bar.write(f'about {_duration(left)} for the {self._total - _FIRST} images to come', file=sys.stderr)
      self._bar.update()


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes:02d} min' if hours else f'{minutes} min {seconds:02d} s'


def _read(
  dataset: sources.PreparedDataset, proposals: RegionStore, index: int, max_regions: int
) -> tuple[int, np.ndarray, Regions]:
  """Returns (image id, picture uint8 [H, W, 3], its best regions)."""
  example = dataset[index]
  regions = proposals[example.image_id]
  kept = Regions(regions.boxes[:max_regions], regions.scores[:max_regions])
  return example.image_id, pictures_lib.decode_example(example), kept


def _ahead(function: Callable[[int], Any], items: Iterable[int]) -> Iterator[Any]:
  """Yields `function(item)` for each item, in order; a thread computes a few results ahead of the caller."""
  with ThreadPoolExecutor(1, 'decode') as pool:
    waiting: collections.deque = collections.deque()
    try:
      for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > _AHEAD:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      for future in waiting:
        future.cancel()


def _name(dataset: sources.PreparedDataset) -> str:
  return f'{dataset.folder} ({dataset.split})'
