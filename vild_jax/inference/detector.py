"""Loads a bundle or a work directory and detects classes, given as text or by examples, in pictures."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vild_jax import detector as detector_lib
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config, Model, defaults
from vild_jax.data import pictures, transforms
from vild_jax.data.schema import DataError
from vild_jax.eval import paste
from vild_jax.inference import looked_at, queries
from vild_jax.inference.detections import PictureDetections
from vild_jax.inference.examples import Example, ExampleTower
from vild_jax.runtime import compiler, hub
from vild_jax.structs import Detections, Vocabulary
from vild_jax.teacher import files as teacher_files
from vild_jax.teacher import text
from vild_jax.train import bundle_files, checkpoint, weights
from vild_jax.vocabulary import VocabularyFile

# (box, class) pairs of a batch: several arrays of that many scores are in memory together, 128 MiB each.
_MOST_PAIRS = 2**25


@functools.cache
def _program() -> Callable:
  return compiler.jit(_detections, static_argnums=0)


def _detections(
  model: Model, variables: Any, image: Any, image_size: Any, vocabulary: Vocabulary, min_score: Any
) -> Detections:
  return detector_lib.predict_batch(model, variables, image, image_size, vocabulary, min_score=min_score)[0]


class Detector:
  """Detects classes in pictures with trained weights; made by `load`.

  Attributes:
    config: the resolved config of its training.
    variables: {'params', 'batch_stats'}.
    vocabulary: the training vocabulary; its base classes are base at test time, and all others are novel.
  """

  def __init__(
    self,
    config: Config,
    variables: Any,
    training_vocabulary: VocabularyFile,
    tower: text.TextTower | None = None,
    examples: ExampleTower | None = None,
  ):
    self.config, self.variables, self.vocabulary = config, variables, training_vocabulary
    self._queries = queries.Queries(config, training_vocabulary, tower, examples)

  def detect(
    self,
    images: pictures.Picture | Iterable[pictures.Picture],
    classes: queries.Classes | None = None,
    *,
    min_score: float | Mapping[str, float] | Sequence[float] = defaults.MIN_SCORE,
    masks: bool = True,
    max_detections: int | None = None,
    batch_size: int = defaults.DETECT_BATCH,
    attributes: Sequence[str | Example] | None = None,
  ) -> PictureDetections | list[PictureDetections]:
    """Detects `classes` in one picture, or in several of any sizes.

    A program is compiled for each padded number of classes and of attributes, for one picture and for a batch, and
    without masks; never for another size of the pictures, nor for other classes, scores or numbers of detections.

    Args:
      images: a path, a PIL picture, uint8 [H, W, 3] RGB, or several of these, such as a list. The first two are turned
        as viewers show them.
      classes: any names (with a text tower) and `Example`s of what pictures show (with an image tower); or
        {name: a picture, several, or None for the name alone}; or a vocabulary of the same teacher; by default the
        training vocabulary. Their number is padded to 16, 32, 64, ...
      min_score: detections with a lower score are left out: one number, {name: number} with the default for the other
        classes, or a number for each class.
      masks: False computes boxes alone.
      max_detections: of a picture, best first, at most `model.postprocess.max_detections`, which is the default.
      batch_size: pictures that go through the network together, if there are several; fewer from some thousands of
        classes on, whose scores could take too much memory.
      attributes: two or more names or examples of which each object is taken to have one, such as colours; the
        detections then hold how probable each is. They change nothing else.

    Returns:
      The detections in the picture; for several, a list in their order.

    Raises ValueError for an empty list of classes, fewer than two attributes, a name that the bundle cannot embed,
    settings out of range, or an image that is not a picture, which is called by its place among several.
    """
    names, attribute_names, vocabulary, scores = self._asked(classes, attributes, min_score)
    model = self.config.model if masks else dataclasses.replace(self.config.model, masks=False)
    _check_range('max_detections', max_detections, model.postprocess.max_detections)
    _check_range('batch_size', batch_size)
    batch_size = max(min(batch_size, _MOST_PAIRS // (model.rpn.max_proposals * len(scores))), 1)
    several = isinstance(images, Iterable) and not isinstance(images, str | bytes | np.ndarray)
    opened = _opened(images) if several else map(pictures.as_rgb, [images])
    started = (
      (_program()(model, self.variables, *arrays, vocabulary, scores), places)
      for arrays, places in _batches(opened, batch_size, self.config.data.image_size)
    )
    found = []
    # A batch is computed while the pictures of the next are opened.
    for (batch, places), _ in itertools.pairwise(itertools.chain(started, [None])):
      batch = jax.device_get(batch)
      for row, place in enumerate(places):
        in_picture = jax.tree.map(lambda x, row=row: x[row], batch)
        found.append(_in_picture(in_picture, *place, names, attribute_names, max_detections))
    return found if several else found[0]

  def prepare(self, image: pictures.Picture) -> looked_at.Prepared:
    """Returns a picture as `look` takes it, without the network; several threads may do so at the same time."""
    return looked_at.prepare(pictures.as_rgb(image), self.config.data.image_size)

  def look(self, prepared: Sequence[looked_at.Prepared]) -> list[looked_at.Looked]:
    """Runs the network on pictures, up to where words come in.

    A program is compiled for each power of two of their number. Each result stays on the device as long as it is kept,
    90 MB for 1,024 pixels, and `find` detects any classes in it at a small part of the cost of `detect`.
    """
    return looked_at.look(self.config.model, self.variables, prepared) if prepared else []

  def find(
    self,
    looked: looked_at.Looked,
    classes: queries.Classes | None = None,
    *,
    min_score: float | Mapping[str, float] | Sequence[float] = defaults.MIN_SCORE,
    masks: bool = True,
    max_detections: int | None = None,
    attributes: Sequence[str | Example] | None = None,
  ) -> PictureDetections:
    """Detects `classes` in a picture that `look` has seen; arguments, result and errors are those of `detect`."""
    return self.begin_find(
      looked, classes, min_score=min_score, masks=masks, max_detections=max_detections, attributes=attributes
    )()

  def begin_find(
    self,
    looked: looked_at.Looked,
    classes: queries.Classes | None = None,
    *,
    min_score: float | Mapping[str, float] | Sequence[float] = defaults.MIN_SCORE,
    masks: bool = True,
    max_detections: int | None = None,
    attributes: Sequence[str | Example] | None = None,
  ) -> Callable[[], PictureDetections]:
    """Does what `find` needs the device for; what it returns does the rest, and may be called in another thread.

    The rest puts the masks into the picture, which takes up to half a second for each in a picture of 25 megapixels.
    """
    names, attribute_names, vocabulary, scores = self._asked(classes, attributes, min_score)
    model = self.config.model
    _check_range('max_detections', max_detections, model.postprocess.max_detections)
    found = looked_at.find(model, self.variables, looked.regions, vocabulary, scores, masks=masks, most=max_detections)
    return functools.partial(_in_picture, found, looked.scale, looked.size, names, attribute_names, max_detections)

  def classes(
    self, classes: queries.Classes | None = None, attributes: Sequence[str | Example] | None = None
  ) -> Vocabulary:
    """Turns `classes` and `attributes` of `detect` into the padded vocabulary of the forward pass.

    Names that are base in training are base here; all others, and examples, are novel. Raises ValueError as `detect`
    does.
    """
    return self._resolve(classes, attributes)[2]

  @property
  def takes_names(self) -> bool:
    """Says whether any names can be asked for, and not those of the vocabulary alone."""
    return self._queries.takes_names

  @property
  def takes_examples(self) -> bool:
    """Says whether examples can be asked for: whether there is an image tower."""
    return self._queries.takes_examples

  def _asked(
    self,
    classes: queries.Classes | None,
    attributes: Sequence[str | Example] | None,
    min_score: float | Mapping[str, float] | Sequence[float],
  ) -> tuple[tuple[str, ...], tuple[str, ...], Vocabulary, jax.Array]:
    """Returns what `_resolve` does and the lowest score of each row, the last two on the device."""
    names, attribute_names, vocabulary = self._resolve(classes, attributes)
    scores = np.pad(_min_scores(min_score, names), (0, len(vocabulary.valid) - len(names)))
    return names, attribute_names, *jax.device_put((vocabulary, scores))

  def _resolve(
    self, classes: queries.Classes | None, attributes: Sequence[str | Example] | None
  ) -> tuple[tuple[str, ...], tuple[str, ...], Vocabulary]:
    """Returns the names of the classes, those of the attributes, and the vocabulary."""
    names, vocabulary = self._queries.resolve(classes)
    if attributes is None:
      return names, (), vocabulary
    attribute_names, embedded = self._queries.attributes(attributes)
    return names, attribute_names, vocabulary.replace(attributes=embedded)


def load(path: str | Path, *, teacher: str | Path | None = None) -> Detector:
  """Loads a bundle (`vild-jax export`) or a work directory (`vild-jax train`) onto one device of this machine.

  Args:
    path: the folder, or the name of a bundle on the Hugging Face hub: `hf://owner/name[@revision]`.
    teacher: a teacher directory, or the name of one on the hub, whose towers replace those of the bundle; they must
      have the same identities.

  Raises ValueError if the folder is neither of the two, damaged or replaced meanwhile, or the teacher is another one.
  """
  path = weights.folder_of(path)
  check_same = bundle_files.watched(path)
  about = bundle_files.read_about(path) if bundle_files.is_bundle(path) else {}
  config = checkpoint.read_config(path)
  variables = checkpoint.load_variables(path, config)
  trained_on = vocabulary_lib.load(path / checkpoint.VOCABULARY_FILE)
  if teacher is None:
    own = path / bundle_files.TEXT_TOWER
    teacher = own if about else config.teacher or own
    teacher = teacher if hub.is_name(teacher) or Path(teacher).is_dir() else None
  tower, examples = None, None
  if teacher is not None:
    teacher = teacher_files.locate(teacher)
    tower = text.load_text(teacher)
    vocabulary_lib.check_teacher(tower.identity, trained_on.teacher, str(teacher))
  for folder in (teacher, path / bundle_files.IMAGE_TOWER):
    if folder is not None and examples is None and (folder / teacher_files.PREPROCESSOR).is_file():
      examples = ExampleTower(folder, about.get('image_teacher'))
  check_same()
  return Detector(config, variables, trained_on, tower, examples)


def _min_scores(given: float | Mapping[str, float] | Sequence[float], names: Sequence[str]) -> np.ndarray:
  """Returns the lowest score of each class, float32 [C], from what `Detector.detect` takes as `min_score`."""
  if isinstance(given, Mapping):
    if unknown := set(given) - set(names):
      raise ValueError(f'min_score has {min(unknown)!r}; expected names of the classes asked for')
    given = [given.get(name, defaults.MIN_SCORE) for name in names]
  scores = np.array(given, np.float32)
  if scores.ndim and scores.shape != (len(names),):
    raise ValueError(f'min_score has {len(scores)} numbers; expected one, or one for each of the {len(names)} classes')
  if not np.isfinite(scores).all():
    raise ValueError(f'min_score is {given}; expected finite numbers')
  return np.broadcast_to(scores, (len(names),))


def _opened(images: Iterable[pictures.Picture]) -> Iterator[np.ndarray]:
  """Yields uint8 [H, W, 3] of each picture; the message for one that is none begins with its place."""
  for number, image in enumerate(images):
    try:
      picture = pictures.as_rgb(image)
    except ValueError as error:
      raise DataError(f'images[{number}]: {error}') from None
    yield picture


def _batches(
  opened: Iterable[np.ndarray], batch_size: int, side: int
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], list[tuple[np.ndarray, tuple[int, int]]]]]:
  """Yields ((images [B, S, S, 3], sizes [B, 2]), (scale, size) of each picture in it).

  B is 1 for one picture. For several it is `batch_size`, and zeros, in which nothing is found, fill up the last batch.
  """
  # Only what the network takes is kept of a picture, which may be large.
  resized = ((transforms.resize_and_pad(picture, side), picture.shape[:2]) for picture in opened)
  rows = 0
  while chunk := list(itertools.islice(resized, batch_size)):
    rows = rows or (1 if len(chunk) == 1 else batch_size)
    images, sizes = np.zeros((rows, side, side, 3), np.float32), np.zeros((rows, 2), np.float32)
    for row, (one, _) in enumerate(chunk):
      images[row], sizes[row] = one.image, one.size
    yield (images, sizes), [(one.scale, size) for one, size in chunk]


def _in_picture(
  found: Detections,
  scale: np.ndarray,
  size: tuple[int, int],
  names: tuple[str, ...],
  attribute_names: tuple[str, ...],
  most: int | None,
) -> PictureDetections:
  """Returns the best `most` detections (None: all) of one picture in its own pixels; `scale` leads to the network's."""
  keep = np.flatnonzero(found.valid)[:most]
  boxes = transforms.to_picture(found.boxes[keep], scale, size)
  masks = found.masks
  rles = None if masks is None else tuple(paste.paste_to_rles(sigmoid(masks[keep]), boxes, *size))
  attributes = None if found.attributes is None else found.attributes[keep, : len(attribute_names)]
  return PictureDetections(
    boxes, found.scores[keep], found.labels[keep], names, size, rles, attribute_names, attributes
  )


def _check_range(name: str, number: int | None, highest: int | None = None) -> None:
  if number is not None and (number < 1 or (highest is not None and number > highest)):
    limit = '1 or more' if highest is None else f'1 to {highest}, which the config of the detector sets'
    raise ValueError(f'{name} is {number}; expected {limit}')


def sigmoid(logits: np.ndarray) -> np.ndarray:
  """Turns mask logits into probabilities, on the host, without overflow."""
  return 0.5 * (1 + np.tanh(0.5 * logits))
