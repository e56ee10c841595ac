"""Reads region stores; `records` says what they are, `writer` makes them."""

from __future__ import annotations

import collections
import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from vild_jax.data.regions import locks, records
from vild_jax.data.regions.records import IMAGES_FILE, JOB_FILE, MANIFEST_FILE, Job, Regions
from vild_jax.data.schema import DataError
from vild_jax.runtime import files, reading

_OPEN_SHARDS = 128  # at most: a process may keep only few files open, and a large data set has many shards
_ANEW = 'copy it again, or delete the store and make it anew'


class RegionStore:
  """Reads a whole store: `store[image_id] -> Regions`.

  Shards are opened on first use, once in each process, so that a store can be pickled for Grain's workers; threads may
  share it. Records are read one by one: in memory a store takes 32 bytes per picture, for ids and their order.

  Attributes:
    path: the folder.
    kind: 'proposals' or 'embeddings'.
    dataset, split: identity and split of the data set that it belongs to.
    images: number of pictures.
    regions: number of regions of all pictures together.
    boxes_identity: hash of all boxes and image ids in order; equal for two stores with the same regions.
    proposals: for embeddings, `boxes_identity` of the proposals that were embedded.
    teacher, image_teacher, embedding_dim, recipe, origin, max_regions: see `Job`.
    image_ids: int64 [images], in the order of the data set.
    size: bytes of all shards.
    identity: hash of the manifest, and so of the whole content.
  """

  def __init__(self, path: str | Path):
    """Opens a store. Raises DataError if there is none, it is not whole (yet), or its files do not fit the manifest."""
    self.path = files.local(path).absolute()
    manifest = _read_manifest(self.path)
    self.identity: str = hashlib.sha256(manifest).hexdigest()
    expected = 'the manifest of a region store'
    with reading.parsing(self.path / MANIFEST_FILE, expected, error=DataError, problem='is damaged'):
      content = reading.json_text(manifest)
      self.job = job = Job.from_json(content['job'])
      self.boxes_identity: str = str(content['boxes'])
      self.regions: int = int(content['regions'])
      self._shards = [(str(shard['file']), int(shard['bytes'])) for shard in content['shards']]
      self._digests = [str(shard['sha256']) for shard in content['shards']]
      if len(self._shards) != job.shards or any(
        name != records.shard_name(number, job) for number, (name, _) in enumerate(self._shards)
      ):
        raise ValueError(f'the files of {len(self._shards)} shards; expected {job.shards}, by their numbers')
      images_hash = str(content['images'])
    self.kind, self.dataset, self.split, self.images = job.kind, job.dataset, job.split, job.images
    self.teacher, self.image_teacher, self.embedding_dim = job.teacher, job.image_teacher, job.embedding_dim
    self.recipe, self.origin, self.proposals, self.max_regions = job.recipe, job.origin, job.proposals, job.max_regions
    self.size = sum(size for _, size in self._shards)
    self._check_job(content['job'])
    for name, size in self._shards:
      found = (self.path / name).stat().st_size if (self.path / name).is_file() else None
      if found != size:
        raise DataError(
          f'{self.path / name} {"is missing" if found is None else f"has {found} bytes"}; expected the '
          f'{size} bytes that the manifest of the store says: {_ANEW}'
        )
    self._read_images(images_hash)
    self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._lock = threading.Lock()

  def _check_job(self, job: Any) -> None:
    """Raises DataError if the manifest has another job than job.json, if that is there: one of them is damaged."""
    path = self.path / JOB_FILE
    if path.is_file() and path.read_bytes() != records.as_text(job).encode():
      raise DataError(f'{path} and the job in {MANIFEST_FILE} differ; expected the same: {_ANEW}')

  def shards(self) -> list[tuple[Path, str]]:
    """Returns path and SHA-256 of each shard, as the manifest says."""
    return [(self.path / name, digest) for (name, _), digest in zip(self._shards, self._digests, strict=True)]

  def _read_images(self, expected: str) -> None:
    try:
      raw = (self.path / IMAGES_FILE).read_bytes()
    except OSError:
      raw = b''
    if hashlib.sha256(raw).hexdigest() != expected:
      raise DataError(
        f'{self.path / IMAGES_FILE} is missing or damaged; expected what the manifest of the store says: ' + _ANEW
      )
    listed = reading.array(self.path / IMAGES_FILE, expected := f'the ids of {self.images} pictures', error=DataError)
    if listed.shape != (self.images, 2) or listed.dtype != np.int64:
      raise DataError(f'{self.path / IMAGES_FILE} holds {listed.dtype} {listed.shape}; expected {expected}')
    if listed[:, 1].sum() != self.regions:
      raise DataError(
        f'{self.path / MANIFEST_FILE} is damaged: it says {self.regions} regions, {IMAGES_FILE} {listed[:, 1].sum()}; '
        f'expected the same: {_ANEW}'
      )
    self.image_ids: np.ndarray = listed[:, 0]
    self._order = np.argsort(self.image_ids)
    self._sorted = self.image_ids[self._order]

  def __len__(self) -> int:
    return self.images

  def __contains__(self, image_id: int) -> bool:
    return self._find(image_id) is not None

  def __getitem__(self, image_id: int) -> Regions:
    """Returns the regions of a picture. Raises DataError if the store does not have the picture, or it is damaged."""
    index = self._find(image_id)
    if index is None:
      raise DataError(f'{self.path} has no image {image_id}; expected regions of every picture of the data set')
    shard, position = divmod(index, self.job.images_per_shard)
    where = f'{self.path / self._shards[shard][0]}: image {image_id}'
    try:
      record = self._reader(shard).read([position])[0]
    except (RuntimeError, IndexError) as error:  # ArrayRecord raises these if a checksum is wrong
      raise DataError(
        f'{where} cannot be read ({str(error).splitlines()[0][:80]}); expected the file as it was written: {_ANEW}'
      ) from None
    found, regions = records.decode(record, where)
    if found != image_id:
      raise DataError(f'{where} is image {found}; expected the shards in the order of {IMAGES_FILE}')
    records.check(regions, self.job, where)
    return regions

  def __repr__(self) -> str:  # Grain prints it; the default repr changes from run to run
    return f'RegionStore({self.path.name!r}, kind={self.kind!r}, identity={self.identity[:12]!r})'

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_readers': None, '_lock': None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state, _readers=collections.OrderedDict(), _lock=threading.Lock())

  def _find(self, image_id: int) -> int | None:
    place = int(np.searchsorted(self._sorted, image_id))
    return int(self._order[place]) if place < len(self._sorted) and self._sorted[place] == image_id else None

  def _reader(self, shard: int) -> Any:
    with self._lock:
      if shard not in self._readers:
        self._readers[shard] = array_record_module.ArrayRecordReader(
          str(self.path / self._shards[shard][0]),
          options='readahead_buffer_size:0,max_parallelism:0',
          file_reader_buffer_size=32768,
        )
        if len(self._readers) > _OPEN_SHARDS:
          self._readers.popitem(last=False)  # closed when the last thread has read from it
      self._readers.move_to_end(shard)
      return self._readers[shard]


