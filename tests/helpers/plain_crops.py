"""The recipe of region embeddings written out with PIL: one crop, one resize, one picture at a time."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from PIL import Image

from tests.helpers import small_teacher
from vild_jax.nn import clip


def plain_windows(box, height, width):
  y1, x1, y2, x2 = (float(v) for v in box)
  for k in (1.0, 1.5):
    dy, dx = (k - 1) / 2 * (y2 - y1), (k - 1) / 2 * (x2 - x1)
    top, left = min(max(math.floor(y1 - dy), 0), height - 1), min(max(math.floor(x1 - dx), 0), width - 1)
    bottom, right = min(math.ceil(y2 + dy), height), min(math.ceil(x2 + dx), width)
    yield left, top, max(right, left + 1), max(bottom, top + 1)


def plain_pixels(picture, boxes, side=16, resample=3, stretch=False, in_one=False):
  """uint8 [2 N, S, S, 3]. `in_one`: by one call of PIL, which may take the height first, depending on its version."""
  squares = [[], []]
  for box in boxes:
    for i, window in enumerate(plain_windows(box, *picture.shape[:2])):
      crop = Image.fromarray(picture).crop(window)
      short = min(crop.size)
      size = [side] * 2 if stretch else [side if v == short else int(side * v / short) for v in crop.size]
      left, top = ((v - side) // 2 for v in size)
      if not in_one:
        crop = crop.resize((size[0], crop.height), resample)
      squares[i].append(np.asarray(crop.resize(size, resample).crop((left, top, left + side, top + side))))
  return np.array(squares[0] + squares[1])


def plain_embeddings(teacher, pixels):
  p = small_teacher.PREPROCESSOR
  normal = (pixels / 255 - np.array(p['image_mean'])) / np.array(p['image_std'])
  rows = clip.ImageTower(teacher.config).apply({'params': teacher.params['image']}, jnp.asarray(normal, jnp.float32))
  rows = np.asarray(rows, np.float64)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  total = rows[: len(rows) // 2] + rows[len(rows) // 2 :]
  return total / np.linalg.norm(total, axis=1, keepdims=True)
