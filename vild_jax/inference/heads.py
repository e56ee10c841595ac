"""Evaluates a ViLD-ensemble and each of its two heads alone, from one forward pass.

The heads share a backbone, proposals and boxes, and that backbone was trained by the losses of both. So the text head
alone is not a separately trained ViLD-text, whose backbone never heard the teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from vild_jax import detector
from vild_jax.config import Config, Model, defaults
from vild_jax.detector import PerImage
from vild_jax.inference import evaluation
from vild_jax.structs import Detections, SecondStage, Vocabulary
from vild_jax.train.step import on_batches

Array = jax.Array


def detections(
  model: Model,
  variables: Any,
  image: Array,
  image_size: Array,
  vocabulary: Vocabulary,
  *,
  per_image: PerImage = jax.vmap,
) -> tuple[Detections, ...]:
  """Returns the detections of the ensemble, of the text head and of the image head, in this order.

  Args:
    model: settings of a model with an image head.
    variables: {'params', 'batch_stats'}.
    image: [B, S, S, 3]; image_size: [B, 2], (height, width) of the picture inside the square.
    vocabulary: the classes to detect.
    per_image: maps a function of one image over the batch (see `detector`).
  """
  first, _ = detector.first_stage(model, variables, image, train=False, per_image=per_image)
  found = first.proposals
  second, _ = detector.second_stage(
    model, variables, first.features, found.boxes, found.valid, vocabulary, train=False, per_image=per_image
  )
  return tuple(
    detector.detect(model, variables, first, second.deltas, scores, image_size, per_image)
    for scores in _scores(model, second, vocabulary)
  )


def _scores(model: Model, second: SecondStage, vocabulary: Vocabulary) -> tuple[Array, Array, Array]:
  """Returns scores [B, R, C]. The image head has no background, as in ViLD-image (docs/method.md, 4)."""
  return (
    detector.class_scores(model, second, vocabulary),
    detector.class_scores(model, second.replace(image_logits=None), vocabulary),
    jax.nn.softmax(second.image_logits * model.sharpness, axis=-1),
  )


def make_step(config: Config, mesh: Mesh) -> Callable[..., tuple[Detections, ...]]:
  """Returns `detections` as a program on the mesh, like `train.step.make_predict_step`.

  Raises ValueError if the model has no image head.
  """
  if not config.model.image_head:
    raise ValueError(f'--scores {defaults.HEADS} compares two heads; expected a config with model.image_head')
  return on_batches(detections, config, mesh)


predictions = partial(evaluation.predictions, make_step=make_step)
"""Yields the detections of each picture like `evaluation.predictions`, an entry for each of `defaults.HEAD_FOLDERS`."""
