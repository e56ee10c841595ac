"""Resizes windows of a picture to the square that a teacher sees, as PIL does, by sparse matrices.

Only the part that the central crop keeps is computed. Along one axis a resized value is a weighted mean of neighbouring
values: a filter of width 2 · support · max(scale, 1) around its place, cut at the ends of the window and normalised.
PIL resizes each row to the new width, then each column to the new height, with bytes in between. So do these functions;
they differ from PIL by one level of 255 in few places, because PIL rounds its weights. From version 13 on PIL resizes
the columns first if the height shrinks by more, which rounds differently. These functions do not, so that embeddings do
not depend on the version of PIL. `on_host` multiplies by blocks of the band matrix of the weights; `on_device` computes
dense weights in the graph, so that windows of all sizes share one program.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vild_jax.teacher.image import Preprocessing

SUPPORT = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2}  # half-widths of the filters that this file has
_BLOCK = 32  # number of outputs that share one dense product; 16 and 56 were measured to take longer


@dataclass(frozen=True)
class Windows:
  """Says where C squares come from; each array is [C, 2] along (y, x).

  Attributes:
    start, length: int32, the window in whole pixels of the picture.
    resized: int32, the size to which the window is resized.
    first: int32, the first row and column that the central crop keeps.
  """

  start: np.ndarray
  length: np.ndarray
  resized: np.ndarray
  first: np.ndarray


def is_known(preprocess: Preprocessing) -> bool:
  """Tells whether this file can do all steps of a preprocessing."""
  crop = preprocess.crop or preprocess.size
  return (
    preprocess.size is not None and preprocess.resample in SUPPORT and (np.min(preprocess.size) >= np.max(crop))
  )  # otherwise the crop adds a border


def windows(preprocess: Preprocessing, bounds: np.ndarray, side: int) -> Windows:
  """Turns int [C, 4] (top, left, bottom, right) in the picture into the windows of the teacher's preprocessing."""
  start, length = bounds[:, :2], bounds[:, 2:] - bounds[:, :2]
  resized = np.array([preprocess.resized(*size) for size in length.tolist()], np.int32).reshape(-1, 2)
  return Windows(start.astype(np.int32), length.astype(np.int32), resized, (resized - side) // 2)


def _cubic(t: Any, where: Any) -> Any:
  """Computes Keys' cubic kernel with a = -0.5 at distances t >= 0."""
  near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
  return where(t < 1, near, where(t < 2, far, 0 * t))


def _triangle(t: Any, where: Any) -> Any:
  """Computes the triangle kernel (bilinear) at distances t >= 0."""
  return where(t < 1, 1 - t, 0 * t)


_FILTERS = {Image.Resampling.BILINEAR: _triangle, Image.Resampling.BICUBIC: _cubic}


# --- on the host ----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=512)  # about 100 kB each for pictures of 640 pixels
def _band(
  resample: Image.Resampling, length: int, resized: int, first: int, side: int
) -> tuple[tuple[slice, slice, np.ndarray], ...]:
  """Returns (outputs, inputs, weights [inputs, outputs]) of each block of the band matrix."""
  scale = length / resized
  stretch = max(scale, 1.0)
  center = (first + np.arange(side) + 0.5) * scale
  low = np.maximum((center - SUPPORT[resample] * stretch + 0.5).astype(int), 0)
  high = np.minimum((center + SUPPORT[resample] * stretch + 0.5).astype(int), length)
  index = low[:, None] + np.arange((high - low).max())
  weights = _FILTERS[resample](np.abs(index + 0.5 - center[:, None]) / stretch, np.where)
  weights[index >= high[:, None]] = 0
  weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
  blocks = []
  for begin in range(0, side, _BLOCK):
    end = min(begin + _BLOCK, side)
    inputs = slice(low[begin], high[begin:end].max())
    block = np.zeros((inputs.stop - inputs.start + weights.shape[1], end - begin), np.float32)
    block[index[begin:end] - inputs.start, np.arange(end - begin)[:, None]] = weights[begin:end]
    blocks.append((slice(begin, end), inputs, block[: inputs.stop - inputs.start]))
  return tuple(blocks)


def on_host(planes: np.ndarray, chosen: Windows, part: range, resample: Image.Resampling, out: np.ndarray) -> None:
  """Writes the squares `part` of a picture into `out`, uint8 [len(part), S, S, 3].

  Uses one core; several threads may call it at the same time. `planes` is the picture as float32 [3, H, W], 0..255.
  """
  side = out.shape[1]
  # Allocated once: the first use of new memory costs as much as the arithmetic.
  middles, turneds = np.empty((2, 3 * side * planes.shape[1]), np.float32)
  square = np.empty((side, 3 * side), np.float32)
  for i, target in zip(part, out, strict=True):
    top, left = chosen.start[i].tolist()
    rows, columns = (
      _band(resample, *(int(v[i, axis]) for v in (chosen.length, chosen.resized, chosen.first)), side)
      for axis in (0, 1)
    )
    above, below = rows[0][1].start, rows[-1][1].stop
    size = 3 * side * (below - above)
    middle, turned = middles[:size].reshape(3, -1, side), turneds[:size].reshape(-1, side, 3)
    window = planes[:, top + above : top + below]
    for outputs, inputs, weights in columns:
      np.matmul(window[:, :, left + inputs.start : left + inputs.stop], weights, out=middle[:, :, outputs])
    np.clip(np.add(middle, 0.5, out=middle), 0, 255.5, out=middle)
    for channel in range(3):  # three times as fast as one call for all channels
      np.floor(middle[channel], out=turned[:, :, channel])
    flat = turned.reshape(-1, 3 * side)
    for outputs, inputs, weights in rows:
      np.matmul(weights.T, flat[inputs.start - above : inputs.stop - above], out=square[outputs])
    np.clip(np.add(square, 0.5, out=square), 0, 255.5, out=square)
    np.copyto(target, square.reshape(target.shape), casting='unsafe')  # the cast cuts the fraction off


# --- on the device --------------------------------------------------------------------------------------------------


def _to_bytes(values: jax.Array) -> jax.Array:
  """Rounds to whole numbers 0..255, which stay floats."""
  return jnp.clip(jnp.floor(values + 0.5), 0, 255)  # PIL rounds halves up


def on_device(
  picture: jax.Array, chosen: Windows, resample: Image.Resampling, side: int, dtype: Any = jnp.float32
) -> jax.Array:
  """Returns float32 [C, S, S, 3], whole numbers 0..255, of a uint8 picture [H, W, 3], padded below and right or not.

  `dtype` is that of the factors of the products. bfloat16 holds whole numbers to 256 exactly, so that it rounds the
  weights alone, and products are divided by the sum of the rounded weights: one value in a hundred differs by a level.
  """

  def mean(axis: int, equation: str, values: jax.Array) -> jax.Array:
    start, length, resized, first = (
      v[:, axis, None, None].astype(jnp.float32) for v in (chosen.start, chosen.length, chosen.resized, chosen.first)
    )
    scale = length / resized
    center = (first + jnp.arange(side, dtype=jnp.float32)[None, :, None] + 0.5) * scale
    index = jnp.arange(picture.shape[axis], dtype=jnp.float32)[None, None] - start
    found = _FILTERS[resample](jnp.abs(index + 0.5 - center) / jnp.maximum(scale, 1), jnp.where)
    weights = jnp.where((index >= 0) & (index < length), found, 0).astype(dtype)
    # Without `HIGHEST` an accelerator would round the weights of float32 too.
    total = jnp.einsum(
      equation, values.astype(dtype), weights, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    sums = weights.sum(axis=2, dtype=jnp.float32)
    return _to_bytes(total / jnp.expand_dims(sums, (1, 3) if axis else (2, 3)))

  columns = mean(1, 'yxk,csx->cysk', picture)
  return mean(0, 'cysk,cty->ctsk', columns)
