"""Embeds boxes of a picture: the teacher's embeddings of their 1x and 1.5x crops, added (docs/method.md, 1)."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vild_jax.config import defaults
from vild_jax.nn import clip
from vild_jax.runtime import compiler
from vild_jax.teacher import checkpoint, resample
from vild_jax.teacher import image as image_lib

T = TypeVar('T')
SCALES = (1.0, 1.5)
_PIECE = 25  # crops that an accelerator cuts from a picture at a time, since each number is a compilation
_RUNNING = 2  # rounds of batches that the devices have: one that they work on, and the next
_SIDES = (640, 1024, 2048, 4096)  # pictures on an accelerator are padded to such a square, or a multiple of the last
_WINDOW = (
  'top, left = floor(y1 - (k-1)/2 * height), floor(x1 - (k-1)/2 * width); bottom, right = ceil(y2 + ...), '
  'ceil(x2 + ...); clipped to the picture; at least 1 px'
)


def crop_bounds(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
  """Returns the windows to cut out, int32 [len(SCALES), N, 4]: (top, left, bottom, right) in whole pixels.

  A box of sides h, w that is scaled by k about its centre begins at y1 - (k-1)/2 · h, and so on. Top and left are
  rounded down, bottom and right up, and all are clipped to the picture. A window without size (of an empty box, or of
  one outside the picture) becomes the nearest pixel.

  Args:
    boxes: [N, 4] yxyx, pixels of the picture.
    height, width: of the picture, in pixels.

  Raises:
    ValueError: a box is not finite or ends before it starts.
  """
  boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
  near, far = boxes[:, :2], boxes[:, 2:]
  wrong = ~np.isfinite(boxes).all(axis=1) | (far < near).any(axis=1)
  if wrong.any():
    raise ValueError(
      f'box {np.flatnonzero(wrong)[0]} is {boxes[wrong][0].tolist()}; expected y1 <= y2 and x1 <= x2, finite'
    )
  size = np.array([height, width], np.float64)
  found = []
  for scale in SCALES:
    border = (scale - 1) / 2 * (far - near)
    start = np.clip(np.floor(near - border), 0, size - 1)
    found.append(np.concatenate([start, np.clip(np.ceil(far + border), start + 1, size)], axis=1))
  return np.stack(found).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class Crops:
  """Holds a picture and what to cut out of it; `CropTower.plan` makes it.

  Attributes:
    picture: uint8 [H, W, 3].
    bounds: int32 [2 N, 4], (top, left, bottom, right): all 1x, then all 1.5x.
    windows: the same after the teacher's preprocessing; None if `resample` does not have its resize.
  """

  picture: np.ndarray
  bounds: np.ndarray
  windows: resample.Windows | None
  _uploaded: dict[Any, jax.Array] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def planes(self) -> np.ndarray:
    """Returns the picture as float32 [3, H, W]."""
    return np.ascontiguousarray(self.picture.transpose(2, 0, 1), np.float32)

  def on(self, device: jax.Device) -> jax.Array:
    """Returns the padded picture on a device, to which it is uploaded once."""
    if device not in self._uploaded:
      self._uploaded[device] = jax.device_put(_padded(self.picture), device)
    return self._uploaded[device]


def schedule(groups: Iterable[Iterable[tuple[T, int]]], size: int) -> Iterator[list[tuple[T, range]]]:
  """Yields batches of at most `size` crops: which crops of which pictures.

  A batch takes the crops of as many pictures as it needs, in order. Only the last batch of a group is not full: no
  batch spans two groups, so that a group has the same batches wherever it is computed.

  Args:
    groups: pictures of each group, as (picture, its number of crops).
    size: crops of a batch.
  """
  for group in groups:
    batch, free = [], size
    for picture, count in group:
      start = 0
      while start < count:
        part = range(start, min(start + free, count))
        batch.append((picture, part))
        start, free = part.stop, free - len(part)
        if not free:
          yield batch
          batch, free = [], size
    if batch:
      yield batch


@dataclasses.dataclass(eq=False)
class _Picture:
  """A picture on its way: its key, its crops if any, the rows that are there, and the number of those still to come."""

  key: Any
  crops: Crops | None
  rows: np.ndarray
  left: int


class CropTower:
  """Embeds regions of pictures with an image tower.

  The steps for each box: (1) the windows of the box scaled by 1 and by 1.5 about its centre (`crop_bounds`) are cut out
  of the ORIGINAL picture, uint8 RGB; (2) each window is preprocessed alone, without the pixels around it, as the
  teacher asks for (`image.Preprocessing`: PIL's resize of the short side and the central crop, or PIL's resize to the
  square; factor, mean, deviation); (3) the image tower embeds both; (4) e = n(n(1x) + n(1.5x)), where n divides by the
  length.

  Crops and resizes equal those of PIL to one level of 255 (`resample` says in which order of axes). An accelerator
  makes them from the picture, uploaded to it once; on a CPU a few threads make them. PIL itself does the resizes
  that `resample` does not have.

  Attributes:
    identity: of the image tower and its preprocessing.
    embedding_dim: D.
    round_size: crops that all devices together embed at a time.
    recipe: what decides the embeddings besides the teacher, in JSON values, for a store's manifest.
  """

  def __init__(
    self,
    teacher: checkpoint.Teacher,
    dtype: Any = jnp.float32,
    *,
    batch_size: int = defaults.CROP_BATCH,
    on_device: bool | None = None,
    threads: int | None = None,
    devices: Sequence[jax.Device] | None = None,
  ):
    """Puts the image tower on the devices, each of which embeds a batch at a time.

    Args:
      teacher: with an image tower; ValueError otherwise.
      dtype: of the arithmetic of the tower and of resizes on the device. bfloat16 is faster on accelerators.
      batch_size: crops per batch. An embedding does not depend on it beyond rounding.
      on_device: whether to crop and resize on the device, not on the host; by default True unless it is a CPU.
      threads: number of threads for crops on the host; by default one per core, at most 16.
      devices: of this process; by default all of its accelerators, or one CPU, whose devices would share its cores.
    """
    tower = image_lib.ImageTower(teacher, dtype)
    self.identity, self.embedding_dim = tower.identity, tower.embedding_dim
    self._side, self._batch_size, self._preprocess = tower.image_size, batch_size, tower.preprocess
    self._piece = min(_PIECE, batch_size)
    accelerated = jax.default_backend() != 'cpu'
    self._known = resample.is_known(self._preprocess)
    self._on_device = self._known and (accelerated if on_device is None else on_device)
    self.recipe = {
      'scales': list(SCALES),
      'window': _WINDOW,
      'preprocessing': dict(teacher.preprocessor),
      'sum': 'n(n(V(1x)) + n(V(1.5x)))',
      'dtype': jnp.dtype(dtype).name,
      'batch_size': batch_size,
      'batches': 'of several pictures',  # a store that was begun with batches of one is another job
    }
    self._threads = threads or min(os.cpu_count() or 1, 16)
    self._pool = ThreadPoolExecutor(self._threads, 'crops')
    self._devices = tuple(devices or jax.local_devices()[: None if accelerated else 1])
    self.round_size = batch_size * len(self._devices)
    mesh = Mesh(np.array(self._devices), ('crops',))
    self._sharding = NamedSharding(mesh, PartitionSpec('crops'))
    self._params = jax.device_put(tower.params, NamedSharding(mesh, PartitionSpec()))
    self._rows, self._cut = _programs(teacher.config, jnp.dtype(dtype), self._preprocess, batch_size, mesh)

  def plan(self, image: np.ndarray, boxes: np.ndarray) -> Crops:
    """Returns the crops of boxes [N, 4] yxyx in pixels of one picture, uint8 [H, W, 3]; the boxes may reach beyond it.

    Raises ValueError if the picture is of another kind, or as `crop_bounds` does.
    """
    _check(image)
    bounds = crop_bounds(boxes, *image.shape[:2]).reshape(-1, 4)
    return Crops(image, bounds, resample.windows(self._preprocess, bounds, self._side) if self._known else None)

  def embed(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns float32 [N, D], unit rows, of boxes of one picture; arguments and errors are those of `plan`."""
    ((_, rows),) = self.embed_many([[(None, self.plan(image, boxes))]])
    return rows

  def embed_many(self, groups: Iterable[Iterable[tuple[T, Crops]]]) -> Iterator[tuple[T, np.ndarray]]:
    """Yields (key, float32 [N, D], unit rows) for each (key, crops) of pictures, in order.

    Batches and groups are those of `schedule`. Pictures are taken ahead of those that are yielded, from the next group
    too, so that no device waits for the end of a picture or group. The rows of a group are the same to the bit for any
    number of equal devices, and whatever the other groups are. If the pictures end in an error, it is raised after
    those before it are yielded.
    """
    waiting: collections.deque[_Picture] = collections.deque()
    failed: list[BaseException] = []

    def entered(group: Iterable[tuple[T, Crops]]) -> Iterator[tuple[_Picture, int]]:
      try:
        for key, crops in group:
          count = len(crops.bounds)
          rows = np.empty((count, self.embedding_dim), np.float32)
          waiting.append(_Picture(key, crops if count else None, rows, count))  # many may wait that need no crop
          yield waiting[-1], count
      except (Exception, KeyboardInterrupt) as error:
        failed.append(error)

    def complete() -> Iterator[tuple[T, np.ndarray]]:
      while waiting and not waiting[0].left:
        picture = waiting.popleft()
        yield picture.key, _add(picture.rows)

    whole = itertools.takewhile(lambda _: not failed, groups)
    batches = schedule(map(entered, whole), self._batch_size)
    running: collections.deque[tuple[list, jax.Array]] = collections.deque()
    while now := list(itertools.islice(batches, len(self._devices))):
      running.append((now, self._start(now)))
      if len(running) == _RUNNING:
        self._take(*running.popleft())
      yield from complete()
    while running:
      self._take(*running.popleft())
    yield from complete()
    if failed:
      raise failed[0]

  def pixels(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the crops of `embed`, uint8 [2 N, S, S, 3]: all 1x, then all 1.5x; only for resizes of `resample`."""
    crops = self.plan(image, boxes)
    count = len(crops.bounds)
    if self._on_device:
      buffer = jnp.zeros((count + self._piece, self._side, self._side, 3), jnp.uint8, device=self._devices[0])
      return np.asarray(self._cut_into(buffer, 0, crops, range(count)))[:count]
    squares = np.zeros((count, self._side, self._side, 3), np.uint8)
    self._fill(squares, crops, range(count))
    return squares

  def _start(self, batches: list[list[tuple[_Picture, range]]]) -> jax.Array:
    """Gives each device a batch, the last ones an empty one if there are too few; returns the rows of all slots."""
    if self._on_device:
      empty = (self._batch_size + self._piece, self._side, self._side, 3)
      parts = []
      for batch, device in itertools.zip_longest(batches, self._devices, fillvalue=()):
        buffer, slot = jnp.zeros(empty, jnp.uint8, device=device), 0
        for picture, part in batch:
          buffer = self._cut_into(buffer, slot, picture.crops, part)
          slot += len(part)
        parts.append(buffer)
      shape = (len(parts) * empty[0], *empty[1:])
      return self._rows(self._params, jax.make_array_from_single_device_arrays(shape, self._sharding, parts))
    # A new array each time, since the device may read it without a copy.
    squares = np.zeros((self.round_size, self._side, self._side, 3), np.uint8 if self._known else np.float32)
    for first, batch in zip(itertools.count(0, self._batch_size), batches):
      for picture, part in batch:
        self._fill(squares[first : first + len(part)], picture.crops, part)
        first += len(part)
    return self._rows(self._params, jax.device_put(squares, self._sharding))

  def _take(self, batches: list[list[tuple[_Picture, range]]], rows: jax.Array) -> None:
    """Waits for the rows of all slots, and gives the pictures theirs."""
    for batch, found in zip(batches, np.split(np.asarray(rows), len(self._devices)), strict=False):
      slot = 0
      for picture, part in batch:
        picture.rows[part.start : part.stop] = found[slot : slot + len(part)]
        picture.left -= len(part)
        slot += len(part)

  def _fill(self, squares: np.ndarray, crops: Crops, part: range) -> None:
    """Writes a part of the crops into `squares`: bytes, or pixels of the tower if PIL resizes."""
    planes = crops.planes if self._known else None

    def fill(numbers: range, out: np.ndarray) -> None:
      if planes is not None:
        resample.on_host(planes, crops.windows, numbers, self._preprocess.resample, out)
        return
      for i, target in zip(numbers, out, strict=True):
        top, left, bottom, right = crops.bounds[i]
        target[:] = self._preprocess(crops.picture[top:bottom, left:right])

    step = max(-(-len(part) // self._threads), 1)
    starts = range(0, len(part), step)
    for _ in self._pool.map(lambda start: fill(part[start : start + step], squares[start : start + step]), starts):
      pass

  def _cut_into(self, buffer: jax.Array, slot: int, crops: Crops, part: range) -> jax.Array:
    """Writes a part of the crops into a buffer on a device, from `slot` on; the slots after them hold anything."""
    w = crops.windows
    for start in range(part.start, part.stop, self._piece):
      index = np.minimum(np.arange(start, start + self._piece), part.stop - 1)  # repeats the last
      chosen = np.stack([v[index] for v in (w.start, w.length, w.resized, w.first)])  # one array: one transfer
      buffer = self._cut(buffer, slot + start - part.start, crops.on(buffer.device), chosen)
    return buffer


@functools.cache  # shared by towers that differ in their weights only, and by a tower that is made again
def _programs(
  config: clip.ClipConfig, dtype: Any, preprocess: image_lib.Preprocessing, batch_size: int, mesh: Mesh
) -> tuple[Callable, Callable]:
  """Returns two programs: (parameters, slots of all devices) -> rows; and one that cuts crops from a picture.

  The slots are uint8 squares, which the program normalises, or float32 pixels; it reads the first `batch_size` of each
  device. The second program takes (slots of one device, the first slot to fill, uint8 [H, W, 3], windows [4, C, 2]).
  """
  rows = image_lib.unit_rows(config, dtype)
  factor, mean, std = (np.array(v, np.float32) for v in (preprocess.factor, preprocess.mean, preprocess.std))

  def of_slots(params: Any, slots: jax.Array) -> jax.Array:
    slots = slots[:batch_size]
    if slots.dtype == jnp.uint8:
      slots = (slots.astype(jnp.float32) * factor - mean[None, None, None]) / std[None, None, None]
    return rows(params, slots)

  def cut(slots: jax.Array, first: jax.Array, picture: jax.Array, chosen: jax.Array) -> jax.Array:
    squares = resample.on_device(picture, resample.Windows(*chosen), preprocess.resample, config.image_size, dtype)
    return jax.lax.dynamic_update_slice_in_dim(slots, squares.astype(jnp.uint8), first, 0)

  # Each device runs the program of a single one, so that rows do not depend on how many there are.
  each, same = PartitionSpec('crops'), PartitionSpec()
  on_all = jax.shard_map(of_slots, mesh=mesh, in_specs=(same, each), out_specs=each, check_vma=False)
  return compiler.jit(on_all, mesh=mesh), compiler.jit(cut, donate_argnums=0)


def _check(image: np.ndarray) -> None:
  if (
    not isinstance(image, np.ndarray)
    or image.dtype != np.uint8
    or image.ndim != 3
    or image.shape[2] != 3
    or (not image.size)
  ):
    found = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f'the picture is {found}; expected uint8 [height, width, 3]')


def _padded(image: np.ndarray) -> np.ndarray:
  """Pads a picture to a square of one of few sizes, since each size is a compilation."""
  longest = max(image.shape[:2])
  side = next((s for s in _SIDES if s >= longest), -(-longest // _SIDES[-1]) * _SIDES[-1])
  return np.pad(image, ((0, side - image.shape[0]), (0, side - image.shape[1]), (0, 0)))


def _add(rows: np.ndarray) -> np.ndarray:
  """Adds unit rows of all 1x crops and those of all 1.5x crops, which follow them; returns the normalised sums."""
  total = rows.reshape(len(SCALES), -1, rows.shape[1]).sum(axis=0, dtype=np.float64)
  return (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
