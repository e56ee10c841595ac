"""Reads results JSON into columns, large files in several processes; `rows` makes and checks the columns."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data import smells
from vild_jax.data.schema import DataError
from vild_jax.eval import counted, jsonfile, rows
from vild_jax.eval.found import Codes, Found
from vild_jax.eval.jsonfile import Span
from vild_jax.eval.rows import Known, Part
from vild_jax.eval.truth import Truth
from vild_jax.runtime import workers

_LARGE = 64 * 2**20  # bytes of a file from which on starting processes pays
_PROCESSES = 4  # at most; then joining their columns takes as long as they do
_SHOWN = 5  # unknown ids that a message names


def read(
  source: Sequence[dict[str, Any]] | str | Path,
  truth: Truth,
  *,
  ignore_unknown: bool = False,
  classless: bool = False,
  part: int = jsonfile.PART,
  processes: int = 1,
) -> Found:
  """Reads and checks results.

  Args:
    source: a results file, or a list of results as in one.
    truth: the ground truth that they belong to.
    ignore_unknown: leave out detections of pictures or categories that the ground truth lacks, rather than refuse.
    classless: take every detection for one of the first category; proposals have no class, or one of their own.
    part: bytes that are read at a time.
    processes: that read, each started as a program of its own; 0: one for each core if the file is large.

  Raises:
    DataError: names the first detection that cannot be scored and the reason; or the first one without a mask that
      some protocol could count, if others have one (`counted`); or how many are of unknown pictures or categories, and
      the first of these.
  """
  from_file = isinstance(source, str | Path)
  known = Known.of(truth, str(source) if from_file else 'results', classless=classless)
  parts: list[Part] = []
  if not from_file:
    parts.append(rows.from_plain(source, known, 0))
  else:
    if not processes:
      large = Path(source).is_file() and Path(source).stat().st_size > _LARGE
      processes = min(_PROCESSES, os.cpu_count() or 1) if large else 1
    _read_file(source, known, parts, part, processes)
  return _joined(parts, known, truth, ignore_unknown)


def _read_file(path: str | Path, known: Known, parts: list[Part], size: int, processes: int) -> None:
  """Appends the parts of a file."""
  count, unread = 0, None
  for span, done in _decoded(jsonfile.spans(path, rows.EXPECTED, size=size), known, processes):
    if unread:
      span = unread.joined(span)
      done = _decode(span, known)
    if done is None:
      text = span.text()
      try:
        plain = jsonfile.parsed(text, path, rows.EXPECTED)
      except DataError:
        if span.stop is None or len(text) > 8 * max(size, jsonfile.PART):  # no detection is that long
          raise
        unread = span
        continue
      done = rows.from_plain(plain, known, count, parts[0].boxes is not None if parts else None)
    unread = None
    if not len(done.score):
      continue
    if parts and (done.boxes is None) != (parts[0].boxes is None):
      raise DataError(rows.half(known.name, count if done.boxes is None else 0))
    parts.append(done)
    count += len(done.score)


def _decoded(spans: Iterator[Span], known: Known, processes: int) -> Iterator[tuple[Span, Part | None]]:
  """Yields each span and what `rows.from_text` makes of it, in order."""
  if processes == 1:
    for span in spans:
      yield span, _decode(span, known)
    return
  # Not threads, since decoding holds the interpreter's lock.
  with workers.pool(processes, _start, known) as pool:
    waiting: deque[tuple[Span, Any]] = deque()
    for span in spans:
      waiting.append((span, pool.submit(_decode, span)))
      if len(waiting) > 4 * processes:
        first, done = waiting.popleft()
        yield first, done.result()
    for first, done in waiting:
      yield first, done.result()


_KNOWN: list[Known] = []  # in a process of `_decoded`: what it was started with


def _start(known: Known) -> None:
  _KNOWN[:] = [known]


def _decode(span: Span, known: Known | None = None) -> Part | None:
  return rows.from_text(span.text(), known or _KNOWN[0])


def _joined(parts: list[Part], known: Known, truth: Truth, ignore_unknown: bool) -> Found:
  """The detections of all parts, without those of unknown pictures and categories."""
  total = sum(len(part.score) for part in parts)
  for key, what, ids in (
    ('image_id', 'pictures', known.image_ids),
    ('category_id', 'categories', known.category_ids),
  ):
    strange = np.concatenate([np.zeros(0, np.int64), *(part.ids[key] for part in parts)])
    if len(strange) and not ignore_unknown:
      first = list(dict.fromkeys(strange.tolist()))[:_SHOWN]
      raise DataError(
        f'{known.name}: {len(strange)} of {total} detections are of {what} that the ground truth lacks ({key} '
        f'{", ".join(map(str, first))}); expected ids among its {len(ids)}, or --ignore-unknown to leave such '
        'detections out'
      )
  parts = [part for part in parts if len(part.score)]  # an empty file has none: nothing was found
  column = lambda name, empty: np.concatenate([empty, *(getattr(part, name) for part in parts)])
  found = Found(
    column('image', np.zeros(0, np.int32)),
    column('category', np.zeros(0, np.int32)),
    column('score', np.zeros(0)),
    None if parts and parts[0].boxes is None else column('boxes', np.zeros((0, 4))),
    None if parts and all(part.codes is None for part in parts) else _codes(parts),
  )
  there = np.flatnonzero((found.image >= 0) & (found.category >= 0))
  if len(there) < len(found):
    found = dataclasses.replace(found.take(there), ignored=len(found) - len(there))
  # Proposals have no category by which to judge, and their masks are not used.
  if found.codes is not None and known.category_ids is not None and len(lack := counted.without_mask(truth, found)):
    raise DataError(
      f"{known.name}, detection {there[lack[0]]}: no 'segmentation'; expected one for every detection that can count, "
      'or for none'
    )
  _refuse_corners(found, truth.sizes, known.name)
  return dataclasses.replace(found, repeated=_repeated(found))


def _codes(parts: list[Part]) -> Codes:
  none = lambda part: Codes.of([''] * len(part.score), np.full(len(part.score), np.nan))
  return Codes.joined([none(part) if part.codes is None else part.codes for part in parts])


def _refuse_corners(found: Found, sizes: list[tuple[int, int]], name: str) -> None:
  """Raises DataError for boxes that are x1 y1 x2 y2."""
  if found.boxes is None:
    return
  limits = np.array(sizes, np.float64).reshape(-1, 2)[found.image][:, ::-1]
  if leaving := smells.share_of_corners(found.boxes, limits):
    raise DataError(
      f'{name}: the boxes look like [x1, y1, x2, y2] ({100 * leaving:.0f} % of them would leave their picture); '
      'expected [x, y, width, height]'
    )


def _repeated(found: Found) -> int:
  """Returns how many detections are copies of another one."""
  # A number for each picture, category and score, of which only equal ones need a closer look.
  pair = found.image.astype(np.uint64) * np.uint64(2**32) + found.category.astype(np.uint64)
  mixed = pair * np.uint64(0x9E3779B97F4A7C15) ^ found.score.view(np.uint64)
  ordered = np.sort(mixed)
  twice = ordered[1:][ordered[1:] == ordered[:-1]]
  if not len(twice):
    return 0
  seen: set[tuple] = set()
  chosen = np.flatnonzero(np.isin(mixed, twice))
  part = found.take(chosen)
  values = part.boxes.tolist() if part.boxes is not None else part.codes.strings()
  for image, category, score, value in zip(part.image, part.category, part.score, values, strict=True):
    seen.add((int(image), int(category), float(score), tuple(value)))
  return len(chosen) - len(seen)
