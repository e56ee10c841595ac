"""Pictures with regions to distil: every region is known again by its embedding."""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.helpers.examples import configured, examples, same
from vild_jax.config import Config, Distillation
from vild_jax.data.regions.records import Regions

ALL = Distillation(weight=1, regions_per_image=8)


def regions(boxes, dim: int = 3) -> Regions:
  """The embedding of region i is i + 1 in its first place, so that it is known again."""
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  embeddings = np.ones((len(boxes), dim), np.float16)
  embeddings[:, 0] = np.arange(len(boxes)) + 1
  return Regions(boxes, np.linspace(1, 0, len(boxes), dtype=np.float32), embeddings)


def planted(count: int = 5, each: int = 12) -> dict[int, Regions]:
  """Regions for `examples(count)`, more than are drawn, all over the pictures."""
  rng = np.random.default_rng(3)
  store = {}
  for item in examples(count):
    corners = np.sort(rng.random((each, 2, 2)), axis=1) * (item.height, item.width)
    store[item.image_id] = regions(corners.reshape(each, 4))
  return store


def config(**data) -> Config:
  return dataclasses.replace(configured(**data), distillation=ALL)


def equal(a, b) -> bool:
  return same(a['regions'], b['regions']) and same(*({k: v for k, v in x.items() if k != 'regions'} for x in (a, b)))
