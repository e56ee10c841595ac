"""Region stores: the regions of every picture of a data set, fixed once, on disk: proposals, or their embeddings.

A store is a folder of ArrayRecord shards, each with the same number of pictures in the order of the data set, one
record a picture:

  job.json                      what is being made, written first: another job in the same folder is refused
  shard-00000-of-00004.array_record, .json
                                a shard, and once it is whole its image ids, counts, size and hashes
  images.npy                    int64 [images, 2]: image id and number of regions, in order
  manifest.json                 written last: the store is whole

Every file is written under another name and renamed, and none holds a time: interrupted anywhere and made by any number
of processes, a store ends at the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from vild_jax.data.schema import DataError

PROPOSALS, EMBEDDINGS = 'proposals', 'embeddings'
MANIFEST_FILE, JOB_FILE, IMAGES_FILE = 'manifest.json', 'job.json', 'images.npy'
FORMAT = 1
_HEADER = struct.Struct('<4sqII')  # magic, image id, number of regions, embedding dimension
_MAGIC = b'VRG1'


@dataclass(frozen=True)
class Regions:
  """The M regions of one picture, best first.

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
  """What a store is made of: all that decides its content.

  Attributes:
    kind: 'proposals' or 'embeddings'.
    dataset, split, images: identity, split and length of the prepared data set.
    max_regions: no picture has more.
    images_per_shard: pictures a shard.
    proposals: of embeddings: `boxes_identity` of the store whose regions are embedded.
    teacher, image_teacher: of embeddings: identities of the text tower, which vocabularies carry, and the image tower.
    embedding_dim: of embeddings: D.
    recipe: of embeddings: how a region becomes one, in values that JSON has.
    origin: of proposals: the checkpoint and the settings that they come from, in values that JSON has.
  """

  kind: str
  dataset: str
  split: str
  images: int
  max_regions: int
  images_per_shard: int = 256
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

  @property
  def shards(self) -> int:
    """How many shards there are."""
    return -(-self.images // self.images_per_shard)

  @property
  def max_bytes(self) -> int:
    """Size of the store if every picture has `max_regions` regions."""
    return self.images * (_HEADER.size + self.max_regions * (20 + 2 * self.embedding_dim))

  def examples(self, shard: int) -> range:
    """The examples of the data set whose pictures are in a shard."""
    return range(shard * self.images_per_shard, min((shard + 1) * self.images_per_shard, self.images))

  def as_json(self) -> dict[str, Any]:
    """As `job.json` has it."""
    return {'format': FORMAT, 'dtype': 'float16' if self.embedding_dim else '', **dataclasses.asdict(self)}


def shard_name(shard: int, job: Job) -> str:
  """The file of a shard."""
  return f'shard-{shard:05d}-of-{job.shards:05d}.array_record'


def as_text(tree: dict[str, Any]) -> str:
  """JSON in which equal content has equal bytes."""
  return json.dumps(tree, indent=1, sort_keys=True) + '\n'


# --- records --------------------------------------------------------------------------------------------------------


def check(regions: Regions, job: Job, where: str) -> None:
  """Raises DataError, which begins with `where`, unless the regions of a picture are what the job says, and finite."""
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
    if not np.isfinite(values).all():
      row = int(np.argwhere(~np.isfinite(values))[0][0])
      raise DataError(f'{where}: {key} of region {row} are not finite; expected numbers')
  if np.any(np.diff(regions.scores) > 0):
    raise DataError(
      f'{where}: scores ascend at region {int(np.argmax(np.diff(regions.scores) > 0)) + 1}; expected the '
      'best region first'
    )


def encode(image_id: int, regions: Regions) -> bytes:
  """One record, little-endian; of the regions of a picture there is one only."""
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
  """(image id, regions) of a record. Raises DataError, which begins with `where`, if it is none."""
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
  """Hash of a picture's boxes; `boxes_identity` of a store is the hash of all of these, however it is sharded."""
  return hashlib.sha256(struct.pack('<qI', image_id, len(boxes)) + boxes.astype('<f4').tobytes()).hexdigest()
