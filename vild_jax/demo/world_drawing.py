"""Draws the pictures of the toy world: shapes, patterns, cluttered backgrounds, scenes with occlusion, and light.

Pictures are uint8 RGB [H, W, 3]. Coordinates are (x, y) pixels where an integer is the EDGE between two pixels, as in
COCO's polygons. All random numbers come from the generator that is passed in, so that it alone decides how a picture
looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring', 'heart', 'crescent')
PATTERNS = ('red', 'yellow', 'green', 'blue', 'striped', 'spotted')

# The two colours of each pattern, RGB: that of the body and, for the last two patterns, of the stripes or spots.
_COLOURS = np.array(
  [
    [[214, 40, 40], [214, 40, 40]],
    [[246, 204, 38], [246, 204, 38]],
    [[40, 160, 72], [40, 160, 72]],
    [[38, 92, 214], [38, 92, 214]],
    [[246, 246, 242], [30, 32, 44]],
    [[142, 46, 166], [250, 236, 246]],
  ],
  np.float32,
)

_MIN_VISIBLE = 0.75  # the share of an object that later ones must leave visible, so that it can be recognised
_ATTEMPTS = 40  # places to try for an object; it shrinks a little with each


def _arc(radius: float, start: float, stop: float, points: int, centre: float = 0.0) -> np.ndarray:
  angles = np.linspace(start, stop, points)
  return np.stack([centre + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _star() -> np.ndarray:
  angles = np.arange(10) * math.pi / 5 - math.pi / 2
  radii = np.where(np.arange(10) % 2 == 0, 1.2, 0.52)
  return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _heart() -> np.ndarray:
  t = np.linspace(0, 2 * math.pi, 40, endpoint=False)
  x = 16 * np.sin(t) ** 3
  y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
  return np.stack([x, y - 2], axis=1) / 15.5


def _crescent() -> np.ndarray:
  # The outer circle minus one of radius 0.8 whose centre lies 0.5 to the right.
  x = (1.05**2 - 0.8**2 + 0.5**2) / (2 * 0.5)
  outer = math.acos(x / 1.05)
  inner = math.acos((x - 0.5) / 0.8)
  back = _arc(1.05, outer, 2 * math.pi - outer, 32)
  front = _arc(0.8, 2 * math.pi - inner, inner, 24, centre=0.5)
  return np.concatenate([back, front]) + np.array([0.2, 0])


def _outlines() -> dict[str, list[np.ndarray]]:
  s, a, b = 0.8, 0.34, 1.04
  cross = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
  return {
    'circle': [_arc(0.92, 0, 2 * math.pi, 40)],
    'square': [np.array([(-s, -s), (s, -s), (s, s), (-s, s)])],
    'triangle': [np.array([(0, -1.1), (1.06, 0.76), (-1.06, 0.76)])],
    'star': [_star()],
    'cross': [np.array(cross)],
    'ring': [_arc(1.02, 0, 2 * math.pi, 40), _arc(0.5, 0, 2 * math.pi, 28)],
    'heart': [_heart()],
    'crescent': [_crescent()],
  }


_OUTLINES = _outlines()


@dataclass(frozen=True)
class Figure:
  """Describes an object to draw: contours [K, 2] in pixels (even-odd fill), centre, radius, angle and pattern."""

  contours: list[np.ndarray]
  centre: np.ndarray
  radius: float
  angle: float
  pattern: int


def figure(rng: np.random.Generator, shape: int, pattern: int, centre: np.ndarray, radius: float) -> Figure:
  """Makes a figure, turned and stretched a little. `shape`, `pattern` index SHAPES, PATTERNS; radius in pixels."""
  angle = rng.uniform(-0.6, 0.6)
  stretch = rng.uniform(-0.12, 0.12)
  cos, sin = math.cos(angle), math.sin(angle)
  turn = np.array([[cos, sin], [-sin, cos]])
  scale = radius * np.array([math.exp(stretch), math.exp(-stretch)])
  contours = [outline * scale @ turn + centre for outline in _OUTLINES[SHAPES[shape]]]
  return Figure(contours, np.asarray(centre, np.float64), radius, angle, pattern)


def bounds(item: Figure) -> np.ndarray:
  """Returns the box (x0, y0, x1, y1) of the whole figure, including what is outside the picture."""
  return np.concatenate([item.contours[0].min(0), item.contours[0].max(0)])


def _window(item: Figure, height: int, width: int, margin: int) -> tuple[int, int, int, int]:
  x0, y0, x1, y1 = bounds(item)
  return (
    max(0, math.floor(y0) - margin),
    min(height, math.ceil(y1) + margin),
    max(0, math.floor(x0) - margin),
    min(width, math.ceil(x1) + margin),
  )


def _points(contours: list[np.ndarray], x0: int, y0: int) -> list[np.ndarray]:
  # cv2 counts from pixel centres; here with 4 fractional bits.
  return [np.rint((c - (x0 + 0.5, y0 + 0.5)) * 16).astype(np.int32) for c in contours]


def coverage(item: Figure, height: int, width: int, margin: int = 0) -> tuple[np.ndarray, tuple[slice, slice]]:
  """Returns how much of each pixel the figure covers, uint8 [h, w] (255: all), and for which part of the picture."""
  y0, y1, x0, x1 = _window(item, height, width, margin)
  alpha = np.zeros((max(0, y1 - y0), max(0, x1 - x0)), np.uint8)
  if alpha.size:
    cv2.fillPoly(alpha, _points(item.contours, x0, y0), 255, cv2.LINE_AA, 4)
  return alpha, (slice(y0, max(y0, y1)), slice(x0, max(x0, x1)))


def paint(rng: np.random.Generator, picture: np.ndarray, item: Figure) -> None:
  """Draws the figure onto `picture` (float32 [H, W, 3], changed in place): shadow, pattern, rim and shading."""
  margin = 5
  alpha, where = coverage(item, *picture.shape[:2], margin=margin)
  if not alpha.size:
    return
  part = picture[where]
  shadow = cv2.blur(cv2.copyMakeBorder(alpha, 3, 0, 2, 0, cv2.BORDER_CONSTANT)[:-3, :-2], (5, 5))
  part *= 1 - shadow[..., None] * np.float32(0.4 / 255)
  rows = np.arange(where[0].start, where[0].stop, dtype=np.float32)[:, None] + 0.5 - item.centre[1]
  columns = np.arange(where[1].start, where[1].stop, dtype=np.float32)[None] + 0.5 - item.centre[0]
  first, second = _COLOURS[item.pattern] * rng.uniform(0.82, 1.1) + rng.uniform(-10, 10, 3)
  name = PATTERNS[item.pattern]
  if name in ('striped', 'spotted'):
    mix = _stripes(rng, rows, columns, item) if name == 'striped' else _spots(rng, rows, columns, item)
    body = first + mix[..., None] * (second - first)
  else:
    body = np.broadcast_to(first, (*alpha.shape, 3))
  light = rng.uniform(0, 2 * math.pi)
  slope = 0.2 / item.radius
  shade = 1 + math.sin(light) * slope * rows + math.cos(light) * slope * columns
  body = np.clip(body * shade[..., None], 0, 255).astype(np.uint8)
  rim = tuple(float(v) for v in np.clip(first * 0.45, 0, 255))
  cv2.polylines(
    body,
    _points(item.contours, where[1].start, where[0].start),
    True,
    rim,
    max(1, round(item.radius / 10)),
    cv2.LINE_AA,
    4,
  )
  part += (body - part) * (alpha[..., None] * np.float32(1 / 255))


def _along(rows: np.ndarray, columns: np.ndarray, angle: float) -> np.ndarray:
  return columns * math.cos(angle) + rows * math.sin(angle)


def _stripes(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, item: Figure) -> np.ndarray:
  period = max(5.0, 0.62 * item.radius)
  along = _along(rows, columns, item.angle + rng.uniform(-0.5, 0.5) + math.pi / 4)
  wave = np.sin((along / period + rng.uniform()) * (2 * math.pi))
  return np.clip(0.5 + wave * (period / 4), 0, 1)


def _spots(rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, item: Figure) -> np.ndarray:
  period = max(5.5, 0.7 * item.radius)
  angle = item.angle + math.pi / 4
  shift = rng.uniform(0, 1, 2)
  u = _along(rows, columns, angle) / period + shift[0]
  v = _along(rows, columns, angle + math.pi / 2) / period + shift[1]
  distance = np.hypot(u - np.rint(u), v - np.rint(v))
  return np.clip(0.5 + (0.31 - distance) * period, 0, 1)


def _muted(rng: np.random.Generator, saturation: float = 0.3) -> np.ndarray:
  tone = rng.uniform(60, 205)
  colour = rng.uniform(-1, 1, 3)
  return tone + (colour - colour.mean()) * tone * saturation


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
  """Draws a picture without objects, float32 [H, W, 3]: a texture of two muted colours, with grain, blobs and lines."""
  rows = np.arange(height, dtype=np.float32)[:, None]
  columns = np.arange(width, dtype=np.float32)[None]
  colour = _muted(rng)
  other = colour + rng.uniform(-45, 45) + rng.uniform(-14, 14, 3)
  kind = rng.integers(4)
  if kind == 0:  # a gradient
    along = _along(rows, columns, rng.uniform(0, 2 * math.pi))
    mix = (along - along.min()) / (np.ptp(along) + 1)
  elif kind == 1:  # clouds
    cell = rng.uniform(10, 40)
    small = rng.random((2 + int(height / cell), 2 + int(width / cell)), np.float32)
    mix = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
  elif kind == 2:  # boards
    along = _along(rows, columns, rng.uniform(0, math.pi))
    mix = 0.5 + 0.35 * np.clip(2 * np.sin(along * (2 * math.pi / rng.uniform(14, 40))), -1, 1)
  else:  # tiles
    tile = rng.uniform(14, 34)
    shift = rng.uniform(0, tile, 2)
    mix = 0.5 + 0.3 * np.sign(
      np.sin((rows + shift[0]) * (math.pi / tile)) * np.sin((columns + shift[1]) * (math.pi / tile))
    )
  picture = colour + mix[..., None] * (other - colour)
  grain = rng.integers(-11, 12, ((height + 1) // 2, (width + 1) // 2), np.int16).astype(np.float32)
  picture += cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
  picture = np.clip(picture, 0, 255).astype(np.uint8)
  for _ in range(rng.poisson(height * width / 3600)):
    _distract(rng, picture)
  return picture.astype(np.float32)


def _distract(rng: np.random.Generator, picture: np.ndarray) -> None:
  """Draws clutter that is not one of the shapes: a long, uneven blob, or a bent line."""
  height, width = picture.shape[:2]
  centre = rng.uniform((0, 0), (width, height))
  colour = tuple(float(v) for v in np.clip(_muted(rng, 0.55), 0, 255))
  angle = rng.uniform(0, 2 * math.pi)
  if rng.random() < 0.5:
    t = np.arange(18) * (2 * math.pi / 18)
    waves = rng.uniform(0, 2 * math.pi, 3)
    lumps = 1 + 0.3 * np.sin(2 * t + waves[0]) + 0.28 * np.sin(3 * t + waves[1]) + 0.16 * np.sin(5 * t + waves[2])
    x, y = rng.uniform(7, 20) * lumps * np.cos(t), rng.uniform(3, 8) * lumps * np.sin(t)
  else:
    t = np.linspace(-1, 1, 9)
    x, y = rng.uniform(10, 45) * t, rng.uniform(-14, 14) * t * t
  turned = np.stack([x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)], axis=1)
  points = _points([turned + centre], 0, 0)
  if len(t) == 18:
    cv2.fillPoly(picture, points, colour, cv2.LINE_AA, 4)
  else:
    cv2.polylines(picture, points, False, colour, int(rng.integers(1, 4)), cv2.LINE_AA, 4)


def develop(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
  """Adds light (a gradient of brightness over the picture) and sensor noise: float32 [H, W, 3] -> uint8."""
  height, width = picture.shape[:2]
  angle, slope = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.22)
  rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(math.sin(angle) * slope)
  columns = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.float32(math.cos(angle) * slope)
  light = np.float32(rng.uniform(0.82, 1.12)) * (1 + rows + columns)
  noise = rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(1, 5))
  return np.clip(picture * light[..., None] + noise, 0, 255).astype(np.uint8)


def scene(
  rng: np.random.Generator, height: int, width: int, kinds: list[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws objects of the given (shape, pattern) kinds, later ones in front of earlier ones.

  Returns:
    The picture uint8 [H, W, 3]; the owner of each pixel int16 [H, W], an index into `kinds` or -1 for background;
    and the number of pixels that each object covers inside the picture, visible or not, int64 [len(kinds)].
  """
  picture = background(rng, height, width)
  owner = np.full((height, width), -1, np.int16)
  full = np.zeros(len(kinds), np.int64)
  placed: list[Figure] = []
  for index, (shape, pattern) in enumerate(kinds):
    item, mask, where = _place(rng, shape, pattern, placed, owner, full)
    paint(rng, picture, item)
    owner[where][mask] = index
    full[index] = mask.sum()
    placed.append(item)
  return develop(rng, picture), owner, full


