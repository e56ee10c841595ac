"""A bundle of random weights with both towers of a teacher, made without compiling anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.helpers import small_teacher, tiny
from vild_jax import vocabulary
from vild_jax.inference import bundle
from vild_jax.teacher import checkpoint as teacher_checkpoint

CONFIG = tiny.config()
NAMES = ('red mug', 'tree', 'ant')


@dataclass(frozen=True)
class Parts:
  """The weights, a vocabulary file, and a teacher directory whose text tower embedded it."""

  variables: Any
  vocabulary: Path
  identity: str
  teacher: Path


def parts(folder: Path, *, sigmoid: bool = False) -> Parts:
  """With `sigmoid` the teacher's embeddings have the dimension of the detector, so that new words can be asked for."""
  teacher = small_teacher.make(sigmoid=True) if sigmoid else small_teacher.make(drawn=True)
  teacher_checkpoint.save_teacher(folder / 'teacher', teacher)
  flags = np.array([True, True, False])
  words = vocabulary.VocabularyFile(np.eye(3, 16, dtype=np.float32), NAMES, flags, teacher.text_identity, 'vild')
  vocabulary.save(folder / 'v.npz', words)
  return Parts(jax.device_get(tiny.variables(CONFIG)), folder / 'v.npz', teacher.text_identity, folder / 'teacher')


def write(out: Path, of: Parts) -> Path:
  """Writes the bundle; returns its folder."""
  return bundle.export_bundle(
    out,
    CONFIG,
    of.variables,
    of.vocabulary,
    vocabulary_teacher=of.identity,
    teacher=of.teacher,
    image_tower=of.teacher,
  )


def files_of(folder: Path) -> list[str]:
  return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())
