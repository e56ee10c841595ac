"""Loads a bundle or a work directory and detects classes, given as text, in pictures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vild_jax import detector as detector_lib
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config, defaults
from vild_jax.data import pictures, transforms
from vild_jax.eval import paste
from vild_jax.inference import bundle as bundle_lib
from vild_jax.inference import queries
from vild_jax.inference.detections import PictureDetections
from vild_jax.runtime import compiler
from vild_jax.structs import Vocabulary
from vild_jax.teacher import text
from vild_jax.train import checkpoint
from vild_jax.vocabulary import VocabularyFile


@functools.cache
def _predict() -> Callable:
  return compiler.jit(detector_lib.predict, static_argnums=0)


class Detector:
  """Detects classes in pictures with trained weights; made by `load`.

  Attributes:
    config: the resolved config of its training.
    variables: {'params', 'batch_stats'}.
    vocabulary: the training vocabulary; its base classes are base at test time, and all others are novel.
  """

  def __init__(
    self, config: Config, variables: Any, training_vocabulary: VocabularyFile, tower: text.TextTower | None = None
  ):
    self.config, self.variables, self.vocabulary = config, variables, training_vocabulary
    self._queries = queries.Queries(config, training_vocabulary, tower)

  def detect(
    self,
    image: np.ndarray | str | Path,
    classes: Sequence[str] | VocabularyFile | None = None,
    *,
    min_score: float = defaults.MIN_SCORE,
  ) -> PictureDetections:
    """Detects `classes` in one picture. At most `model.postprocess.max_detections` are found, best first.

    Args:
      image: uint8 [H, W, 3] RGB, or a path.
      classes: any names (with a text tower), or a vocabulary of the same teacher; by default the training vocabulary.
        Their number is padded to 16, 32, 64, ...; other classes of the same padded number need no new compilation.
      min_score: detections with a lower score are left out.

    Raises ValueError for an empty list, a name that the bundle cannot embed, or an image that is not a picture.
    """
    image = pictures.as_rgb(image)
    resized = transforms.resize_and_pad(image, self.config.data.image_size)
    names, vocabulary = self._queries.resolve(classes)
    found = jax.device_get(_predict()(self.config, self.variables, resized.image, resized.size, vocabulary))
    keep = found.valid & (found.scores >= min_score)
    height, width = image.shape[:2]
    boxes = transforms.to_picture(found.boxes[keep], resized.scale, (height, width))
    rles = None
    if found.masks is not None:
      rles = tuple(paste.paste_to_rles(sigmoid(found.masks[keep]), boxes, height, width))
    return PictureDetections(boxes, found.scores[keep], found.labels[keep], names, (height, width), rles)

  def classes(self, classes: Sequence[str] | VocabularyFile | None = None) -> Vocabulary:
    """Turns names or a vocabulary file into the padded vocabulary of the forward pass.

    Classes that are base in training are base here, and all others are novel. Raises ValueError as `detect` does.
    """
    return self._queries.resolve(classes)[1]


def load(path: str | Path, *, teacher: str | Path | None = None) -> Detector:
  """Loads a bundle (`vild-jax export`) or a work directory (`vild-jax train`) onto one device of this machine.

  Args:
    path: the folder.
    teacher: a teacher directory whose text tower replaces that of the bundle; it must have the same identity.

  Raises ValueError if the folder is neither of the two or is damaged, or if the teacher is another one.
  """
  path = Path(path)
  bundle = (path / bundle_lib.BUNDLE_FILE).is_file()
  if bundle:
    bundle_lib.read_about(path)
  config = checkpoint.read_config(path)
  variables = checkpoint.load_variables(path, config)
  trained_on = vocabulary_lib.load(path / checkpoint.VOCABULARY_FILE)
  if teacher is None:
    teacher = path / bundle_lib.TEXT_TOWER if bundle else Path(config.teacher or path / bundle_lib.TEXT_TOWER)
    teacher = teacher if teacher.is_dir() else None
  tower = None
  if teacher is not None:
    tower = text.load_text(teacher)
    vocabulary_lib.check_teacher(tower.identity, trained_on.teacher, str(teacher))
  return Detector(config, variables, trained_on, tower)


def sigmoid(logits: np.ndarray) -> np.ndarray:
  """Turns mask logits into probabilities, on the host, without overflow."""
  return 0.5 * (1 + np.tanh(0.5 * logits))
