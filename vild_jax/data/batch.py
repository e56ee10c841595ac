"""Makes batches of fixed shape from a prepared data set: augmented ones for training, plain ones for evaluation.

The example in slot j of step k is a function of (seed, k, j) alone: it does not depend on the number of processes or
workers, nor on the step at which the run was resumed. Example i = k · batch_size + j of the endless stream is example
i mod n of a data set that Grain shuffles anew in every epoch, and its augmentation is drawn from a generator keyed by
(seed, i). With `data.order='per_process'` process p of P has a stream of its own, of the examples from p · n / P to
(p + 1) · n / P, so that what is in slot j of step k depends on P too. Only base categories are used for training
(docs/method.md, 1): `LabelMap` drops the others first.
`regions.targets` adds the regions to distil; `repeats` is an order in which rare categories come more often.
"""

from __future__ import annotations

import atexit
import functools
import gc
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import grain
import numpy as np
from absl import flags

from vild_jax.config import Config, Data
from vild_jax.data import class_lists, pictures, repeats, rle, transforms
from vild_jax.data.regions import targets as region_targets
from vild_jax.data.schema import Category, DataError, Example
from vild_jax.runtime import workers as worker_processes

Arrays = dict[str, Any]  # the values are NumPy arrays, or a dictionary of them (the regions to distil)


