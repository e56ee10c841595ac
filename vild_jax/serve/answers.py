"""Puts detections into the form of an answer."""

from __future__ import annotations

from typing import Any

import msgspec

from vild_jax.data import rle
from vild_jax.inference.detections import PictureDetections
from vild_jax.serve import questions


class AnsweredPicture(msgspec.Struct):
  """The picture: `id` names it in later requests; its size is that of the upright picture, in pixels."""

  id: str
  width: int
  height: int


class Found(msgspec.Struct, omit_defaults=True, rename={'class_': 'class'}):
  """A detection.

  `label` is the index of its class in the `classes` of the answer; `box` is [x, y, width, height] in pixels;
  `segmentation` is a COCO RLE, or polygons [x, y, x, y, ...] of the outlines; `attributes` are there if the request
  asked for some.
  """

  class_: str
  label: int
  score: float
  box: list[float]
  segmentation: dict[str, Any] | list[list[int]] | None = None
  attributes: dict[str, float] | None = None


class Seconds(msgspec.Struct):
  """How long it took: to decode the picture, the image forward (0 if the picture was held), the words, all together."""

  decode: float
  image: float
  words: float
  total: float


class Answer(msgspec.Struct):
  """What `POST /v1/detect` returns: detections best first; `cached` if no image forward was needed."""

  image: AnsweredPicture
  classes: list[str]
  detections: list[Found]
  seconds: Seconds
  cached: bool


def found(detections: PictureDetections, masks: str) -> list[Found]:
  """Returns the detections, with masks as `Question.masks` says, if there are any."""
  coco = detections.to_coco()
  return [
    Found(
      class_=detections.names[label],
      label=label,
      score=one['score'],
      box=one['bbox'],
      segmentation=_segmentation(one.get('segmentation'), masks),
      attributes=detections.attributes_of(index) or None,
    )
    for index, (label, one) in enumerate(zip(detections.labels.tolist(), coco, strict=True))
  ]


def _segmentation(mask: dict[str, Any] | None, masks: str) -> dict[str, Any] | list[list[int]] | None:
  if mask is None or masks != questions.POLYGONS:
    return mask
  window, y, x = rle.decode_window(mask)
  return rle.outlines(window, y, x)[0]
