"""Says what `vild-jax prepare` has stored: a short summary of each split, and what smells."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vild_jax.data import contents as contents_lib
from vild_jax.data import smells
from vild_jax.data.contents import Contents


class Summaries:
  """Prints the summary of each split on stderr and keeps it.

  Attributes:
    splits: {split: `contents.summary`, with the warnings}.
  """

  def __init__(self, vocabulary: str | Path | None = None):
    """Opens the vocabulary file that tells base from novel classes; raises ValueError if it cannot be used."""
    self._classes = None
    self.splits: dict[str, dict[str, Any]] = {}
    if vocabulary:
      from vild_jax import vocabulary as vocabulary_lib  # loads JAX

      self._classes = vocabulary_lib.load(vocabulary)

  def add(self, split: str, contents: Contents, notes: Sequence[str]) -> None:
    """Prints the summary of a split."""
    found = contents_lib.summary(contents, self._classes, notes)
    smelt = smells.of_contents(contents, self._classes)
    found['warnings'] = [smell.text for smell in smelt]
    self.splits[split] = found
    print(f'{split}:\n{contents_lib.text(found)}', file=sys.stderr)
    for smell in smelt:
      print(f'  {"warning" if smell.grave else "look at":<11}{smell.text}', file=sys.stderr)
