"""Detects any class names in pictures; writes a drawing of each picture and one JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.data import class_lists, pictures, rle
from vild_jax.inference import drawing
from vild_jax.inference.detector import Detector
from vild_jax.runtime import files, progress

DETECTIONS_FILE = 'detections.json'


def detect(
  detector: Detector, images: list[Path], classes: str, out: Path, *, min_score: float
) -> list[dict[str, Any]]:
  """Draws what is found in each picture into `out` and writes `detections.json`; returns its content.

  Args:
    detector: what `inference.detector.load` returned.
    images: paths of the pictures.
    classes: names separated by commas, or a text file with one name a line.
    out: gets `NAME_detections.png` for each picture, and `detections.json`.
    min_score: detections with a lower score are left out.

  Raises ValueError, before anything is written, for a picture that cannot be read or names that do not fit.
  """
  names = class_lists.names(classes)
  twice = {image.stem for image in images if [i.stem for i in images].count(image.stem) > 1}
  # Classes and pictures are checked before anything is written. Pictures are decoded again below: keeping all of them
  # could take too much memory.
  detector.classes(names)
  for image in images:
    pictures.decode(image)
  out.mkdir(parents=True, exist_ok=True)
  novel = ~vocabulary_lib.is_base(names, detector.vocabulary)
  found = []
  for number, path in enumerate(progress.track(images, 'detect', unit='image')):
    picture = pictures.decode(path, upright=True)
    result = detector.detect(picture, names, min_score=min_score)
    drawn = out / f'{path.stem}{f"_{number}" if path.stem in twice else ""}_detections.png'
    picture_with_objects = drawing.draw(
      picture, result.boxes, result.labels, result.scores, result.masks, names, novel=novel
    )
    with files.replacing(drawn) as temporary:
      Image.fromarray(picture_with_objects).save(temporary, 'PNG')
    found.append(
      {
        'image': str(path),
        'picture': drawn.name,
        'height': picture.shape[0],
        'width': picture.shape[1],
        'detections': [
          {'class': names[label], 'score': float(score), 'box_yxyx': [float(v) for v in box]}
          | ({} if result.masks is None else {'mask': rle.encode_mask(result.masks[i])})
          for i, (label, score, box) in enumerate(zip(result.labels, result.scores, result.boxes, strict=True))
        ],
      }
    )
  files.write(out / DETECTIONS_FILE, json.dumps(found, indent=1) + '\n')
  return found
