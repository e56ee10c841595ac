"""Collects what is wrong with an input, and what was repaired, for messages of one line."""

from __future__ import annotations

import collections
from collections.abc import Mapping

from vild_jax.data.schema import DataError


class Problems:
  """Collects the problems of one input, so that one line can give the first and the number of all others."""

  def __init__(self, source: object):
    self._source = source
    self._first = ''
    self._counts: collections.Counter[str] = collections.Counter()

  def __len__(self) -> int:
    return self._counts.total()

  def add(self, kind: str, text: str) -> None:
    """Counts a problem of a kind; `text` says what was found and what was expected."""
    if not self._counts:
      self._first = text
    self._counts[kind] += 1

  def raise_if_any(self) -> None:
    """Raises DataError if there are problems: the first, how many more of its kind, and how many of other kinds."""
    if not self._counts:
      return
    same = next(iter(self._counts.values())) - 1
    other = len(self) - 1 - same
    more = [f'{same} more such problem{"s" * (same != 1)}'] if same else []
    more += [f'{other} of other kinds'] if other else []
    raise DataError(f'{self._source}: {self._first}' + (f' ({" and ".join(more)})' if more else ''))


def in_words(counts: collections.Counter[str], first: Mapping[str, str] | None = None) -> tuple[str, ...]:
  """Returns a line for each thing that was counted.

  {s}, {es} and {ies} in its text become the ending of the plural (y, ies), and {first} what `first` has for the text.
  """
  endings = lambda n: {'s': 's' * (n != 1), 'es': 'es' * (n != 1), 'ies': 'y' if n == 1 else 'ies'}
  return tuple(
    f'{n} ' + text.format(**endings(n), first=(first or {}).get(text, '')) for text, n in counts.items() if n
  )
