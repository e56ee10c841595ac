"""Exports a work directory as a bundle."""

from __future__ import annotations

from pathlib import Path

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config
from vild_jax.inference import bundle
from vild_jax.train import checkpoint


def export(config: Config, folder: Path, out: Path, *, teacher: str | None = None, step: int | None = None) -> Path:
  """Writes the bundle of a work directory; `teacher` is the directory whose text tower it keeps."""
  config = checkpoint.same_model(config, folder)
  path = folder / checkpoint.VOCABULARY_FILE
  return bundle.export_bundle(
    out,
    config,
    checkpoint.load_variables(folder, config, step=step),
    path,
    vocabulary_teacher=vocabulary_lib.load(path).teacher,
    teacher=Path(teacher) if teacher else None,
  )
