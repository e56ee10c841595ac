"""Draws detections and ground truth on pictures: translucent masks, thin outlines, readable labels.

Novel classes are marked by a star and a dashed box. Small pictures are enlarged first, so that text is legible.
"""

from __future__ import annotations

import colorsys
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from vild_jax.data import rle
from vild_jax.inference import fonts

_LEGIBLE = 400  # pixels; a picture whose longer side is shorter is enlarged by a whole factor
_LARGE = 2560  # pixels; lines and text of larger pictures are no larger
_PAPER, _INK = (255, 255, 255), (32, 33, 36)
Color = tuple[int, int, int]


def class_color(label: int) -> Color:
  """Returns the RGB colour of a class; hues advance by the golden angle, so that successive classes differ clearly."""
  hue = (0.58 + label * 0.61803398875) % 1.0
  lightness, saturation = ((0.56, 0.85), (0.66, 0.75), (0.48, 0.75))[label // 5 % 3]
  return tuple(round(255 * channel) for channel in colorsys.hls_to_rgb(hue, lightness, saturation))


def draw(
  image: np.ndarray,
  boxes: np.ndarray,
  labels: np.ndarray,
  scores: np.ndarray | None,
  masks: np.ndarray | Sequence[dict[str, Any]] | None,
  names: Sequence[str],
  *,
  novel: np.ndarray | None = None,
  colors: Sequence[Color] | None = None,
  bold: bool | None = None,
  titles: Sequence[str] | None = None,
) -> np.ndarray:
  """Draws N objects on a picture.

  Args:
    image: uint8 [H, W, 3] RGB.
    boxes: [N, 4] yxyx, pixels of the image.
    labels: int [N], rows of `names`.
    scores: [N] in [0, 1], or None (ground truth).
    masks: bool [N, H, W], or N COCO RLEs, which take no memory at the size of the picture; or None.
    names: C class names. One that no font here covers is shown as '#3', the third of them.
    novel: bool [C], the classes to mark, or None.
    colors: RGB of each object; None: by `class_color`.
    bold: lines and text twice as large, for pictures that are shown at a smaller size; None: if it is enlarged.
    titles: what the label of each object says, if a font covers it; None: the name of its class.

  Returns:
    uint8 [k·H, k·W, 3]; k, see `enlargement`, is greater than 1 for pictures under 400 pixels.

  Raises:
    ValueError: the image is not uint8 [H, W, 3], or labels do not fit boxes or names.
  """
  image, boxes, labels = np.asarray(image), np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(labels, int)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(f'the picture is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3]')
  if len(labels) != len(boxes) or (len(labels) and not 0 <= labels.min() <= labels.max() < len(names)):
    raise ValueError(f'{len(boxes)} boxes have labels {labels.tolist()}; expected one below {len(names)} for each')
  factor = enlargement(image)
  height, width = image.shape[0] * factor, image.shape[1] * factor
  canvas = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC) if factor > 1 else image.copy()
  boxes = boxes * factor
  colors = [class_color(label) for label in labels] if colors is None else colors
  # Lines and text grow with the picture; one that is larger than this is looked at in parts.
  unit = min(max(height, width), _LARGE) / 640
  # Enlarged pictures are often shown at a smaller size.
  weight = 2 if (factor > 1 if bold is None else bold) else 1
  line = max(round(1.6 * unit * weight), 1)
  order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind='stable')  # small objects on top
  if masks is not None:
    for i in order:
      _draw_mask(canvas, masks[i], factor, colors[i], max(round(1.2 * unit), 1))
  is_novel = [novel is not None and bool(novel[label]) for label in labels]
  for i in order:
    _draw_box(canvas, boxes[i], colors[i], line, dashed=is_novel[i])
  texts = [
    fonts.label(names[label], label, None if titles is None else titles[i])
    + ('' if scores is None else f' {100 * float(scores[i]):.0f}')
    for i, label in enumerate(labels)
  ]
  text_size = round(float(np.clip(12 * unit * weight, 11, 40)))
  picture = Image.fromarray(canvas)
  taken, number = np.zeros((len(texts), 4), int), 0
  for i in order if scores is None else np.argsort(-np.asarray(scores), kind='stable'):
    chip = _chip(texts[i], colors[i], text_size, is_novel[i])
    place = _free_place(boxes[i], chip.size, picture.size, taken[:number])
    if place:  # else the label is left out: overlapping labels cannot be read, and the colour shows the class
      taken[number] = *place, place[0] + chip.width, place[1] + chip.height
      number += 1
      picture.paste(chip, place, chip)
  return np.asarray(picture)


