"""Keeps what post-processing needs of every picture, so that its settings can be searched without the network.

A folder holds `config.json`, `annotations.json` (the ground truth, boxes alone), `logits.json` (what the logits are of)
and a file for each picture, with the refined boxes, the objectness and the cosines of the R regions that can be
detected. A cosine takes two bytes: 1,000 regions and 80 classes with two heads take 0.3 MB a picture, and the 1,203
classes of LVIS 5 MB.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vild_jax import config as config_lib
from vild_jax import detector
from vild_jax.config import Config, ConfigError, Model
from vild_jax.core import boxes
from vild_jax.data.schema import DataError
from vild_jax.detector import PerImage
from vild_jax.eval import jsonfile
from vild_jax.eval import truth as truth_lib
from vild_jax.eval.truth import Truth
from vild_jax.runtime import files, reading
from vild_jax.structs import Detections, Vocabulary
from vild_jax.train.step import on_batches
from vild_jax.vocabulary import VocabularyFile

Array = jax.Array

# Cosines are stored in steps of 1 / 32,767: at a temperature of 0.01 a logit is off by at most 0.0015.
STEPS = 32_767
_CONFIG, _ANNOTATIONS, _DESCRIPTION = 'config.json', 'annotations.json', 'logits.json'
_PICTURES = 'pictures'


@flax.struct.dataclass
class Kept:
  """Holds what is kept of the R proposals of each image.

  Attributes:
    boxes: float32 [B, R, 4], refined, yxyx pixels of the network's input.
    objectness: float32 [B, R].
    valid: bool [B, R], False for boxes that give no detection.
    text: int16 [B, R, C + 1], STEPS times the cosines of the region head, the background last.
    image: int16 [B, R, C] of the image head; None without one.
  """

  boxes: Array
  objectness: Array
  valid: Array
  text: Array
  image: Array | None


def detect(
  model: Model,
  variables: Any,
  image: Array,
  image_size: Array,
  vocabulary: Vocabulary,
  *,
  per_image: PerImage = jax.vmap,
) -> tuple[Detections, Kept]:
  """Returns the detections of `detector.predict_batch` and what else post-processing could make of the regions."""
  detections, of = detector.predict_batch(model, variables, image, image_size, vocabulary, per_image=per_image)
  found = of['proposals']
  refined = jax.vmap(detector.refine)(found.boxes, of['box_deltas'], image_size)
  rounded = lambda logits: jnp.round(jnp.clip(logits * model.temperature, -1, 1) * STEPS).astype(jnp.int16)
  return detections, Kept(
    refined,
    found.scores,
    found.valid & (boxes.area(refined) > 0),
    rounded(of['text_logits']),
    None if of['image_logits'] is None else rounded(of['image_logits']),
  )


def make_step(config: Config, mesh: Mesh) -> Callable[..., tuple[Detections, Kept]]:
  """Returns `detect` as a program on the mesh, like `train.step.make_predict_step`."""
  return on_batches(detect, config, mesh)


def begin(
  folder: Path,
  config: Config,
  classes: VocabularyFile,
  is_base: np.ndarray,
  category_of_row: np.ndarray,
  truth: Mapping[str, Any],
  job: Mapping[str, Any],
) -> None:
  """Writes what the logits are of; only one process calls this, before any picture is written.

  Args:
    folder: a new folder, or one of the same evaluation.
    config: the experiment.
    classes: the vocabulary that is detected.
    is_base: bool [C], which of its classes training has seen annotations of.
    category_of_row: int64 [C], the category id of each class; -1 for none.
    truth: the ground truth in LVIS's format.
    job: what decides the logits (`jobs.description`).

  Raises DataError if the folder holds the logits of another evaluation, or something else.
  """
  path = folder / _DESCRIPTION
  content = {
    'job': dict(job),
    'names': list(classes.names),
    'is_base': is_base.tolist(),
    'category_of_row': category_of_row.tolist(),
  }
  if path.is_file():
    if jsonfile.parsed(path.read_bytes(), path, 'the logits of an evaluation') != content:
      raise DataError(
        f'{folder} holds the logits of another evaluation; expected the same one, or another --save-logits'
      )
  else:
    # A work directory or a bundle has a config.json too, and a data set often an annotations.json.
    there = os.listdir(folder) if folder.is_dir() else []
    if others := sorted(name for name in there if not name.startswith('.')):
      raise DataError(
        f'{folder} holds {others[0]} and no {_DESCRIPTION}; expected a new or empty folder for --save-logits, or that '
        'of the same evaluation'
      )
    folder.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(content) + '\n')
  kept = [{key: value for key, value in a.items() if key != 'segmentation'} for a in truth['annotations']]
  for name, text in (
    (_ANNOTATIONS, json.dumps({**truth, 'annotations': kept}) + '\n'),
    (_CONFIG, config_lib.to_text(config)),
  ):
    if not (folder / name).is_file():  # a process that was killed may have written the description alone
      files.write(folder / name, text)


def write_picture(folder: Path, num_classes: int, kept: Kept, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes the file of one picture.

  Args:
    folder: that of `begin`.
    num_classes: C without padding.
    kept: of one picture, on the host: `Kept` without its first axis.
    arrays: the picture's entry of `data.batch.eval_batches`.
  """
  rows = kept.valid
  columns = {
    'boxes': kept.boxes[rows],
    'objectness': kept.objectness[rows],
    'text': np.concatenate([kept.text[rows, :num_classes], kept.text[rows, -1:]], axis=1),
    'scale': arrays['scale'],
    'original_size': arrays['original_size'],
  }
  if kept.image is not None:
    columns['image'] = kept.image[rows, :num_classes]
  (folder / _PICTURES).mkdir(parents=True, exist_ok=True)
  with files.replacing(folder / _PICTURES / f'{int(arrays["image_id"])}.npz') as temporary, open(temporary, 'wb') as f:
    np.savez(f, **columns)


