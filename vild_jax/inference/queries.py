"""Turns what a user asks for, names, example pictures or a vocabulary, into the vocabulary of the forward pass."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config
from vild_jax.data.pictures import Picture
from vild_jax.inference.examples import Example, ExampleTower
from vild_jax.runtime import compiler
from vild_jax.structs import Attributes, Vocabulary
from vild_jax.teacher import name_cache, text
from vild_jax.teacher import prompts as prompt_lib
from vild_jax.vocabulary import VocabularyFile

# Names and examples, or {name: its pictures, or None for the name's own words}, or a vocabulary.
Classes = Sequence[str | Example] | Mapping[str, Picture | Sequence[Picture] | None] | VocabularyFile

_FEWEST = 16  # rows of a padded vocabulary
_REMEMBERED = 65_536  # names that are not in the vocabulary: 128 MiB at 512 dimensions


class Queries:
  """Embeds the classes that a detector is asked for; embeddings are remembered, those of names also on the disk."""

  def __init__(
    self,
    config: Config,
    training_vocabulary: VocabularyFile,
    tower: text.TextTower | None = None,
    examples: ExampleTower | None = None,
  ):
    self._config, self._trained_on, self._tower, self._examples = config, training_vocabulary, tower, examples
    self._stored: dict[str, np.ndarray] = _other_spellings(training_vocabulary) | dict(
      zip(training_vocabulary.names, training_vocabulary.embeddings, strict=True)
    )
    self._embedded: dict[str, np.ndarray] = {}  # other names, the newest last

  @property
  def takes_names(self) -> bool:
    """Says whether there is a text tower, so that any names can be asked for."""
    return self._tower is not None

  @property
  def takes_examples(self) -> bool:
    """Says whether there is an image tower, so that examples can be asked for."""
    return self._examples is not None

  def resolve(self, classes: Classes | None = None) -> tuple[tuple[str, ...], Vocabulary]:
    """Returns the names of the classes, and their vocabulary padded to 16, 32, 64, ... rows.

    Names that are base in training are base here, and all others are novel. So is an example, whatever its name: the
    head that learnt from the teacher's images, which has the larger weight on novel classes, knows it best. `classes`
    and errors are those of `Detector.detect`.
    """
    if classes is None:
      classes = self._trained_on
    background = self._trained_on.background
    if isinstance(classes, VocabularyFile):
      vocabulary_lib.check_teacher(classes.teacher, self._trained_on.teacher, 'the vocabulary')
      vocabulary_lib.check_dimension(classes, self._config)
      names, rows, shown = classes.names, classes.embeddings, False
      background = vocabulary_lib.background_of(classes, self._trained_on)
    else:
      asked = _asked(classes)
      names = _names(asked)
      rows, shown = self._embed(asked), np.array([isinstance(one, Example) for one in asked])
    padded = compiler.bucket(len(names), _FEWEST)
    missing = padded - len(names)
    return names, Vocabulary(
      embeddings=np.pad(rows, ((0, missing), (0, 0))),
      valid=np.arange(padded) < len(names),
      is_base=np.pad(vocabulary_lib.is_base(names, self._trained_on) & ~np.asarray(shown), (0, missing)),
      background=background,
    )

  def attributes(self, asked: Sequence[str | Example]) -> tuple[tuple[str, ...], Attributes]:
    """Returns the names of the attributes, and their embeddings padded to 16, 32, 64, ... rows.

    They are embedded as classes are. Raises ValueError for fewer than two, and as `resolve`.
    """
    asked = _asked(asked, 'attribute', 'attributes')
    names = _names(asked)
    if len(set(names)) < max(len(names), 2):
      raise ValueError(f'attributes is {list(names)}; expected two or more that differ, of which an object has one')
    padded = compiler.bucket(len(names), _FEWEST)
    rows = np.pad(self._embed(asked), ((0, padded - len(names)), (0, 0)))
    return names, Attributes(embeddings=rows, valid=np.arange(padded) < len(names))

  def _embed(self, asked: Sequence[str | Example]) -> np.ndarray:
    """Returns float32 [C, D]. Whatever can be refused is refused before the first name is embedded, which can take."""
    names = [one for one in asked if isinstance(one, str)]
    known = {name: name if name in self._stored else vocabulary_lib.clean_name(name) for name in names}
    found = {name: self._row(name) for name in dict.fromkeys(known.values())}
    unknown = [name for name, row in found.items() if row is None]
    if unknown and self._tower is None:
      near = difflib.get_close_matches(unknown[0], self._trained_on.names, n=3, cutoff=0.5)
      raise ValueError(
        f'{unknown[0]!r} is not in the stored vocabulary and the bundle has no text tower; expected a '
        f'stored name{f" such as {near}" if near else ""}, or load(..., teacher=DIR)'
      )
    shown = [one for one in asked if isinstance(one, Example)]
    if shown and self._examples is None:
      raise ValueError(
        f'{shown[0].name!r} is asked for by pictures, and there is no image tower of the teacher; expected a bundle of '
        '`vild-jax export --image-tower`, or load(..., teacher=DIR) with both towers'
      )
    of_example = {one: self._examples.embed(one) for one in shown}
    if unknown:
      fresh = name_cache.embed(self._tower, unknown, prompt_lib.recorded(self._trained_on.prompts))
      found.update(fresh)
      self._embedded.update(fresh)
      for name in list(self._embedded)[:-_REMEMBERED]:
        del self._embedded[name]
    return np.stack([of_example[one] if isinstance(one, Example) else found[known[one]] for one in asked])

  def _row(self, name: str) -> np.ndarray | None:
    return self._stored.get(name, self._embedded.get(name))


def _asked(
  classes: Sequence[str | Example] | Mapping[str, Picture | Sequence[Picture] | None],
  one_is: str = 'class',
  what: str = 'classes',
) -> list[str | Example]:
  """Returns the names, without spaces around them, and the examples."""
  if isinstance(classes, str | Example):
    classes = [classes]
  elif isinstance(classes, Mapping):
    classes = [name if shown is None else Example(name, shown) for name, shown in classes.items()]
  asked = [one.strip() if isinstance(one, str) else one for one in classes]
  for number, one in enumerate(asked):
    if not isinstance(one, str | Example):
      raise ValueError(f'{what}[{number}] is a {type(one).__name__}; expected a name or Example(name, images)')
  if not asked or '' in asked:
    raise ValueError(f'{what} is {list(classes)!r}; expected one or more {one_is} names')
  return asked


def _names(asked: Sequence[str | Example]) -> tuple[str, ...]:
  return tuple(one.name if isinstance(one, Example) else one for one in asked)


def _other_spellings(file: VocabularyFile) -> dict[str, np.ndarray]:
  """Returns {cleaned name: row}, so that "fire hydrant" finds "fire_hydrant"; ambiguous cleaned names are left out."""
  cleaned = [vocabulary_lib.clean_name(name) for name in file.names]
  once = {name for name, count in Counter(cleaned).items() if count == 1}
  return {name: row for name, row in zip(cleaned, file.embeddings, strict=True) if name in once}
