"""Computes the proposals to distil, once for a whole data set, before a student is trained.

`vild-jax propose` runs the first stage of a detector on the original pictures, without augmentation, and writes the
best boxes of each into a region store (`data.regions`). The proposal network knows no classes, so proposals may cover
novel objects (docs/method.md, 1).
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
from vild_jax.data.regions import store
from vild_jax.data.regions.records import PROPOSALS, Job, Regions
from vild_jax.data.regions.writer import StoreWriter
from vild_jax.data.schema import Example
from vild_jax.runtime import files, progress
from vild_jax.structs import Proposals
from vild_jax.train import sharding, weights
from vild_jax.train.step import make_propose_step


def local_mesh(config: Config) -> Mesh:
  """Makes a mesh over the devices of this process: each process computes its own shards, independently of others."""
  settings = config.mesh
  if settings.data > 0:  # it counts the devices of all processes
    data = max(settings.data * settings.fsdp // jax.process_count(), 1)
    settings = dataclasses.replace(settings, data=data)
  # There is no optimiser state to split over `fsdp`, and that axis may span several processes.
  return sharding.make_mesh(dataclasses.replace(settings, fsdp=1), jax.local_devices())


def with_proposals(config: Config, count: int) -> Config:
  """Returns the config with a first stage that gives the best `count` proposals of a picture, whatever its limits.

  Raises ValueError for a count below 1.
  """
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
  out: str | Path,
  *,
  max_proposals: int = defaults.MAX_PROPOSALS,
  images_per_shard: int = defaults.PROPOSAL_IMAGES_PER_SHARD,
  mesh: Mesh,
) -> dict[str, Any]:
  """Writes the proposals of every picture of `dataset` into the region store `out`; completes an interrupted store.

  Boxes are in pixels of the original picture and clipped to it; the score is the objectness. Padding and boxes outside
  of the picture are dropped. A shard is always computed in the same batches, so that on equal devices the finished
  store has the same bytes; a store that was begun with another `evaluation.batch_size` is refused.

  Args:
    config: the experiment; pictures are computed in batches of `evaluation.batch_size`.
    variables: {'params', 'batch_stats'}, replicated on `mesh`.
    dataset: a prepared split.
    out: folder of the store, or its address in a bucket; an interrupted store is continued.
    max_proposals: how many proposals of a picture are kept, the best ones.
    images_per_shard: pictures in a file.
    mesh: devices of this process; see `local_mesh`.

  Returns:
    A dictionary: whole (False while other processes have shards to write), seconds, images (of this call), and for a
    whole store identity, boxes (its `boxes_identity`), regions and bytes.

  Raises:
    ValueError: the folder holds another job or something else, another process writes there, a picture is damaged, or
      the weights are not finite.
  """
  config, size, out = with_proposals(config, max_proposals), config.evaluation.batch_size, files.path(out)
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
    # Another batch size may compile to another program, with other rounding errors.
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
      contextlib.closing(_proposals(config, variables, dataset, job, missing, mesh)) as items,
    ):
      for shard, count in zip(missing, counts, strict=True):
        writer.write(shard, _counted(itertools.islice(items, count), bar))
    whole = writer.finish()
  return {'images': sum(counts), 'seconds': time.perf_counter() - start} | outcome(out, whole)


def outcome(out: Path, whole: bool) -> dict[str, Any]:
  """Returns whether a store is whole, and if so its identity, boxes, regions and bytes; prints them to stderr too."""
  if not whole:
    print(
      f'{out}: the shards of process {jax.process_index()} are written; the last of the {jax.process_count()} '
      'processes makes the store whole',
      file=sys.stderr,
    )
    return {'whole': False}
  made = store.summary(out)
  origin, size = made['teacher'], readable(made['size'])
  origin = f'teacher {origin}' if origin else f'boxes {made["boxes_identity"][:12]}'
  print(f'{out}: {made["images"]} images, {made["regions"]} regions, {size}; {origin}', file=sys.stderr)
  return {
    'whole': True,
    'identity': made['identity'],
    'boxes': made['boxes_identity'],
    'regions': made['regions'],
    'bytes': made['size'],
  }


def readable(size: float) -> str:
  """Returns a number of bytes as text, such as "1.5 GB"."""
  units = ('bytes', 'kB', 'MB', 'GB', 'TB')
  power = next((i for i in range(len(units)) if size < 999.5 * 1000**i), len(units) - 1)
  return f'{size / 1000**power:.3g} {units[power]}'


class _Chosen:
  """Presents the chosen examples of a data set, in the given order; worker processes can unpickle it."""

  def __init__(self, dataset: sources.PreparedDataset, order: np.ndarray):
    self._dataset, self._order = dataset, order

  def __len__(self) -> int:
    return len(self._order)

  def __getitem__(self, index: int) -> Example:
    return self._dataset[int(self._order[index])]


def _proposals(
  config: Config, variables: Any, dataset: sources.PreparedDataset, job: Job, shards: list[int], mesh: Mesh
) -> Iterator[tuple[int, Regions]]:
  """Yields (image id, proposals) of every picture of the shards, in order."""
  if not shards:
    return
  size = config.evaluation.batch_size
  step = make_propose_step(config, mesh)
  order, real = [], []
  for shard in shards:
    examples = np.asarray(job.examples(shard))
    # A batch never spans two shards, so that a shard has the same batches whichever other shards are missing.
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
        yield from _rows(*waiting)  # while the devices compute the next batch
      waiting = running, arrays, is_real[number]
    yield from _rows(*waiting)


def _rows(found: Proposals, arrays: batches.Arrays, is_real: np.ndarray) -> Iterator[tuple[int, Regions]]:
  found = jax.device_get(found)
  for i in np.flatnonzero(is_real):
    row = jax.tree.map(lambda x, i=i: x[i], found)
    yield int(arrays['image_id'][i]), regions_of(row, arrays['scale'][i], arrays['original_size'][i])


def regions_of(found: Proposals, scale: np.ndarray, original_size: np.ndarray) -> Regions:
  """Returns the valid proposals of one picture in its own pixels, clipped to it; boxes outside of it are dropped.

  Args:
    found: padded proposals in pixels of the network input.
    scale: factors [2] (y, x) from the original picture to the network input.
    original_size: [2], height and width of the original picture.
  """
  boxes = transforms.to_picture(np.asarray(found.boxes, np.float32), scale, original_size)
  kept = np.asarray(found.valid) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
  return Regions(boxes[kept], np.asarray(found.scores, np.float32)[kept])


def _counted(items: Iterator[tuple[int, Regions]], bar: Any) -> Iterator[tuple[int, Regions]]:
  for item in items:
    yield item
    bar.update()
