"""Holds what is found in one picture, with masks as run-length codes, and hands it to other programs in their forms."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vild_jax.data import pictures, rle
from vild_jax.eval import results
from vild_jax.inference import drawing


@dataclass(frozen=True, eq=False)
class PictureDetections:
  """Holds the detections in one picture, best first, in its own pixels.

  Attributes:
    boxes: float32 [N, 4] yxyx, clipped to the picture.
    scores: float32 [N] in [0, 1], descending.
    labels: int32 [N], indices into `names`.
    names: the C classes asked for.
    size: (height, width) of the picture.
    rles: N COCO RLEs {'size': [height, width], 'counts': str}; None if no masks were asked for, or none are learnt
      (`config.model.masks`).
    attribute_names: the A attributes asked for.
    attributes: float32 [N, A], how probable each is; a row sums to 1. None if none were asked for. Times the score it
      is the score of an object of this class with this attribute.
  """

  boxes: np.ndarray
  scores: np.ndarray
  labels: np.ndarray
  names: tuple[str, ...]
  size: tuple[int, int]
  rles: tuple[dict[str, Any], ...] | None
  attribute_names: tuple[str, ...] = ()
  attributes: np.ndarray | None = None

  def __len__(self) -> int:
    """Returns the number of detections, N."""
    return len(self.scores)

  @functools.cached_property
  def masks(self) -> np.ndarray | None:
    """Returns bool [N, H, W], decoded when it is first read and kept from then on; None without masks.

    In large pictures it takes much memory; `mask` decodes one at a time.
    """
    if self.rles is None:
      return None
    masks = np.empty((len(self), *self.size), bool)
    for index in range(len(self)):
      masks[index] = self.mask(index)
    return masks

  def mask(self, index: int) -> np.ndarray:
    """Returns the mask of one detection, bool [H, W]. Raises ValueError if there are no masks."""
    if self.rles is None:
      raise ValueError('these detections have no masks; expected a detector that has learnt them, and masks=True')
    return rle.decode_mask(self.rles[index], *self.size)

  def attributes_of(self, index: int) -> dict[str, float]:
    """Returns {attribute: its probability} of one detection; empty if no attributes were asked for."""
    return (
      {} if self.attributes is None else dict(zip(self.attribute_names, self.attributes[index].tolist(), strict=True))
    )

  def to_coco(self, image_id: int = 1, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Returns the detections as results of COCO, in values that JSON has, best first.

    Each is {'image_id', 'category_id', 'bbox': [x, y, width, height], 'score'} and, with masks, 'segmentation': an RLE.

    Args:
      image_id: that of the picture.
      category_ids: the id of each of `names`; None counts them from 1.

    Raises ValueError if the ids do not fit the names.
    """
    ids = np.arange(1, len(self.names) + 1) if category_ids is None else np.asarray(category_ids)
    if ids.shape != (len(self.names),):
      raise ValueError(f'there are {len(ids)} category ids; expected one for each of the {len(self.names)} classes')
    found = results.detections_to_results(image_id, self.boxes, self.scores, ids[self.labels], None, self.size)
    return found if self.rles is None else [a | {'segmentation': b} for a, b in zip(found, self.rles, strict=True)]

  def to_dicts(self) -> list[dict[str, Any]]:
    """Returns what the `zero-shot-object-detection` pipeline of transformers returns for a picture, best first.

    Each is {'score': float, 'label': name, 'box': {'xmin', 'ymin', 'xmax', 'ymax'}}, in whole pixels, rounded down.
    """
    return [
      {
        'score': score,
        'label': self.names[label],
        'box': {'xmin': left, 'ymin': top, 'xmax': right, 'ymax': bottom},
      }
      for score, label, (top, left, bottom, right) in zip(
        self.scores.tolist(), self.labels.tolist(), self.boxes.astype(int).tolist(), strict=True
      )
    ]

  def to_supervision(self) -> Any:
    """Returns a `supervision.Detections`, with the names as its data `class_name` and all masks decoded.

    Raises ValueError if the package supervision is not installed.
    """
    try:
      import supervision
    except ImportError:
      raise ValueError("supervision is not installed; expected it from: pip install 'vild_jax[supervision]'") from None
    return supervision.Detections(
      xyxy=self.boxes[:, [1, 0, 3, 2]],
      mask=self.masks,
      confidence=self.scores,
      class_id=self.labels.astype(int),
      data={'class_name': np.array(self.names, str)[self.labels]},
    )

  def draw(self, picture: pictures.Picture, *, novel: np.ndarray | None = None) -> np.ndarray:
    """Draws the detections on their picture.

    Args:
      picture: the one that they were found in: uint8 [H, W, 3] RGB, a PIL picture or a path.
      novel: bool [C], the classes to mark, or None.

    Returns uint8 [k·H, k·W, 3]; k is greater than 1 for pictures under 400 pixels. Raises ValueError for a picture of
    another size.
    """
    picture = pictures.as_rgb(picture)
    if picture.shape[:2] != self.size:
      raise ValueError(f'the picture has {picture.shape[:2]} pixels (height, width); expected {self.size}, as detected')
    titles = [title(self.names[label], self.attributes_of(i)) for i, label in enumerate(self.labels)]
    return drawing.draw(
      picture, self.boxes, self.labels, self.scores, self.rles, self.names, novel=novel, titles=titles
    )


def title(name: str, attributes: Mapping[str, float]) -> str:
  """Returns what a drawing calls an object: its class, after the attribute that is likelier than all others together.

  Args:
    name: of the class.
    attributes: {attribute: its probability}.
  """
  best = max(attributes, key=attributes.get, default=None)
  return name if best is None or attributes[best] <= 0.5 else f'{best} {name}'
