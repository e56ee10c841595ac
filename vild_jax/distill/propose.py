"""What is computed once for a whole data set, before a student learns from it: the proposals to distil.

`vild-jax propose` runs the first stage of a detector over the pictures as they are, neither mirrored nor jittered, and
keeps the best boxes of each in a region store (`data.regions`). The proposal network knows no classes, so that they may
cover novel objects (METHOD.md, section 1).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vild_jax.config import Config, defaults
from vild_jax.data import batch as batches
from vild_jax.data import sources, transforms
from vild_jax.data.regions.records import PROPOSALS, Job, Regions
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.regions.writer import StoreWriter
from vild_jax.data.schema import Example
from vild_jax.runtime import progress
from vild_jax.structs import Proposals
from vild_jax.train import sharding, weights
from vild_jax.train.step import make_propose_step


def local_mesh(config: Config) -> Mesh:
  """A mesh over this process's own devices: each process works through its shards alone, at its own pace."""
  settings = config.mesh
  if settings.data > 0:  # which counts the devices of all processes
    data = max(settings.data * settings.fsdp // jax.process_count(), 1)
    settings = dataclasses.replace(settings, data=data)
  # No optimiser, nothing to split over `fsdp`, which may span processes.
  return sharding.make_mesh(dataclasses.replace(settings, fsdp=1), jax.local_devices())


def with_proposals(config: Config, count: int) -> Config:
  """The config whose first stage gives the best `count` proposals of a picture, whatever its own limits."""
  if count < 1:
    raise ValueError(f'--max-proposals is {count}; expected at least 1')
  rpn = config.model.rpn
  rpn = dataclasses.replace(
    rpn,
    max_proposals=count,
    max_per_level=max(rpn.max_per_level, count),
    test_pre_nms_top_k=max(rpn.test_pre_nms_top_k, count),
  )
  return dataclasses.replace(config, model=dataclasses.replace(config.model, rpn=rpn))


def propose(
  config: Config,
  variables: Any,
  dataset: sources.PreparedDataset,
  out: Path,
  *,
  max_proposals: int = defaults.MAX_PROPOSALS,
  images_per_shard: int = defaults.PROPOSAL_IMAGES_PER_SHARD,
  mesh: Mesh,
) -> dict[str, Any]:
  """Writes the proposals of every picture of `dataset` to the region store `out`, or what is missing of them.

  Boxes are in pixels of the original picture, clipped to it, with objectness as score; slots that the network left
  unused are dropped, and boxes of which nothing lies in the picture. The same batches are made of a shard whenever it
  is made, so that the store ends at the same bytes (on equal devices; one that was begun with another
  `evaluation.batch_size` is refused).

  Args:
    config: the experiment; `evaluation.batch_size` pictures are computed at once.
    variables: {'params', 'batch_stats'}, replicated on `mesh`.
    dataset: a prepared split.
    out: folder of the store; one that was interrupted goes on.
    max_proposals: of a picture.
    images_per_shard: pictures in a file.
    mesh: devices of this process, see `local_mesh`.

  Returns:
    whole (False while other processes have shards to write), seconds, images (done by this call), and of a whole store
    identity, boxes (its `boxes_identity`), regions and bytes.

  Raises:
    ValueError: the folder holds another job or something else, another process is writing there, a picture is broken,
      or the weights are not finite.
  """
  config, size = with_proposals(config, max_proposals), config.evaluation.batch_size
  sharding.check_batch_size(mesh, size, 'evaluation.batch_size')
  model = config.model
  parts = {key: dataclasses.asdict(getattr(model, key)) for key in ('backbone', 'pyramid', 'anchors', 'rpn')}
  job = Job(
    PROPOSALS,
    dataset=dataset.identity,
    split=dataset.split,
    images=len(dataset),
    max_regions=max_proposals,
    images_per_shard=images_per_shard,
    # Batches of another size may be other programs, and other last bits.
    origin={
      'checkpoint': weights.identity(variables),
      'image_size': config.data.image_size,
      'batch_size': size,
      'dtype': model.dtype,
      **parts,
    },
  )
  with StoreWriter(out, job, process_index=jax.process_index(), process_count=jax.process_count()) as writer:
    missing, start = writer.missing(), time.perf_counter()
    counts = [len(job.examples(shard)) for shard in missing]
    print(
      f'{out}: {len(dataset)} images in {job.shards} shards, at most {max_proposals} proposals each and '
      f'{readable(job.max_bytes)} in all; {len(missing)} shards to write',
      file=sys.stderr,
    )
    with (
      progress.bar(sum(counts), 'propose', unit='image') as bar,
      contextlib.closing(_proposals(config, variables, dataset, job, missing, mesh)) as found,
    ):
      for shard, count in zip(missing, counts, strict=True):
        writer.write(shard, _counted(itertools.islice(found, count), bar))
    whole = writer.finish()
  return {'images': sum(counts), 'seconds': time.perf_counter() - start} | outcome(out, whole)


def outcome(out: Path, whole: bool) -> dict[str, Any]:
  """What a store came to: whole, and if it is identity, boxes, regions and bytes; stderr says so too."""
  if not whole:
    print(
      f'{out}: the shards of process {jax.process_index()} are written; the last of the {jax.process_count()} '
      'processes makes the store whole',
      file=sys.stderr,
    )
    return {'whole': False}
  store = RegionStore(out)
  of = f'teacher {store.teacher}' if store.teacher else f'boxes {store.boxes_identity[:12]}'
  print(f'{out}: {store.images} images, {store.regions} regions, {readable(store.size)}; {of}', file=sys.stderr)
  return {
    'whole': True,
    'identity': store.identity,
    'boxes': store.boxes_identity,
    'regions': store.regions,
    'bytes': store.size,
  }


def readable(size: float) -> str:
  """A number of bytes for people."""
  units = ('bytes', 'kB', 'MB', 'GB', 'TB')
  power = next((i for i in range(len(units)) if size < 999.5 * 1000**i), len(units) - 1)
  return f'{size / 1000**power:.3g} {units[power]}'


class _Chosen:
  """Some examples of a data set, in this order; picklable for the workers."""

  def __init__(self, dataset: sources.PreparedDataset, order: np.ndarray):
    self._dataset, self._order = dataset, order

  def __len__(self) -> int:
    return len(self._order)

  def __getitem__(self, index: int) -> Example:
    return self._dataset[int(self._order[index])]


def _proposals(
  config: Config, variables: Any, dataset: sources.PreparedDataset, job: Job, shards: list[int], mesh: Mesh
) -> Iterator[tuple[int, Regions]]:
  """(image id, proposals) of every picture of the shards, in order."""
  if not shards:
    return
  size = config.evaluation.batch_size
  step = make_propose_step(config, mesh)
  order, real = [], []
  for shard in shards:
    examples = np.asarray(job.examples(shard))
    # A batch never spans two shards: which ones are missing must not decide what is computed together.
    filled = np.pad(examples, (0, -len(examples) % size), mode='edge')
    order.append(filled)
    real.append(np.arange(len(filled)) < len(examples))
  is_real = np.concatenate(real).reshape(-1, size)
  stream = batches.eval_batches(_Chosen(dataset, np.concatenate(order)), config, batch_size=size)
  with contextlib.closing(stream):
    waiting = None
    for number, arrays in enumerate(stream):
      running = step(variables, sharding.put_batch(mesh, {'image': arrays['image']})['image'])
      if waiting is not None:
        yield from _rows(*waiting)  # while the devices go on
      waiting = running, arrays, is_real[number]
    yield from _rows(*waiting)


def _rows(found: Proposals, arrays: batches.Arrays, is_real: np.ndarray) -> Iterator[tuple[int, Regions]]:
  found = jax.device_get(found)
  for i in np.flatnonzero(is_real):
    row = jax.tree.map(lambda x, i=i: x[i], found)
    yield int(arrays['image_id'][i]), regions_of(row, arrays['scale'][i], arrays['original_size'][i])


def regions_of(found: Proposals, scale: np.ndarray, original_size: np.ndarray) -> Regions:
  """Padded proposals of one picture, in the network's pixels -> those that lie in the picture, in its own pixels."""
  boxes = transforms.to_picture(np.asarray(found.boxes, np.float32), scale, original_size)
  kept = np.asarray(found.valid) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
  return Regions(boxes[kept], np.asarray(found.scores, np.float32)[kept])


def _counted(items: Iterator[tuple[int, Regions]], bar: Any) -> Iterator[tuple[int, Regions]]:
  for item in items:
    yield item
    bar.update()
