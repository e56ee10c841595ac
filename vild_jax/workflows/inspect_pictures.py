"""Draws pictures of a data set for the page of `inspect`: as annotated, and as the network sees them in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from vild_jax.config import Config
from vild_jax.data import batch as batches
from vild_jax.data import pictures, rle, transforms
from vild_jax.data.contents import NOVEL, UNKNOWN
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.schema import Category, Example
from vild_jax.eval import paste
from vild_jax.inference import drawing
from vild_jax.report.inspection import View

_SIDE, _SMALL = 512, 256  # pixels of the longer side, of a drawn picture and of one of a pair
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


def resized(picture: np.ndarray, side: int = _SMALL) -> np.ndarray:
  """Returns a picture, uint8 [H, W, 3], with a longer side of `side` pixels."""
  scale = side / max(picture.shape[:2])
  size = [max(1, round(n * scale)) for n in picture.shape[1::-1]]
  return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _annotated(example: Example, categories: Sequence[Category], kinds: Sequence[str]) -> tuple[str, np.ndarray]:
  """The picture with all of its boxes and masks; crowds are grey."""
  found = example.objects
  picture = resized(pictures.decode_example(example), _SIDE)
  height, width = picture.shape[:2]
  rows = {category.id: row for row, category in enumerate(categories)}
  labels = np.array([rows[int(key)] for key in found.category_ids], np.int64)
  masks = np.zeros((len(labels), height, width), bool)
  for mask, segmentation in zip(masks, found.segmentations, strict=True):
    if segmentation:  # else the object has a box alone
      whole = rle.decode_mask(segmentation, example.height, example.width).astype(np.uint8)
      mask[:] = cv2.resize(whole, (width, height), interpolation=cv2.INTER_NEAREST)
  names = [category.name for category in categories]
  drawn = drawing.draw(
    picture,
    found.boxes * np.tile([height / example.height, width / example.width], 2),
    labels + found.is_crowd * len(names),
    None,
    masks,
    names + [f'crowd: {name}' for name in names],
    novel=np.array([kind == NOVEL for kind in kinds] * 2),
    colors=[
      _CROWD if crowd else drawing.class_color(int(label)) for label, crowd in zip(labels, found.is_crowd, strict=True)
    ],
    bold=len(labels) <= _FEW,
  )
  crowds = int(found.is_crowd.sum())
  line = f'As annotated: {example.width} × {example.height} pixels, {_plural(len(labels) - crowds, "object")}'
  line += f', {_plural(crowds, "crowd")}' if crowds else ''
  boxes_alone = sum(not segmentation for segmentation in found.segmentations)
  return line + (f', {boxes_alone} without a mask' if boxes_alone else ''), drawn


def _seen(
  example: Example, index: int, categories: Sequence[Category], kinds: Sequence[str], training: Training
) -> list[tuple[str, np.ndarray]]:
  """The training picture with the boxes and masks of the batch, and another time with its regions to distil."""
  config = training.config
  item = batches.stream_example(index, example, labels=training.labels, config=config, regions=training.regions)
  size = config.data.image_size
  picture = resized(transforms.displayed(item['image']), _SIDE)
  scale = len(picture) / size
  valid = item['valid']
  boxes = item['boxes'][valid] * scale
  row_of = {category.id: row for row, category in enumerate(categories)}
  shown = {label: row_of[key] for key, label in training.labels.rows.items()}
  kind_of = [kinds[row_of[int(key)]] for key in example.objects.category_ids[~example.objects.is_crowd]]
  dropped = {kind: kind_of.count(kind) for kind in (NOVEL, UNKNOWN) if kind_of.count(kind)}
  if config.assignment.novel_labels:
    dropped.pop(NOVEL, None)
  outside = len(kind_of) - sum(dropped.values()) - int(valid.sum())
  height, width = (round(float(side)) for side in item['image_size'])
  left_out = [f'{n} {kind}' for kind, n in dropped.items()] + ([f'{outside} outside the crop'] if outside else [])
  line = (
    f'As trained on: {width} × {height} of {size} × {size} pixels, {_plural(int(valid.sum()), "object")}'
    f'{"; left out: " + ", ".join(left_out) if left_out else ""}'
  )
  masks = None
  if config.model.masks:
    masks = paste.paste_masks(item['masks'][valid].astype(np.float32) / 255, boxes, *picture.shape[:2])
  drawn = drawing.draw(
    picture,
    boxes,
    np.array([shown[int(label)] for label in item['labels'][valid]], int),
    None,
    masks,
    [category.name for category in categories],
    bold=len(example.objects.ids) <= _FEW,
  )
  shots = [(line, drawn)]
  if training.regions is not None:
    regions = item['regions']
    kept = regions['boxes'][regions['valid']] * scale
    shots.append((f'To distil: {_plural(len(kept), "region")}', _outlined(picture, kept)))
  return shots


def _outlined(picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
  """A darkened picture with thin boxes [N, 4] yxyx."""
  dark = (0.6 * picture).astype(np.uint8)
  lines = dark.copy()
  for y1, x1, y2, x2 in np.round(boxes).astype(int).tolist():
    cv2.rectangle(lines, (x1, y1), (x2, y2), _REGION, 1)
  return cv2.addWeighted(lines, 0.7, dark, 0.3, 0)


def _plural(number: int, what: str) -> str:
  return f'{number:,} {what}{"s" * (number != 1)}'
