"""Makes the first figure of the demo's report, what was learnt from what, and a picture of each class.

The objects are chosen by their annotations alone, before anything is embedded or detected.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from PIL import Image

from vild_jax.config import defaults
from vild_jax.core import boxes as box_lib
from vild_jax.data import pictures as pictures_lib
from vild_jax.data.schema import DataError, Example
from vild_jax.data.sources import PreparedDataset
from vild_jax.demo import world
from vild_jax.demo import world_drawing as draw
from vild_jax.report.lesson import ClassCard, Lesson, Mark, Panel, Row, Shot
from vild_jax.teacher import crops
from vild_jax.vocabulary import VocabularyFile

# Pictures -> unit rows [N, D], as `teacher.image.ImageTower.embed_images`.
Embed = Callable[[Sequence[np.ndarray]], np.ndarray]
# Picture -> boxes [N, 4] yxyx in its pixels, N names and scores [N].
Detect = Callable[[np.ndarray], tuple[np.ndarray, Sequence[str], np.ndarray]]

_CARD_SIDE = 72  # pixels
_CONTEXT = 1.5  # the height or the width of what is shown around an object, as a multiple of its box
_SHAPE = (2, 3)  # height to width of what is shown
_SHOWN_WIDTH = 480  # pixels; browsers show less than that, and smooth pictures less well than PIL
_NAMES = 3  # nearest names
_SAME_OBJECT = 0.5  # IoU


def class_cards(seed: int, size: int = _CARD_SIDE) -> list[ClassCard]:
  """Draws one object of each class of the toy world, alone on a background, in the order of the class ids.

  The pictures have random numbers of their own, so that drawing them changes no other picture. The same arguments give
  the same pictures.

  Args:
    seed: of the toy world.
    size: height and width of the pictures, pixels.
  """
  made = []
  for index, category in enumerate(world.categories()):
    rng = world.random_stream(seed, 'cards', index)
    picture = draw.background(rng, size, size)
    shape, pattern = divmod(index, len(draw.PATTERNS))
    draw.paint(rng, picture, draw.figure(rng, shape, pattern, np.full(2, size / 2), 0.36 * size))
    made.append(ClassCard(category.name, category.frequency == 'r', draw.develop(rng, picture)))
  return made


def lesson(
  training: PreparedDataset,
  validation: PreparedDataset,
  vocabulary: VocabularyFile,
  embed: Embed,
  detect: Detect,
  *,
  finder: str,
  distils: bool = True,
  min_score: float = defaults.DRAWN_MIN_SCORE,
) -> Lesson:
  """Shows for a base and a novel object what the annotations, the teacher and the detector say.

  For each kind it is the class whose objects are largest in both splits, of those that nothing covers and that are
  alone in what is shown; or of what comes closest to that. The prepared data set has annotations of novel objects too,
  which training leaves out; here they say where the novel object is.

  Args:
    training, validation: splits with all categories, which the vocabulary names.
    vocabulary: all classes; `is_base` says which annotations training saw.
    embed: the teacher's image tower: pictures, uint8 [H, W, 3], to unit rows [N, D].
    detect: the detector: a picture to boxes [N, 4] yxyx in its pixels, N names and scores [N], in any order.
    finder: the detector's name on the page, such as 'ViLD-ensemble'.
    distils: whether that detector learned from the teacher's embeddings of regions.
    min_score: detections with a lower score are not shown.

  Raises:
    DataError: the training or the validation pictures show no base object, or no novel one.
  """
  base = {name for name, flag in zip(vocabulary.names, vocabulary.is_base, strict=True) if flag}
  training_objects, validation_objects = _easiest(training), _easiest(validation)
  rows = []
  for kind, names in (('base', base), ('novel', set(vocabulary.names) - base)):
    seen, tested = _choose(training_objects, validation_objects, names)
    if seen is None or tested is None:
      raise DataError(f'the {"training" if seen is None else "validation"} pictures show no {kind} object')
    rows.append(
      Row(
        seen.name,
        kind == 'novel',
        picture=Panel([seen.shot('training')], f'training picture {seen.image_id}, around a {seen.name}'),
        annotation=_annotation(seen, base),
        teacher=_teacher(seen, vocabulary, embed),
        detection=_detection(tested, base, detect, min_score),
      )
    )
  learned = (
    'boxes and names from the annotations, and to give any region the embedding that the teacher gives it'
    if distils
    else 'boxes and names from the annotations alone'
  )
  return Lesson(
    *rows,
    text='The teacher learned the names of all classes from captioned pictures of single objects. Here it embeds two '
    f'crops of an object, 1x and 1.5x its box, and adds them. The detector learns {learned}; it names a region by the '
    f'nearest of the {len(vocabulary.names)} names, which are text embeddings of the teacher.',
    note='The objects were chosen by the annotations alone: of each kind the class whose objects are largest in a '
    'training and in a validation picture, with nothing on them and alone in what is shown. Whether the teacher and '
    f'the detector are right about them played no part. Detections are those of {finder} with a score of '
    f'{_percent(min_score)} or more. A star and a dashed box mark a novel class.',
  )


@dataclass(frozen=True)
class _Object:
  """Holds object `index` of an example, and how hard it is to see, as `_flaw` says."""

  example: Example
  index: int
  names: Mapping[int, str]  # of the category ids
  flaw: tuple[int, float]

  @property
  def image_id(self) -> int:
    """Returns the number of the picture."""
    return self.example.image_id

  @property
  def name(self) -> str:
    """Returns the name of the object's class."""
    return self.names[int(self.example.objects.category_ids[self.index])]

  @property
  def box(self) -> np.ndarray:
    """Returns the box, float64 [4] yxyx."""
    return self.example.objects.boxes[self.index].astype(np.float64)

  @property
  def window(self) -> np.ndarray:
    """Returns what is shown: int [4] yxyx."""
    return _window(self.box, self.example.height, self.example.width)

  @functools.cached_property
  def image(self) -> np.ndarray:
    """Returns the whole picture, uint8 [H, W, 3]."""
    return pictures_lib.decode_example(self.example)

  def shot(self, split: str, marks: Sequence[Mark] = ()) -> Shot:
    """Returns the window, enlarged."""
    top, left, bottom, right = self.window
    alt = f'a {self.name} in {split} picture {self.image_id}'
    alt += f', marked: {"; ".join(mark.label for mark in marks)}' if marks else ''
    return Shot(_enlarged(self.image[top:bottom, left:right], _SHOWN_WIDTH), alt, marks)

  def mark(self, box: np.ndarray, label: str, novel: bool) -> Mark:
    """Returns a box of the picture as shares of the window."""
    start = np.tile(self.window[:2], 2)
    share = (box - start) / np.tile(self.window[2:] - self.window[:2], 2)
    return Mark(tuple(np.clip(share, 0, 1).tolist()), label, novel)


