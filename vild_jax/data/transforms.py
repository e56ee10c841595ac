"""Turns a picture, its boxes and its masks into the square that the network sees.

Plain functions on NumPy arrays, one picture at a time: resize, crop, pad, flip (docs/method.md, 2 and 3). The
resize is that of the reference: legacy bilinear (source position = target position · in / out, without half-pixel
centres and without antialiasing). Sizes are rounded twice. Padding follows the normalisation, so that the zeros of the
padding are the mean colour. Random numbers are arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pictures in [0, 1]
MEAN, STD = np.array(RGB_MEAN, np.float32), np.array(RGB_STD, np.float32)
# `normalize` is x · FACTOR − SHIFT for x in [0, 255].
FACTOR, SHIFT = (1 / (255 * STD.astype(np.float64))).astype(np.float32), MEAN / STD
MASK_SIZE = 112  # side of a ground-truth mask crop
MASK_BITS = (2 * MASK_SIZE // 8, 2 * MASK_SIZE)  # shape of `mask_bits`, bytes


@dataclass(frozen=True)
class Augmentation:
  """Holds the random numbers of one training picture.

  Attributes:
    scale: factor on the size.
    flip: whether the picture is mirrored, left to right.
    offset_draw: two numbers in [0, 1), the place of the crop along (y, x).
  """

  scale: float
  flip: bool
  offset_draw: tuple[float, float]


@dataclass(frozen=True)
class ResizedImage:
  """Holds a picture placed in the square, and its place: square position = picture position · scale − offset.

  Attributes:
    image: [S, S, 3], zero outside the content: float32, normalised, or uint8 as it is.
    size: float32 [2], (height, width) of the content, which starts at the top left corner of the square.
    scale: float32 [2], along (y, x); the two differ a little, since sizes are whole pixels.
    offset: float32 [2], pixels of the rescaled picture that are cut off at the top and at the left.
  """

  image: np.ndarray
  size: np.ndarray
  scale: np.ndarray
  offset: np.ndarray


def description(image_size: int) -> dict[str, Any]:
  """Returns what `resize_and_pad` does with a picture to be detected in, in words and numbers for a JSON file."""
  return {
    'image_size': image_size,
    'resize': 'bilinear, no half-pixel centres, no antialias',
    'mean': list(RGB_MEAN),
    'std': list(RGB_STD),
    'padding': 'bottom and right',
  }


def draw_augmentation(rng: np.random.Generator, scale_range: tuple[float, float], flip: bool) -> Augmentation:
  """Draws large-scale jitter: always four numbers in one order, so that turning the flip off changes nothing else."""
  scale, mirror, *offset = rng.random(4)
  low, high = scale_range
  return Augmentation(low + (high - low) * scale, flip and mirror < 0.5, tuple(offset))


# --- pictures -------------------------------------------------------------------------------------------------------


def normalize(image: np.ndarray) -> np.ndarray:
  """Turns uint8 [H, W, 3] RGB into float32 [H, W, 3]: (x / 255 − mean) / deviation, both of ImageNet."""
  height, width, _ = image.shape
  # Works on whole rows: broadcasting over the three channels is five times slower.
  rows = image.reshape(height, -1).astype(np.float32)
  rows *= np.tile(FACTOR, width)
  rows -= np.tile(SHIFT, width)
  return rows.reshape(image.shape)


def displayed(image: np.ndarray, size: np.ndarray | None = None) -> np.ndarray:
  """Turns the image of a `ResizedImage` into uint8 [S, S, 3], with padding of the mean colour.

  `size` is that of the content, which only an image in uint8 needs.
  """
  if image.dtype == np.uint8:
    height, width = size.astype(int)
    shown = np.broadcast_to(displayed(np.zeros(3, np.float32)), image.shape).copy()
    shown[:height, :width] = image[:height, :width]
    return shown
  return np.clip(np.round(255 * (image * STD + MEAN)), 0, 255).astype(np.uint8)


def flip_image(image: np.ndarray) -> np.ndarray:
  """Mirrors uint8 [H, W, 3], left to right."""
  return cv2.flip(image, 1)  # twenty times as fast as a copy of image[:, ::-1]


def resize_and_pad(
  image: np.ndarray,
  image_size: int,
  *,
  scale: float = 1.0,
  offset_draw: tuple[float, float] = (0.0, 0.0),
  normalized: bool = True,
) -> ResizedImage:
  """Normalises, rescales to fit `scale` times the square of side S = `image_size`, crops and zero-pads to the square.

  Args:
    image: uint8 [H, W, 3] RGB.
    image_size: S, pixels.
    scale: 1 fits the whole picture (evaluation); training draws it from the jitter range.
    offset_draw: two numbers in [0, 1): the place of the crop if the rescaled picture is larger than the square.
    normalized: if False the picture stays uint8: it is rounded after the resize, and not normalised.

  Only the pixels that end up in the square are computed.
  """
  size_in = np.array(image.shape[:2])
  # float32 and the second rounding follow the reference: they decide the size where a product is near .5.
  wanted = np.round(np.float32(scale) * np.float32(image_size))
  fit = np.min(np.float32(wanted) / size_in.astype(np.float32))
  rescaled = np.maximum(np.round(size_in.astype(np.float32) * fit), 1).astype(np.int64)
  excess = np.maximum(rescaled - image_size, 0).astype(np.float32)
  offset = (excess * np.asarray(offset_draw, np.float32)).astype(np.int64)
  size = np.minimum(rescaled, image_size)

  if normalized:
    square = np.zeros((image_size, image_size, 3), np.float32)
    square[: size[0], : size[1]] = _resized(image, rescaled, offset, size)
  else:
    square = np.zeros((image_size, image_size, 3), np.uint8)
    _warp(image, rescaled, offset, square[: size[0], : size[1]])
  return ResizedImage(
    square, size.astype(np.float32), rescaled.astype(np.float32) / size_in.astype(np.float32), offset.astype(np.float32)
  )


def _warp(image: np.ndarray, rescaled: np.ndarray, offset: np.ndarray, out: np.ndarray) -> None:
  """Writes what `_resized` returns, rounded to uint8 and not normalised, into `out`, a part of an array.

  OpenCV 5 samples at exact positions, OpenCV 4 at multiples of 1/32 of a pixel.
  """
  (y, x), (top, left) = np.array(image.shape[:2]) / rescaled, offset
  warped = cv2.warpAffine(
    cv2.cvtColor(image, cv2.COLOR_RGB2RGBA),  # four channels take half of the time of three
    np.array([[x, 0, x * left], [0, y, y * top]]),
    out.shape[1::-1],
    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_REPLICATE,
  )
  cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB, dst=out)


def _resized(image: np.ndarray, rescaled: np.ndarray, offset: np.ndarray, size: np.ndarray) -> np.ndarray:
  """Returns the picture normalised and rescaled to `rescaled` pixels: the part of `size` pixels from `offset` on."""
  axes = [
    _taps(int(n), int(m), int(start), int(count))
    for n, m, start, count in zip(image.shape[:2], rescaled, offset, size, strict=True)
  ]
  extent = [upper[-1] + 1 - lower[0] for lower, upper, _ in axes]
  # Of a large picture that shrinks, most rows are between those that are blended.
  (top, bottom, _), (left, right, _) = axes
  rows = np.union1d(top, bottom)
  window = normalize(image[rows, left[0] : right[-1] + 1])
  taps = (np.searchsorted(rows, top), np.searchsorted(rows, bottom)), (left - left[0], right - left[0])
  # The axis that shrinks the most goes first, so that the intermediate picture is the smaller one.
  for axis in np.argsort(size / np.array(extent), kind='stable'):
    window = _blend(window, *taps[axis], axes[axis][2], int(axis))
  return window


def _taps(size_in: int, size_out: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns both source indices and the weight of the second, for targets start .. start + count − 1 on one axis."""
  position = np.arange(start, start + count).astype(np.float32) * (np.float32(size_in) / np.float32(size_out))
  lower = np.minimum(position.astype(np.int64), size_in - 1)
  return lower, np.minimum(lower + 1, size_in - 1), position - lower.astype(np.float32)


