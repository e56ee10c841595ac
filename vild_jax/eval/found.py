"""Holds detections as columns, about 200 bytes each: as dictionaries the six million of LVIS would take 30 GB."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from vild_jax.eval.truth import Truth


@dataclass(frozen=True)
class Codes:
  """Holds N compressed run-length codes in one text: six million strings of their own would take three times as much.

  Attributes:
    text: ASCII.
    start, end: int64 [N], where each code begins and ends.
    areas: float64 [N], pixels of each mask; NaN for detections that have none among others that have one.
  """

  text: bytes
  start: np.ndarray
  end: np.ndarray
  areas: np.ndarray

  def __len__(self) -> int:
    return len(self.start)

  def __getitem__(self, rows: np.ndarray) -> Codes:
    return Codes(self.text, self.start[rows], self.end[rows], self.areas[rows])

  @property
  def absent(self) -> np.ndarray:
    """Tells which detections have no mask, bool [N]."""
    return np.isnan(self.areas)

  def strings(self) -> list[str]:
    """Returns the codes, '' for each that is absent."""
    return [self.text[a:b].decode('ascii') for a, b in zip(self.start.tolist(), self.end.tolist(), strict=True)]

  @classmethod
  def of(cls, strings: Sequence[str], areas: np.ndarray) -> Codes:
    """Joins codes of masks with these areas, NaN and '' for each that is absent."""
    end = np.cumsum([0, *map(len, strings)])
    return cls(''.join(strings).encode('ascii'), end[:-1], end[1:], np.asarray(areas, np.float64))

  @classmethod
  def joined(cls, parts: Sequence[Codes]) -> Codes:
    """Joins several of these."""
    offset = np.cumsum([0, *(len(part.text) for part in parts)])[:-1]
    shifted = lambda name: np.concatenate(
      [np.zeros(0, np.int64), *(getattr(part, name) + o for part, o in zip(parts, offset, strict=True))]
    )
    areas = np.concatenate([np.zeros(0), *(part.areas for part in parts)])
    return cls(b''.join(part.text for part in parts), shifted('start'), shifted('end'), areas)


@dataclass(frozen=True)
class Found:
  """Holds N detections as columns.

  Attributes:
    image: int32 [N], places in `truth.images`.
    category: int32 [N], places in `truth.categories`.
    score: float64 [N].
    boxes: float64 [N, 4] xywh, pixels; None if the detections have none.
    codes: run-length codes of their masks, of the size of the picture; None if no detection has one.
    ignored: detections of unknown pictures or categories that were left out.
    repeated: detections that stand more than once, with the same picture, category, box or mask, and score.
  """

  image: np.ndarray
  category: np.ndarray
  score: np.ndarray
  boxes: np.ndarray | None
  codes: Codes | None
  ignored: int = 0
  repeated: int = 0

  def __len__(self) -> int:
    return len(self.score)

  def take(self, rows: np.ndarray) -> Found:
    """Returns these rows, by bool [N] or by index, in their order."""
    columns = {key: getattr(self, key) for key in ('image', 'category', 'score', 'boxes', 'codes')}
    return dataclasses.replace(self, **{key: None if c is None else c[rows] for key, c in columns.items()})


def restricted(
  truth: Truth, found: Found, *, categories: Collection[int], images: Collection[int]
) -> tuple[Truth, Found]:
  """Returns the ground truth and the detections of these category ids in these picture ids."""
  part = truth.restricted(categories=categories, images=images)
  places = []
  for ids, kept in ((truth.image_ids, part.image_ids), (truth.category_ids, part.category_ids)):
    new = np.searchsorted(kept, ids)
    places.append(np.where(np.isin(ids, kept), new, -1).astype(np.int32))
  image, category = places[0][found.image], places[1][found.category]
  keep = (image >= 0) & (category >= 0)
  return part, dataclasses.replace(found.take(keep), image=image[keep], category=category[keep])