def _objects(dataset: PreparedDataset) -> Iterator[_Object]:
  names = {category.id: category.name for category in dataset.categories}
  for number in range(len(dataset)):
    example = dataset[number]
    for i in range(len(example.objects.ids)):
      yield _Object(example, i, names, _flaw(example, i))


def _easiest(dataset: PreparedDataset) -> dict[str, _Object]:
  """Returns the object of each class that is easiest to see, the first of several."""
  found: dict[str, _Object] = {}
  for item in _objects(dataset):
    if item.name not in found or item.flaw < found[item.name].flaw:
      found[item.name] = item
  return found


def _choose(
  training: Mapping[str, _Object], validation: Mapping[str, _Object], names: Collection[str]
) -> tuple[_Object | None, _Object | None]:
  """Returns two objects of one of the classes, which is that where the harder one to see of the two is easiest.

  In a small world no class may be in both splits; then they are of two classes. None stands for no object.
  """
  both = [name for name in training if name in names and name in validation]
  if both:
    name = min(both, key=lambda name: max(training[name].flaw, validation[name].flaw))
    return training[name], validation[name]
  easiest = lambda objects: min((o for o in objects.values() if o.name in names), key=lambda o: o.flaw, default=None)
  return easiest(training), easiest(validation)


def _flaw(example: Example, i: int) -> tuple[int, float]:
  """Returns how hard object `i` is to see: (0 whole and alone, 1 not alone, 2 covered or cut off; minus its size)."""
  box, others = example.objects.boxes[i], np.delete(example.objects.boxes, i, axis=0)
  size = float((box[2:] - box[:2]).min())
  # Boxes that touch may be of objects that cover each other; the prepared data set does not say which do.
  if (box[:2] < 1).any() or (box[2:] > np.array([example.height, example.width]) - 1).any() or _meet(box, others).any():
    return 2, -size
  return int(_meet(_window(box, example.height, example.width), others).any()), -size


