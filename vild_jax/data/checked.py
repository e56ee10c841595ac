"""Checks the pictures of a source while they are stored; collects the identity, notes and counts of a split."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from vild_jax.data import contents as contents_lib
from vild_jax.data import pictures
from vild_jax.data.problems import Problems, in_words
from vild_jax.data.schema import Category, DataError, Example, counted


class Source(Protocol):
  """Describes what can be stored; see `sources.JsonSource`."""

  categories: tuple[Category, ...]
  info: dict[str, Any]
  notes: tuple[str, ...]
  upright: bool  # whether annotations refer to pictures as viewers show them, rather than as stored
  clipped: frozenset[int]  # ids of the pictures that boxes reach beyond, where `upright` is not certain

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> Example: ...
  def where(self, index: int) -> str: ...


class Checked:
  """Yields the examples of a source with checked pictures; collects notes, the split's identity and what it holds."""

  def __init__(self, source: Source, max_pixels: int):
    self.source, self._max_pixels = source, max_pixels
    self._remarks: collections.Counter[str] = collections.Counter()
    self._first: dict[str, str] = {}  # what the first picture of a remark is called
    self.counter = contents_lib.Counter(source.categories)
    self._digests: list[tuple[int, bytes]] = []

  def __len__(self) -> int:
    """Returns the number of examples that were yielded so far."""
    return len(self._digests)

  def examples(self, done: Callable[[], Any]) -> Iterator[Example]:
    """Yields all examples, with pictures checked in threads; raises DataError at the end if any picture is bad."""
    problems = Problems(counted(len(self.source), 'picture'))
    for example, problem, digest, remarks in _map_in_threads(self._load, range(len(self.source))):
      done()
      if problem:
        problems.add('picture', problem)
      elif not len(problems):
        self._digests.append((example.image_id, digest))
        self._remarks.update(remarks)
        for remark in remarks:
          self._first.setdefault(remark, self.source.where(len(self._digests) - 1))
        self.counter.add(example)
        yield example
    problems.raise_if_any()

  def _load(self, index: int) -> tuple[Example | None, str, bytes, tuple[str, ...]]:
    source = self.source
    try:
      example = source[index]
      image, remarks = pictures.stored(
        example,
        source.where(index),
        prefer_upright=lambda: source.upright,
        boxes_fit=example.image_id not in source.clipped,
        max_pixels=self._max_pixels,
      )
    except DataError as error:
      return None, str(error), b'', ()
    # Of the given bytes: those of a PNG made here may differ from one machine to another.
    digest = _digest(example, turned=pictures.TURNED in remarks)
    return dataclasses.replace(example, image=image), '', digest, remarks

  def notes(self) -> tuple[str, ...]:
    """Returns the notes of the source, and what was done to pictures so far."""
    return (*self.source.notes, *in_words(self._remarks, self._first))

  def identity(self) -> str:
    """Returns the sha256 of categories and examples, in order of image id; it is the same on every machine."""
    total = hashlib.sha256(json.dumps([dataclasses.asdict(c) for c in self.source.categories]).encode())
    for _, digest in sorted(self._digests):
      total.update(digest)
    return total.hexdigest()


def _digest(example: Example, *, turned: bool) -> bytes:
  o = example.objects
  total = hashlib.sha256(hashlib.sha256(example.image).digest())
  total.update(
    json.dumps(
      [
        example.image_id,
        example.height,
        example.width,
        list(example.neg_category_ids),
        list(example.not_exhaustive_category_ids),
        o.ids.tolist(),
        o.category_ids.tolist(),
        o.boxes.tolist(),
        o.areas.astype('float32').tolist(),
        o.is_crowd.tolist(),
        list(o.segmentations),
        *(['turned'] if turned else []),
      ],
      sort_keys=True,
    ).encode()
  )
  return total.digest()


def _map_in_threads(function: Callable, items: Iterable) -> Iterator:
  """Yields `function(item)` in order, computed on all cores; only a few results ahead, because pictures are large."""
  workers = os.cpu_count() or 1
  items = iter(items)
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    waiting = collections.deque(pool.submit(function, item) for item in itertools.islice(items, 4 * workers))
    while waiting:
      result = waiting.popleft().result()
      waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
      yield result
