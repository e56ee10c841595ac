"""Repeats pictures of rare categories: repeat-factor sampling (LVIS; Gupta, Dollár and Girshick 2019).

A category that is in the share f of all pictures has the factor max(1, √(t / f)); a picture has the largest factor of
its categories. In each epoch a picture comes as often as its factor says. The factor is rounded at random in every
epoch, up with the probability of its fraction, else down. All of this is a function of the seed and the epoch.
"""

from __future__ import annotations

import collections
import sys
import threading
from collections.abc import Collection
from typing import Any, Protocol

import numpy as np

from vild_jax.data.schema import Example
from vild_jax.runtime import progress


class _ExampleSource(Protocol):
  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Example: ...


def image_factors(dataset: _ExampleSource, categories: Collection[int], threshold: float) -> np.ndarray:
  """Returns float64 [n], 1 or more: how often each picture of the data set comes in an epoch, on average.

  Crowds do not count, since training does not use them; a picture without any of `categories` has the factor 1.

  Args:
    dataset: n examples.
    categories: ids of the categories that are trained.
    threshold: t above; categories that are in more than this share of the pictures have the factor 1.
  """
  examples = dataset.labels() if hasattr(dataset, 'labels') else (dataset[i] for i in range(len(dataset)))
  shown = []
  for example in progress.track(examples, 'count categories', total=len(dataset), unit='image'):
    objects = example.objects
    shown.append({int(c) for c in objects.category_ids[~objects.is_crowd]} & set(categories))
  pictures = collections.Counter(c for found in shown for c in found)
  factor = {c: max(1.0, (threshold * len(shown) / count) ** 0.5) for c, count in pictures.items()}
  return np.array([max((factor[c] for c in found), default=1.0) for found in shown])


class Repeated:
  """Gives the endless stream of a data set whose pictures repeat by `factors`, as an indexable: `[i] -> Example`.

  Epochs have different lengths, so that finding position i needs the lengths of all epochs before it: about a
  millisecond for each, once. It can be pickled for Grain's workers, and threads may share it.
  """

  def __init__(self, dataset: _ExampleSource, factors: np.ndarray, seed: int):
    self._dataset, self._factors, self._seed = dataset, factors, seed
    self._forget()

  def __len__(self) -> int:
    return sys.maxsize  # Grain's own value for an endless data set

  def __getitem__(self, position: int) -> Example:
    return self._dataset[self.index(position)]

  def __repr__(self) -> str:  # Grain prints it
    return f'Repeated({self._dataset!r}, seed={self._seed})'

  def index(self, position: int) -> int:
    """Returns the index in the data set of the example at a position of the stream."""
    with self._lock:
      while position >= self._starts[-1]:
        epoch = len(self._starts) - 1
        self._starts.append(self._starts[-1] + int(_counts(self._factors, self._rng(epoch)).sum()))
      epoch = int(np.searchsorted(self._starts, position, side='right')) - 1
      if epoch not in self._orders:  # two orders are kept: around the end of an epoch threads need both
        self._orders = {e: order for e, order in self._orders.items() if abs(e - epoch) == 1}
        self._orders[epoch] = epoch_order(self._factors, self._rng(epoch))
      return int(self._orders[epoch][position - self._starts[epoch]])

  def __getstate__(self) -> dict[str, Any]:
    return {'_dataset': self._dataset, '_factors': self._factors, '_seed': self._seed}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._forget()

  def _forget(self) -> None:
    self._starts: list[int] = [0]
    self._orders: dict[int, np.ndarray] = {}
    self._lock = threading.Lock()

  def _rng(self, epoch: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(epoch, 2)))


def epoch_order(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Returns int64 [sum of the rounded factors]: the indices of one epoch in a random order."""
  return rng.permutation(np.repeat(np.arange(len(factors)), _counts(factors, rng)))


def _counts(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Returns int64 [n]: each factor rounded up with the probability of its fraction, else down."""
  whole = np.floor(factors)
  return (whole + (rng.random(len(factors)) < factors - whole)).astype(np.int64)
