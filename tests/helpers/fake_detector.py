"""A detector without a network: it finds a box for each class, lower with each, and is as slow as a test wants."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

from tests.helpers import tiny
from vild_jax.data import rle
from vild_jax.inference.detections import PictureDetections
from vild_jax.inference.examples import Example

NAMES = ('circle', 'square', 'star')


@dataclass(frozen=True)
class Looked:
  size: tuple[int, int]
  nbytes: int


@dataclass
class FakeDetector:
  """`seconds` are those of an image forward; `looked` and `found` tell what was asked for, in order."""

  seconds: float = 0.0
  takes_names: bool = True
  takes_examples: bool = True
  nbytes: int = 1000
  looked: list[int] = field(default_factory=list)
  found: list[dict] = field(default_factory=list)
  may_go_on: threading.Event = field(default_factory=threading.Event)

  def __post_init__(self):
    self.may_go_on.set()
    self.config = tiny.config()
    self.vocabulary = SimpleNamespace(names=NAMES)

  def prepare(self, picture: np.ndarray) -> tuple[int, int]:
    return picture.shape[:2]

  def look(self, prepared: list[tuple[int, int]]) -> list[Looked]:
    self.may_go_on.wait(30)
    time.sleep(self.seconds)
    self.looked.append(len(prepared))
    return [Looked(size, self.nbytes) for size in prepared]

  def find(
    self, looked, classes=None, *, min_score=0.05, masks=True, max_detections=None, attributes=None
  ) -> PictureDetections:
    asked = NAMES if classes is None else classes
    names = tuple(one.name if isinstance(one, Example) else one for one in asked)
    if 'unknown' in names:
      raise ValueError("'unknown' is not in the stored vocabulary")
    if 'broken' in names:
      raise RuntimeError('the device is gone')
    self.found.append({'classes': classes, 'max_detections': max_detections})
    height, width = looked.size
    scores = np.float32(0.9) ** np.arange(1, len(names) + 1, dtype=np.float32)
    keep = np.flatnonzero(scores >= min_score)[:max_detections]
    boxes = np.array([[height / 4, width / 4, height * 3 / 4, width / 2]] * len(keep), np.float32).reshape(-1, 4)
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height * 3 // 4, width // 4 : width // 2] = True
    return PictureDetections(
      boxes,
      scores[keep],
      keep.astype(np.int32),
      names,
      looked.size,
      (rle.encode_mask(mask),) * len(keep) if masks else None,
      tuple(attributes or ()),
      np.full((len(keep), len(attributes)), 1 / len(attributes), np.float32) if attributes else None,
    )

  def begin_find(self, *arguments, **options) -> Callable[[], PictureDetections]:
    return functools.partial(self.finish, self.find(*arguments, **options))

  def finish(self, found: PictureDetections) -> PictureDetections:
    """What needs no device; a test may replace it by something slower."""
    return found
