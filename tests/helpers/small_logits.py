"""The kept logits of a tiny detector with made-up weights, on two pictures with objects where it detects some."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tests.helpers import tiny
from vild_jax import detector
from vild_jax.config import Config
from vild_jax.inference import logits
from vild_jax.structs import Detections, Vocabulary
from vild_jax.vocabulary import VocabularyFile

CONFIG = tiny.config(
  'model.postprocess.max_detections=100',
  'model.image_head=true',
  'model.temperature=0.1',
  'mesh.data=1',
  'evaluation.protocol=coco',
)
CLASSES, PADDED = 5, 8
NAMES = ('ant', 'bee', 'cat', 'dog', 'eel')
IS_BASE = np.array([False, True, True, True, False])
CATEGORY_IDS = (10, 20, 30, -1, 50)  # the dog is no category of the data set
IMAGES = (7, 2**53 + 1)
SIZES = np.array([[64, 64], [64, 40]], np.float32)
SCALE = np.array([0.5, 0.5], np.float32)
_WORDS = VocabularyFile(np.eye(CLASSES, 16), NAMES, IS_BASE, 'made up', '')


@dataclass(frozen=True)
class Made:
  """A folder of kept logits, what they were made of, and what the detector itself gives."""

  folder: Path
  arguments: tuple[Any, ...]  # variables, images, sizes, vocabulary
  detections: Detections
  intermediates: dict[str, Any]
  kept: logits.Kept


def make(folder: Path) -> Made:
  """Writes a folder."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(len(IMAGES), 64, 64, 3)).astype(np.float32)
  words = Vocabulary(
    np.eye(PADDED, 16, dtype=np.float32), np.pad(IS_BASE, (0, PADDED - CLASSES)), np.arange(PADDED) < CLASSES
  )
  variables = tiny.variables(CONFIG, deltas=0.01)
  objectness = variables['params']['rpn_head']['objectness']
  objectness['kernel'] *= 0.05  # as drawn, all proposals have an objectness of nearly 1
  arguments = (variables, images, SIZES, words)

  @jax.jit  # one program, because most of what both compute is the same
  def program(*arguments):
    return logits.detect(CONFIG.model, *arguments), detector.predict_batch(CONFIG.model, *arguments)[1]

  (found, kept), intermediates = jax.device_get(program(*arguments))
  begin(folder, found)
  write_pictures(folder, kept)
  return Made(folder, arguments, found, intermediates, kept)


def write_pictures(folder: Path, kept: logits.Kept) -> None:
  for i, image_id in enumerate(IMAGES):
    arrays = {'image_id': np.int64(image_id), 'scale': SCALE, 'original_size': (SIZES[i] / SCALE).astype(np.int32)}
    logits.write_picture(folder, CLASSES, jax.tree.map(lambda x, i=i: x[i], kept), arrays)


def begin(folder: Path, found: Detections, *, config: Config = CONFIG, job: dict[str, str] | None = None) -> None:
  """Begins a folder; objects are where `found` has detections of known categories."""
  annotations = []
  for i, image_id in enumerate(IMAGES):
    seen = set()
    for box, label in zip(found.boxes[i] / SCALE[0], found.labels[i].tolist(), strict=True):
      if label not in seen and CATEGORY_IDS[label] > 0:
        seen.add(label)
        y1, x1, y2, x2 = map(float, box)
        annotations.append(
          {
            'id': len(annotations) + 1,
            'image_id': image_id,
            'category_id': CATEGORY_IDS[label],
            'bbox': [x1, y1, x2 - x1, y2 - y1],
            'area': (x2 - x1) * (y2 - y1),
            'iscrowd': 0,
            'segmentation': [[x1, y1, x2, y1, x2, y2]],
          }
        )
  truth = {
    'images': [{'id': i, 'height': 128, 'width': 128} for i in IMAGES],
    'categories': [{'id': k, 'name': n, 'frequency': 'c'} for k, n in zip(CATEGORY_IDS, NAMES, strict=True) if k > 0],
    'annotations': annotations,
  }
  logits.begin(
    folder, config, _WORDS, _WORDS.is_base, np.array(CATEGORY_IDS, np.int64), truth, job or {'weights': 'these'}
  )
