"""A detector that finds known objects, and what a user does on the page of the service and sees there."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.browser import Page
from tests.helpers.fake_detector import FakeDetector
from vild_jax.data import rle
from vild_jax.inference import drawing
from vild_jax.inference.detections import PictureDetections

# (left, top, width, height) of the objects of the three first classes, as shares of the picture's sides.
PLACES = ((0.125, 0.125, 0.25, 0.25), (0.5, 0.25, 0.375, 0.5), (0.0625, 0.625, 0.25, 0.25))
SCORES = (0.9, 0.6, 0.2)


class Detector(FakeDetector):
  """Finds one object of each class, at a place and with a score of its own; masks are ellipses."""

  def find(self, looked, classes=None, **options) -> PictureDetections:
    asked = super().find(looked, classes, **options)
    names = asked.names
    height, width = looked.size
    count = min(len(names), len(PLACES))
    boxes = np.array(PLACES, np.float32)[:count] * [width, height, width, height]
    masks = [ellipse(box, width, height) for box in boxes] if options['masks'] else None
    yxyx = np.concatenate([boxes[:, 1::-1], boxes[:, 1::-1] + boxes[:, :1:-1]], axis=1).astype(np.float32)
    scores, labels = np.array(SCORES[:count], np.float32), np.arange(count, dtype=np.int32)
    rles = masks and tuple(map(rle.encode_mask, masks))
    shares = np.tile(np.linspace(0.6, 0.4, len(asked.attribute_names), dtype=np.float32), (count, 1))
    return PictureDetections(
      yxyx, scores, labels, names, looked.size, rles, asked.attribute_names, shares if asked.attribute_names else None
    )


def ellipse(box: np.ndarray, width: int, height: int) -> np.ndarray:
  x, y, w, h = box
  columns = (np.arange(width) + 0.5 - x - w / 2) / (w / 2)
  rows = (np.arange(height) + 0.5 - y - h / 2) / (h / 2)
  return columns**2 + rows[:, None] ** 2 <= 1


def look_for(page: Page, words: str, picture: Path) -> None:
  """Writes words, chooses a picture and waits for the answer."""
  page.js(f'document.getElementById("words").value = {json.dumps(words)}')
  page.choose('#file', picture)
  page.until(
    f'!document.getElementById("results").hidden && document.getElementById("picture-name").innerText.startsWith('
    f'{json.dumps(picture.name)})'
  )


def only(page: Page, *layers: str) -> None:
  """Switches to the layers of this name alone."""
  for layer in ('boxes', 'masks', 'labels'):
    if page.js(f'document.getElementById("layer-{layer}").checked') != (layer in layers):
      page.js(f'document.getElementById("layer-{layer}").click()')


def canvas(page: Page) -> np.ndarray:
  """What is drawn over the picture, uint8 [h, w, 4]."""
  address = page.js('document.getElementById("canvas").toDataURL()')
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(',')[2]))).convert('RGBA'))


def extent(pixels: np.ndarray, label: int) -> list[int] | None:
  """(left, top, right, bottom) of the opaque pixels in the colour of a class; None without any."""
  distance = np.abs(pixels[..., :3].astype(int) - drawing.class_color(label)).max(axis=-1)
  rows, columns = np.nonzero((distance < 12) & (pixels[..., 3] > 200))
  return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None


def detections_asked(page: Page) -> int:
  """How often the page has asked for detections."""
  return sum('/v1/detect' in request['url'] and request['method'] == 'POST' for request in page.requests())


def corner(page: Page, x: float, y: float) -> tuple[float, float]:
  """The place in the window of a place in the picture, both sides of which count 1."""
  left, top, width, height = page.js(
    '(() => { const c = document.getElementById("canvas"); c.scrollIntoView({block: "center"});'
    'const r = c.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; })()'
  )
  return left + x * width, top + y * height


def touch(page: Page, *places: tuple[float, float]) -> None:
  """Puts a finger on the first place, moves it over the others and lifts it."""
  for number, (x, y) in enumerate(places):
    kind = 'touchMove' if number else 'touchStart'
    page.call('Input.dispatchTouchEvent', type=kind, touchPoints=[{'x': x, 'y': y}])
  page.call('Input.dispatchTouchEvent', type='touchEnd', touchPoints=[])
