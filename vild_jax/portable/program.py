"""Defines what a portable model computes: functions of a picture and of a vocabulary, with the weights inside.

They are the functions of `vild_jax.detector` itself. With suppression there is one program, `model`. Without it there
are two: `model` gives boxes, scores and features, and `masks` the masks of the boxes that somebody has chosen.
Nothing here needs Orbax, so that it can be traced in an environment without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from vild_jax import detector
from vild_jax.config import Config, Model
from vild_jax.core import boxes, nms, openvocab
from vild_jax.structs import Vocabulary

Array = jax.Array

# {name: (type, shape)}; in a shape 'b' is the number of pictures and 'c' that of classes.
Arrays = dict[str, tuple[str, tuple[int | str, ...]]]

_FEWEST = 16  # rows of a vocabulary, as everywhere else


@dataclass(frozen=True)
class Program:
  """Describes one function of a portable model.

  Attributes:
    name: of the function, and of the file that holds it.
    inputs, outputs: what it takes and returns, in this order.
    call: takes the inputs in their order and returns the outputs as a tuple.
  """

  name: str
  inputs: Arrays
  outputs: Arrays
  call: Callable[..., tuple[Array, ...]]


def fewest_classes(model: Model) -> int:
  """Returns the least number of rows, padding included, for which the program ranks a fixed number of pairs.

  The suppression ranks `nms.PAIRS` (box, class) pairs at a time; with as many pairs or more, their number is not a
  function of the number of classes, which is unknown when the program is made.
  """
  return max(_FEWEST, -(-nms.PAIRS // model.rpn.max_proposals))


@dataclass(frozen=True)
class Source:
  """Holds what a portable model is made of.

  Attributes:
    config: the experiment.
    variables: {'params', 'batch_stats'}, NumPy arrays, which become constants of the programs.
    background: float32 [D], the fixed row of the background; None: the learnt one.
    suppress: whether the model chooses detections; if not, whoever calls it does.
    sizes: {'b': pictures, 'c': classes} if these numbers are fixed; empty if they are open.
  """

  config: Config
  variables: Any
  background: np.ndarray | None
  suppress: bool
  sizes: Mapping[str, int] = field(default_factory=dict)

  def sized(self, arrays: Arrays) -> Arrays:
    """Returns arrays with the fixed sizes in their shapes."""
    number = lambda size: self.sizes.get(size, self.sizes['c'] + 1 if self.sizes and size == 'c + 1' else size)
    return {name: (dtype, tuple(map(number, shape))) for name, (dtype, shape) in arrays.items()}


def of_one(function: Callable) -> Callable:
  """Maps a function of one image over a batch of one, without the gathers that `jax.vmap` makes of slices."""

  def on_batch(*batches: Any) -> Any:
    return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], batches)))

  return on_batch


def programs(source: Source) -> tuple[Program, ...]:
  """Returns the functions of a portable model, `model` and perhaps `masks`."""
  config, variables = source.config, source.variables
  per_image = of_one if source.sizes.get('b') == 1 else jax.vmap
  backbone = dataclasses.replace(config.model.backbone, remat=False)  # which is for training alone
  model = dataclasses.replace(config.model, backbone=backbone)
  side, dim, count, most = (
    config.data.image_size,
    model.embedding_dim,
    model.rpn.max_proposals,
    model.postprocess.max_detections,
  )
  inputs: Arrays = {
    'image': ('float32', ('b', side, side, 3)),
    'size': ('float32', ('b', 2)),
    'embeddings': ('float32', ('c', dim)),
    'is_base': ('bool', ('c',)),
    'is_class': ('bool', ('c',)),
  }
  boxes_in: Arrays = {'boxes': ('float32', ('b', most, 4)), 'valid': ('bool', ('b', most))}
  mask_side = 2 * model.mask_head.roi_size
  mask_logits: Arrays = {'masks': (model.dtype, ('b', most, mask_side, mask_side))} if model.masks else {}

  def vocabulary(embeddings: Array, is_base: Array, is_class: Array) -> Vocabulary:
    return Vocabulary(embeddings=embeddings, is_base=is_base, valid=is_class, background=source.background)

  def detect(image: Array, size: Array, *classes: Array) -> tuple[Array, ...]:
    found, _ = detector.predict_batch(model, variables, image, size, vocabulary(*classes), per_image=per_image)
    chosen = found.boxes, found.valid, found.scores, found.labels
    return (*chosen, found.masks) if model.masks else chosen

  if source.suppress:
    chosen = {'scores': ('float32', ('b', most)), 'labels': ('int32', ('b', most))}
    return (Program('model', source.sized(inputs), source.sized(boxes_in | chosen | mask_logits), detect),)

  levels = range(model.pyramid.min_level, model.pyramid.max_level + 1) if model.masks else ()
  pyramid: Arrays = {
    f'features_{level}': (model.dtype, ('b', side >> level, side >> level, model.pyramid.channels)) for level in levels
  }
  of_regions: Arrays = {
    'boxes': ('float32', ('b', count, 4)),
    'valid': ('bool', ('b', count)),
    'scores': ('float32', ('b', count, 'c')),
    'logits': ('float32', ('b', count, 'c + 1')),
  }
  if model.image_head:
    of_regions['image_logits'] = ('float32', ('b', count, 'c'))

  def regions(image: Array, size: Array, *classes: Array) -> tuple[Array, ...]:
    words = vocabulary(*classes)
    first, _ = detector.first_stage(model, variables, image, train=False, per_image=per_image)
    found = first.proposals
    second, _ = detector.second_stage(
      model, variables, first.features, found.boxes, found.valid, words, train=False, per_image=per_image
    )
    refined = per_image(detector.refine)(found.boxes, second.deltas, size)
    valid = found.valid & (boxes.area(refined) > 0)
    scores = openvocab.with_objectness(
      detector.class_scores(model, second, words), found.scores, model.postprocess.objectness_weight
    )
    logits = (second.logits, second.image_logits) if model.image_head else (second.logits,)
    return refined, valid, scores, *logits, *(first.features[level] for level in levels)

  def masks_of(chosen: Array, valid: Array, *features: Array) -> tuple[Array]:
    maps = dict(zip(levels, features, strict=True))
    return (detector.masks(model, variables, maps, chosen, valid, train=False, per_image=per_image)[0],)

  found = Program('model', source.sized(inputs), source.sized(of_regions | pyramid), regions)
  of_masks = Program('masks', source.sized(boxes_in | pyramid), source.sized(mask_logits), masks_of)
  return (found, of_masks) if model.masks else (found,)
