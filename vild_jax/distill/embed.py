"""Computes the teacher's embedding of every proposal of a data set, once; a student learns to predict it.

`vild-jax embed-regions` crops the proposals of each picture (`data.regions`) at 1x and 1.5x, embeds the crops
(`teacher.crops`) and writes boxes and embeddings into another store. It can also take both from arrays that exist
already (`data.regions.imported`).
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vild_jax.config import defaults
from vild_jax.data import pictures as pictures_lib
from vild_jax.data import sources
from vild_jax.data.regions import records
from vild_jax.data.regions.imported import ImportedRegions
from vild_jax.data.regions.records import EMBEDDINGS, Job, Regions
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.regions.writer import StoreWriter
from vild_jax.data.schema import DataError
from vild_jax.distill.propose import outcome, readable
from vild_jax.runtime import files, progress
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import crops

_DECODERS = min(os.cpu_count() or 1, 8)  # threads; decoding a picture does not hold Python's lock
_AHEAD = _DECODERS + 2  # pictures that are decoded ahead
_FIRST = 4  # pictures, and rounds of the devices, after which the remaining time is estimated


def embed_regions(
  teacher: teacher_checkpoint.Teacher,
  dataset: sources.PreparedDataset,
  proposals: RegionStore,
  out: str | Path,
  *,
  max_regions: int = defaults.MAX_REGIONS,
  dtype: str | None = None,
  batch_size: int = defaults.CROP_BATCH,
  images_per_shard: int = defaults.REGION_IMAGES_PER_SHARD,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Writes the embeddings of the best proposals of each picture; another call continues an interrupted store.

  The crops of a shard share batches, which another shard does not join. On equal devices the finished store has the
  same bytes, whatever the number of interruptions, processes and devices. Another batch size may change the last bit of
  a number, and is another job, as is another number of images in a shard.

  Args:
    teacher: a teacher with both towers; vocabularies of its text tower fit the store.
    dataset: the prepared split of the proposals.
    proposals: boxes and scores; any store with the same boxes gives the same result.
    out: folder of the store, or its address in a bucket; an interrupted store is continued.
    max_regions: how many proposals of a picture are kept, the best ones.
    dtype: arithmetic of the image tower, by default bfloat16 on accelerators and float32 on a CPU; embeddings are
      stored in float16.
    batch_size: crops that each device embeds at a time.
    images_per_shard: pictures in a file.
    devices: of this process; see `crops.CropTower`.

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
  dtype = dtype or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16')
  tower = crops.CropTower(teacher, jnp.dtype(dtype), batch_size=batch_size, devices=devices)
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

  def read(index: int) -> tuple[tuple[int, Regions], crops.Crops]:
    example = dataset[index]
    regions = proposals[example.image_id]
    kept = Regions(regions.boxes[:max_regions], regions.scores[:max_regions])
    image = pictures_lib.decode_example(example)
    try:
      return (example.image_id, kept), tower.plan(image, kept.boxes)
    except ValueError as error:
      raise DataError(f'image {example.image_id}: {error}') from error

  def embedded(shards: list[range]) -> Iterator[tuple[int, Regions]]:
    with contextlib.closing(_ahead(read, itertools.chain(*shards))) as pictures:
      groups = (itertools.islice(pictures, len(shard)) for shard in shards)
      for (image_id, kept), rows in tower.embed_many(groups):
        yield image_id, Regions(kept.boxes, kept.scores, rows.astype(np.float16))

  at_most = min(proposals.regions, len(dataset) * max_regions)
  return _write(files.path(out), job, embedded, at_most, len(crops.SCALES), tower.round_size)


def import_regions(
  arrays: ImportedRegions,
  dataset: sources.PreparedDataset,
  out: str | Path,
  *,
  max_regions: int = defaults.MAX_REGIONS,
  images_per_shard: int = defaults.REGION_IMAGES_PER_SHARD,
) -> dict[str, Any]:
  """Writes a store of embeddings that were computed elsewhere; arguments, results and errors as in `embed_regions`.

  The files are read one after another, each once. Until its shard is written, what was read of a picture waits on the
  disk beside `out` (of a store in a bucket among the temporary files of this machine), where there must be room for the
  store once more. Also raises ValueError for arrays that lack a
  picture of the data set, have a picture that it lacks, or hold boxes outside of their picture or numbers that are not
  finite.
  """
  sizes = {example.image_id: (example.height, example.width) for example in dataset.labels()}
  if sizes.keys() != arrays.image_ids:
    missing, unknown = sorted(sizes.keys() - arrays.image_ids), sorted(arrays.image_ids - sizes.keys())
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

  def read(shards: list[range]) -> Iterator[tuple[int, Regions]]:
    ids, places = list(sizes), {}
    wanted = [ids[i] for i in itertools.chain(*shards)]
    with files.work_folder(out) as folder, (folder / 'regions').open('w+b') as waiting:
      for image_id, found in arrays.read({image_id: sizes[image_id] for image_id in wanted}):
        kept = Regions(found.boxes[:max_regions], found.scores[:max_regions], found.embeddings[:max_regions])
        places[image_id] = waiting.tell(), waiting.write(records.encode(image_id, kept))
      for image_id in wanted:
        start, size = places[image_id]
        waiting.seek(start)
        yield records.decode(waiting.read(size), f'{waiting.name}: image {image_id}')

  return _write(files.path(out), job, read, len(dataset) * max_regions)


def _write(
  out: Path,
  job: Job,
  make: Callable[[list[range]], Iterator[tuple[int, Regions]]],
  at_most: int,
  crops_per_region: int = 0,
  round_size: int = 0,
) -> dict[str, Any]:
  """Writes the missing shards of a store that will have `at_most` regions; `make` yields those of shards' examples."""
  with StoreWriter(out, job, process_index=jax.process_index(), process_count=jax.process_count()) as writer:
    missing = writer.missing()
    shards = [job.examples(shard) for shard in missing]
    total = sum(map(len, shards))
    share = total / job.images
    size = at_most * (20 + 2 * job.embedding_dim) + 20 * job.images
    print(
      f'{out}: {job.images} images, at most {at_most} regions of dimension {job.embedding_dim} and '
      f'{readable(size)} in {job.shards} shards; to do: {len(missing)} shards, {total} images'
      + (f', at most {round(share * at_most * crops_per_region)} crops' if crops_per_region else ''),
      file=sys.stderr,
    )
    with (
      progress.bar(total, 'embed' if crops_per_region else 'import', unit='image') as bar,
      contextlib.closing(make(shards)) as items,
    ):
      meter = _Meter(bar, total, crops_per_region, round_size)
      for shard, examples in zip(missing, shards, strict=True):
        writer.write(shard, meter.count(itertools.islice(items, len(examples))))
    whole = writer.finish()
  made = {'images': total, 'crops': meter.crops, 'seconds': meter.seconds}
  return made | outcome(out, whole)


