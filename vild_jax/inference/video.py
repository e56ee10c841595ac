"""Reads the frames of a video and writes an annotated one, with OpenCV."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vild_jax.data.schema import DataError
from vild_jax.runtime import files

os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # of FFmpeg inside OpenCV; what is wrong is said here
# MPEG-4, which players show, but browsers do not. Of what they show the packages of OpenCV write VP9 alone, which takes
# sixty times as long, a fifth of a second for a frame of 640 x 480.
_CODEC = 'mp4v'
_DEFAULT_RATE = 25.0  # frames a second of a video that does not say


@dataclass(frozen=True)
class Video:
  """Holds an open video.

  Attributes:
    rate: frames a second, on average.
    count: about how many frames there are; 0 if the file does not say.
    frames: yields (seconds from the start, uint8 [H, W, 3] RGB) of each frame, upright, once.
  """

  rate: float
  count: int
  frames: Iterator[tuple[float, np.ndarray]]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Video]:
  """Opens a video until the block ends. Raises DataError if it is not readable, or when it turns out to be empty."""
  # FFmpeg alone: for others a number in the name would stand for a sequence of pictures.
  with _quietly():
    capture = cv2.VideoCapture(_named(path), cv2.CAP_FFMPEG)
  if not capture.isOpened():
    raise DataError(f'{path}: no readable video; expected one that OpenCV decodes, such as MP4')
  try:
    rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    yield Video(rate if 0 < rate < 1000 else _DEFAULT_RATE, max(int(count), 0), _frames(capture, path))
  finally:
    capture.release()


def _frames(capture: cv2.VideoCapture, path: Path) -> Iterator[tuple[float, np.ndarray]]:
  number = 0
  while True:
    there, frame = capture.read()
    if not there:
      break
    yield capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    number += 1
  if not number:
    raise DataError(f'{path} holds no readable frame; expected one or more')


@contextlib.contextmanager
def writing(path: Path, rate: float) -> Iterator[Callable[[np.ndarray], None]]:
  """Yields a function that adds a frame, uint8 [H, W, 3] RGB, to an MP4; it becomes `path` when the block ends.

  All frames have one size; a last row or column that makes it odd is left out, since the codec has none. Raises
  DataError for a size that the codec has not, OSError if the video cannot be written, and then leaves nothing.
  """
  with files.temporary_folder(path) as folder, contextlib.ExitStack() as stack:
    target, writer, number = folder / 'video.mp4', None, 0

    def add(picture: np.ndarray) -> None:
      nonlocal writer, number
      height, width = (side // 2 * 2 for side in picture.shape[:2])
      if writer is None:
        writer = _writer(target, rate, (width, height))
        stack.callback(writer.release)
      writer.write(cv2.cvtColor(picture[:height, :width], cv2.COLOR_RGB2BGR))
      number += 1

    yield add
    stack.close()
    with reading(target) as written:
      if written.count != number:
        raise OSError(f'{path} has {written.count} of {number} frames; expected room on the disk, and one size of all')
    files.move(target, path)


def _writer(path: Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
  # MPEG-4 has rates of at most 65535 divided by a whole number, which OpenCV takes to be a power of ten.
  rate = max(round(rate, 3 if rate < 65 else 1), 0.01)
  with _quietly():
    writer = cv2.VideoWriter(_named(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*_CODEC), rate, size)
  if not writer.isOpened():
    raise DataError(
      f'OpenCV cannot write a video of {size[0]} x {size[1]} pixels; expected at most 8191 a side, and a build with '
      'FFmpeg'
    )
  return writer


def _named(path: Path) -> str:
  """Returns the path as OpenCV takes it, which crashes the process for a name that is not text."""
  try:
    str(path).encode()
  except UnicodeEncodeError:
    raise DataError(f'{str(path)!r}: the path of a video is no UTF-8 text; expected a name that is') from None
  return str(path)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
  """Keeps OpenCV from writing to stderr what it could not open."""
  level = cv2.utils.logging.getLogLevel()
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
  try:
    yield
  finally:
    cv2.utils.logging.setLogLevel(level)
