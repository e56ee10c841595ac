"""Turns what a user asks for, names or a vocabulary, into the padded vocabulary of the forward pass."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config
from vild_jax.structs import Vocabulary
from vild_jax.teacher import prompts as prompt_lib
from vild_jax.teacher import text
from vild_jax.vocabulary import VocabularyFile


class Queries:
  """Embeds the classes that a detector is asked for; embeddings of names are remembered."""

  def __init__(self, config: Config, training_vocabulary: VocabularyFile, tower: text.TextTower | None = None):
    self._config, self._trained_on, self._tower = config, training_vocabulary, tower
    self._embedded: dict[str, np.ndarray] = _other_spellings(training_vocabulary) | dict(
      zip(training_vocabulary.names, training_vocabulary.embeddings, strict=True)
    )

  def resolve(self, classes: Sequence[str] | VocabularyFile | None = None) -> tuple[tuple[str, ...], Vocabulary]:
    """Returns the names of the classes, and their vocabulary padded to 16, 32, 64, ... rows.

    Classes that are base in training are base here, and all others are novel. `classes` and errors are those of
    `Detector.detect`.
    """
    if classes is None:
      classes = self._trained_on
    if isinstance(classes, VocabularyFile):
      vocabulary_lib.check_teacher(classes.teacher, self._trained_on.teacher, 'the vocabulary')
      vocabulary_lib.check_dimension(classes, self._config)
      names, rows = classes.names, classes.embeddings
    else:
      names = [name.strip() for name in ([classes] if isinstance(classes, str) else classes)]
      if not names or not all(names):
        raise ValueError(f'classes is {list(classes)!r}; expected one or more class names')
      rows = self._embed(names)
    padded = max(16, 1 << (len(names) - 1).bit_length())
    missing = padded - len(names)
    return tuple(names), Vocabulary(
      embeddings=np.pad(rows, ((0, missing), (0, 0))),
      valid=np.arange(padded) < len(names),
      is_base=np.pad(vocabulary_lib.is_base(names, self._trained_on), (0, missing)),
    )

  def _embed(self, names: Sequence[str]) -> np.ndarray:
    known = [name if name in self._embedded else vocabulary_lib.clean_name(name) for name in names]
    unknown = [name for name in dict.fromkeys(known) if name not in self._embedded]
    if unknown and self._tower is None:
      near = difflib.get_close_matches(unknown[0], self._trained_on.names, n=3, cutoff=0.5)
      raise ValueError(
        f'{unknown[0]!r} is not in the stored vocabulary and the bundle has no text tower; expected a '
        f'stored name{f" such as {near}" if near else ""}, or load(..., teacher=DIR)'
      )
    if unknown:
      rows = self._tower.embed(unknown, prompt_lib.load_templates(self._trained_on.prompts))
      self._embedded.update(zip(unknown, rows, strict=True))
    return np.stack([self._embedded[name] for name in known])


def _other_spellings(file: VocabularyFile) -> dict[str, np.ndarray]:
  """Returns {cleaned name: row}, so that "fire hydrant" finds "fire_hydrant"; ambiguous cleaned names are left out."""
  cleaned = [vocabulary_lib.clean_name(name) for name in file.names]
  once = {name for name, count in Counter(cleaned).items() if count == 1}
  return {name: row for name, row in zip(cleaned, file.embeddings, strict=True) if name in once}
