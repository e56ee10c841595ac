"""Reads, writes and checks vocabulary files: the classes of a detector as text embeddings (docs/method.md, 1 and 5).

A vocabulary is data, never weights. `V.npz` holds `embeddings` float32 [C, D] with unit rows, `names` [C], `is_base`
bool [C], `teacher` (identity of the text tower) and `prompts` (what was embedded); it may hold `background` float32
[D]. `sha256` is a hash of all these, which files of older versions lack. Reading it never unpickles.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vild_jax import structs
from vild_jax.config import Config
from vild_jax.runtime import files, reading

MOST_CLASSES = 2**20  # of a file; each is a text of Python's
UNIT_TOLERANCE = 1e-3  # the norm of rows stored as float16 differs from 1 by up to about 5e-4
_PRECOMPUTED = 'precomputed'  # the start of `prompts` in a vocabulary made by `from_npy`


@dataclass(frozen=True)
class VocabularyFile:
  """Holds the contents of a vocabulary file.

  Attributes:
    embeddings: float32 [C, D], unit rows.
    names: C distinct class names, as the user gave them.
    is_base: bool [C], True for the classes whose annotations training may see.
    teacher: identity of the text tower; a model refuses a vocabulary of another tower.
    prompts: which templates were embedded; information for people.
    background: float32 [D] of unit length, what stands for the background in place of the model's learnt row; None:
      the learnt one.

  Raises:
    ValueError: if the fields do not agree; the message names the field.
  """

  embeddings: np.ndarray
  names: tuple[str, ...]
  is_base: np.ndarray
  teacher: str
  prompts: str
  background: np.ndarray | None = None

  def __post_init__(self):
    rows, flags = np.asarray(self.embeddings), np.asarray(self.is_base)
    _require(rows.ndim == 2 and rows.dtype.kind == 'f', 'embeddings', f'{rows.dtype} {rows.shape}', 'float32 [C, D]')
    _require(rows.size > 0, 'embeddings', rows.shape, 'at least one class')
    _require(
      bool(np.isfinite(rows).all()), 'embeddings', f'not finite in {_rows(~np.isfinite(rows).all(1))}', 'finite numbers'
    )
    off = np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1) > UNIT_TOLERANCE
    _require(not off.any(), 'embeddings', f'not of unit length in {_rows(off)}', 'unit rows')
    _require(len(self.names) == len(rows), 'names', f'{len(self.names)} names', f'{len(rows)}, one a row of embeddings')
    _require(all(name.strip() for name in self.names), 'names', 'an empty name', 'a name for each class')
    twice = [name for name, count in Counter(self.names).items() if count > 1]
    _require(not twice, 'names', f'{twice[:1]} more than once', 'distinct names')
    _require(
      flags.dtype == np.bool_ and flags.shape == (len(rows),),
      'is_base',
      f'{flags.dtype} {flags.shape}',
      f'bool ({len(rows)},)',
    )
    _require(bool(self.teacher), 'teacher', 'empty', 'the identity of a text tower')
    if self.background is not None:
      row, expected = np.asarray(self.background), f'float32 ({rows.shape[1]},)'
      _require(
        row.dtype.kind == 'f' and row.shape == rows.shape[1:], 'background', f'{row.dtype} {row.shape}', expected
      )
      _require(bool(np.isfinite(row).all()), 'background', 'not finite', 'finite numbers')
      length = float(np.linalg.norm(row.astype(np.float64)))
      _require(abs(length - 1) <= UNIT_TOLERANCE, 'background', f'of length {length:.4g}', 'unit length')
      object.__setattr__(self, 'background', row.astype(np.float32))
    object.__setattr__(self, 'embeddings', rows.astype(np.float32))
    object.__setattr__(self, 'is_base', flags)
    object.__setattr__(self, 'names', tuple(self.names))


def save(path: str | Path, vocabulary: VocabularyFile) -> None:
  """Writes a vocabulary file; an older file at `path` is replaced only when the new one is complete."""
  with files.replacing(path) as temporary, open(temporary, 'wb') as f:
    np.savez(
      f,
      sha256=np.array(digest(vocabulary)),  # first: damage can hide the last ones of an archive
      embeddings=vocabulary.embeddings,
      names=np.array(vocabulary.names),
      is_base=vocabulary.is_base,
      teacher=np.array(vocabulary.teacher),
      prompts=np.array(vocabulary.prompts),
      **({} if vocabulary.background is None else {'background': vocabulary.background}),
    )


def digest(vocabulary: VocabularyFile) -> str:
  """Returns a hash of all fields of a vocabulary."""
  # As a file holds them: names of an array are `np.str_`, whose repr is another.
  texts = tuple(map(str, vocabulary.names)), str(vocabulary.teacher), str(vocabulary.prompts)
  words = (texts[0], vocabulary.is_base.tolist(), *texts[1:])
  found = hashlib.sha256(repr((words, vocabulary.embeddings.shape)).encode())
  found.update(np.ascontiguousarray(vocabulary.embeddings).tobytes())
  if vocabulary.background is not None:
    found.update(np.ascontiguousarray(vocabulary.background).tobytes())
  return found.hexdigest()


def load(path: str | Path) -> VocabularyFile:
  """Reads a vocabulary file.

  Raises:
    ValueError: if the file cannot be used; one line that names the file and the field.
  """
  path = files.path(path)
  if not path.is_file():
    raise ValueError(f'{path} is not a file; expected a vocabulary as `vild-jax embed-text` writes it')
  expected = 'a vocabulary as `vild-jax embed-text` writes it'
  fields = reading.arrays(
    files.fetched(path),
    ('embeddings', 'names', 'is_base', 'teacher', 'prompts'),
    expected,
    optional=('background', 'sha256'),
  )
  stated = fields.get('sha256')
  with reading.parsing(path, expected, problem='is not a usable vocabulary'):
    for key, rank in (('names', 1), ('teacher', 0), ('prompts', 0)):
      found = fields[key]
      _require(
        found.dtype.kind == 'U' and found.ndim == rank,
        key,
        f'{found.dtype} {found.shape}',
        'text' if rank == 0 else 'text [C]',
      )
    _require(
      fields['names'].size <= MOST_CLASSES, 'names', f'{fields["names"].size:,} names', f'at most {MOST_CLASSES:,}'
    )
    found = VocabularyFile(
      fields['embeddings'],
      tuple(fields['names'].tolist()),
      fields['is_base'],
      str(fields['teacher']),
      str(fields['prompts']),
      fields.get('background'),
    )
    _require(
      stated is None or str(stated) == digest(found), 'sha256', str(stated)[:12], f'{digest(found)[:12]}: it is damaged'
    )
  return found


def to_struct(vocabulary: VocabularyFile, pad_to: int | None = None) -> structs.Vocabulary:
  """Returns the vocabulary as an argument of a forward pass, padded to `pad_to` rows (None: not padded).

  Padding rows are zero, not base and not valid. Raises ValueError if there are more than `pad_to` classes.
  """
  count = len(vocabulary.names)
  size = count if pad_to is None else pad_to
  if size < count:
    raise ValueError(f'the vocabulary has {count} classes; expected at most {size}, the padded size')
  padding = size - count
  return structs.Vocabulary(
    embeddings=np.pad(vocabulary.embeddings, ((0, padding), (0, 0))),
    is_base=np.pad(vocabulary.is_base, (0, padding)),
    valid=np.arange(size) < count,
    background=vocabulary.background,
  )


def from_npy(path: str | Path, names: Sequence[str], teacher_id: str, is_base: np.ndarray) -> VocabularyFile:
  """Makes a vocabulary of embeddings [C, D] that were computed elsewhere, one row for each of `names`, in their order.

  Rows are normalised. The identity of the teacher becomes `teacher_id:hash of the array`, because the tower itself is
  not available. Raises ValueError if the file cannot be used.
  """
  path = Path(path)
  rows = reading.array(path, 'one floating array [classes, dimension] in an .npy file')
  if rows.ndim != 2 or rows.dtype.kind != 'f':
    raise ValueError(f'{path} is {rows.dtype} {rows.shape}; expected one floating array [classes, dimension]')
  if len(rows) != len(names):
    raise ValueError(f'{path} has {len(rows)} rows; expected {len(names)}, one for each class name')
  rows = np.ascontiguousarray(rows, dtype=np.float32)
  bad = ~np.isfinite(rows).all(1)
  if bad.any():
    raise ValueError(f'{path} is not finite in {_rows(bad)}; expected finite numbers')
  norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
  if (norms <= 1e-8).any():
    raise ValueError(f'{path} is zero in {_rows(norms[:, 0] <= 1e-8)}; expected an embedding in each row')
  if not teacher_id:
    raise ValueError('the teacher id is empty; expected the name of the text tower that made the embeddings')
  digest = hashlib.sha256(rows.tobytes()).hexdigest()[:16]
  return VocabularyFile(
    (rows / norms).astype(np.float32),
    tuple(names),
    np.asarray(is_base),
    f'{teacher_id}:{digest}',
    f'{_PRECOMPUTED} ({path.name})',
  )


def clean_name(name: str) -> str:
  """Returns a class name as prompts contain it (docs/method.md, 5).

  `_` becomes a space and `/` becomes " or "; lower case; dots at the end are removed; parentheses stay. Raises
  ValueError if nothing is left.
  """
  cleaned = ' '.join(name.replace('_', ' ').replace('/', ' or ').lower().split()).rstrip('.')
  if not cleaned:
    raise ValueError(f'the class name {name!r} is empty; expected a word')
  return cleaned


def is_base(names: Sequence[str], training: VocabularyFile) -> np.ndarray:
  """Returns bool [C], True where the cleaned name is that of a base class of the training vocabulary.

  All other names are novel (docs/method.md, 1).
  """
  base = {clean_name(name) for name, flag in zip(training.names, training.is_base, strict=True) if flag}
  return np.array([clean_name(name) in base for name in names])


def check_teacher(found: str, expected: str, where: str) -> None:
  """Raises ValueError unless the identity `found`, of `where`, equals `expected`, that of the training vocabulary."""
  if found != expected:
    raise ValueError(f'{where} is of teacher {found!r}; expected {expected!r}, the teacher of the training vocabulary')


def check_dimension(file: VocabularyFile, config: Config) -> None:
  """Raises ValueError unless the vocabulary's embeddings have the model's dimension."""
  found, expected = file.embeddings.shape[1], config.model.embedding_dim
  if found != expected:
    raise ValueError(
      f'the vocabulary has embeddings of dimension {found}; expected {expected}, model.region_head.embedding_dim'
    )


def background_of(classes: VocabularyFile, trained_on: VocabularyFile) -> np.ndarray | None:
  """Returns the fixed background row to detect `classes` with; None: the learnt one.

  It is the row of `classes`, or else that of the training vocabulary, because a model that was trained with a fixed row
  has learnt none of its own.
  """
  return trained_on.background if classes.background is None else classes.background


def describe(vocabulary: VocabularyFile) -> str:
  """Returns one line of text that describes a vocabulary."""
  base = int(vocabulary.is_base.sum())
  dimension = vocabulary.embeddings.shape[1]
  return f'{len(vocabulary.names)} classes, {base} base, dimension {dimension}, teacher {vocabulary.teacher}'


def is_same_teacher(store_teacher: str, vocabulary: VocabularyFile) -> bool:
  """Says whether a store of region embeddings, with the identity `store_teacher`, fits a vocabulary.

  It does if both identities are equal. It also does if the vocabulary was made by `from_npy`, so that its identity is
  `NAME:hash of the array`, and the identity of the store is NAME: the user who gave NAME as --teacher-id has declared
  that both come from one teacher. NAME may be the identity of a tower or any word. (The identity of a tower is also a
  name and a hash, but there the name is the architecture, which towers with other weights share.)
  """
  if not store_teacher or store_teacher == vocabulary.teacher:
    return bool(store_teacher)
  name, _, digest = vocabulary.teacher.rpartition(':')
  return (
    vocabulary.prompts.startswith(_PRECOMPUTED)
    and store_teacher == name
    and re.fullmatch('[0-9a-f]{16}', digest) is not None
  )


def check_regions(path: str | Path, store_teacher: str, vocabulary: VocabularyFile) -> None:
  """Raises ValueError unless the region store at `path`, with the identity `store_teacher`, fits the vocabulary."""
  if not is_same_teacher(store_teacher, vocabulary):
    raise ValueError(
      f'{path} has embeddings of teacher {store_teacher!r}, and the vocabulary of '
      f'{vocabulary.teacher!r}; expected the image and the text tower of one teacher'
    )


def _require(condition: bool, field: str, found: object, expected: str) -> None:
  if not condition:
    raise ValueError(f'`{field}` is {found}; expected {expected}')


def _rows(flags: np.ndarray) -> str:
  first = ', '.join(str(i) for i in np.flatnonzero(flags)[:3])
  return f'{int(flags.sum())} of {len(flags)} rows (first: {first})'