def _blend(image: np.ndarray, lower: np.ndarray, upper: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
  """Returns image[lower] + (image[upper] − image[lower]) · weight on an axis of [H, W, 3], in rows of W·3 numbers."""
  _, width, channels = image.shape
  rows = image.reshape(image.shape[0], -1)
  if axis == 0:
    weight = weight[:, None]
  else:
    width = len(weight)
    lower, upper = ((index[:, None] * channels + np.arange(channels)).reshape(-1) for index in (lower, upper))
    weight = np.repeat(weight, channels)
  result = np.take(rows, lower, axis)
  change = np.take(rows, upper, axis)
  change -= result
  change *= weight
  result += change
  return result.reshape(-1, width, channels)


# --- boxes and masks ------------------------------------------------------------------------------------------------


def flip_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
  """Mirrors boxes [N, 4] yxyx, left to right, in a picture of the given width in pixels."""
  y1, x1, y2, x2 = boxes.T
  return np.stack([y1, width - x2, y2, width - x1], axis=1).astype(np.float32)


def to_square(boxes: np.ndarray, resized: ResizedImage) -> np.ndarray:
  """Maps boxes [N, 4] of the picture to boxes of the square, clipped to [0, S − 1] as the reference clips them."""
  return np.clip(move_boxes(boxes, resized), 0, resized.image.shape[0] - 1).astype(np.float32)


def move_boxes(boxes: np.ndarray, resized: ResizedImage) -> np.ndarray:
  """Maps boxes [N, 4] of the picture to boxes of the square, without clipping: they may reach beyond it."""
  return boxes.astype(np.float32) * np.tile(resized.scale, 2) - np.tile(resized.offset, 2)


def from_square(boxes: np.ndarray, resized: ResizedImage) -> np.ndarray:
  """Maps boxes [N, 4] of the square to boxes of the picture: the inverse of `move_boxes`."""
  return ((boxes + np.tile(resized.offset, 2)) / np.tile(resized.scale, 2)).astype(np.float32)


def to_picture(boxes: np.ndarray, scale: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """Maps boxes [N, 4] of a square that holds the whole picture back to the picture, clipped to it.

  Args:
    boxes: float32 yxyx, pixels of the square.
    scale: [2], of the picture's pixels to the square's (`ResizedImage.scale`).
    size: (height, width) of the picture.
  """
  height, width = size
  return np.clip(boxes / np.tile(scale, 2), 0, np.array([height, width, height, width], np.float32))


def is_visible(boxes: np.ndarray) -> np.ndarray:
  """Returns bool [N]: True where a clipped box still has height and width."""
  return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def crop_mask(mask: np.ndarray, box: np.ndarray, size: int = MASK_SIZE) -> np.ndarray:
  """Crops a mask to a box: bilinear, on a size × size grid whose corner samples lie on the corners of the box.

  As in the reference, the box coordinate c in a picture of n pixels is at index c · (n − 1) / n: the far edge of the
  picture is at the centre of the last pixel. Outside the picture the border is repeated.

  Args:
    mask: [H, W] in {0, 1}, in the size of the picture.
    box: [4] yxyx in pixels of that picture; the visible part of an object that the crop cuts.
    size: samples along each side.

  Returns:
    float32 [size, size] in [0, 1]: a soft mask.
  """
  return _blend_mask(*_mask_pixels(mask, box, size))


def mask_bits(mask: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns `crop_mask` before it is computed, which takes half of the bytes of one in uint8, and loses nothing.

  Returns:
    bits uint8 `MASK_BITS`: the pixels between which the samples lie, first those before all samples of an axis, then
    those after; 8 rows a byte, one column of bytes for each column. Weights float32 [2, 112] along (y, x): how far each
    sample is from the pixel before to the one after.
  """
  pixels, weights = _mask_pixels(mask, box, MASK_SIZE)
  return np.packbits(pixels, axis=0), weights


def soft_mask(bits: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Turns what `mask_bits` returns into the float32 [112, 112] of `crop_mask`."""
  return _blend_mask(np.unpackbits(bits, axis=0), weights)


def _mask_pixels(mask: np.ndarray, box: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the pixels [2 · size, 2 · size] and the weights of a crop, see `mask_bits`."""
  last = np.array(mask.shape)[:, None] - 1
  position = np.linspace(box[:2], box[2:], size, axis=1) * (last / (last + 1)).astype(np.float32)
  position = np.clip(position, 0, last)
  before = position.astype(np.int64)
  rows, columns = np.concatenate([before, np.minimum(before + 1, last)], axis=1)
  # The library of masks stores columns one after another.
  return mask.T[columns].take(rows, 1).T, (position - before).astype(np.float32)


def _blend_mask(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Returns the soft mask [size, size] of what `_mask_pixels` returns."""
  y, x = weights
  size = len(x)
  pixels = pixels.astype(np.float32)
  left, right = pixels[:, :size], pixels[:, size:]
  across = left + (right - left) * x
  upper, lower = across[:size], across[size:]
  return upper + (lower - upper) * y[:, None]