class ExampleSource(Protocol):
  """Gives random access to examples and can be pickled for the workers: `sources.PreparedDataset`, or a list."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


@dataclass(frozen=True)
class LabelMap:
  """Maps each category id that training may use to its row of the vocabulary."""

  rows: dict[int, int]

  def __call__(self, category_ids: np.ndarray) -> np.ndarray:
    """Turns ids int64 [N] into rows int32 [N], -1 for categories to drop."""
    return np.array([self.rows.get(int(c), -1) for c in category_ids], np.int32)


def label_map(
  categories: Sequence[Category], names: Sequence[str], is_base: Sequence[bool] | np.ndarray, *, novel: bool = False
) -> LabelMap:
  """Matches the categories of a data set with a vocabulary by their raw names (`class_lists.known_as`).

  Cleaned names need not be unique (the 1,203 names of LVIS are). Categories that the vocabulary does not have are
  dropped, and so are novel ones, unless `novel` is True (the supervised baseline). Raises DataError if a name is in the
  vocabulary twice, or if no category is left to train on.
  """
  row_of = {str(name): row for row, name in enumerate(names)}
  if len(row_of) < len(names):
    twice = next(n for n in row_of if list(map(str, names)).count(n) > 1)
    raise DataError(f'the vocabulary names {twice!r} twice; expected names that differ')
  known = {c.id: class_lists.known_as(c.name, row_of) for c in categories}
  matched = {category: row_of[name] for category, name in known.items() if name is not None}
  if not matched:
    sides = [repr(next(iter(side), None)) for side in ((c.name for c in categories), row_of)]
    raise DataError(
      f'no category of the data set is in the vocabulary: the data set has {sides[0]}, the vocabulary {sides[1]}; '
      'expected equal raw names'
    )
  rows = {category: row for category, row in matched.items() if novel or is_base[row]}
  if not rows:
    raise DataError(f'all {len(matched)} categories of the data set are novel in the vocabulary; expected base classes')
  return LabelMap(rows)


# --- one example ----------------------------------------------------------------------------------------------------


def train_example(
  example: Example,
  labels: LabelMap,
  data: Data,
  rng: np.random.Generator,
  regions: region_targets.RegionDraw | None = None,
  *,
  masks: bool = True,
) -> Arrays:
  """Makes one training example: scaled at random, mirrored or not, cropped and padded (docs/method.md, 3).

  Crowds, categories that `labels` drops, and objects outside the crop are left out. If more than `max_instances`
  objects are left, the first ones are used, as in the reference. An example without objects is kept: it trains as
  background.

  Returns:
    image float32 [S, S, 3], image_size float32 [2], boxes float32 [N, 4], labels int32 [N], masks uint8
    [N, 112, 112] (255 times the soft mask; zeros for an object without a segmentation), has_mask bool [N], valid bool
    [N], image_id int64; N = `data.max_instances`. Without `masks`, neither masks nor has_mask. With `regions` also
    `regions`: what `region_targets.region_targets` returns. If `data.transfer` is 'uint8', image is uint8 and not
    normalised, masks is a dictionary of the arrays of `structs.MaskBits`, and embeddings of regions are float16.
  """
  draw = transforms.draw_augmentation(rng, data.scale_range, data.flip)
  small = data.transfer == 'uint8'
  image, objects = pictures.decode_example(example, fast=small), example.objects
  rows = labels(objects.category_ids)
  boxes = objects.boxes
  if draw.flip:
    image, boxes = transforms.flip_image(image), transforms.flip_boxes(boxes, example.width)
  resized = transforms.resize_and_pad(
    image, data.image_size, scale=draw.scale, offset_draw=draw.offset_draw, normalized=not small
  )
  boxes = transforms.to_square(boxes, resized)
  kept = np.flatnonzero((rows >= 0) & ~objects.is_crowd & transforms.is_visible(boxes))[: data.max_instances]

  slots = data.max_instances
  item = {
    'image': resized.image,
    'image_size': resized.size,
    'boxes': np.zeros((slots, 4), np.float32),
    'labels': np.zeros(slots, np.int32),
    'valid': np.arange(slots) < len(kept),
    'image_id': np.int64(example.image_id),
  }
  item['boxes'][: len(kept)] = boxes[kept]
  item['labels'][: len(kept)] = rows[kept]
  if masks:
    item |= _masks(example, kept, transforms.from_square(boxes[kept], resized), draw.flip, data)
  if regions is not None:
    dtype = np.float16 if small else np.float32
    item['regions'] = region_targets.region_targets(regions, example.width, draw.flip, resized, dtype)
  return item


def stream_example(
  index: int, example: Example, *, labels: LabelMap, config: Config, regions: region_targets.RegionSource | None
) -> Arrays:
  """Makes what the endless stream of `train_batches` holds at `index` if it shows `example` there; see `train_example`.

  The augmentation and the regions that are drawn depend on `config.seed` and `index`.
  """
  rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(index,)))
  draw = None
  if regions is not None:
    draw = region_targets.draw_of(regions, config.distillation, example.image_id, config.seed, index)
  return train_example(example, labels, config.data, rng, draw, masks=config.model.masks)


def eval_example(example: Example, image_size: int) -> Arrays:
  """Makes one example for prediction: the whole picture in the square, not mirrored, and how to map it back.

  Returns:
    image float32 [S, S, 3], image_size float32 [2], scale float32 [2] (square / picture along y, x), original_size
    int32 [2], image_id int64, real bool: True.
  """
  resized = transforms.resize_and_pad(pictures.decode_example(example), image_size)
  return {
    'image': resized.image,
    'image_size': resized.size,
    'scale': resized.scale,
    'original_size': np.array([example.height, example.width], np.int32),
    'image_id': np.int64(example.image_id),
    'real': np.bool_(True),
  }


def _masks(example: Example, kept: np.ndarray, boxes: np.ndarray, flip: bool, data: Data) -> Arrays:
  """Returns the entries masks and has_mask of objects `kept`, whose visible parts are `boxes`, in pixels."""
  slots, size = data.max_instances, transforms.MASK_SIZE
  has_mask, bits = np.zeros(slots, bool), None
  if data.transfer == 'uint8':
    bits, weights = np.zeros((slots, *transforms.MASK_BITS), np.uint8), np.zeros((slots, 2, size), np.float32)
  else:
    masks = np.zeros((slots, size, size), np.uint8)
  for slot, (index, box) in enumerate(zip(kept, boxes, strict=True)):
    if segmentation := example.objects.segmentations[index]:
      mask = rle.decode_mask(segmentation, example.height, example.width)
      mask = mask[:, ::-1] if flip else mask
      if bits is not None:
        bits[slot], weights[slot] = transforms.mask_bits(mask, box)
      else:
        masks[slot] = np.round(255 * transforms.crop_mask(mask, box))
      has_mask[slot] = mask.any()  # polygons beside the picture, or too thin, cover nothing: they are no target
  return {'masks': masks if bits is None else {'bits': bits, 'weights': weights}, 'has_mask': has_mask}


def _padding_example(image_size: int) -> Arrays:
  return {
    'image': np.zeros((image_size, image_size, 3), np.float32),
    'image_size': np.ones(2, np.float32),
    'scale': np.ones(2, np.float32),
    'original_size': np.ones(2, np.int32),
    'image_id': np.int64(-1),
    'real': np.bool_(False),
  }


# --- streams --------------------------------------------------------------------------------------------------------


def train_batches(
  dataset: ExampleSource,
  labels: LabelMap,
  config: Config,
  *,
  regions: region_targets.RegionSource | None = None,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Arrays]:
  """Returns the endless stream of training batches from `start_step` on: this process's part of each batch.

  Process p of P gets slots [p · B / P, (p + 1) · B / P) of the global batch B = `config.data.batch_size`. Keys and
  shapes are those of `train_example`, with a leading batch axis; of masks as bits a batch has only the slots that some
  picture uses, rounded up (`sent_slots`). `close()` of the iterator ends the workers.

  Args:
    regions: the store whose embeddings are distilled, as `config.distillation` says; None for no regions.

  Raises:
    DataError: the data set is empty, or the batch size is not a multiple of the number of processes; while iterating,
      a picture is broken or its regions are missing.
  """
  local = _local_batch(config.data.batch_size, process_count, 'data.batch_size')
  if len(dataset) == 0:
    raise DataError('the training data set holds no pictures; expected one or more')
  per_process = config.data.order == 'per_process'
  source, shown = grain.MapDataset.source(dataset), slice(None)
  if per_process:
    if len(dataset) < process_count:
      raise DataError(
        f'the training data set holds {len(dataset)} pictures for {process_count} processes; expected one or more for '
        "each with data.order='per_process'"
      )
    shown = slice(*(len(dataset) * p // process_count for p in (process_index, process_index + 1)))
    source = source[shown]
  if config.data.repeat_threshold > 0:
    factors = repeats.image_factors(dataset, labels.rows, config.data.repeat_threshold)[shown]
    examples = grain.MapDataset.source(repeats.Repeated(source, factors, config.seed))
  else:
    order_seed = int(np.random.SeedSequence(config.seed).generate_state(1)[0])
    examples = source.shuffle(seed=order_seed).repeat(None)
  item = functools.partial(stream_example, labels=labels, config=config, regions=regions)
  if per_process:
    item = functools.partial(_own_example, item=item, local=local, process=(process_index, process_count))
  # Without `drop_remainder` Grain rounds the length of an endless stream up as a float, beyond what an index may be.
  batches = examples.map_with_index(item).batch(local, drop_remainder=True, batch_fn=_stacked)
  first, stride = (start_step, 1) if per_process else (start_step * process_count + process_index, process_count)
  batches = batches[first::stride]
  return _stream(batches, config.data.workers, local * _train_bytes(config, regions is not None))


def eval_batches(
  dataset: ExampleSource, config: Config, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Arrays]:
  """Returns batches of all examples, once and in order, as `eval_example` makes them, with a leading batch axis.

  `batch_size` is global and shared among processes as in `train_batches`. The last batch is filled up with examples
  whose `real` is False (zero picture, image_id −1), so that every process takes the same number of batches.
  """
  local = _local_batch(batch_size, process_count, 'evaluation.batch_size')
  count = -(-len(dataset) // batch_size)
  item = functools.partial(_eval_item, dataset=dataset, image_size=config.data.image_size)
  batches = grain.MapDataset.range(count * batch_size).map(item).batch(local)[process_index::process_count]
  return _stream(batches, min(config.data.workers, count), local * 3 * 4 * config.data.image_size**2)


def _eval_item(index: int, *, dataset: ExampleSource, image_size: int) -> Arrays:
  return eval_example(dataset[index], image_size) if index < len(dataset) else _padding_example(image_size)


def _own_example(
  index: int, example: Example, *, item: Callable[[int, Example], Arrays], local: int, process: tuple[int, int]
) -> Arrays:
  """Makes example `index` of the stream of one process, whose place among all processes' examples decides its draws."""
  step, slot = divmod(index, local)
  return item((step * process[1] + process[0]) * local + slot, example)