def _meet(box: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Returns bool [N]: which of the boxes [N, 4] share pixels with `box`."""
  return (np.maximum(box[:2], others[:, :2]) < np.minimum(box[2:], others[:, 2:])).all(axis=1)


def _window(box: np.ndarray, height: int, width: int) -> np.ndarray:
  """Returns the part of a picture to show around a box: int [4] yxyx, of the shape of the figure's frames."""
  unit = (_CONTEXT * (box[2:] - box[:2]) / _SHAPE).max()
  size = int(max(min(unit, height / _SHAPE[0], width / _SHAPE[1]), 1)) * np.array(_SHAPE)
  start = np.clip(np.rint((box[:2] + box[2:] - size) / 2), 0, np.array([height, width]) - size).astype(int)
  return np.concatenate([start, start + size])


def _annotation(seen: _Object, base: Collection[str]) -> Panel:
  boxes, names = seen.example.objects.boxes, [seen.names[int(i)] for i in seen.example.objects.category_ids]
  marks = [
    seen.mark(box, name, novel=False)
    for box, name in zip(boxes, names, strict=True)
    if name in base and _meet(seen.window, box[None])[0]
  ]
  caption = f'a box with the name {seen.name}' if seen.name in base else 'no annotation'
  return Panel([seen.shot('training', marks)], caption)


def _teacher(seen: _Object, vocabulary: VocabularyFile, embed: Embed) -> Panel:
  """Embeds the 1x and the 1.5x crop and adds them, as for the distillation, and compares the sum with the names."""
  bounds = crops.crop_bounds(seen.box, *seen.image.shape[:2])[:, 0]
  cut = [seen.image[top:bottom, left:right] for top, left, bottom, right in bounds]
  total = embed(cut).sum(axis=0)
  cosine = vocabulary.embeddings @ (total / np.linalg.norm(total))
  nearest = np.argsort(-cosine, kind='stable')[:_NAMES]
  return Panel(
    [
      Shot(_enlarged(crop, _SHOWN_WIDTH // 2), f'{scale:g}x crop of the {seen.name}')
      for crop, scale in zip(cut, crops.SCALES, strict=True)
    ],
    'cosine with the nearest names',
    [(vocabulary.names[row], float(cosine[row])) for row in nearest],
  )


def _detection(tested: _Object, base: Collection[str], detect: Detect, min_score: float) -> Panel:
  """Shows the best detection of the object, whatever its name, and those of other things whose centre is shown."""
  boxes, names, scores = detect(tested.image)
  boxes, scores = np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(scores)
  best_first = np.argsort(-scores, kind='stable')[: (scores >= min_score).sum()]
  centres = (boxes[:, :2] + boxes[:, 2:]) / 2
  inside = ((centres >= tested.window[:2]) & (centres <= tested.window[2:])).all(axis=1)
  shown = [i for i in best_first if inside[i]]
  overlap = np.asarray(box_lib.iou(jnp.asarray(tested.box[None]), jnp.asarray(boxes)))[0]
  of_it = [i for i in shown if overlap[i] >= _SAME_OBJECT]
  drawn = of_it[:1] + [i for i in shown if i not in of_it]
  marks = [tested.mark(boxes[i], f'{names[i]} {100 * scores[i]:.0f}', names[i] not in base) for i in drawn]
  where = f'validation picture {tested.image_id}: '
  if not of_it:
    said = f'nothing found where the {tested.name} is'
  else:
    said = f'found as {names[of_it[0]]}, score {_percent(scores[of_it[0]])}'
    said += '' if names[of_it[0]] == tested.name else f', but it is a {tested.name}'
    others = ', '.join(f'{names[i]} {_percent(scores[i])}' for i in of_it[1:])
    said += f'; also found as {others}' if others else ''
  return Panel([tested.shot('validation', marks)], where + said)


def _enlarged(picture: np.ndarray, width: int) -> np.ndarray:
  height = round(picture.shape[0] * width / picture.shape[1])
  return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def _percent(share: float) -> str:
  return f'{100 * share:.0f}\u00a0%'  # no line break before the sign
