"""Classes that are shown instead of named: example pictures, embedded by the teacher's image tower."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vild_jax.data import pictures
from vild_jax.data.pictures import Picture
from vild_jax.teacher import checkpoint, crops

_REMEMBERED = 4096  # boxes whose embeddings are kept


@dataclass(frozen=True, eq=False)
class Example:
  """Asks for what pictures show, such as `Example('my mug', ['one.jpg', 'two.jpg'])`; several pictures are averaged.

  Attributes:
    name: what detections of it are called.
    images: a picture (a path, a PIL picture or uint8 [H, W, 3] RGB), or several. Each is the object's crop, unless
      there are boxes.
    boxes: where the object is: [4] or [N, 4] yxyx, one box for each of the N pictures, in pixels of the picture as
      viewers show it. A picture may be given once for each object in it.
  """

  name: str
  images: Picture | Sequence[Picture]
  boxes: Any = None

  def __post_init__(self):
    if not isinstance(self.name, str) or not self.name.strip():
      raise ValueError(f'the name of an example is {self.name!r}; expected text')
    name = self.name.strip()
    several = not isinstance(self.images, str | Path | Image.Image | np.ndarray)
    images = tuple(self.images) if several else (self.images,)
    if not images:
      raise ValueError(f'the example {name!r} has no picture; expected one or more')
    boxes = None
    if self.boxes is not None:
      boxes = np.asarray(self.boxes, np.float64)
      boxes = boxes[None] if boxes.ndim == 1 else boxes
      if boxes.shape != (len(images), 4):
        raise ValueError(
          f'the example {name!r} has boxes of shape {list(np.shape(self.boxes))}; expected [{len(images)}, 4], one box '
          'for each picture'
        )
    for field, value in (('name', name), ('images', images), ('boxes', boxes)):
      object.__setattr__(self, field, value)


class ExampleTower:
  """Embeds examples with an image tower, which is read when the first example comes."""

  def __init__(self, directory: Path, identity: str | None = None):
    """Takes the folder of a teacher or an `image_tower/`, and the identity that it must have, if one is known."""
    self._directory, self._identity = directory, identity
    self._tower: crops.CropTower | None = None
    self._embedded: dict[bytes, np.ndarray] = {}

  def embed(self, example: Example) -> np.ndarray:
    """Returns float32 [D], of unit length: the normalised mean over the pictures.

    A box is embedded as the regions that the student learns from: n(n(V(1x)) + n(V(1.5x))) (`crops.CropTower`). Around
    a crop there is nothing to see, so that both its windows are the crop itself.

    Raises ValueError for a picture that cannot be used, for a box outside of it, or if the image tower is not the
    expected one.
    """
    tower, rows = self._loaded(), []
    for number, image in enumerate(example.images):
      try:
        pixels = pictures.as_rgb(image)
        box = np.array([0, 0, *pixels.shape[:2]]) if example.boxes is None else example.boxes[number]
        if (box[:2] <= box[2:]).all() and ((box[:2] >= pixels.shape[:2]).any() or (box[2:] <= 0).any()):
          raise ValueError(
            f'the box {box.tolist()} lies outside; expected yxyx inside {pixels.shape[0]} x {pixels.shape[1]} pixels '
            '(height x width)'
          )
        rows.append(self._row(tower, pixels, box))
      except ValueError as error:
        raise ValueError(f'example {example.name!r}, picture {number + 1}: {error}') from error
    mean = np.mean(rows, axis=0, dtype=np.float64)
    return (mean / np.linalg.norm(mean)).astype(np.float32)

  def _loaded(self) -> crops.CropTower:
    if self._tower is None:
      teacher = checkpoint.load_image_tower(self._directory)
      if self._identity not in (None, teacher.image_identity):
        raise ValueError(
          f'{self._directory} has the image tower {teacher.image_identity!r}; expected {self._identity!r}, which the '
          'bundle records'
        )
      self._tower = crops.CropTower(teacher, batch_size=len(crops.SCALES))
    return self._tower

  def _row(self, tower: crops.CropTower, pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Returns the embedding of a box [D], remembered by what the tower sees, since the same are asked for again."""
    bounds = crops.crop_bounds(box[None], *pixels.shape[:2])[:, 0]
    top, left, bottom, right = bounds[-1]  # the largest window, which holds the others
    inside = repr((bounds - [top, left, top, left]).tolist()).encode()
    key = hashlib.sha256(inside + pixels[top:bottom, left:right].tobytes()).digest()
    if key not in self._embedded:
      if len(self._embedded) == _REMEMBERED:
        del self._embedded[next(iter(self._embedded))]
      self._embedded[key] = tower.embed(pixels, box[None])[0]
    return self._embedded[key]
