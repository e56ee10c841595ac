"""Scores results by the protocol that a paper or a benchmark names, and says what exactly was counted.

Each protocol is defined in one place: `lvis`, `coco`, `voc` and `recall` beside this file, and the table below.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.config import Evaluation
from vild_jax.data import class_lists
from vild_jax.data.schema import DataError
from vild_jax.eval import coco, counted, lvis, recall, voc
from vild_jax.eval.found import Found
from vild_jax.eval.truth import Split, Truth
from vild_jax.runtime import reading


@dataclass(frozen=True)
class Protocol:
  """Describes a protocol.

  Attributes:
    score: takes (truth, found, split or None), and settings of `scoring.score`; returns the metrics.
    counted: which detections count, in words.
    matching: takes the same and returns the first arguments of `diagnosis.diagnose`; None if AP is not of COCO's kind.
    masks: takes (truth, found) and returns bool [N], the detections whose masks a protocol of its family can count;
      None if it is of boxes alone.
    needs_base: whether base categories must be known.
  """

  score: Callable[..., dict[str, Any]]
  counted: str
  matching: Callable[[Truth, Found, Split | None], dict[str, Any]] | None = None
  masks: Callable[[Truth, Found], np.ndarray] | None = None
  needs_base: bool = False


_OF_COCO = f'the best {coco.MAX_DETECTIONS} of a picture and category'
PROTOCOLS = {
  'lvis': Protocol(lvis.score, f'the best {lvis.MAX_DETECTIONS} of a picture', lvis.matching, counted.listed),
  'lvis-fixed': Protocol(
    lvis.score_fixed, f'the best {lvis.FIXED:,} of a category in all pictures', lvis.matching_fixed, counted.listed
  ),
  'coco': Protocol(coco.score, _OF_COCO, coco.matching, counted.best_of_categories),
  'coco-ovd': Protocol(coco.score_open, _OF_COCO, coco.matching_open, counted.best_of_categories, needs_base=True),
  'voc': Protocol(voc.score, 'all'),
  'objects365': Protocol(coco.score, _OF_COCO, coco.matching, counted.best_of_categories),
  'proposals': Protocol(recall.score, f'the best {max(recall.COUNTS):,} of a picture'),
}


def score(
  protocol: str,
  truth: Truth,
  found: Found,
  *,
  base: Split | None = None,
  **settings: Any,
) -> dict[str, Any]:
  """Scores detections by a protocol.

  Args:
    protocol: a name in `PROTOCOLS`.
    truth: from `truth.read`.
    found: from `detections.read`, or for 'proposals' from `recall.from_store`.
    base: which categories are base and novel. None: unknown, or by the frequencies of LVIS, where rare is novel.
    settings: `min_area` and `min_instances` of `scoring.score`, for the protocols that know them.

  Returns:
    The metrics of the protocol, fractions, and what was counted: 'protocol', 'detections_counted' (words),
    'annotations' (file and sha256), 'images', 'categories', 'categories_with_objects', 'objects', 'detections',
    'ignored', 'repeated' and 'versions'.

  Raises:
    DataError: the ground truth does not fit the protocol.
  """
  chosen = PROTOCOLS[protocol]
  if chosen.needs_base and base is None:
    raise DataError(f'--protocol {protocol} needs to know which categories are base; expected --base FILE or V.npz')
  if protocol.startswith('lvis'):
    lvis.check_federated(truth.images, truth.categories, truth.name, instead='--protocol coco')
  if protocol in ('voc', 'proposals') and found.boxes is None:
    raise DataError(f'the results have masks alone; --protocol {protocol} is of boxes: expected a bbox for each')
  metrics = chosen.score(truth, found, truth.by_frequency() if base is None else base, **settings)
  counts = truth.counts() | {'detections': len(found)}
  return {
    'protocol': protocol,
    'detections_counted': chosen.counted,
    'annotations': {'file': truth.name, 'sha256': truth.digest},
    **(counts | {key: metrics[key] for key in counts if key in metrics}),
    'ignored': found.ignored,
    'repeated': found.repeated,
    **{key: value for key, value in metrics.items() if key not in counts},
    'versions': {
      'python': platform.python_version(),
      **{name: metadata.version(name) for name in ('vild_jax', 'hotcoco', 'numpy')},
    },
  }


def limits(evaluation: Evaluation) -> dict[str, Any]:
  """Returns the limits of a config as settings of `score`, or none: some protocols know the usual ones alone."""
  given = {'min_area': evaluation.min_area, 'min_instances': evaluation.min_instances}
  return given if given != {'min_area': 0.0, 'min_instances': 1} else {}


def masks(protocol: str, truth: Truth) -> Callable[[Found], np.ndarray] | None:
  """Returns what says of the detections of whole pictures which need a mask, bool [N]; None if none does.

  None does by a protocol of boxes, or if masks cannot be scored (`Truth.lack_of_masks`).
  """
  rule = PROTOCOLS[protocol].masks
  return None if rule is None or truth.lack_of_masks() else partial(rule, truth)


def boxes_alone(protocol: str, truth: Truth, *, learnt: bool) -> str:
  """Returns why a protocol that scores masks gives the scores of boxes alone; '' if it scores masks, or never does.

  `learnt` says whether the detector gives masks.
  """
  if PROTOCOLS[protocol].masks is None:
    return ''
  if not learnt:
    return 'the detector has learnt no masks'
  return truth.lack_of_masks()


def split(truth: Truth, source: str | Path) -> Split:
  """Reads which categories are base and which are novel; they are found by name.

  Args:
    truth: the ground truth.
    source: a vocabulary file (.npz), whose classes are base or novel; a list with a split, such as
      'coco-ovd' or an annotation file; or a text file (.txt) of the base classes, one in a line: all other categories
      are novel.

  Raises:
    DataError: the file cannot be read, or none of its base classes is a category.
  """
  if str(source).endswith('.npz'):
    names, is_base = _vocabulary(Path(source))
  else:
    classes = class_lists.class_list(source)
    names, is_base = classes.names, classes.is_base
    if str(source).endswith('.txt'):
      others = tuple(c['name'] for c in truth.categories if not class_lists.known_as(c['name'], names))
      names, is_base = names + others, (True,) * len(names) + (False,) * len(others)
  kind = dict(zip(names, map(bool, is_base), strict=True))
  known = {c['id']: kind.get(class_lists.known_as(c['name'], kind)) for c in truth.categories}
  base, novel = (frozenset(key for key, of in known.items() if of is flag) for flag in (True, False))
  if not base:
    raise DataError(f'{source}: none of its {sum(kind.values())} base classes is a category of {truth.name}')
  return Split(base, novel)


def _vocabulary(path: Path) -> tuple[list[str], list[bool]]:
  """Returns the names and base flags of a vocabulary file, without the rooms that import JAX."""
  expected = 'a vocabulary file of `vild-jax embed-text`'
  found = reading.arrays(path, ('names', 'is_base'), expected, error=DataError)
  with reading.parsing(path, expected, error=DataError):
    names, is_base = [str(name) for name in found['names']], [bool(flag) for flag in found['is_base']]
  if len(names) != len(is_base):
    raise DataError(f'{path} has {len(names)} names and {len(is_base)} flags; expected one flag for each name')
  return names, is_base
