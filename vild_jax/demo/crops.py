"""Draws captioned pictures for the toy teacher: crops of single objects and of background, apart from the data set."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from vild_jax.demo import world
from vild_jax.demo import world_drawing as draw
from vild_jax.runtime import progress

_TEACHER_OBJECTS = (5, 9)  # in a scene; more than in the data set, since each scene takes long to draw
_WITH_CONTEXT = 0.3  # the share of crops that show 1.5 times the box
_BOX_ERROR = 0.15  # the largest error of their centres and sides, as a share of the box's sides
_GROUND = 0.12  # the share of crops that show background, and at most a small part of an object
_GROUND_SIDES = (14, 70)  # pixels, of these


def captioned_crops(seed: int, count: int, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
  """Draws the pictures from which the toy teacher learns: single objects of all categories equally, and background.

  They are cut out of scenes like those of the data set, but drawn from a separate random stream. A crop is the box of
  the visible part of an object, or 1.5 times that box, with a small error, stretched to the square; or a box without an
  object, since the web pictures from which CLIP learned show background too. For one seed, the first n pictures do not
  depend on `count`.

  Args:
    seed: of the toy world.
    count: number of pictures.
    size: of the pictures, pixels.

  Returns:
    The pictures, uint8 [count, size, size, 3], and their indices into `world.caption_names`, int32 [count].
  """
  rng = world.random_stream(seed, 'teacher')
  images = np.empty((count, size, size, 3), np.uint8)
  labels = np.empty(count, np.int32)
  done, waiting = 0, np.zeros(0, np.int64)
  with progress.bar(count, 'crops for the teacher', unit='crop') as bar:
    while done < count:
      height, width = (int(v) for v in rng.integers(world.SIDES[0], world.SIDES[1] + 1, 2))
      number = int(rng.integers(_TEACHER_OBJECTS[0], _TEACHER_OBJECTS[1] + 1))
      if len(waiting) < number:
        waiting = np.append(waiting, rng.permutation(len(world.categories())))
      shown, waiting = waiting[:number], waiting[number:]
      picture, owner, _ = draw.scene(rng, height, width, [divmod(int(i), len(draw.PATTERNS)) for i in shown])
      crops = [(_crop(rng, picture, owner == position), shown[position]) for position in range(number)]
      if rng.random() < number * _GROUND / (1 - _GROUND) and (ground := _ground(rng, picture, owner >= 0)) is not None:
        crops.append((ground, len(world.categories())))
      for crop, label in crops[: count - done]:
        images[done] = Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC)
        labels[done] = label
        done += 1
        bar.update()
  return images, labels


def _ground(rng: np.random.Generator, picture: np.ndarray, objects: np.ndarray) -> np.ndarray | None:
  """Returns a part of the picture of which objects cover at most a tenth; None if 20 tries find none."""
  for _ in range(20):
    height, width = (int(v) for v in rng.integers(_GROUND_SIDES[0], _GROUND_SIDES[1] + 1, 2))
    y, x = (int(rng.integers(0, limit - side + 1)) for limit, side in zip(objects.shape, (height, width), strict=True))
    part = slice(y, y + height), slice(x, x + width)
    if objects[part].mean() <= 0.1:
      return picture[part]
  return None


def _crop(rng: np.random.Generator, picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns the part of the picture around a mask, as a region proposal would show it."""
  context = 1.5 if rng.random() < _WITH_CONTEXT else 1.0
  off = _BOX_ERROR * rng.random()
  spans = []
  for axis, limit in ((1, mask.shape[0]), (0, mask.shape[1])):
    seen = np.flatnonzero(mask.any(axis))
    extent = seen[-1] + 1 - seen[0]
    centre = seen[0] + extent * (0.5 + off * rng.uniform(-1, 1))
    half = 0.5 * context * extent * math.exp(off * rng.uniform(-1, 1))
    start = max(0, math.floor(centre - half))
    spans.append(slice(start, min(limit, max(math.ceil(centre + half), start + 3))))
  return picture[tuple(spans)]
