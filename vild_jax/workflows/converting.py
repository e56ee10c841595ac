"""Converts published weights into a folder that other commands take like a work directory.

tf-vild   config.json, vocabulary.npz, variables/: a whole detector, for `evaluate`, `export` and `vild_jax.load`
resnet    backbone.json, variables/: a backbone alone, for `train.init_backbone`
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from vild_jax import config as config_lib
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import defaults
from vild_jax.data import class_lists
from vild_jax.interop import tf_vild, timm_resnet
from vild_jax.runtime import files
from vild_jax.teacher import text
from vild_jax.train import checkpoint
from vild_jax.vocabulary import VocabularyFile

BACKBONE_FILE = 'backbone.json'
# The share of classes whose stored embedding must be nearest to the given teacher's embedding of the same name.
_AGREEMENT = 0.9


def convert_tf_vild(
  source: str, out: Path, *, classes: str | None = None, teacher: str | None = None
) -> VocabularyFile:
  """Converts a checkpoint of the reference (TensorFlow 1) into the new folder `out`; returns its vocabulary.

  Args:
    source: prefix or folder of the checkpoint.
    out: a folder that does not exist.
    classes: the embedded classes, as `class_lists.class_list` takes them; by default LVIS v1 if there are 1,203.
    teacher: a teacher directory whose text tower made the class embeddings; this is checked. With it the detector takes
      any class name; without it the identity of the text tower is a hash of the embeddings.

  Raises ValueError if variables are missing or unknown, or an argument does not fit; ImportError without TensorFlow.
  """
  _check_new(out)
  variables = tf_vild.read_checkpoint(source)
  tree, config = tf_vild.from_variables(variables)
  vocabulary = embedded_vocabulary(tf_vild.class_embeddings(variables), classes, Path(source).name, teacher)
  if teacher:
    config = dataclasses.replace(config, teacher=str(teacher))
  with files.new_folder(out) as folder:
    (folder / checkpoint.CONFIG_FILE).write_text(config_lib.to_text(config), encoding='utf-8')
    vocabulary_lib.save(folder / checkpoint.VOCABULARY_FILE, vocabulary)
    checkpoint.save_variables(folder, tree)
  return vocabulary


def embedded_vocabulary(rows: np.ndarray, classes: str | None, name: str, teacher: str | None) -> VocabularyFile:
  """Makes the vocabulary of the class embeddings of a checkpoint.

  Args:
    rows: float32 [C, D], unit rows in the order of the data set.
    classes, teacher: see `convert_tf_vild`.
    name: name of the checkpoint, for the field `prompts`.

  Raises ValueError if classes or teacher do not fit the embeddings.
  """
  lvis = class_lists.class_list('lvis')
  if classes is None and len(rows) != len(lvis):
    raise ValueError(
      f'the checkpoint embeds {len(rows)} classes; expected --classes to say which, or the {len(lvis)} of LVIS v1'
    )
  named = class_lists.class_list(classes) if classes else lvis
  if len(named) != len(rows):
    raise ValueError(f'the checkpoint embeds {len(rows)} classes and --classes names {len(named)}; expected as many')
  identity = f'tf-vild:{hashlib.sha256(rows.tobytes()).hexdigest()[:16]}'
  prompts = f'embedded in {name}'
  if teacher:
    tower = text.load_text(teacher)
    expected = tower.vocabulary(named.names, np.asarray(named.is_base), defaults.PROMPTS)
    if expected.embeddings.shape != rows.shape:
      raise ValueError(
        f'{teacher} embeds texts in {expected.embeddings.shape[1]} dimensions; expected '
        f'{rows.shape[1]}, as the checkpoint does'
      )
    agree = float(np.mean(np.argmax(rows @ expected.embeddings.T, axis=1) == np.arange(len(rows))))
    if agree < _AGREEMENT:
      raise ValueError(
        f'{teacher} is not the teacher of this checkpoint: only {agree:.0%} of its classes are nearest '
        f'to their own name; expected {_AGREEMENT:.0%}'
      )
    identity, prompts = expected.teacher, expected.prompts
  return VocabularyFile(rows, named.names, np.asarray(named.is_base), identity, prompts)


def convert_resnet(source: str, out: Path) -> config_lib.Backbone:
  """Converts a ResNet of timm, torchvision or Hugging Face into the new folder `out`; returns its settings.

  Raises ValueError if `out` exists or the file is not such a ResNet.
  """
  _check_new(out)
  tree, backbone = timm_resnet.from_tensors(timm_resnet.read_tensors(source))
  with files.new_folder(out) as folder:
    about = json.dumps({'source': Path(source).name, 'depth': backbone.depth, 'width': backbone.width}, indent=2)
    (folder / BACKBONE_FILE).write_text(about + '\n', encoding='utf-8')
    checkpoint.save_variables(folder, tree)
  return backbone


def mapping(source: str, *, resnet: bool = False) -> str:
  """Returns a table of the variables of `source` and their new names; `resnet` says that it is the file of a ResNet."""
  if resnet:
    return timm_resnet.mapping_text(timm_resnet.read_tensors(source))
  return tf_vild.mapping_text(tf_vild.read_checkpoint(source, shapes_only=True))


def _check_new(out: Path) -> None:
  if out.exists():
    raise ValueError(f'{out} exists; expected a new folder')
