"""Searches the settings of post-processing on kept logits: temperature, exponents and the threshold of suppression.

They are chosen on base classes that were held out as novel, never on the novel classes of a benchmark: a setting that
was chosen by looking at the novel classes' annotations would make the detector one that has seen them
(docs/evaluation.md).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vild_jax.config import Postprocess
from vild_jax.core import nms, openvocab
from vild_jax.data import transforms
from vild_jax.data.schema import DataError
from vild_jax.eval import found as found_lib
from vild_jax.eval import protocols
from vild_jax.eval.found import Found
from vild_jax.eval.truth import Split
from vild_jax.inference.logits import STEPS, Logits
from vild_jax.runtime import compiler, progress

Settings = dict[str, float]  # by the names of `config.Postprocess`

_BATCH = 16  # pictures at a time
_ROUNDS = 2
_FACTORS = (0.5, 0.7, 1.4, 2.0)  # of the best temperature so far
_GRIDS = {
  'base_weight': (0.5, 2 / 3, 0.8, 0.9, 1.0),
  'novel_weight': (0.2, 1 / 3, 0.5, 2 / 3, 0.8),
  'objectness_weight': (0.0, 0.25, 0.5, 1.0),
  'nms_threshold': (0.3, 0.4, 0.5, 0.6, 0.7),
}
_ENSEMBLE = ('base_weight', 'novel_weight')  # without an image head they have no effect
_LEAST_GAIN = 1e-4  # of the mean; less is no reason to leave a setting


@dataclasses.dataclass(frozen=True)
class Trial:
  """Holds what settings give.

  Attributes:
    settings: by the names of `config.Postprocess`.
    base, novel: box AP of the base classes and of those that are held out.
  """

  settings: Settings
  base: float
  novel: float

  @property
  def mean(self) -> float:
    """Returns the harmonic mean of both, which is small if one of them is."""
    return 2 * self.base * self.novel / (self.base + self.novel) if self.base + self.novel > 0 else 0.0


def held_out(logits: Logits, names: Collection[str] | None = None) -> Split:
  """Returns the base categories, and as novel ones those that settings are chosen on; the others are left out.

  Args:
    logits: of an evaluation.
    names: the classes that were held out; None: all that training did not see, without those that LVIS calls rare,
      which are the novel ones of the benchmark, unless there are no others.

  Raises DataError if a name is unknown or base, if there are no base classes or no others, or if without names nothing
  says which classes are the novel ones of the benchmark.
  """
  rows = {name: row for row, name in enumerate(logits.names)}
  if names is None and not any(category.get('frequency') for category in logits.truth.categories):
    raise DataError(
      f'{logits.folder}: categories without frequencies do not say which classes are the novel ones of the benchmark; '
      'expected --held-out, the base classes that this training did not see'
    )
  for name in names or ():
    if name not in rows or logits.is_base[rows[name]]:
      problem = 'a base class of the training' if name in rows else 'not in the vocabulary'
      raise DataError(f'{name!r} is {problem}; expected classes that were held out')
  frequency = {category['id']: category.get('frequency') for category in logits.truth.categories}
  ids = lambda chosen: frozenset(int(i) for i in logits.category_of_row[np.asarray(chosen, int)] if i in frequency)
  base, others = ids(np.flatnonzero(logits.is_base)), ids(np.flatnonzero(~logits.is_base))
  novel = ids([rows[name] for name in names]) if names else others
  if not names:
    novel = frozenset(i for i in others if frequency[i] != 'r') or others
  if not base or not novel:
    raise DataError(
      f'{logits.folder} has {len(base)} base classes and {len(novel)} others with annotations; expected both: train '
      'with `embed-text --base`, a list that lacks some of the base classes'
    )
  return Split(base, novel)


def search(logits: Logits, split: Split) -> tuple[Trial, Trial, list[Trial]]:
  """Searches settings by the harmonic mean of the box AP of base and held-out classes, one setting after the other.

  Args:
    logits: of an evaluation.
    split: from `held_out`.

  Returns:
    (what the settings of the evaluation give, what the best ones give, all trials in order).
  """
  names = [name for name in settings_of(logits) if logits.config.model.image_head or name not in _ENSEMBLE]
  trials: dict[tuple, Trial] = {}

  def tried(settings: Settings) -> Trial:
    key = tuple(settings.values())
    if key not in trials:
      trials[key] = try_settings(logits, split, settings)
    return trials[key]

  total = 1 + _ROUNDS * sum(len(_GRIDS.get(name, _FACTORS)) for name in names)
  with progress.bar(total, 'calibrate', unit='trial') as bar:
    first = best = tried(settings_of(logits))
    bar.update()
    for _ in range(_ROUNDS):
      before = best
      for name in names:
        for value in _GRIDS.get(name) or [best.settings[name] * factor for factor in _FACTORS]:
          trial = tried(best.settings | {name: value})
          best = trial if trial.mean > best.mean + _LEAST_GAIN else best
          bar.set_postfix_str(f'AP base {100 * best.base:.1f}, held out {100 * best.novel:.1f}', refresh=False)
          bar.update()
      if best is before:
        break
  return first, best, list(trials.values())


def settings_of(logits: Logits) -> Settings:
  """Returns the settings of the evaluation, with the values that the others stand for in place of null."""
  model = logits.config.model
  post = model.postprocess
  return {
    'temperature': model.temperature if post.temperature is None else post.temperature,
    'base_weight': post.base_weight,
    'novel_weight': post.base_weight if post.novel_weight is None else post.novel_weight,
    'objectness_weight': post.objectness_weight,
    'nms_threshold': post.nms_threshold,
  }


def try_settings(logits: Logits, split: Split, settings: Settings) -> Trial:
  """Returns the box AP of base and held-out classes that settings give, by the protocol of the evaluation."""
  found = detections(logits, settings)
  truth, found = found_lib.restricted(
    logits.truth, found, categories=split.base | split.novel, images=set(logits.truth.image_ids.tolist())
  )
  evaluation = logits.config.evaluation
  box = protocols.score(evaluation.protocol, truth, found, base=split, **protocols.limits(evaluation))['box']
  of = lambda group: box.get(f'AP_{group}', box.get(f'AP50_{group}')) or 0.0  # VOC has no AP over thresholds
  return Trial(settings, of('base'), of('novel'))


def detections(logits: Logits, settings: Settings) -> Found:
  """Returns the detections, without masks, that settings give."""
  place = {int(key): k for k, key in enumerate(logits.truth.category_ids)}
  category = np.array([place.get(int(key), -1) for key in logits.category_of_row], np.int32)
  model, parts = logits.config.model, []
  for first, pictures in _batches(logits):
    columns = _stacked(logits, pictures)
    chosen = _program()(model.postprocess, model.background, columns, logits.is_base, settings)
    for i, picture in enumerate(pictures):
      index, label, score, valid = (np.asarray(column[i]) for column in chosen)
      rows = np.flatnonzero(valid)
      rows = rows[category[label[rows]] >= 0]
      boxes = transforms.to_picture(picture['boxes'][index[rows]], picture['scale'], picture['original_size'])
      parts.append((np.full(len(rows), first + i, np.int32), category[label[rows]], score[rows], boxes))
  image, label, score, boxes = (np.concatenate(column) for column in zip(*parts, strict=True))
  corner, size = boxes[:, 1::-1], (boxes[:, 2:] - boxes[:, :2])[:, ::-1]
  return Found(image, label, score.astype(np.float64), np.concatenate([corner, size], axis=1).astype(np.float64), None)


def _batches(logits: Logits) -> Iterator[tuple[int, list[dict[str, np.ndarray]]]]:
  ids = logits.truth.image_ids.tolist()
  for first in range(0, len(ids), _BATCH):
    yield first, [logits.picture(image_id) for image_id in ids[first : first + _BATCH]]


def _stacked(logits: Logits, pictures: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """The columns of a batch, padded to a fixed number of pictures and regions, so that one program takes all."""
  count = logits.config.model.rpn.max_proposals
  names = ('boxes', 'objectness', 'text', *(('image',) if logits.config.model.image_head else ()))
  columns = {name: np.zeros((_BATCH, count, *pictures[0][name].shape[1:]), pictures[0][name].dtype) for name in names}
  columns['valid'] = np.zeros((_BATCH, count), bool)
  for i, picture in enumerate(pictures):
    rows = len(picture['boxes'])
    columns['valid'][i, :rows] = True
    for name in names:
      columns[name][i, :rows] = picture[name]
  return columns


def _choose(
  post: Postprocess, background: bool, columns: Mapping[str, Any], is_base: Any, settings: Mapping[str, Any]
) -> tuple[Any, ...]:
  """(region, class, score, valid), each [B, K], as `detector.choose` chooses them."""

  def of_one(columns: Mapping[str, Any]) -> tuple[Any, ...]:
    image = columns.get('image')
    scores = openvocab.class_scores(
      columns['text'] / STEPS,
      None if image is None else image / STEPS,
      is_base,
      background=background,
      sharpness=1 / settings['temperature'],
      base_weight=settings['base_weight'],
      novel_weight=settings['novel_weight'],
    )
    return nms.classwise_nms(
      columns['boxes'],
      scores * jnp.power(columns['objectness'], settings['objectness_weight'])[:, None],
      iou_threshold=settings['nms_threshold'],
      score_threshold=post.score_threshold,
      max_outputs=post.max_detections,
      valid=columns['valid'],
      pre_nms_top_k=post.pre_nms_top_k,
    )

  return jax.vmap(of_one)(dict(columns))


@functools.cache
def _program() -> Callable[..., tuple[Any, ...]]:
  return compiler.jit(_choose, static_argnames=('post', 'background'))
