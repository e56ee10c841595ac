"""Reads what a request asks for, and checks it before anything is computed."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Literal

import msgspec

from vild_jax.config import defaults
from vild_jax.serve.limits import Limits, Refused

RLE, POLYGONS, NONE = ('rle', 'polygons', 'none')
_DATA_URL = re.compile(r'data:[\w.+-]*/?[\w.+-]*(;[\w=.+-]+)*,')
_ID = re.compile('[0-9a-f]{64}')


class Shown(msgspec.Struct, forbid_unknown_fields=True):
  """A class that is shown: a box on a picture, [x, y, width, height] in pixels of it, upright.

  `image` is that picture in base64, whose whole is meant without a box; without `image` it is that of the request.
  """

  name: str
  box: tuple[float, float, float, float] | None = None
  image: str | None = None


class Question(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
  """What `POST /v1/detect` takes. Of `image` and `image_id` one is given, unless a part of the request is the picture.

  Without `classes` and `examples` the names of the bundle's vocabulary are asked for.
  """

  image: str | None = None
  image_id: str | None = None
  classes: list[str] | None = None
  examples: list[Shown] = msgspec.field(default_factory=list)
  min_score: Annotated[float, msgspec.Meta(ge=0, le=1)] = defaults.MIN_SCORE
  max_detections: Annotated[int, msgspec.Meta(ge=1)] | None = None
  masks: Literal['rle', 'polygons', 'none'] = RLE
  attributes: list[str] | None = None


_QUESTIONS = msgspec.json.Decoder(Question)


def read(text: bytes, picture: bytes | None, limits: Limits) -> tuple[Question, bytes | None]:
  """Returns the question, and the encoded picture; None in its place if the question names one that is held.

  Args:
    text: JSON.
    picture: the part of the request that is the picture; None if the JSON holds it.
    limits: what is allowed.

  Raises Refused for what is not a question, or is over a limit.
  """
  try:
    question = _QUESTIONS.decode(text)
  except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
    raise Refused(422, f'the request is not as expected: {error}') from None
  if sum(given is not None for given in (question.image, question.image_id, picture)) != 1:
    raise Refused(422, 'the request has no picture or several; expected one of image (a part, or base64) and image_id')
  if question.image is not None:
    picture, question.image = from_base64(question.image), None
  if question.image_id is not None and not _ID.fullmatch(question.image_id):
    raise Refused(422, f'image_id is {question.image_id!r}; expected the image.id of an answer')
  if picture is not None and not picture:
    raise Refused(422, 'the picture has 0 bytes; expected a whole picture')
  if picture is not None and len(picture) > limits.picture_bytes:
    raise Refused(413, f'the picture has {len(picture)} bytes; expected at most {limits.picture_bytes}')
  _check_names(question, limits)
  return question, picture


def from_base64(text: str) -> bytes:
  """Returns the bytes of base64, or of a `data:` URL of it; raises Refused for anything else."""
  start = _DATA_URL.match(text[:200])
  try:
    return base64.b64decode(text[start.end() if start else 0 :], validate=True)
  except (binascii.Error, ValueError) as error:
    raise Refused(422, f'image is not base64: {error}; expected it, or a data: URL of base64') from None


def _check_names(question: Question, limits: Limits) -> None:
  classes, attributes = question.classes or [], question.attributes or []
  for what, count, most in (
    ('classes and examples', len(classes) + len(question.examples), limits.classes),
    ('examples', len(question.examples), limits.examples),
    ('attributes', len(attributes), limits.attributes),
  ):
    if count > most:
      raise Refused(422, f'the request has {count} {what}; expected at most {most}')
  if question.classes == [] and not question.examples:
    raise Refused(422, 'classes is []; expected one or more names or examples, or no classes for those of the bundle')
  for shown in question.examples:
    if shown.box is None and shown.image is None:
      raise Refused(422, f'the example {shown.name[:40]!r} has no box; expected one, or an image of its own, or both')
  for name in (*classes, *attributes, *(shown.name for shown in question.examples)):
    if not name.strip() or len(name) > limits.name_characters:
      raise Refused(422, f'a name is {name[:40]!r}; expected 1 to {limits.name_characters} characters')
