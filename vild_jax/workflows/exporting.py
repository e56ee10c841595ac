"""Exports a work directory as a bundle."""

from __future__ import annotations

from pathlib import Path

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config
from vild_jax.inference import bundle
from vild_jax.train import checkpoint


def export(
  config: Config,
  folder: Path,
  out: Path,
  *,
  teacher: str | None = None,
  image_tower: bool = False,
  step: int | None = None,
) -> Path:
  """Writes a bundle and returns its folder.

  Args:
    config: the experiment that the checkpoint was trained with.
    folder: the work directory.
    out: folder of the bundle: a new one, or an older bundle to replace.
    teacher: folder of the teacher whose text tower the bundle keeps; without it the bundle has none.
    image_tower: whether the bundle keeps the teacher's image tower too, for example pictures.
    step: which checkpoint of the work directory; by default the newest.

  Raises ValueError if config and checkpoint do not fit each other, or if there is no teacher to take an image tower of;
  other errors are those of `bundle.export_bundle`.
  """
  if image_tower and not teacher:
    raise ValueError('--image-tower keeps a tower of the teacher; expected --teacher DIR or a teacher in the config')
  config = checkpoint.same_model(config, folder)
  path = folder / checkpoint.VOCABULARY_FILE
  return bundle.export_bundle(
    out,
    config,
    checkpoint.load_variables(folder, config, step=step),
    path,
    vocabulary_teacher=vocabulary_lib.load(path).teacher,
    teacher=Path(teacher) if teacher else None,
    image_tower=Path(teacher) if image_tower else None,
  )
