"""One object of the toy world, cut out as a region proposal would cut it: what the toy teacher learns from.

The picture is drawn around the cut, not cut out of the data set. It has what cuts of scenes have: an object half hidden
by another or by the picture's edge, in a box around what is left to be seen; neighbours; a box that is a little off.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from PIL import Image

from vild_jax.data import toyworld_draw as draw

_RADIUS = (9.0, 42.0)            # pixels, as in the scenes
_NEIGHBOURS = (0.3, 0.4, 0.3)    # the chances of none, one and two
_HIDDEN = 0.45                   # the share of objects with another in front, ...
_VISIBLE = (0.5, 0.95)           # ... of which this share is left to be seen: both as in the scenes
_CUT_OFF = 0.3                   # the share of objects at an edge of their picture
_JITTER = 0.14                   # the greatest error of a box's sides, as a share of them


def portrait(rng: np.random.Generator, shape: int, pattern: int, size: int) -> np.ndarray:
  """A picture uint8 [size, size, 3]: the box of one object's visible part, or 1.5 times that, stretched to a square."""
  radius = math.exp(rng.uniform(*np.log(_RADIUS)))
  item = draw.figure(rng, shape, pattern, np.zeros(2), radius)
  item = _moved(item, 1 - draw.bounds(item)[:2])
  width, height = (math.ceil(v) + 1 for v in draw.bounds(item)[2:])
  visible = _mask(item, height, width)
  figures = [_neighbour(rng, item, rng.uniform(0.6, 1.3)) for _ in range(rng.choice(3, p=_NEIGHBOURS))]
  figures.append(item)
  if rng.random() < _HIDDEN:
    other, visible = _in_front(rng, item, visible)
    figures.append(other)
  # (x, y) of the picture's corners, as far as they matter.
  low, high = np.full(2, -np.inf), np.full(2, np.inf)
  if rng.random() < _CUT_OFF:
    axis, reach = rng.integers(2), radius * rng.uniform(0.82, 1.1)
    if rng.random() < 0.5:
      low[axis] = round(item.centre[axis] - reach)
    else:
      high[axis] = round(item.centre[axis] + reach)
  start, stop = _window(rng, visible, low, high)
  picture = draw.background(rng, *(stop - start)[::-1].tolist())
  for figure in figures:
    draw.paint(rng, picture, _moved(figure, -start))
  developed = Image.fromarray(draw.develop(rng, picture))
  return np.asarray(developed.resize((size, size), Image.Resampling.BICUBIC))


def _in_front(rng: np.random.Generator, item: draw.Figure, whole: np.ndarray) -> tuple[draw.Figure, np.ndarray]:
  """Another figure that comes closer until it hides as much as drawn, and what is then seen of `item`, bool [h, w]."""
  other = _neighbour(rng, item, 1.1)
  step = 0.11 * (item.centre - other.centre)
  wanted, least = rng.uniform(*_VISIBLE) * whole.sum(), _VISIBLE[0] * whole.sum()
  visible = whole & ~_mask(other, *whole.shape)
  for _ in range(6):
    closer = _moved(other, step)
    left = whole & ~_mask(closer, *whole.shape)
    if visible.sum() <= wanted or left.sum() < least:
      break
    other, visible = closer, left
  return other, visible


def _window(rng: np.random.Generator, visible: np.ndarray, low: np.ndarray, high: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray]:
  """The corners (x, y) of the cut, whole pixels."""
  seen = [np.flatnonzero(visible.any(axis)) for axis in (0, 1)]
  start = np.maximum([s[0] for s in seen], low)
  stop = np.maximum(np.minimum([s[-1] + 1 for s in seen], high), start + 4)
  centre, extent = (start + stop) / 2, (stop - start) * (1.5 if rng.random() < 0.5 else 1.0)
  jitter = _JITTER * rng.random()
  extent_off = extent * np.exp(rng.uniform(-jitter, jitter, 2))
  centre = centre + extent * rng.uniform(-0.5, 0.5, 2) * jitter
  start = np.rint(np.maximum(centre - extent_off / 2, low)).astype(int)
  return start, np.maximum(np.rint(np.minimum(centre + extent_off / 2, high)).astype(int), start + 4)


def _neighbour(rng: np.random.Generator, item: draw.Figure, reach: float) -> draw.Figure:
  """Some figure whose centre is `reach` times the sum of both radii away."""
  radius = float(np.clip(item.radius * math.exp(rng.uniform(-0.8, 0.8)), *_RADIUS))
  angle = rng.uniform(0, 2 * math.pi)
  centre = item.centre + reach * (radius + item.radius) * np.array([math.cos(angle), math.sin(angle)])
  return draw.figure(rng, int(rng.integers(len(draw.SHAPES))), int(rng.integers(len(draw.PATTERNS))), centre, radius)


def _mask(item: draw.Figure, height: int, width: int) -> np.ndarray:
  mask = np.zeros((height, width), bool)
  alpha, where = draw.coverage(item, height, width)
  mask[where] = alpha >= 128
  return mask


def _moved(item: draw.Figure, by: np.ndarray) -> draw.Figure:
  return replace(item, contours=[c + by for c in item.contours], centre=item.centre + by)
