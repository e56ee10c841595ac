"""Embeds boxes of a picture: the teacher's embeddings of their 1x and 1.5x crops, added (docs/method.md, 1)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vild_jax.config import defaults
from vild_jax.nn import clip
from vild_jax.runtime import compiler
from vild_jax.teacher import checkpoint, resample
from vild_jax.teacher import image as image_lib

SCALES = (1.0, 1.5)
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


class CropTower:
  """Embeds regions of pictures with an image tower.

  The steps for each box: (1) the windows of the box scaled by 1 and by 1.5 about its centre (`crop_bounds`) are cut out
  of the ORIGINAL picture, uint8 RGB; (2) each window is preprocessed alone, without the pixels around it, as the
  teacher asks for (`image.Preprocessing`: PIL's resize of the short side and the central crop, or PIL's resize to the
  square; factor, mean, deviation); (3) the image tower embeds both; (4) e = n(n(1x) + n(1.5x)), where n divides by the
  length.

  Crops and resizes equal those of PIL to one level of 255 (`resample` says in which order of axes). An accelerator
  makes them from the picture, which is uploaded once; on a CPU a few threads make them. PIL itself does the resizes
  that `resample` does not have.

  Attributes:
    identity: of the image tower and its preprocessing.
    embedding_dim: D.
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
  ):
    """Puts the image tower on this process's first device, or on all of its accelerators, which share the batches.

    Args:
      teacher: with an image tower; ValueError otherwise.
      dtype: of the tower's arithmetic. bfloat16 is faster on accelerators.
      batch_size: crops per batch. An embedding does not depend on it beyond rounding.
      on_device: whether to crop and resize on the device, not on the host; by default True unless it is a CPU.
      threads: number of threads for crops on the host; by default one per core, at most 16.
    """
    self._tower = image_lib.ImageTower(teacher, dtype, batch_size=batch_size)
    self.identity, self.embedding_dim = self._tower.identity, self._tower.embedding_dim
    self.recipe = {
      'scales': list(SCALES),
      'window': _WINDOW,
      'preprocessing': dict(teacher.preprocessor),
      'sum': 'n(n(V(1x)) + n(V(1.5x)))',
      'dtype': jnp.dtype(dtype).name,
      'batch_size': batch_size,
    }
    self._side, self._batch_size = self._tower.image_size, batch_size
    accelerated = jax.default_backend() != 'cpu'
    self._on_device = accelerated if on_device is None else on_device
    self._threads = threads or min(os.cpu_count() or 1, 16)
    self._pool = ThreadPoolExecutor(self._threads, 'crops')
    self._params = [jax.device_put(teacher.params['image'], d) for d in jax.local_devices()[1:]] if accelerated else []
    self._params.insert(0, self._tower.params)
    self._of_squares, self._of_picture = _programs(teacher.config, jnp.dtype(dtype), self._tower.preprocess)

  def embed(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns float32 [N, D], unit rows, of boxes [N, 4] yxyx in pixels of one picture, uint8 [H, W, 3].

    Boxes may reach beyond the picture. Raises ValueError if the picture is of another kind, or as `crop_bounds` does.
    """
    _check(image)
    bounds = crop_bounds(boxes, *image.shape[:2]).reshape(-1, 4)
    if not len(bounds):
      return np.zeros((0, self.embedding_dim), np.float32)
    if not resample.is_known(self._tower.preprocess):
      parts = np.split(bounds, range(self._batch_size, len(bounds), self._batch_size))
      return _add(
        np.concatenate(
          [
            self._tower.embed_images([image[top:bottom, left:right] for top, left, bottom, right in part])
            for part in parts
          ]
        )
      )
    chosen = resample.windows(self._tower.preprocess, bounds, self._side)
    rows, ahead = [], len(self._params)  # the number of batches to prepare while the tower works on one
    for batch in (self._device_batches if self._on_device else self._host_batches)(image, chosen):
      rows.append(batch)
      if len(rows) > ahead:
        rows[-1 - ahead] = np.asarray(rows[-1 - ahead])
    return _add(np.concatenate(jax.device_get(rows))[: len(bounds)])

  def pixels(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Returns the crops of `embed`, uint8 [2 N, S, S, 3]: all 1x, then all 1.5x; only for resizes of `resample`."""
    _check(image)
    bounds = crop_bounds(boxes, *image.shape[:2]).reshape(-1, 4)
    chosen = resample.windows(self._tower.preprocess, bounds, self._side)
    if not self._on_device:
      return self._squares(_planes(image), chosen, range(len(bounds)), len(bounds))
    return np.asarray(
      resample.on_device(jnp.asarray(_padded(image)), chosen, self._tower.preprocess.resample, self._side)
    ).astype(np.uint8)

  def _host_batches(self, image: np.ndarray, chosen: resample.Windows) -> Iterator[jax.Array]:
    planes, count = _planes(image), len(chosen.start)
    for number, start in enumerate(range(0, count, self._batch_size)):
      part = range(start, min(start + self._batch_size, count))
      squares = self._squares(planes, chosen, part, self._batch_size)
      yield self._of_squares(self._params[number % len(self._params)], squares)

  def _squares(self, planes: np.ndarray, chosen: resample.Windows, part: range, size: int) -> np.ndarray:
    """Returns uint8 [size, S, S, 3]: a new array each time, since the device may read it without a copy."""
    squares = np.zeros((size, self._side, self._side, 3), np.uint8)
    method, step = self._tower.preprocess.resample, max(-(-len(part) // self._threads), 1)
    for _ in self._pool.map(
      lambda start: resample.on_host(
        planes, chosen, part[start : start + step], method, squares[start : min(start + step, len(part))]
      ),
      range(0, len(part), step),
    ):
      pass
    return squares

  def _device_batches(self, image: np.ndarray, chosen: resample.Windows) -> Iterator[jax.Array]:
    padded, count = _padded(image), len(chosen.start)
    uploaded = {}
    for number, start in enumerate(range(0, count, self._batch_size)):
      slot = number % len(self._params)
      if slot not in uploaded:
        uploaded[slot] = jax.device_put(padded, jax.tree.leaves(self._params[slot])[0].device)
      index = np.minimum(np.arange(start, start + self._batch_size), count - 1)  # repeats the last to fill the batch
      part = [v[index] for v in (chosen.start, chosen.length, chosen.resized, chosen.first)]
      yield self._of_picture(self._params[slot], uploaded[slot], part)


@functools.cache  # shared by towers that differ in their weights only, and by a tower that is made again
def _programs(config: clip.ClipConfig, dtype: Any, preprocess: image_lib.Preprocessing) -> tuple[Callable, Callable]:
  """Compiles (parameters, uint8 [C, S, S, 3]) -> rows [C, D] and (parameters, uint8 [H, W, 3], its windows) -> rows."""
  rows = image_lib.unit_rows(config, dtype)
  factor, mean, std = (np.array(v, np.float32) for v in (preprocess.factor, preprocess.mean, preprocess.std))

  def normalized(values: jax.Array) -> jax.Array:  # [C, S, S, 3], 0..255
    return (values * factor - mean[None, None, None]) / std[None, None, None]

  def of_squares(params: Any, squares: jax.Array) -> jax.Array:
    return rows(params, normalized(squares.astype(jnp.float32)))

  def of_picture(params: Any, picture: jax.Array, chosen: list[jax.Array]) -> jax.Array:
    squares = resample.on_device(picture, resample.Windows(*chosen), preprocess.resample, config.image_size)
    return rows(params, normalized(squares))

  return compiler.jit(of_squares), compiler.jit(of_picture)


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


def _planes(image: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)


def _padded(image: np.ndarray) -> np.ndarray:
  """Pads a picture to a square of one of few sizes, since each size is a compilation."""
  longest = max(image.shape[:2])
  side = next((s for s in _SIDES if s >= longest), -(-longest // _SIDES[-1]) * _SIDES[-1])
  return np.pad(image, ((0, side - image.shape[0]), (0, side - image.shape[1]), (0, 0)))


def _add(rows: np.ndarray) -> np.ndarray:
  """Adds unit rows of all 1x crops and those of all 1.5x crops, which follow them; returns the normalised sums."""
  total = rows.reshape(len(SCALES), -1, rows.shape[1]).sum(axis=0, dtype=np.float64)
  return (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
