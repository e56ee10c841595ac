"""The teacher's embedding of every proposal of a data set, computed once: what a student learns to imitate.

`vild-jax embed-regions` crops the proposals of each picture (`data.regions`) at 1x and 1.5x, embeds the crops
(`teacher.crops`) and keeps both boxes and embeddings in another store; or it takes both from arrays that a team has
already (`data.region_import`).
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
from vild_jax.data import batch as batches
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

_AHEAD = 3  # pictures that are decoded while the tower works on one
_FIRST = 4  # pictures after which the time for all is stated; the first of them waits for the compiler


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
  """Writes the embeddings of the best proposals of each picture; killed anywhere and called again, it goes on.

  The store ends at the same bytes however often it was interrupted and by however many processes it was made, on equal
  devices.

  Args:
    teacher: with both towers; its text tower's identity says which vocabularies the store goes with.
    dataset: the prepared split that the proposals are of.
    proposals: boxes and scores; other stores of the same boxes make the same store.
    out: folder of the store; one that was interrupted goes on.
    max_regions: of a picture; more proposals are left out, the worst first.
    dtype: of the image tower's arithmetic; embeddings are kept in float16.
    batch_size: crops that the tower takes at a time, of one picture.
    images_per_shard: pictures in a file.

  Returns:
    whole (False while other processes have shards to write), seconds, images and crops (done by this call), and of a
    whole store identity, boxes (its `boxes_identity`), regions and bytes.

  Raises:
    ValueError: proposals of another data set or without one of its pictures; a teacher without an image tower, or whose
      embeddings are not finite; `out` holds another job (of another teacher, say) or something else, or another process
      is writing there; a picture or shard is damaged.
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
      for image_id, image, found in pictures:
        try:
          rows = tower.embed(image, found.boxes).astype(np.float16)
        except ValueError as error:
          raise DataError(f'image {image_id}: {error}') from error
        yield image_id, Regions(found.boxes, found.scores, rows)

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
  """Writes a store of embeddings that were computed elsewhere; arguments, results and errors as `embed_regions`.

  Raises ValueError also for arrays that lack a picture of the data set or have one that it lacks, or that hold anything
  but finite numbers and boxes in pixels of the picture.
  """
  if len(arrays.image_ids) != len(dataset):  # if there are as many, looking up all of them finds what does not fit
    known = {dataset[i].image_id for i in range(len(dataset))}
    missing, unknown = sorted(known - arrays.image_ids), sorted(arrays.image_ids - known)
    what = f'has no image {missing[0]}' if missing else f'has an image {unknown[0]} that is not in {_name(dataset)}'
    raise DataError(
      f'{arrays.path} {what} ({len(missing)} missing, {len(unknown)} unknown); expected the '
      f'{len(dataset)} images of the data set, a picture without regions too'
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
      found = arrays.of(example)
      yield (
        example.image_id,
        Regions(found.boxes[:max_regions], found.scores[:max_regions], found.embeddings[:max_regions]),
      )

  return _write(Path(out), job, read, len(dataset) * max_regions, 0)


def _write(
  out: Path,
  job: Job,
  make: Callable[[Iterable[int]], Iterator[tuple[int, Regions]]],
  at_most: int,
  crops_per_region: int,
) -> dict[str, Any]:
  """Writes the shards that are missing of a store with `at_most` regions."""
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
      contextlib.closing(make(examples)) as found,
    ):
      meter = _Meter(bar, len(examples), crops_per_region)
      for shard in missing:
        writer.write(shard, meter.count(itertools.islice(found, len(job.examples(shard)))))
    whole = writer.finish()
  made = {'images': len(examples), 'crops': meter.crops, 'seconds': meter.seconds}
  return made | outcome(out, whole)


class _Meter:
  """How fast it goes: images and crops a second in the bar, and after the first pictures how long all will take."""

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
  """(image id, uint8 [H, W, 3], its best regions)."""
  example = dataset[index]
  found = proposals[example.image_id]
  return example.image_id, batches.decode(example), Regions(found.boxes[:max_regions], found.scores[:max_regions])


def _ahead(function: Callable[[int], Any], items: Iterable[int]) -> Iterator[Any]:
  """`function` of each item, in order, made by a thread while the caller works on those before."""
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
