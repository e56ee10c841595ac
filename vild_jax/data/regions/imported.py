"""Reads boxes and embeddings that were computed elsewhere, from .npz files, as the regions of a data set's pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from vild_jax.data.regions.records import Regions
from vild_jax.data.schema import DataError
from vild_jax.runtime import digests, progress, reading

_MARGIN = 1.0  # pixels that a box may exceed the picture by: its last pixel is included, or rounding
_MIN_SIDE = 2.0  # pixels; `targets` distils nothing smaller
_REQUIRED = ('image_ids', 'boxes', 'embeddings', 'teacher')


class ImportedRegions:
  """Reads one .npz file or a folder of them, one file in memory at a time.

  Each file holds the regions of K pictures, M rows for each:

    image_ids integer [K]; boxes [K, M, 4] yxyx in pixels of the original picture; embeddings [K, M, D], of any length;
    teacher, a text: identity of the text tower, or the NAME given to `embed-text --from-npy --teacher-id NAME`;
    optional: scores [K, M]; valid bool [K, M], False for rows to leave out; image_teacher, a text.

  Regions are ordered by their score, if there are scores.

  Attributes:
    path: as given.
    image_ids: the set of all image ids.
    teacher, image_teacher, embedding_dim: the same in all files.
    digest: hash of the files' content; it does not depend on their names.
  """

  def __init__(self, path: str | Path):
    """Reads and checks all files. Raises DataError: no files, wrong arrays, an image twice, or several teachers."""
    self.path = Path(path)
    files = [self.path] if self.path.is_file() else sorted(self.path.glob('*.npz'))
    if not files:
      raise DataError(f'{self.path} has no .npz file; expected a folder of them, or one')
    self._file_of: dict[int, Path] = {}
    facts, hashes = {}, []
    for file in files:
      hashes.append(digests.sha256(file))
      arrays = _read(file)
      found = (str(arrays['teacher']), str(arrays.get('image_teacher', '')), arrays['embeddings'].shape[2])
      first = facts.setdefault(found, file)
      if len(facts) > 1:
        other = next(iter(facts))
        raise DataError(
          f'{first} has teacher {found[0]!r} ({found[1]!r}) and dimension {found[2]}; expected '
          f'{other[0]!r} ({other[1]!r}) and {other[2]}, as {facts[other]} has'
        )
      for image_id in arrays['image_ids'].tolist():
        if image_id in self._file_of:
          raise DataError(f'{file}: image {image_id} is in {self._file_of[image_id]} too; expected each image once')
        self._file_of[image_id] = file
    ((self.teacher, self.image_teacher, self.embedding_dim),) = facts
    self.image_ids = set(self._file_of)
    self.digest = hashlib.sha256(''.join(sorted(hashes)).encode()).hexdigest()

  def read(self, sizes: Mapping[int, tuple[int, int]]) -> Iterator[tuple[int, Regions]]:
    """Yields (image id, regions, best first) of pictures in the order of the files, each of which is read once.

    Args:
      sizes: {image id: (height, width)} of the pictures, which must be among `image_ids`.

    Raises:
      DataError: the numbers of a picture are not usable, or its boxes are not in pixels of it: one exceeds the picture
        by more than a pixel, or all are smaller than two pixels, as boxes between 0 and 1 are.
    """
    wanted = sorted({self._file_of[image_id] for image_id in sizes})
    for file in progress.track(wanted, 'read', unit='file'):
      arrays = _read(file)
      for row, image_id in enumerate(arrays['image_ids'].tolist()):
        if image_id in sizes:
          yield image_id, _regions(arrays, row, *sizes[image_id], f'{file}: image {image_id}')


def _regions(arrays: Mapping[str, np.ndarray], row: int, height: int, width: int, where: str) -> Regions:
  kept = arrays['valid'][row] if 'valid' in arrays else np.ones(arrays['boxes'].shape[1], bool)
  boxes, rows = arrays['boxes'][row][kept].astype(np.float32), arrays['embeddings'][row][kept].astype(np.float64)
  scores = arrays['scores'][row][kept].astype(np.float32) if 'scores' in arrays else np.ones(len(boxes), np.float32)
  norms = np.linalg.norm(rows, axis=1)
  for key, wrong, expected in (
    (
      'boxes',
      ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1),
      'finite numbers y1 <= y2, x1 <= x2',
    ),
    ('scores', ~np.isfinite(scores), 'finite numbers'),
    ('embeddings', ~np.isfinite(norms) | (norms <= 1e-8), 'finite numbers, not all zero'),
  ):
    if wrong.any():
      raise DataError(f'{where}: {key} of region {np.flatnonzero(kept)[wrong][0]} are unusable; expected {expected}')
  sides, size = boxes[:, 2:] - boxes[:, :2], np.array([height, width], np.float32)
  beyond = (boxes[:, :2] < -_MARGIN).any(axis=1) | (boxes[:, 2:] > size + _MARGIN).any(axis=1)
  small = np.full(len(boxes), not (sides >= _MIN_SIDE).all(axis=1).any())
  for wrong, what in (
    (beyond, 'goes beyond the picture'),
    (small, 'has a side below 2 pixels, as all others in the picture'),
  ):
    if wrong.any():
      row = int(np.argmax(wrong))
      box = [round(float(v), 3) for v in boxes[row]]
      raise DataError(
        f'{where}: box {box} of region {np.flatnonzero(kept)[row]} {what} of {height} x '
        f'{width} pixels; expected y1, x1, y2, x2 in pixels of the original picture'
      )
  order = np.argsort(-scores, kind='stable')
  return Regions(boxes[order], scores[order], (rows / norms[:, None]).astype(np.float16)[order])


def _read(file: Path) -> dict[str, np.ndarray]:
  expected = f'a whole .npz file with the arrays {", ".join(_REQUIRED)}, without Python objects'
  arrays = reading.arrays(file, _REQUIRED, expected, optional=('scores', 'valid', 'image_teacher'), error=DataError)
  k, m, d = (*arrays['embeddings'].shape, 0, 0, 0)[:3]
  expected = {
    'embeddings': ('f', (k, m, d)),
    'image_ids': ('iu', (k,)),
    'boxes': ('fiu', (k, m, 4)),
    'scores': ('fiu', (k, m)),
    'valid': ('b', (k, m)),
    'teacher': ('U', ()),
    'image_teacher': ('U', ()),
  }
  for key, array in arrays.items():
    kinds, shape = expected[key]
    if array.dtype.kind not in kinds or array.shape != shape or (key == 'embeddings' and not d):
      kind = {'i': 'integers', 'f': 'floats', 'b': 'bool', 'U': 'text'}[kinds[0]]
      raise DataError(
        f'{file}: {key} is {array.dtype} {list(array.shape)}; expected {kind} '
        f'{list(shape) if key != "embeddings" else "[K, M, D]"}'
      )
  if not str(arrays['teacher']):
    raise DataError(f'{file}: teacher is empty; expected the identity of the text tower, or the NAME of --teacher-id')
  return arrays
