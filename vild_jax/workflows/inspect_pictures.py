"""Draws pictures of a data set for the page of `inspect`: as annotated, and as the network sees them in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vild_jax.config import Config
from vild_jax.data import batch as batches
from vild_jax.data import contents, pictures, rle, transforms
from vild_jax.data.contents import NOVEL, UNKNOWN
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.schema import Category, Example, counted
from vild_jax.eval import paste
from vild_jax.inference import drawing
from vild_jax.report.inspection import View

_SIDE = 512  # pixels of the longer side of a drawn picture
_MOST = 300  # objects that are drawn: of more, none could be told from another
_FEW = 12  # objects of a picture, so that large labels find room
_CROWD = (150, 150, 150)  # RGB
_REGION = (255, 179, 102)


@dataclass(frozen=True)
class Training:
  """Holds what makes training pictures.

  Attributes:
    config: the experiment; its seed draws the augmentation.
    labels: maps each category that training may use to its row of the vocabulary.
    regions: to distil, or None.
  """

  config: Config
  labels: batches.LabelMap
  regions: RegionStore | None = None


def view(
  example: Example, index: int, categories: Sequence[Category], kinds: Sequence[str], training: Training | None
) -> View:
  """Draws one picture.

  Args:
    example: the picture.
    index: the place in the stream of training whose augmentation is drawn.
    categories: of the data set.
    kinds: of each category, see `Contents.kinds`.
    training: None draws the picture as annotated, alone.
  """
  shots = [_annotated(example, categories, kinds)]
  if training is not None:
    shots += _seen(example, index, categories, kinds, training)
  return View(f'Image {example.image_id}', shots)


def _annotated(example: Example, categories: Sequence[Category], kinds: Sequence[str]) -> tuple[str, np.ndarray]:
  """The picture with all of its boxes and masks; crowds are grey."""
  found = example.objects
  picture = drawing.resized(pictures.decode_example(example), _SIDE)
  height, width = picture.shape[:2]
  rows = contents.rows(categories)
  drawn = _largest(found.boxes)
  crowd = found.is_crowd[drawn]
  labels = np.array([rows[int(key)] for key in found.category_ids[drawn]], np.int64)
  masks = np.zeros((len(labels), height, width), bool)
  for mask, i in zip(masks, drawn, strict=True):
    if segmentation := found.segmentations[i]:  # else the object has a box alone
      whole = rle.decode_mask(segmentation, example.height, example.width).astype(np.uint8)
      mask[:] = cv2.resize(whole, (width, height), interpolation=cv2.INTER_NEAREST)
  names = [category.name for category in categories]
  shot = drawing.draw(
    picture,
    found.boxes[drawn] * np.tile([height / example.height, width / example.width], 2),
    labels + crowd * len(names),
    None,
    masks,
    names + [f'crowd: {name}' for name in names],
    novel=np.array([kind == NOVEL for kind in kinds] * 2),
    colors=[_CROWD if grey else drawing.class_color(int(label)) for label, grey in zip(labels, crowd, strict=True)],
    bold=len(labels) <= _FEW,
  )
  crowds = int(found.is_crowd.sum())
  line = f'As annotated: {example.width} × {example.height} pixels, {counted(len(found.ids) - crowds, "object")}'
  line += f', {counted(crowds, "crowd")}' if crowds else ''
  boxes_alone = sum(not segmentation for segmentation in found.segmentations)
  return line + (f', {boxes_alone:,} without a mask' if boxes_alone else '') + _cut(found.boxes), shot


def _largest(boxes: np.ndarray) -> np.ndarray:
  """The rows of the largest boxes [N, 4], as many as are drawn, in their order."""
  sizes = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
  return np.sort(np.argsort(-sizes, kind='stable')[:_MOST])


def _cut(boxes: np.ndarray) -> str:
  return f'; the {_MOST} largest are drawn' if len(boxes) > _MOST else ''


def _seen(
  example: Example, index: int, categories: Sequence[Category], kinds: Sequence[str], training: Training
) -> list[tuple[str, np.ndarray]]:
  """The training picture with the boxes and masks of the batch, and another time with its regions to distil."""
  config = training.config
  item = batches.stream_example(index, example, labels=training.labels, config=config, regions=training.regions)
  size = config.data.image_size
  picture = drawing.resized(transforms.displayed(item['image'], item['image_size']), _SIDE)
  scale = len(picture) / size
  used = int(item['valid'].sum())
  boxes = item['boxes'][:used] * scale
  drawn = _largest(boxes)
  row_of = contents.rows(categories)
  shown = {label: row_of[key] for key, label in training.labels.rows.items()}
  kind_of = [kinds[row_of[int(key)]] for key in example.objects.category_ids[~example.objects.is_crowd]]
  dropped = {kind: kind_of.count(kind) for kind in (NOVEL, UNKNOWN) if kind_of.count(kind)}
  if config.assignment.novel_labels:
    dropped.pop(NOVEL, None)
  usable = len(kind_of) - sum(dropped.values())
  beyond = _inside(example, index, training) - used if used == config.data.max_instances < usable else 0
  counts = dropped | {'outside the crop': usable - used - beyond, 'beyond data.max_instances': beyond}
  left_out = ', '.join(f'{n:,} {why}' for why, n in counts.items() if n)
  height, width = (round(float(side)) for side in item['image_size'])
  line = (
    f'As trained on: {width} × {height} of {size} × {size} pixels, {counted(used, "object")}'
    f'{"; left out: " + left_out if left_out else ""}{_cut(boxes)}'
  )
  masks = None
  if config.model.masks:
    masks = paste.paste_masks(_soft_masks(item['masks'], drawn), boxes[drawn], *picture.shape[:2])
  shot = drawing.draw(
    picture,
    boxes[drawn],
    np.array([shown[int(label)] for label in item['labels'][drawn]], int),
    None,
    masks,
    [category.name for category in categories],
    bold=len(example.objects.ids) <= _FEW,
  )
  shots = [(line, shot)]
  if training.regions is not None:
    regions = item['regions']
    kept = regions['boxes'][regions['valid']] * scale
    shots.append((f'To distil: {counted(len(kept), "region")}', _outlined(picture, kept)))
  return shots


def _soft_masks(masks: np.ndarray | dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
  """The masks of these rows in [0, 1], float32 [K, 112, 112], of either form that a batch has."""
  if isinstance(masks, dict):
    size = transforms.MASK_SIZE
    soft = [transforms.soft_mask(masks['bits'][row], masks['weights'][row]) for row in rows]
    return np.array(soft, np.float32).reshape(-1, size, size)
  return masks[rows].astype(np.float32) / 255


def _inside(example: Example, index: int, training: Training) -> int:
  """How many objects the same training picture would have without `data.max_instances`."""
  config = training.config
  roomy = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, max_instances=len(example.objects.ids)),
    model=dataclasses.replace(config.model, masks=False),
  )
  item = batches.stream_example(index, example, labels=training.labels, config=roomy, regions=None)
  return int(item['valid'].sum())


def _outlined(picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """A darkened picture with thin boxes [N, 4] yxyx."""
  dark = (0.6 * picture).astype(np.uint8)
  lines = dark.copy()
  for y1, x1, y2, x2 in np.round(boxes).astype(int).tolist():
    cv2.rectangle(lines, (x1, y1), (x2, y2), _REGION, 1)
  return cv2.addWeighted(lines, 0.7, dark, 0.3, 0)
