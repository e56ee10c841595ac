"""Detects with the paper's baselines that crop regions and classify the crops by the teacher (docs/method.md, 4).

  clip-crops        "CLIP on cropped regions". The boxes are the proposals of the checkpoint, unrefined and clipped to
                    the picture. The teacher classifies their crops, and its softmax over the classes is the score.
                    `with_objectness/` gets the same scores times the proposals' scores, from the same crops; the
                    paper's table has the row without.
  text+clip-crops   "ViLD-text + CLIP". The score is the geometric ensemble of the scores of ViLD-text and of the
                    teacher, with the exponents of ViLD-ensemble. The crops are the proposals, where ViLD-text pools its
                    features; the boxes are the refined ones.

In both, suppression is class-wise, and the class-agnostic mask head gives the masks of the final boxes. Features and
scores stay on the devices: the host crops and embeds between two compiled halves.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.struct
import jax
import numpy as np
from jax.sharding import Mesh

from vild_jax import detector
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config, Model, defaults
from vild_jax.core import boxes, openvocab
from vild_jax.data import pictures as pictures_lib
from vild_jax.data import sources
from vild_jax.detector import PerImage
from vild_jax.inference import evaluation, waits
from vild_jax.inference.evaluation import Found
from vild_jax.inference.waits import Timer
from vild_jax.runtime import compiler
from vild_jax.structs import Detections, Vocabulary
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher.crops import CropTower
from vild_jax.train import sharding
from vild_jax.vocabulary import VocabularyFile

Array = jax.Array

WITH_OBJECTNESS = 'with_objectness'


@flax.struct.dataclass
class Candidates:
  """Holds the results of the first half, on the devices: R regions for each image, in pixels of the network input.

  Attributes:
    features: {level: [B, H_l, W_l, C]}.
    crops: [B, R, 4] yxyx, proposals clipped to the picture.
    boxes: [B, R, 4] yxyx, the boxes to detect: the same as `crops`, or the refined ones.
    valid: bool [B, R], False if the crop or the box has no area, as for padding.
    objectness: [B, R] in (0, 1).
    text_scores: [B, R, C], scores of ViLD-text; None for clip-crops.
  """

  features: dict[int, Array]
  crops: Array
  boxes: Array
  valid: Array
  objectness: Array
  text_scores: Array | None = None


def candidates(
  model: Model,
  variables: Any,
  image: Array,
  image_size: Array,
  vocabulary: Vocabulary,
  *,
  with_text: bool,
  per_image: PerImage = jax.vmap,
) -> Candidates:
  """Returns the regions to crop in images [B, S, S, 3] with content sizes [B, 2] (height, width).

  With `with_text`, their boxes are refined and ViLD-text scores them.
  """
  first, _ = detector.first_stage(model, variables, image, train=False, per_image=per_image)
  found = first.proposals
  crops = jax.vmap(boxes.clip)(found.boxes, image_size)
  final, text_scores = crops, None
  if with_text:
    second, _ = detector.second_stage(
      model, variables, first.features, found.boxes, found.valid, vocabulary, train=False, per_image=per_image
    )
    final = jax.vmap(detector.refine)(found.boxes, second.deltas, image_size)
    text_scores = detector.class_scores(model, second, vocabulary)
  valid = found.valid & (boxes.area(crops) > 0) & (boxes.area(final) > 0)
  return Candidates(first.features, crops, final, valid, found.scores, text_scores)


def crop_scores(model: Model, variables: Any, found: Candidates, embeddings: Array, vocabulary: Vocabulary) -> Array:
  """Returns scores [B, R, C] in [0, 1] from the teacher's embeddings [B, R, D] of the crops.

  If `found` has `text_scores`, the result is the ensemble of both.
  """
  # The last column is the background, which the teacher does not know.
  logits = detector.class_logits(model, variables, embeddings, vocabulary)[..., :-1]
  scores = jax.nn.softmax(logits, axis=-1)
  if found.text_scores is None:
    return scores
  post = model.postprocess
  ensemble = partial(openvocab.ensemble_scores, base_weight=post.base_weight, novel_weight=post.novel_weight)
  return jax.vmap(ensemble, in_axes=(0, 0, None))(found.text_scores, scores, vocabulary.is_base)


def detections(
  model: Model,
  variables: Any,
  found: Candidates,
  embeddings: Array,
  factors: Array,
  vocabulary: Vocabulary,
  *,
  per_image: PerImage = jax.vmap,
) -> Detections:
  """Computes the second half: returns the detections of a batch.

  Args:
    model: settings of the model.
    variables: {'params', 'batch_stats'}.
    found: what `candidates` returned.
    embeddings: [B, R, D], the teacher's embeddings of the crops; invalid rows may hold anything.
    factors: [B, R], multiplied with the scores: ones, or the objectness.
    vocabulary: the classes to detect.
    per_image: maps a function of one image over the batch (see `detector`).
  """
  scores = crop_scores(model, variables, found, embeddings, vocabulary) * factors[..., None]
  chosen = per_image(partial(detector.choose, model))(found.boxes, found.valid, scores)
  return chosen.replace(
    masks=detector.masks(
      model, variables, found.features, chosen.boxes, chosen.valid, train=False, per_image=per_image
    )[0]
  )


def folders(scores: str) -> tuple[str, ...]:
  """Returns the folders, below the output, for the results of `predictions`; see `evaluation.evaluate`."""
  return ('', WITH_OBJECTNESS) if scores == defaults.CROPS else ('',)


def predictions(
  config: Config,
  variables: Any,
  classes: VocabularyFile,
  trained_on: VocabularyFile,
  dataset: sources.PreparedDataset,
  mesh: Mesh,
  timer: Timer,
  *,
  tower: CropTower,
  scores: str,
) -> Iterator[Found]:
  """Yields the detections of each picture like `evaluation.predictions`, one entry for each of `folders(scores)`.

  The timer counts both halves (the second one once), cropping, and the teacher's encoder.
  """
  vocabulary = evaluation.put_vocabulary(classes, trained_on, mesh)
  batch, replicated, per_image = sharding.batch_sharding(mesh), sharding.replicated(mesh), sharding.per_image(mesh)
  image = sharding.image_sharding(mesh)
  first_half = compiler.jit(
    partial(candidates, config.model, with_text=scores == defaults.TEXT_AND_CROPS, per_image=per_image),
    mesh=mesh,
    in_shardings=(replicated, image, batch, replicated),
    out_shardings=batch,
  )
  second_half = compiler.jit(
    partial(detections, config.model, per_image=per_image),
    mesh=mesh,
    in_shardings=(replicated, batch, batch, batch, replicated),
    out_shardings=batch,
  )
  size = config.evaluation.batch_size
  local = size // jax.process_count()
  shape = (local, config.model.rpn.max_proposals, config.model.embedding_dim)
  put_one = lambda name, array: sharding.put_batch(mesh, {name: array})[name]
  ones = put_one('factors', np.ones(shape[:2], np.float32))
  with evaluation.bar_of(dataset) as bar:
    for number, arrays in enumerate(timer.each(evaluation.local_batches(dataset, config), waits.PICTURES)):
      real = np.flatnonzero(arrays['real'])
      first = number * size + jax.process_index() * local
      pictures = [pictures_lib.decode_example(dataset[first + int(i)]) for i in real]
      put = sharding.put_batch(mesh, {key: arrays[key] for key in ('image', 'image_size')})
      if not timer.started:  # compiles, outside of the measured time
        tower.embed(np.zeros((8, 8, 3), np.uint8), np.array([[0, 0, 1, 1]], np.float32))
        found = first_half(variables, put['image'], put['image_size'], vocabulary)
        zeros = put_one('embeddings', np.zeros(shape, np.float32))
        jax.block_until_ready(second_half(variables, found, zeros, found.objectness, vocabulary))
        timer.start()
      images = min(size, len(dataset) - number * size)
      with timer.waiting(waits.DEVICES, images):
        found = first_half(variables, put['image'], put['image_size'], vocabulary)
        embeddings = np.zeros(shape, np.float32)
        crops, valid = sharding.local_part((found.crops, found.valid))
        for i, picture in zip(real, pictures, strict=True):
          embeddings[i, valid[i]] = tower.embed(picture, crops[i, valid[i]] / np.tile(arrays['scale'][i], 2))
        detect = partial(second_half, variables, found, put_one('embeddings', embeddings))
        detected = [sharding.local_part(detect(ones, vocabulary))]
      if WITH_OBJECTNESS in folders(scores):
        with timer.waiting(waits.DEVICES):
          detected.append(sharding.local_part(detect(found.objectness, vocabulary)))
      for i in real:
        yield tuple(evaluation.picture_of(one, arrays, i) for one in detected)
      bar.set_postfix_str(f'waits: {timer.shares()}', refresh=False)
      bar.update(images)


def crop_tower(directory: str | Path, config: Config, trained_on: VocabularyFile, scores: str) -> CropTower:
  """Returns the image tower of a teacher directory, after checks that its scores fit the model and the vocabulary.

  Raises ValueError if the teacher is not that of the vocabulary, it has no image tower, or the baseline needs ViLD-text
  and the model is not one.
  """
  model = config.model
  if scores == defaults.TEXT_AND_CROPS and (model.image_head or not model.background):
    kind = 'model.image_head is true' if model.image_head else 'model.background is false'
    raise ValueError(
      f'--scores {scores} takes the scores of ViLD-text, but {kind}; expected a checkpoint of one head '
      'with a background'
    )
  teacher = teacher_checkpoint.load_teacher(directory)
  if not vocabulary_lib.is_same_teacher(teacher.text_identity, trained_on):
    vocabulary_lib.check_teacher(teacher.text_identity, trained_on.teacher, str(directory))
  return CropTower(teacher)