def summary(path: str | Path) -> dict[str, Any]:
  """Returns what the manifest of a store says, which may be in a bucket. Raises OSError if it cannot be read.

  The keys `images`, `teacher`, `identity`, `boxes_identity`, `regions` and `size` mean what the attributes of
  `RegionStore` do.
  """
  manifest = (files.path(path) / MANIFEST_FILE).read_bytes()
  content = reading.json_text(manifest)
  return {
    'images': content['job']['images'],
    'teacher': content['job']['teacher'],
    'identity': hashlib.sha256(manifest).hexdigest(),
    'boxes_identity': content['boxes'],
    'regions': content['regions'],
    'size': sum(shard['bytes'] for shard in content['shards']),
  }


def _read_manifest(path: Path) -> bytes:
  if (path / MANIFEST_FILE).is_file():
    return (path / MANIFEST_FILE).read_bytes()
  if not (path / JOB_FILE).is_file():
    raise DataError(f'{path} is not a region store; expected a folder that vild-jax propose or embed-regions wrote')
  shards = len(list(path.glob('shard-*.json')))
  if locks.held_locks(path):
    raise DataError(
      f'{path} is being written by another process ({shards} shards so far); expected a store that '
      'is whole: wait for it'
    )
  raise DataError(
    f'{path} is not whole: writing it was interrupted ({shards} shards are there); expected a whole '
    'store: repeat the command that writes it, which goes on from there'
  )