@dataclass(frozen=True)
class Logits:
  """Reads a folder of logits.

  Attributes:
    folder: the folder.
    config: the experiment.
    truth: the ground truth.
    names: C classes.
    is_base: bool [C].
    category_of_row: int64 [C], -1 for none.
  """

  folder: Path
  config: Config
  truth: Truth
  names: tuple[str, ...]
  is_base: np.ndarray
  category_of_row: np.ndarray

  @classmethod
  def open(cls, folder: Path) -> Logits:
    """Opens a folder; raises DataError if it is none, is damaged, or lacks a picture."""
    expected = 'a folder of `vild-jax evaluate --save-logits`'
    if not (folder / _DESCRIPTION).is_file():
      raise DataError(f'{folder} holds no logits; expected {expected}')
    tree = jsonfile.parsed(jsonfile.content(folder / _DESCRIPTION, expected), folder / _DESCRIPTION, expected)
    with reading.parsing(folder / _DESCRIPTION, expected, error=DataError, problem='is damaged'):
      names, is_base, rows = (list(tree[key]) for key in ('names', 'is_base', 'category_of_row'))
      if not len(names) == len(is_base) == len(rows):
        raise ValueError('lists of different lengths')
      description = (tuple(map(str, names)), np.array(is_base, bool), np.array(rows, np.int64))
    truth = truth_lib.read(folder / _ANNOTATIONS)
    if missing := [image['id'] for image in truth.images if not cls._path(folder, image['id']).is_file()]:
      raise DataError(
        f'{folder} lacks {len(missing)} of {len(truth.images)} pictures, {missing[0]} for one; expected an evaluation '
        'that has ended: the same command goes on with it'
      )
    try:
      config = config_lib.load(folder / _CONFIG)
    except ConfigError as error:
      raise DataError(f'{folder / _CONFIG} is damaged ({error}); expected {expected}') from None
    return cls(folder, config, truth, *description)

  def picture(self, image_id: int) -> dict[str, np.ndarray]:
    """Returns the arrays of one picture, as `write_picture` writes them; raises DataError if its file is damaged."""
    path, classes = self._path(self.folder, image_id), len(self.names)
    heads = {'text': classes + 1} | ({'image': classes} if self.config.model.image_head else {})
    wanted = ('boxes', 'objectness', 'scale', 'original_size', *heads)
    found = reading.arrays(path, wanted, 'a whole file: delete it and evaluate again', error=DataError)
    count = len(found['boxes']) if found['boxes'].ndim else -1
    widths = {'boxes': 4} | heads
    if found['objectness'].shape != (count,) or any(found[key].shape != (count, n) for key, n in widths.items()):
      raise DataError(f'{path} has arrays of other shapes than {self.folder / _DESCRIPTION}; expected one evaluation')
    return found

  @staticmethod
  def _path(folder: Path, image_id: int) -> Path:
    return folder / _PICTURES / f'{image_id}.npz'
