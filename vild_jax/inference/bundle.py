"""Writes bundles: self-contained folders that any machine can load without the config file of the training.

bundle.json      format version, identities of the teacher's towers, whether it gives masks, preprocessing, what is
                 known of its training and scores, and the checksums of all other files but the model card
config.json      the resolved config
vocabulary.npz   the training vocabulary; its base classes decide base or novel at test time
variables/       parameters and batch statistics (Orbax)
text_tower/      the teacher's text tower and tokenizer, so that any class name works (optional)
image_tower/     the teacher's image tower and its preprocessing, so that example pictures work (optional)
README.md        the model card, which people may edit

`train.bundle_files` checks the checksums whenever a bundle is read.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vild_jax import config as config_lib
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config
from vild_jax.data import transforms
from vild_jax.inference import model_card
from vild_jax.runtime import files
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.train import bundle_files, checkpoint
from vild_jax.train.bundle_files import IMAGE_TOWER, TEXT_TOWER


def export_bundle(
  out: Path,
  config: Config,
  variables: dict[str, Any],
  vocabulary: Path,
  *,
  vocabulary_teacher: str,
  teacher: str | Path | None = None,
  image_tower: str | Path | None = None,
  training: Mapping[str, Any] | None = None,
  metrics: Sequence[Mapping[str, Any]] = (),
  license: str | None = None,
) -> Path:
  """Writes a bundle; `out` appears, or is replaced, only when the bundle is complete.

  Args:
    out: a folder that does not exist yet, or an older bundle, which is replaced; what people have put beside its files
      stays, unless it is in a bucket.
    config: the experiment.
    variables: {'params', 'batch_stats'}.
    vocabulary: the training vocabulary's file.
    vocabulary_teacher: the identity of the text tower that made it.
    teacher: a teacher directory or a text tower alone; without it the bundle knows only the names of the vocabulary.
    image_tower: a teacher directory, or an image tower alone, whose image tower the bundle keeps too; None keeps none.
    training: what is known of the training, for the model card: `step`, and `data` as `data.json` of a work directory.
    metrics: evaluations of these weights, for the model card: contents of `metrics.json` and `file`.
    license: the identifier of a licence, such as apache-2.0, for the model card.

  Raises ValueError if `out` exists and is not a bundle, or `teacher` is not the teacher of the vocabulary.
  """
  out = files.absolute(out)
  if out.exists() and not (bundle_files.is_bundle(out) or files.is_unfinished(out)):
    raise ValueError(f'{out} exists and is not a bundle; expected a new folder')
  about = {
    'format': bundle_files.FORMAT,
    'name': config.name,
    'teacher': vocabulary_teacher,
    'masks': config.model.masks,
    'preprocessing': transforms.description(config.data.image_size),
    'training': dict(training or {}),
    'metrics': list(map(dict, metrics)),
    'license': license,
  }
  with files.new_folder(out, may_replace=bundle_files.is_bundle, marker=bundle_files.BUNDLE_FILE) as folder:
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
    towers = [name for name in (TEXT_TOWER, IMAGE_TOWER) if (folder / name).is_dir()]
    card = model_card.text(about, config, vocabulary_lib.load(vocabulary), towers)
    (folder / bundle_files.CARD_FILE).write_text(card, encoding='utf-8')
    bundle_files.seal(folder, about)
    bundle_files.keep_others(out, folder)
  return out
