"""Detects any class names in pictures and videos; writes a drawing of each, and in JSON what was found."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import defaults
from vild_jax.data import class_lists, pictures
from vild_jax.data import inputs as inputs_lib
from vild_jax.data.inputs import Input
from vild_jax.data.schema import DataError
from vild_jax.eval.shards import FOLDER
from vild_jax.inference import drawing, fonts, jobs, tiles, video
from vild_jax.inference.detections import PictureDetections, title
from vild_jax.inference.detector import Detector
from vild_jax.runtime import files, locks, progress
from vild_jax.vocabulary import VocabularyFile
from vild_jax.workflows import found_files
from vild_jax.workflows.found_files import Parts, Record

DETECTIONS_FILE, COCO_FILE = 'detections.json', 'coco.json'
_PICTURE, _VIDEO, _LINES = _ENDINGS = ('_detections.png', '_detections.mp4', '_detections.jsonl')
_BATCH_PIXELS = 64 * 10**6  # a batch is complete when its pictures have so many
_WHOLE = 0.9  # a video with a smaller share of the frames that it states is cut off; what it states is an estimate
_SHOWN = 20  # names without a font that a message lists


@dataclass(frozen=True)
class Settings:
  """Holds how to detect.

  Attributes:
    min_score: detections with a lower score are left out.
    masks: False finds boxes alone.
    max_detections: of each picture or frame, best first; None: as many as the detector gives, for each tile.
    batch_size: pictures, frames or tiles that go through the network together.
    tile: side of the tiles of larger pictures, pixels; None: no tiles.
    overlap: the share of its side by which a tile overlaps the next.
    max_megapixels: larger pictures are not read.
    attributes: what else to ask of each detection, names of which it is taken to have one; None: nothing.

  Raises ValueError for a value out of range, which is called by its option.
  """

  min_score: float = defaults.DRAWN_MIN_SCORE
  masks: bool = True
  max_detections: int | None = None
  batch_size: int = defaults.DETECT_BATCH
  tile: int | None = None
  overlap: float = defaults.TILE_OVERLAP
  max_megapixels: int = defaults.MAX_MEGAPIXELS
  attributes: list[str] | None = None

  def __post_init__(self):
    for name in ('max_detections', 'batch_size', 'tile', 'max_megapixels'):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f'--{name.replace("_", "-")} is {value}; expected 1 or more')
    for name, highest in (('min_score', 1.0), ('overlap', 0.9)):
      if not 0 <= getattr(self, name) <= highest:
        raise ValueError(f'--{name.replace("_", "-")} is {getattr(self, name)}; expected 0 to {highest:g}')


def detect(
  detector: Detector,
  images: Sequence[str | Path],
  classes: str,
  out: Path,
  settings: Settings | None = None,
  *,
  coco: bool = False,
) -> list[str]:
  """Draws what is found in each picture and video into `out`, and writes the detections.

  A run that was killed goes on when it is started again with the same arguments; until the end, `out` has the folder
  `unfinished`.

  Args:
    detector: what `inference.detector.load` returned.
    images: files, folders and globs, as `data.inputs.inputs` takes them.
    classes: names separated by commas or a list of classes, as `class_lists.names` takes them, or a vocabulary .npz.
    out: gets NAME_detections.png for each picture and `detections.json` for all, and for each video
      NAME_detections.mp4 and NAME_detections.jsonl, a line a frame.
    settings: how to detect; None: all defaults.
    coco: whether to write `coco.json` too, the pictures as a data set in COCO's format.

  Returns:
    A line about each of several inputs that could not be read. All others are done.

  Raises:
    FolderInUse: another process works in `out`.
    ValueError: an argument does not fit, `out` has an unfinished detection with other arguments, or the only input
      cannot be read.
  """
  settings = settings or Settings()
  asked = _asked(classes)
  words = _embedded(detector, asked, settings.attributes)
  inputs = inputs_lib.inputs(images, out, _ENDINGS)
  if len(inputs) == 1:
    _check_readable(inputs[0], settings)
  with locks.locked(out):
    parts = Parts(out / FOLDER, _job(detector, words, inputs, settings))
    _tell_numbers(words.names)
    work = _Work(detector, asked, words, inputs, out, settings, parts)
    work.run()
    found_files.write_list(out / DETECTIONS_FILE, work.of_pictures())
    if coco:
      found_files.write_coco(out / COCO_FILE, work.of_pictures, words.names)
    unreadable = [record['error'] for record in work.records() if 'error' in record]
    parts.remove()
  return unreadable


def _check_readable(item: Input, settings: Settings) -> None:
  """Raises DataError if the only input cannot be read: then nothing would be left to do."""
  if item.is_video:
    with video.reading(item.path):
      return
  pictures.decode(item.path, upright=True, max_pixels=settings.max_megapixels * 10**6)


def _asked(classes: str) -> Sequence[str] | VocabularyFile:
  if classes.lower().endswith('.npz') and class_lists.is_file(classes):
    vocabulary = vocabulary_lib.load(classes)
    class_lists.check_names(vocabulary.names, classes)
    return vocabulary
  return class_lists.names(classes)


def _embedded(
  detector: Detector, asked: Sequence[str] | VocabularyFile, attributes: Sequence[str] | None
) -> VocabularyFile:
  """What is asked for, as the detector embeds it."""
  names = asked.names if isinstance(asked, VocabularyFile) else tuple(asked)
  padded = detector.classes(asked, attributes)
  rows, is_base = (np.asarray(values)[: len(names)] for values in (padded.embeddings, padded.is_base))
  return VocabularyFile(rows, names, is_base, detector.vocabulary.teacher, 'names', padded.background)


def _job(detector: Detector, words: VocabularyFile, inputs: list[Input], settings: Settings) -> dict[str, Any]:
  """What decides the results; a file counts by its name, size and time."""
  seen = hashlib.sha256()
  for item in inputs:
    about = item.path.stat() if item.path.exists() else None
    seen.update(repr((os.fspath(item.path), item.name, about and (about.st_size, about.st_mtime_ns))).encode())
  return jobs.description(
    detector.config,
    detector.variables,
    words,
    detector.vocabulary,
    range(len(inputs)),
    inputs=seen.hexdigest(),
    **asdict(settings),
  )


def _tell_numbers(names: Sequence[str]) -> None:
  """Says which names the drawings show as numbers."""
  numbered = [(i, name) for i, name in enumerate(names) if fonts.label(name, i) != fonts.one_line(name)]
  if numbered:
    listed = ', '.join(f'{fonts.label(name, i)} = {name}' for i, name in numbered[:_SHOWN])
    print(
      f'no font here has all letters of {len(numbered)} of {len(names)} names, which drawings show by their numbers: '
      f'{listed}{", ..." if len(numbered) > _SHOWN else ""}. A font such as Noto Sans in the system would help, and '
      'for scripts such as Arabic the library FriBiDi.',
      file=sys.stderr,
    )


@dataclass(frozen=True)
class _Work:
  """The inputs, and what is found in them.

  The record of an input is {'image', 'error'}, or of a picture what `detections.json` holds of it.
  """

  detector: Detector
  asked: Sequence[str] | VocabularyFile
  words: VocabularyFile
  inputs: list[Input]
  out: Path
  settings: Settings
  parts: Parts

  def run(self) -> None:
    """Detects in all inputs of which there is no record."""
    done = sum(map(self.parts.has, range(len(self.inputs))))
    if done:
      print(f'going on with {done} of {len(self.inputs)} inputs done already', file=sys.stderr)
    most = 1 if self.settings.tile else self.settings.batch_size
    # A run that goes on has the batches of one without a break: the last bits of a result depend on its neighbours.
    batch: dict[int, np.ndarray | None] = {}  # None: has a record already
    numbers = 0  # in the arrays of the batch
    with progress.bar(len(self.inputs), 'detect', unit='input', initial=done) as bar:
      for i, item in enumerate(self.inputs):
        record = self.parts.read(i)[0] if self.parts.has(i) else None
        try:
          if record:
            if 'detections' in record:
              batch[i] = None
              numbers += record['height'] * record['width'] * 3
          elif item.is_video:
            self._video(i)
            bar.update()
          else:
            batch[i] = picture = self._decoded(i)
            numbers += picture.size
        except DataError as error:
          self.parts.write([{'image': str(item.path), 'error': str(error)}], i)
          tqdm.write(f'left out: {error}', file=sys.stderr)
          bar.update()
        if len(batch) == most or numbers >= 3 * _BATCH_PIXELS:
          bar.update(self._pictures(batch))
          batch, numbers = {}, 0
      bar.update(self._pictures(batch))

  def records(self) -> Iterator[Record]:
    """Yields the record of each input."""
    for i in range(len(self.inputs)):
      yield self.parts.read(i)[0]

  def of_pictures(self) -> Iterator[Record]:
    """Yields the record of each picture that could be read."""
    return (record for record in self.records() if 'detections' in record)

  def _decoded(self, i: int) -> np.ndarray:
    return pictures.decode(self.inputs[i].path, upright=True, max_pixels=self.settings.max_megapixels * 10**6)

  def _pictures(self, batch: dict[int, np.ndarray | None]) -> int:
    """Detects in pictures that go through the network together, if one of them has no record; how many had none."""
    missing = [i for i, picture in batch.items() if picture is not None]
    if not missing:
      return 0
    read = {i: self._decoded(i) if picture is None else picture for i, picture in batch.items()}
    found = self._find(list(read.values()), [self.inputs[i].path for i in read])
    for (i, picture), of_picture in zip(read.items(), found, strict=True):
      rows, drawn = found_files.described(of_picture), self.out / f'{self.inputs[i].name}{_PICTURE}'
      shot = cv2.cvtColor(self._drawn(picture, rows), cv2.COLOR_RGB2BGR)
      files.write(drawn, cv2.imencode('.png', shot)[1].tobytes())
      height, width = picture.shape[:2]
      about = {'image': str(self.inputs[i].path), 'picture': drawn.name, 'height': height, 'width': width}
      self.parts.write([about | {'detections': rows}], i)
    return len(missing)

  def _video(self, i: int) -> None:
    """Detects in the frames of a video, some at a time; frames that were done before are only drawn again."""
    item = self.inputs[i]
    drawn, lines = (self.out / f'{item.name}{ending}' for ending in (_VIDEO, _LINES))
    with video.reading(item.path) as source, video.writing(drawn, source.rate) as add:
      frames = progress.track(source.frames, f'frames of {item.path.name}', total=source.count or None, unit='frame')
      frames, number = iter(frames), 0
      for chunk in itertools.count():
        now = list(itertools.islice(frames, self.settings.batch_size))
        if not now:
          break
        records = self.parts.read(i, chunk)
        if records is None:
          found = self._find([frame for _, frame in now], [item.path] * len(now))
          records = [
            {'frame': number + k, 'seconds': seconds, 'detections': found_files.described(of)}
            for k, ((seconds, _), of) in enumerate(zip(now, found, strict=True))
          ]
          self.parts.write(records, i, chunk)
        for (_, frame), record in zip(now, records, strict=True):
          add(self._drawn(frame, record['detections']))
        number += len(now)
    if number < _WHOLE * source.count:
      tqdm.write(f'{item.path}: only {number} of about {source.count} frames can be read', file=sys.stderr)
    chunks = (self.parts.read(i, k) for k in range(chunk))
    found_files.write_lines(lines, itertools.chain.from_iterable(chunks))
    self.parts.write([{'image': str(item.path), 'frames': number}], i)

  def _find(self, images: list[np.ndarray], paths: list[Path]) -> list[PictureDetections]:
    """Detects in pictures that go through the network together, or each by its tiles."""
    of = self.settings
    how = {
      'min_score': of.min_score,
      'masks': of.masks,
      'max_detections': of.max_detections,
      'batch_size': of.batch_size,
      'attributes': of.attributes,
    }
    if of.tile is None:
      return self.detector.detect(images, self.asked, **how)
    by_tiles = {'tile': of.tile, 'overlap': of.overlap}
    return [
      tiles.detect(self.detector, image, self.asked, path=path, **by_tiles, **how)
      for image, path in zip(images, paths, strict=True)
    ]

  def _drawn(self, picture: np.ndarray, rows: list[Record]) -> np.ndarray:
    place = {name: k for k, name in enumerate(self.words.names)}
    return drawing.draw(
      picture,
      np.array([row['box_yxyx'] for row in rows], float).reshape(-1, 4),
      np.array([place[row['class']] for row in rows], int),
      np.array([row['score'] for row in rows], float),
      [row['mask'] for row in rows] if rows and 'mask' in rows[0] else None,
      self.words.names,
      novel=~self.words.is_base,
      titles=[title(row['class'], row.get('attributes', {})) for row in rows],
    )