def _local_batch(batch_size: int, process_count: int, key: str) -> int:
  if batch_size % process_count:
    raise DataError(f'{key}={batch_size} cannot be shared by {process_count} processes; expected a multiple of it')
  return batch_size // process_count


def _train_bytes(config: Config, regions: bool) -> int:
  """Returns the bytes of the large arrays of a training example."""
  small, side = config.data.transfer == 'uint8', transforms.MASK_SIZE
  mask = math.prod(transforms.MASK_BITS) + 4 * 2 * side if small else side**2
  number = config.distillation.regions_per_image if regions else 0
  return (
    3 * (1 if small else 4) * config.data.image_size**2
    + config.model.masks * config.data.max_instances * mask
    + number * (2 if small else 4) * config.model.embedding_dim
  )


def sent_slots(used: int, slots: int) -> int:
  """Returns how many of the `slots` for masks are sent if the first `used` hold one: a power of two from 16 on.

  Each number is a small program of its own on the devices (`train.sharding.put_batch`).
  """
  return min(slots, max(16, 1 << (used - 1).bit_length()))


def _stacked(items: Sequence[Arrays]) -> Arrays:
  if isinstance(items[0].get('masks'), dict):
    sent = sent_slots(max(int(item['valid'].sum()) for item in items), len(items[0]['valid']))
    items = [item | {'masks': {key: value[:sent] for key, value in item['masks'].items()}} for item in items]
  together = lambda key: [item[key] for item in items]
  return {
    key: _stacked(together(key)) if isinstance(value, dict) else np.stack(together(key))
    for key, value in items[0].items()
  }