def enlargement(image: np.ndarray) -> int:
  """Returns the whole factor by which `draw` enlarges a picture: 1 from 400 pixels on, at most 4."""
  return int(np.clip(np.ceil(_LEGIBLE / max(image.shape[:2])), 1, 4))


def resized(picture: np.ndarray, side: int) -> np.ndarray:
  """Returns a picture, uint8 [H, W, 3], with a longer side of `side` pixels."""
  scale = side / max(picture.shape[:2])
  size = [max(1, round(n * scale)) for n in picture.shape[1::-1]]
  return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def side_by_side(
  left: np.ndarray, right: np.ndarray, titles: Sequence[str] = ('ground truth', 'prediction')
) -> np.ndarray:
  """Returns two pictures of equal height side by side, uint8 [H, W, 3], with titles above, on white."""
  if left.shape[0] != right.shape[0]:
    raise ValueError(f'the pictures are {left.shape[0]} and {right.shape[0]} pixels high; expected equal heights')
  size = round(float(np.clip(left.shape[0] / 32, 13, 28)))
  gap = size // 2
  sheet = Image.new('RGB', (left.shape[1] + right.shape[1] + gap, left.shape[0] + 2 * size), _PAPER)
  pen = ImageDraw.Draw(sheet)
  for picture, title, x in ((left, titles[0], 0), (right, titles[1], left.shape[1] + gap)):
    sheet.paste(Image.fromarray(picture), (x, 2 * size))
    text = fonts.line(title, size)
    pen.bitmap((x + 1, size - text.height // 2), text, fill=_INK)
  return np.asarray(sheet)


def _draw_mask(
  canvas: np.ndarray, mask: np.ndarray | dict[str, Any], factor: int, color: Color, thickness: int
) -> None:
  """Tints the mask, at the picture's own size, `factor` times smaller than the canvas, and traces its edge."""
  window, y, x = rle.decode_window(mask if isinstance(mask, dict) else rle.encode_mask(mask))
  if not window.size:  # an object with a box alone: there may be hundreds
    return
  # One pixel more on each side, where the picture has any, so that its edge is enlarged as that of the whole mask.
  ends = y + window.shape[0], x + window.shape[1]
  before = min(y, 1), min(x, 1)
  after = [min(side // factor - end, 1) for side, end in zip(canvas.shape, ends, strict=False)]
  soft = np.pad(window.astype(np.float32), list(zip(before, after, strict=True)))
  soft = cv2.resize(soft, (soft.shape[1] * factor, soft.shape[0] * factor), interpolation=cv2.INTER_LINEAR)
  mask = (soft > 0.5).astype(np.uint8)
  top, left = factor * (y - before[0]), factor * (x - before[1])
  part = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
  tints = (0.62 * np.arange(256)[:, None] + 0.38 * np.array(color)).astype(np.uint8)
  np.copyto(part, cv2.LUT(part, tints[None]), where=mask[..., None] > 0)
  contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
  cv2.polylines(canvas, contours, True, color, thickness, cv2.LINE_AA)


def _draw_box(canvas: np.ndarray, box: np.ndarray, color: Color, thickness: int, *, dashed: bool) -> None:
  """Outlines a box yxyx inside the canvas; a dark, translucent edge separates the line from any background."""
  limit = np.array(canvas.shape[:2] * 2) - 1
  y1, x1, y2, x2 = (int(v) for v in np.clip(np.round(box), 0, limit))
  strokes = []
  for start, end in itertools.pairwise(np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])):
    # With an odd number of pieces, every side begins and ends with a stroke.
    pieces = round(np.abs(end - start).max() / (4 + 3 * thickness)) | 1 if dashed else 1
    cuts = np.round(start + (end - start) * np.linspace(0, 1, pieces + 1)[:, None]).astype(int).tolist()
    strokes += zip(cuts[::2], cuts[1::2], strict=True)
  # Only the part around the box is copied, so that thousands of small boxes take little time.
  reach = thickness + 2
  top, left = max(y1 - reach, 0), max(x1 - reach, 0)
  part = canvas[top : y2 + reach + 1, left : x2 + reach + 1]
  seam = part.copy()
  for (xa, ya), (xb, yb) in strokes:
    cv2.line(seam, (xa - left, ya - top), (xb - left, yb - top), _INK, thickness + 2)
  part[:] = cv2.addWeighted(seam, 0.3, part, 0.7, 0)
  for start, end in strokes:
    cv2.line(canvas, start, end, color, thickness)


@functools.lru_cache(maxsize=512)
def _chip(text: str, color: Color, size: int, starred: bool) -> Image.Image:
  """Draws a rounded label, at four times its size and then reduced, so that its corners and star are smooth."""
  letters = fonts.line(text, size)
  pad, height = round(size * 0.35), letters.height
  star = round(size * 1.15) if starred else 0
  width = letters.width + 2 * pad + star
  big = Image.new('RGBA', (4 * width, 4 * height), (*color, 0))
  pen = ImageDraw.Draw(big)
  pen.rounded_rectangle((0, 0, 4 * width - 1, 4 * height - 1), radius=size, fill=(*color, 235))
  ink = _INK if np.dot(color, (0.299, 0.587, 0.114)) > 140 else _PAPER
  if starred:
    turns = np.arange(10) * np.pi / 5
    radius = np.where(np.arange(10) % 2, 0.17, 0.40) * 4 * size
    centre = 4 * (pad + 0.42 * size), 2.04 * height
    pen.polygon(
      [(centre[0] + r * np.sin(t), centre[1] - r * np.cos(t)) for r, t in zip(radius, turns, strict=True)], fill=ink
    )
  chip = big.resize((width, height), Image.Resampling.LANCZOS)
  ImageDraw.Draw(chip).bitmap((pad + star, 0), letters, fill=ink)
  return chip


def _free_place(
  box: np.ndarray, size: tuple[int, int], bounds: tuple[int, int], taken: np.ndarray
) -> tuple[int, int] | None:
  """Returns the place (x, y) near a box yxyx where a label of `size` (w, h) overlaps others, int [n, 4] xyxy, least.

  None if it would hide too much of them everywhere.
  """
  w, h = size
  y1, x1, y2, x2 = (round(float(v)) for v in box)
  candidates = [
    (x1, y1 - h),
    (x1, y1),
    (x2 - w, y1 - h),
    (x1, y2 - h),
    (x2 - w, y2 - h),
    (x1, y2),
    (x2 - w, y1),
    (x2, y1),
    (x1 - w, y1),
  ]
  candidates += [(x1, y1 + k * h) for k in range(1, 4)]
  places = np.clip(candidates, 0, np.maximum(np.subtract(bounds, size), 0))[:, None]
  shared = np.minimum(places + size, taken[:, 2:]) - np.maximum(places, taken[:, :2])
  overlaps = np.prod(np.maximum(shared, 0), axis=-1).sum(axis=1)
  best = int(np.argmin(overlaps))
  return tuple(places[best, 0].tolist()) if overlaps[best] < 0.15 * w * h else None
