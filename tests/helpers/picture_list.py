"""A data set of a few pictures in memory: what a prepared one is to the commands that make region stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.helpers import small_set
from vild_jax.data.schema import Example, Objects

NOTHING = Objects(
  np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0), np.zeros(0, bool), ()
)


class Pictures(list):
  """Examples with the identity of a data set. Trips at `trap`, if that is set."""

  identity, split, folder, trap = 'd' * 64, 'train', Path('data/small/1.0.0'), None

  def __getitem__(self, index):
    if index == self.trap:
      raise KeyboardInterrupt
    return super().__getitem__(index)


def make(sizes: list[tuple[int, int]]) -> Pictures:
  """Noise of these heights and widths; picture i has the id 100 - i and no objects."""
  return Pictures(
    Example(100 - i, small_set.picture(h, w, seed=i, kind='.png'), h, w, NOTHING) for i, (h, w) in enumerate(sizes)
  )
