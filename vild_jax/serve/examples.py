"""The example pictures of the page: those that lie in the bundle, else a few drawn ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vild_jax.data import pictures
from vild_jax.demo import world_drawing
from vild_jax.train import bundle_files

_FOLDER = 'examples'  # of a bundle, which people may put pictures into
_DRAWN, _SIDE = 4, 128  # pictures of the toy world, pixels
_MOST, _LONGEST = 12, 1024  # pictures of a folder, pixels of their longer side
_SEED = 19


@dataclass(frozen=True)
class ExamplePicture:
  """Holds a picture: its name, the bytes of a PNG, its size in pixels."""

  name: str
  png: bytes
  width: int
  height: int


def read(bundle: Path) -> list[ExamplePicture]:
  """Returns the pictures in `examples/` of a bundle, by their names and not above 1,024 pixels; else drawn ones.

  Everybody who reaches the service sees them, so that links to files outside of the bundle are left out. Raises
  ValueError for a picture that cannot be read.
  """
  folder = bundle / _FOLDER
  if not folder.is_dir():
    return drawn()
  paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in pictures.SUFFIXES]
  paths = [path for path in paths if bundle_files.holds(bundle, path)][:_MOST]
  stems = [path.stem for path in paths]
  names = [path.name if stems.count(path.stem) > 1 else path.stem for path in paths]  # each is an address
  return [_as_example(name, pictures.decode(path, upright=True)) for name, path in zip(names, paths, strict=True)]


def drawn() -> list[ExamplePicture]:
  """Returns pictures of the toy world."""
  kinds = [
    (shape, pattern) for shape in range(len(world_drawing.SHAPES)) for pattern in range(len(world_drawing.PATTERNS))
  ]
  found = []
  for number in range(_DRAWN):
    rng = np.random.default_rng([_SEED, number])
    chosen = [kinds[index] for index in rng.choice(len(kinds), 4, replace=False)]
    found.append(_as_example(f'drawn_{number + 1}', world_drawing.scene(rng, _SIDE, _SIDE, chosen)[0]))
  return found


def _as_example(name: str, pixels: np.ndarray) -> ExamplePicture:
  height, width = pixels.shape[:2]
  if (scale := _LONGEST / max(height, width)) < 1:
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
  png = cv2.imencode('.png', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
  return ExamplePicture(name, png, pixels.shape[1], pixels.shape[0])
