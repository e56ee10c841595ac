"""Writes region stores, on a disk or in a bucket, with any number of processes and any number of interruptions."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from vild_jax.data.regions import locks, records
from vild_jax.data.regions.records import IMAGES_FILE, JOB_FILE, MANIFEST_FILE, Job, Regions, as_text, shard_name
from vild_jax.data.schema import DataError
from vild_jax.runtime import buckets, digests, files, progress, reading


class StoreWriter:
  """Writes a store, or continues an unfinished one; a context manager that holds the lock of this process's part.

  Process p of P writes the shards p, p + P, p + 2P, …; each process that finds all shards there writes the manifest:

    with StoreWriter(path, job) as writer:
      for shard in writer.missing():
        writer.write(shard, ((image_id, regions) for ... in job.examples(shard)))
      writer.finish()
  """

  def __init__(self, path: str | Path, job: Job, *, process_index: int = 0, process_count: int = 1):
    """Takes the lock. Raises DataError if the folder holds something else or another job, or is being written."""
    self.path, self.job = files.absolute(path), job
    self._part = range(process_index, job.shards, process_count)
    self._lock_file = locks.lock_file(self.path, process_index, process_count)
    if self.path.exists() and not self.path.is_dir():
      raise DataError(f'{self.path} is a file; expected a new folder, or that of an unfinished store')
    if not files.is_remote(self.path):
      self.path.mkdir(parents=True, exist_ok=True)
    with locks.folder_lock(self.path), contextlib.ExitStack() as held:
      self._claim_job()
      held.enter_context(locks.part_lock(self.path, process_index, process_count))
      self._sweep()
      self._held = held.pop_all()

  def __enter__(self) -> StoreWriter:
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def close(self) -> None:
    """Releases the lock."""
    self._held.close()

  def missing(self) -> list[int]:
    """Returns the shards of this process that are not there yet, or not as they were written; reads the others whole.

    A line on stderr names each that was damaged: it is not the file that its sidecar describes, or that the manifest
    lists, or is of another job.
    """
    listed, job = self._listed(), records.digest(self.job)
    missing, there, sizes = [], {}, files.sizes(self.path)
    for shard in self._part:
      found = _finished(self.path, self.job, shard, sizes)
      if found is None:
        missing.append(shard)
      else:
        there[shard] = found
    for shard in progress.track(there, 'check what is there', unit='shard'):
      path, expected = self.path / shard_name(shard, self.job), there[shard]['sha256']
      same_job = there[shard].get('job', job) == job
      if not same_job or listed.get(path.name, expected) != expected or digests.sha256(path) != expected:
        print(f'{path} is not as it was written, and is made anew', file=sys.stderr)
        missing.append(shard)
    return sorted(missing)

  def _listed(self) -> dict[str, str]:
    """{shard: SHA-256} of the manifest; empty if there is none yet, or it is damaged."""
    try:
      content = json.loads((self.path / MANIFEST_FILE).read_bytes())
      return {shard['file']: shard['sha256'] for shard in content['shards']}
    except (OSError, ValueError, KeyError, TypeError):
      return {}

  def write(self, shard: int, regions: Iterable[tuple[int, Regions]]) -> None:
    """Writes the regions of `job.examples(shard)`, in order, as (image id, regions).

    Raises DataError that names the image whose regions do not fit the job or are not finite; then nothing of the shard
    is left.
    """
    target = self.path / shard_name(shard, self.job)
    ids, counts, of_boxes = [], [], []
    with files.replacing(target) as temporary:
      writer = array_record_module.ArrayRecordWriter(str(temporary), 'group_size:1,uncompressed')
      try:
        for image_id, found in regions:
          records.check(found, self.job, f'image {image_id}')
          self._append(writer, records.encode(int(image_id), found))
          ids.append(int(image_id))
          counts.append(len(found.boxes))
          of_boxes.append(records.boxes_digest(int(image_id), found.boxes))
      finally:
        with contextlib.suppress(RuntimeError):  # the number of records is checked below
          writer.close()
      expected = len(self.job.examples(shard))
      if len(ids) != expected:
        raise DataError(f'{len(ids)} pictures for shard {shard} of {self.path}; expected {expected}')
      digest = digests.sha256(temporary)
      size = temporary.stat().st_size
      written = array_record_module.ArrayRecordReader(str(temporary))
      if written.num_records() != expected:
        raise OSError(f'{target} could not be written whole (is the disk full?)')
      written.close()
      _sidecar(target).unlink(missing_ok=True)  # left by a shard that was damaged later
    files.write(
      _sidecar(target),
      as_text(
        {
          'bytes': size,
          'sha256': digest,
          'job': records.digest(self.job),
          'image_ids': ids,
          'regions': counts,
          'boxes': of_boxes,
        }
      ),
    )

  def finish(self) -> bool:
    """Writes the manifest if the shards of all processes are there; returns whether the store is whole."""
    names = [shard_name(shard, self.job) for shard in range(self.job.shards)]
    if not {*names, *(_sidecar(self.path / name).name for name in names)} <= files.sizes(self.path).keys():
      return False  # without the lock, for which all processes but the last one would wait
    with locks.folder_lock(self.path), ThreadPoolExecutor(buckets.THREADS) as pool:
      sizes = files.sizes(self.path)
      shards = list(pool.map(lambda shard: _finished(self.path, self.job, shard, sizes), range(self.job.shards)))
      if any(shard is None for shard in shards):
        return False
      ids, counts, of_boxes = (
        list(itertools.chain.from_iterable(shard[key] for shard in shards)) for key in ('image_ids', 'regions', 'boxes')
      )
      if len(set(ids)) < len(ids):
        twice = next(key for key, count in collections.Counter(ids).items() if count > 1)
        raise DataError(f'image {twice} is in {self.path} twice; expected every picture once')
      images = io.BytesIO()
      np.save(images, np.stack([ids, counts], axis=1).astype(np.int64))
      manifest = as_text(
        {
          'job': self.job.as_json(),
          'regions': sum(counts),
          'images': hashlib.sha256(images.getvalue()).hexdigest(),
          'boxes': hashlib.sha256(''.join(of_boxes).encode()).hexdigest(),
          'shards': [
            {'file': shard_name(k, self.job), 'bytes': shard['bytes'], 'sha256': shard['sha256']}
            for k, shard in enumerate(shards)
          ],
        }
      )
      self._sweep()
      path = self.path / MANIFEST_FILE
      if not path.is_file() or path.read_text(encoding='utf-8') != manifest:
        files.write(self.path / IMAGES_FILE, images.getvalue())
        files.write(path, manifest)
    return True

  def _sweep(self) -> None:
    """Removes what killed runs left; needs both locks. Of shards only those of this part: others may be in progress.

    In a bucket they leave nothing but locks: a file is there when it is whole.
    """
    if files.is_remote(self.path):
      return
    held = locks.held_locks(self.path, self._lock_file)
    for lock in self.path.glob('.part-*.lock'):
      if lock != self._lock_file and lock not in held:
        lock.unlink(missing_ok=True)
    for temporary in self.path.glob('.*.tmp'):
      shard = re.match(r'\.shard-(\d+)-of-', temporary.name)
      if shard is None or int(shard[1]) in self._part:
        temporary.unlink(missing_ok=True)

  def _append(self, writer: Any, record: bytes) -> None:
    try:
      writer.write(record)
    except RuntimeError as error:
      raise OSError(f'{self.path} cannot be written: {str(error).splitlines()[0]}') from error

  def _claim_job(self) -> None:
    path, mine = self.path / JOB_FILE, as_text(self.job.as_json())
    if not path.is_file():
      there = files.sizes(self.path) if files.is_remote(self.path) else os.listdir(self.path)
      if others := sorted(n for n in there if not (n.startswith(f'.{JOB_FILE}.') or locks.is_lock(n))):
        raise DataError(
          f'{self.path} holds {others[0]} and no {JOB_FILE}; expected a new or empty folder, or a region store'
        )
      files.write(path, mine)
      return
    if (raw := path.read_text(encoding='utf-8')) == mine:
      return
    try:
      theirs = dict(reading.json_text(raw))
    except (ValueError, TypeError):
      raise DataError(f'{path} is damaged; expected what the store was begun with: delete the store') from None
    key, found, ours = _difference(theirs, json.loads(mine))
    names = [hashlib.sha256(text.encode()).hexdigest()[:12] for text in (raw, mine)]
    raise DataError(
      f'{self.path} belongs to another job ({names[0]}; this one is {names[1]}): {key} is '
      f'{_short(found)} there and {_short(ours)} here; expected the same, or a new folder'
    )


def _sidecar(shard: Path) -> Path:
  return shard.with_suffix('.json')


def _finished(path: Path, job: Job, shard: int, sizes: Mapping[str, int]) -> dict[str, Any] | None:
  """Returns the facts about a whole shard; None if it is not whole. `sizes` are those of all files in the folder."""
  file = path / shard_name(shard, job)
  if file.name not in sizes or _sidecar(file).name not in sizes:
    return None
  try:
    content = reading.json_text(_sidecar(file).read_bytes())
    lengths = {len(content[key]) for key in ('image_ids', 'regions', 'boxes')}
    whole = sizes[file.name] == content['bytes'] and lengths == {len(job.examples(shard))}
    return content if whole and content['sha256'] else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def _difference(theirs: Any, ours: Any, key: str = '') -> tuple[str, Any, Any]:
  """Returns the first value in which two JSON trees differ: its keys joined by dots, theirs and ours."""
  if isinstance(theirs, dict) and isinstance(ours, dict):
    for name in sorted(theirs.keys() | ours.keys()):
      if theirs.get(name) != ours.get(name):
        return _difference(theirs.get(name), ours.get(name), f'{key}.{name}' if key else name)
  return key or 'format', theirs, ours


def _short(value: Any) -> str:
  text = json.dumps(value, sort_keys=True)
  return text if len(text) <= 80 else text[:77] + '...'
