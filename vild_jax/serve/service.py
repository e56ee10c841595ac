"""Answers questions with one detector: decodes in a few threads, detects in one, and keeps the last pictures."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from vild_jax.data import pictures
from vild_jax.inference.detections import PictureDetections
from vild_jax.inference.examples import Example
from vild_jax.runtime import messages
from vild_jax.serve import answers, questions
from vild_jax.serve.answers import Answer, AnsweredPicture, Found, Seconds
from vild_jax.serve.batcher import Batcher
from vild_jax.serve.held import Held, HeldPicture
from vild_jax.serve.limits import Limits, Refused
from vild_jax.serve.metrics import Metrics
from vild_jax.serve.questions import Question

_THREADS = 2  # that read requests, decode pictures and put masks into them; each holds the pixels of one


@dataclass
class _Job:
  """A question on its way: `held` is None until the network has looked at the picture, `prepared` from then on."""

  id: str
  encoded: bytes
  size: tuple[int, int]
  prepared: Any
  held: HeldPicture | None
  question: Question
  classes: list[str | Example] | None
  decode: float


@dataclass(frozen=True)
class _Done:
  """What the thread of the detector returns: what is left to do, and the seconds of the forward and of the words."""

  finish: Callable[[], PictureDetections]
  image: float
  words: float
  cached: bool


class Service:
  """Answers questions; `close` must be called at the end.

  Attributes:
    detector: has `prepare`, `look` and `begin_find` of `inference.detector.Detector`.
    limits: what is allowed.
    held: the pictures that are kept.
    metrics: what was done.
    batcher: who waits for the detector.
  """

  def __init__(self, detector: Any, limits: Limits, batch_size: int):
    """Takes the detector, the limits, and how many pictures go through the network together."""
    self.detector, self.limits, self.metrics = detector, limits, Metrics()
    self.held = Held(limits.cached_pictures, limits.cached_bytes)
    self.batcher: Batcher[_Job] = Batcher(self._work, places=limits.queue, most=batch_size)
    self._threads, self._free = ThreadPoolExecutor(_THREADS, 'pictures'), asyncio.Semaphore(_THREADS)

  def close(self) -> None:
    """Finishes what was accepted and ends all threads."""
    self.batcher.close()
    self._threads.shutdown()

  def gauges(self) -> dict[str, int]:
    """Returns the gauges of `Metrics.text`."""
    return {
      'vild_queue': self.batcher.taken,
      'vild_held_pictures': len(self.held),
      'vild_held_bytes': self.held.nbytes,
    }

  async def answer(self, text: bytes, picture: bytes | None) -> Answer:
    """Answers a question.

    Args:
      text: JSON, see `questions.read`.
      picture: the part of the request that is the picture; None if the JSON holds it.

    Raises Refused.
    """
    start = time.perf_counter()
    with self.batcher.place():
      try:
        async with asyncio.timeout(self.limits.seconds):
          job = await self._in_thread(self._job, text, picture)
          done: _Done = await asyncio.wrap_future(self.batcher.submit(job))
          names, found, rest = await self._in_thread(_finished, done.finish, job.question.masks)
      except TimeoutError:
        reason = f'there is no answer after {self.limits.seconds:g} s; expected a service with less to do'
        raise Refused(503, reason, retry_after='5') from None
      except Exception as error:
        raise _refusal(error) from None
    total = time.perf_counter() - start
    self.metrics.answer(total, done.cached)
    (height, width), seconds = job.size, Seconds(job.decode, done.image, done.words + rest, total)
    return Answer(AnsweredPicture(job.id, width, height), names, found, seconds, done.cached)

  async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
    """Calls in a thread. Who leaves while none is free leaves nothing behind, as in the queue of the executor."""
    await self._free.acquire()
    future, loop = self._threads.submit(call, *arguments), asyncio.get_running_loop()
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
    return await asyncio.wrap_future(future)

  def _job(self, text: bytes, picture: bytes | None) -> _Job:
    """Reads a question, and decodes its picture if it is not held, or if an example is a box on it."""
    question, encoded = questions.read(text, picture, self.limits)
    if question.examples and not self.detector.takes_examples:
      raise Refused(422, 'the bundle has no image tower; expected classes in words, and no examples')
    start = time.perf_counter()
    id = question.image_id if encoded is None else hashlib.sha256(encoded).hexdigest()
    held = self.held.get(id)
    if held is None and encoded is None:
      raise Refused(404, f'the picture {id} is not held any more; expected the picture itself')
    encoded = encoded if held is None else held.encoded
    pixels = prepared = None
    if held is None or any(shown.image is None for shown in question.examples):
      pixels = _decoded(encoded, self.limits.pixels)
    size = pixels.shape[:2] if held is None else held.size
    classes = question.classes
    if question.examples:
      classes = [*(classes or []), *_shown(question.examples, pixels, self.limits.pixels)]
    if held is None:
      prepared = self.detector.prepare(pixels)
    return _Job(id, encoded, size, prepared, held, question, classes, time.perf_counter() - start)

  def _work(self, jobs: Sequence[tuple[_Job, Future]]) -> None:
    """Answers those whose picture is held first, since that is quick; the network looks at the others together."""
    for job, _ in jobs:
      job.held = job.held or self.held.get(job.id)
    new = {job.id: job for job, _ in jobs if job.held is None}
    waiting = [one for one in jobs if one[0].held is None]
    for job, future in jobs:
      if job.held is not None:
        self._find(job, future, None)
    if not new:
      return
    start = time.perf_counter()
    try:
      looked = self.detector.look([job.prepared for job in new.values()])
    except Exception as error:
      for _, future in waiting:
        future.set_exception(error)
      return
    seconds = time.perf_counter() - start
    for job, one in zip(new.values(), looked, strict=True):
      job.held = HeldPicture(job.id, job.encoded, job.size, one)
      self.held.put(job.held)
    for job, future in waiting:
      job.held = new[job.id].held
      self._find(job, future, seconds)

  def _find(self, job: _Job, future: Future, seconds: float | None) -> None:
    """Completes the future; `seconds` are those of the image forward, None if the picture was held."""
    start, question = time.perf_counter(), job.question
    try:
      finish = self.detector.begin_find(
        job.held.looked,
        job.classes,
        min_score=question.min_score,
        masks=question.masks != questions.NONE,
        max_detections=self._most(question.max_detections),
        attributes=question.attributes,
      )
    except Exception as error:
      future.set_exception(error)
    else:
      future.set_result(_Done(finish, seconds or 0.0, time.perf_counter() - start, seconds is None))

  def _most(self, asked: int | None) -> int | None:
    """At most so many are asked for: a number beyond what the detector gives is no error."""
    return asked and min(asked, self.detector.config.model.postprocess.max_detections)


def _finished(finish: Callable[[], PictureDetections], masks: str) -> tuple[list[str], list[Found], float]:
  """Returns the names, the detections in the form of an answer, and the seconds that it took."""
  start = time.perf_counter()
  detections = finish()
  return list(detections.names), answers.found(detections, masks), time.perf_counter() - start


def _decoded(encoded: bytes, most: int, name: str = 'the picture') -> np.ndarray:
  """Returns the upright pixels; of a picture that has too many only the header is read."""
  try:
    height, width = pictures.size(encoded, name)
    if height * width > most:
      raise Refused(413, f'{name} is {width} wide and {height} high; expected at most {most} pixels')
    return pictures.decode(encoded, name, upright=True)
  except ValueError as error:
    raise Refused(422, error) from None


def _shown(examples: Sequence[questions.Shown], pixels: np.ndarray | None, most: int) -> list[Example]:
  """Returns the examples; `pixels` is the picture of the request, `most` how many all other pictures may have."""
  found = []
  for shown in examples:
    of, name = pixels, f'the picture of {shown.name[:40]!r}'
    if shown.image is not None:
      of = _decoded(questions.from_base64(shown.image), most, name)
      most -= of.shape[0] * of.shape[1]
    height, width = of.shape[:2]
    x, y, w, h = shown.box or (0, 0, width, height)
    if not (w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= width and y + h <= height):
      raise Refused(
        422,
        f'the box of {shown.name[:40]!r} is {list(shown.box)}; expected [x, y, width, height] inside of the picture, '
        f'which is {width} wide and {height} high',
      )
    found.append(Example(shown.name, of, [y, x, y + h, x + w]))
  return found


def _refusal(error: Exception) -> Refused:
  """Returns what a client is told: all that a request can do wrong is a ValueError."""
  if isinstance(error, Refused):
    return error
  if isinstance(error, ValueError):
    return Refused(422, error)
  print(f'vild-jax serve: {type(error).__name__}: {messages.first_line(error)}', file=sys.stderr)
  return Refused(500, 'the detector failed; the log of the service says how')