class _Meter:
  """Counts images and crops, shows crops per second in the bar, and estimates the remaining time once."""

  def __init__(self, bar: Any, total: int, crops_per_region: int, round_size: int):
    self._bar, self._total, self._per_region, self._round = bar, total, crops_per_region, round_size
    self._start, self._first, self.images, self.crops = time.perf_counter(), None, 0, 0
    self._said = False

  @property
  def seconds(self) -> float:
    return time.perf_counter() - self._start

  def count(self, items: Iterator[tuple[int, Regions]]) -> Iterator[tuple[int, Regions]]:
    for item in items:
      yield item
      self.images += 1
      self.crops += self._per_region * len(item[1].boxes)
      if self._per_region:
        self._bar.set_postfix_str(f'{self.crops / self.seconds:.0f} crops/s', refresh=False)
        self._estimate()
      self._bar.update()

  def _estimate(self) -> None:
    """Says the remaining time, once; the first round of the devices, with the compilation, is left out."""
    left = self._total - self.images
    if self._first is None:
      if self.crops >= self._round:
        self._first = self.seconds, self.images
    elif not self._said and left and self.images >= _FIRST and self.crops >= _FIRST * self._round:
      seconds, images = self._first
      left_seconds = (self.seconds - seconds) / (self.images - images) * left
      self._bar.write(f'about {_duration(left_seconds)} for the {left} images to come', file=sys.stderr)
      self._said = True


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes:02d} min' if hours else f'{minutes} min {seconds:02d} s'


def _ahead(function: Callable[[int], Any], items: Iterable[int]) -> Iterator[Any]:
  """Yields `function(item)` for each item, in order; threads compute a few results ahead of the caller."""
  with ThreadPoolExecutor(_DECODERS, 'decode') as pool:
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
