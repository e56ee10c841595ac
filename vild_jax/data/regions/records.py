"""Defines region stores: for every picture of a data set, proposals or their embeddings, computed once, on disk.

A store is a folder of ArrayRecord shards. Each shard has the same number of pictures, in the order of the data set, and
one record per picture:

  job.json                      what is being made; written first, so that another job in the same folder is refused
  shard-00000-of-00004.array_record, .json
                                a shard, and, once it is whole, its image ids, counts, size and hashes
  images.npy                    int64 [images, 2]: image id and number of regions, in order
  manifest.json                 written last: the store is whole

Every file is written under another name and then renamed, and no file contains a time: a store has the same bytes
whether or not it was interrupted, and for any number of processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import typing
from dataclasses import dataclass
from typing import Any

import numpy as np

from vild_jax.config import defaults
from vild_jax.data.schema import DataError
from vild_jax.runtime.messages import shown

PROPOSALS, EMBEDDINGS = 'proposals', 'embeddings'
MANIFEST_FILE, JOB_FILE, IMAGES_FILE = 'manifest.json', 'job.json', 'images.npy'
FORMAT = 1
_HEADER = struct.Struct('<4sqII')  # magic, image id, number of regions, embedding dimension
_MAGIC = b'VRG1'


@dataclass(frozen=True)
class Regions:
  """Holds the M regions of one picture, best first.

  Attributes:
    boxes: float32 [M, 4] yxyx, absolute pixels of the original picture.
    scores: float32 [M], descending.
    embeddings: float16 [M, D]; None in a store of proposals.
  """

  boxes: np.ndarray
  scores: np.ndarray
  embeddings: np.ndarray | None = None


@dataclass(frozen=True)
class Job:
  """Describes what a store is made from: everything that decides its content.

  Attributes:
    kind: 'proposals' or 'embeddings'.
    dataset, split, images: identity, split and length of the prepared data set.
    max_regions: the largest number of regions of a picture.
    images_per_shard: pictures per shard.
    proposals: for embeddings, the `boxes_identity` of the store whose regions are embedded.
    teacher, image_teacher: for embeddings, the identities of the text tower, which vocabularies also have, and of the
      image tower.
    embedding_dim: for embeddings, D.
    recipe: for embeddings, how a region is embedded, in JSON values.
    origin: for proposals, the checkpoint and the settings that made them, in JSON values.
  """

  kind: str
  dataset: str
  split: str
  images: int
  max_regions: int
  images_per_shard: int = defaults.PROPOSAL_IMAGES_PER_SHARD
  proposals: str = ''
  teacher: str = ''
  image_teacher: str = ''
  embedding_dim: int = 0
  recipe: dict[str, Any] = dataclasses.field(default_factory=dict)
  origin: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.kind not in (PROPOSALS, EMBEDDINGS) or (self.kind == EMBEDDINGS) != (self.embedding_dim > 0):
      raise DataError(
        f'a store of {self.kind!r} with {self.embedding_dim} dimensions; expected {PROPOSALS!r} with 0, '
        f'or {EMBEDDINGS!r} with more'
      )
    for key in ('images', 'max_regions', 'images_per_shard'):
      if getattr(self, key) < 1:
        raise DataError(f'a region store with {key} = {getattr(self, key)}; expected at least 1')

  @classmethod
  def from_json(cls, tree: dict[str, Any]) -> Job:
    """Returns the job of `as_json`. Raises ValueError, without the name of the file, for anything else."""
    given = {key: value for key, value in dict(tree).items() if key not in ('format', 'dtype')}
    if tree['format'] != FORMAT:
      raise ValueError(f'format {shown(tree["format"])}; expected {FORMAT}')
    kinds = typing.get_type_hints(cls)
    for key, value in given.items():
      kind = typing.get_origin(kinds[key]) or kinds[key]
      if type(value) is not kind or (kind is int and value >= 2**40):
        raise ValueError(f'{key} is {shown(value)}; expected {kind.__name__}')
    return cls(**given)

  @property
  def shards(self) -> int:
    """Returns the number of shards."""
    return -(-self.images // self.images_per_shard)

  @property
  def max_bytes(self) -> int:
    """Returns the size of all records, in bytes, if every picture has `max_regions` regions."""
    return self.images * (_HEADER.size + self.max_regions * (20 + 2 * self.embedding_dim))

  def examples(self, shard: int) -> range:
    """Returns the indices of the examples whose pictures are in a shard."""
    return range(shard * self.images_per_shard, min((shard + 1) * self.images_per_shard, self.images))

  def as_json(self) -> dict[str, Any]:
    """Returns the content of `job.json`."""
    return {'format': FORMAT, 'dtype': 'float16' if self.embedding_dim else '', **dataclasses.asdict(self)}


def shard_name(shard: int, job: Job) -> str:
  """Returns the file name of a shard."""
  return f'shard-{shard:05d}-of-{job.shards:05d}.array_record'


def as_text(tree: dict[str, Any]) -> str:
  """Turns a tree into JSON; equal content gives equal bytes."""
  return json.dumps(tree, indent=1, sort_keys=True) + '\n'


def digest(job: Job) -> str:
  """Returns the hash of `job.json`, which sidecars of shards keep."""
  return hashlib.sha256(as_text(job.as_json()).encode()).hexdigest()


# --- records --------------------------------------------------------------------------------------------------------


def check(regions: Regions, job: Job, where: str) -> None:
  """Raises DataError, which begins with `where`, unless the regions of a picture fit the job and are finite."""
  count = len(regions.boxes)
  expected = {'boxes': ((count, 4), np.float32), 'scores': ((count,), np.float32)}
  if job.embedding_dim:
    expected['embeddings'] = ((count, job.embedding_dim), np.float16)
  elif regions.embeddings is not None:
    raise DataError(f'{where}: embeddings in a store of {job.kind}; expected boxes and scores alone')
  if count > job.max_regions:
    raise DataError(f'{where}: {count} regions; expected at most {job.max_regions}')
  for key, (shape, dtype) in expected.items():
    values = getattr(regions, key)
    if not isinstance(values, np.ndarray) or values.shape != shape or values.dtype != dtype:
      found = f'{values.dtype} {list(values.shape)}' if isinstance(values, np.ndarray) else type(values).__name__
      raise DataError(f'{where}: {key} are {found}; expected {np.dtype(dtype).name} {list(shape)}')
    if not _all_finite(values):
      row = int(np.argwhere(~np.isfinite(values))[0][0])
      raise DataError(f'{where}: {key} of region {row} are not finite; expected numbers')
  if np.any(np.diff(regions.scores) > 0):
    raise DataError(
      f'{where}: scores ascend at region {int(np.argmax(np.diff(regions.scores) > 0)) + 1}; expected the '
      'best region first'
    )


def _all_finite(values: np.ndarray) -> bool:
  if values.dtype == np.float16:  # ten times as fast as NumPy's `isfinite` of this type
    return bool((values.view(np.uint16) & 0x7C00 != 0x7C00).all())
  return bool(np.isfinite(values).all())


def encode(image_id: int, regions: Regions) -> bytes:
  """Encodes the regions of a picture as a record, little-endian; equal regions give equal bytes."""
  dim = 0 if regions.embeddings is None else regions.embeddings.shape[1]
  parts = [
    _HEADER.pack(_MAGIC, image_id, len(regions.boxes), dim),
    regions.boxes.astype('<f4').tobytes(),
    regions.scores.astype('<f4').tobytes(),
  ]
  if dim:
    parts.append(regions.embeddings.astype('<f2').tobytes())
  return b''.join(parts)


def decode(record: bytes, where: str) -> tuple[int, Regions]:
  """Decodes a record to (image id, regions). Raises DataError, which begins with `where`, if it is not a record."""
  magic, image_id, count, dim = _HEADER.unpack_from(record) if len(record) >= _HEADER.size else (b'', 0, 0, 0)
  size = _HEADER.size + count * (20 + 2 * dim)
  if magic != _MAGIC or len(record) != size:
    raise DataError(f'{where}: a record of {len(record)} bytes; expected regions of one picture')
  boxes = np.frombuffer(record, '<f4', 4 * count, _HEADER.size).reshape(count, 4)
  scores = np.frombuffer(record, '<f4', count, _HEADER.size + 16 * count)
  embeddings = np.frombuffer(record, '<f2', dim * count, _HEADER.size + 20 * count).reshape(count, dim)
  return image_id, Regions(
    boxes.astype(np.float32), scores.astype(np.float32), embeddings.astype(np.float16) if dim else None
  )


def boxes_digest(image_id: int, boxes: np.ndarray) -> str:
  """Returns the hash of a picture's boxes; `boxes_identity` of a store is the hash of these, whatever its shards."""
  return hashlib.sha256(struct.pack('<qI', image_id, len(boxes)) + boxes.astype('<f4').tobytes()).hexdigest()