def _place(
  rng: np.random.Generator, shape: int, pattern: int, placed: list[Figure], owner: np.ndarray, full: np.ndarray
) -> tuple[Figure, np.ndarray, tuple[slice, slice]]:
  """Finds a place that leaves most of every other object visible; about half of the places cover part of another."""
  height, width = owner.shape
  size = math.sqrt(height * width)
  radius = size * math.exp(rng.uniform(math.log(0.088), math.log(0.235)))
  overlap = bool(placed) and rng.random() < 0.44
  seen = np.bincount(owner.ravel() + 1, minlength=len(placed) + 1)[1:]
  whole = np.maximum(full[: len(placed)], 1)
  best = None
  for attempt in range(_ATTEMPTS):
    r = max(radius * 0.98**attempt, 7.5)
    if overlap:
      other = placed[rng.integers(len(placed))]
      angle, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 1.0) * (r + other.radius)
      centre = other.centre + reach * np.array([math.cos(angle), math.sin(angle)])
      centre = np.clip(centre, 0.8 * r, (width - 0.8 * r, height - 0.8 * r))
    else:
      centre = rng.uniform(0.85 * r, (width - 0.85 * r, height - 0.85 * r))
    item = figure(rng, shape, pattern, centre, r)
    alpha, where = coverage(item, height, width)
    mask = alpha >= 128
    hidden = np.bincount(owner[where][mask] + 1, minlength=len(placed) + 1)[1:]
    left = ((seen - hidden) / whole).min(initial=1.0)
    covered = (hidden / whole).max(initial=0.0)
    wanted = covered >= 0.1 if overlap else covered <= 0.02
    if left >= _MIN_VISIBLE and (wanted or attempt > _ATTEMPTS // 2):
      return item, mask, where
    if best is None or left > best[0]:
      best = left, (item, mask, where)
  return best[1]
