"""Writes bundles: self-contained folders that any machine can load without the config file of the training.

bundle.json      format version, identities of the teacher's towers, whether it gives masks, preprocessing
config.json      the resolved config
vocabulary.npz   the training vocabulary; its base classes decide base or novel at test time
variables/       parameters and batch statistics (Orbax)
text_tower/      the teacher's text tower and tokenizer, so that any class name works (optional)
image_tower/     the teacher's image tower and its preprocessing, so that example pictures work (optional)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vild_jax import config as config_lib
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config
from vild_jax.data import transforms
from vild_jax.runtime import files
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.train import checkpoint

BUNDLE_FILE, TEXT_TOWER, IMAGE_TOWER = 'bundle.json', 'text_tower', 'image_tower'
FORMAT = 1


def export_bundle(
  out: Path,
  config: Config,
  variables: dict[str, Any],
  vocabulary: Path,
  *,
  vocabulary_teacher: str,
  teacher: Path | None = None,
  image_tower: Path | None = None,
) -> Path:
  """Writes a bundle; `out` appears, or is replaced, only when the bundle is complete.

  Args:
    out: a folder that does not exist yet, or an older bundle, which is replaced.
    config: the experiment.
    variables: {'params', 'batch_stats'}.
    vocabulary: the training vocabulary's file.
    vocabulary_teacher: the identity of the text tower that made it.
    teacher: a teacher directory or a text tower alone; without it the bundle knows only the names of the vocabulary.
    image_tower: a teacher directory whose image tower the bundle keeps too; None keeps none.

  Raises ValueError if `out` exists and is not a bundle, or `teacher` is not the teacher of the vocabulary.
  """
  out = Path(out).absolute()
  if out.exists() and not (out / BUNDLE_FILE).is_file():
    raise ValueError(f'{out} exists and is not a bundle; expected a new folder')
  about = {
    'format': FORMAT,
    'name': config.name,
    'teacher': vocabulary_teacher,
    'masks': config.model.masks,
    'preprocessing': {
      'image_size': config.data.image_size,
      'resize': 'bilinear, no half-pixel centres, no antialias',
      'mean': list(transforms.RGB_MEAN),
      'std': list(transforms.RGB_STD),
      'padding': 'bottom and right',
    },
  }
  is_bundle = lambda path: (path / BUNDLE_FILE).is_file()
  with files.new_folder(out, may_replace=is_bundle) as folder:
    if teacher is not None:
      tower = teacher_checkpoint.load_text_tower(teacher)
      vocabulary_lib.check_teacher(tower.text_identity, vocabulary_teacher, str(teacher))
      teacher_checkpoint.save_text_tower(folder / TEXT_TOWER, tower)
    if image_tower is not None:
      tower = teacher_checkpoint.load_image_tower(image_tower)
      teacher_checkpoint.save_image_tower(folder / IMAGE_TOWER, tower)
      about['image_teacher'] = tower.image_identity
    shutil.copyfile(vocabulary, folder / checkpoint.VOCABULARY_FILE)
    (folder / checkpoint.CONFIG_FILE).write_text(config_lib.to_text(config), encoding='utf-8')
    checkpoint.save_variables(folder, variables)
    (folder / BUNDLE_FILE).write_text(json.dumps(about, indent=2) + '\n', encoding='utf-8')
  return out


def read_about(bundle: Path) -> dict[str, Any]:
  """Returns the contents of bundle.json. Raises ValueError if it is damaged or of a format unknown to this version."""
  path = Path(bundle) / BUNDLE_FILE
  try:
    about = json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is not JSON: {error}; expected a file that `vild-jax export` wrote') from error
  if about.get('format') != FORMAT:
    raise ValueError(f'{path} has format {about.get("format")!r}; expected {FORMAT}')
  return about