def _stream(batches: grain.MapDataset, workers: int, batch_bytes: int) -> Iterator[Arrays]:
  """Computes batches ahead of their use: in worker processes, or in two threads if `workers` is 0."""
  if workers == 0:
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
  else:
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain passes absl's flags on to its workers, which fails unless they are parsed
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    if not _shared_memory_holds(workers, 3 * workers * batch_bytes):  # a worker makes one, one waits, one is in use
      options = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
      stream = grain.experimental.WithOptionsIterDataset(stream, options)
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
    stream = stream.mp_prefetch(options, worker_init_fn=_prepare_worker)
  produced = _produce(stream, copy=workers > 0)
  # A stream that is still open when the interpreter shuts down makes Grain print many errors about its workers and
  # shared memory.
  atexit.register(_close, weakref.ref(produced))
  return produced


def _produce(stream: grain.IterDataset, copy: bool) -> Iterator[Arrays]:
  iterator, batch = iter(stream), None
  try:
    for batch in iterator:
      # Arrays from workers lie in shared memory that is freed with the stream: the caller gets copies.
      yield _own(batch) if copy else batch
  finally:
    iterator.close()
    batch = iterator = None
    # Grain frees shared memory in a separate thread. What is not freed when the program ends is reported as leaked; so
    # is what the traceback of an exhausted stream keeps alive in a reference cycle.
    gc.collect()
    deletions = getattr(grain.multiprocessing.SharedMemoryArray, '_del_thread_pool', None)
    if deletions is not None:
      deletions.apply(int)  # the thread works in order: once this is done, so are all jobs before it


def _own(arrays: Arrays) -> Arrays:
  return {key: _own(value) if isinstance(value, dict) else np.array(value) for key, value in arrays.items()}


def _close(reference: weakref.ref) -> None:
  stream = reference()
  if stream is not None:
    stream.close()


def _prepare_worker(index: int, count: int) -> None:
  """Prepares a worker of Grain."""
  del index, count
  worker_processes.prepare()
  cv2.setNumThreads(1)  # workers share the cores already


def _shared_memory_holds(workers: int, needed: int) -> bool:
  """Tells whether /dev/shm has room for the `needed` bytes of the workers; stderr reports if it has not.

  Containers often have 64 MB there, and writing more kills a worker by SIGBUS. Pipes are slower, but work then.
  """
  try:
    status = os.statvfs('/dev/shm')
  except OSError:
    return True  # this system keeps shared memory elsewhere
  free = status.f_bavail * status.f_frsize
  if free < needed:
    print(
      f'/dev/shm has {free / 2**20:,.0f} MiB, and batches of {workers} workers take up to {needed / 2**20:,.0f} MiB: '
      'they go through pipes, which takes several times the processor time; a larger one helps (docker run --shm-size, '
      'docs/scale.md), or fewer data.workers',
      file=sys.stderr,
    )
  return free >= needed
