"""Finds keys that stand twice in one JSON object: JSON's readers keep the last value, which may be an empty list."""

from __future__ import annotations

from typing import Any

from vild_jax.data.schema import DataError
from vild_jax.runtime.messages import shown

LISTS = ('images', 'annotations', 'categories')


class RepeatedKey(DataError):
  """Says which key stands twice in which object."""


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns an object of its pairs, as `object_pairs_hook` of `json.loads`; RepeatedKey if a key stands twice."""
  tree = dict(pairs)
  if len(tree) != len(pairs):
    seen: set[str] = set()
    key = next(key for key, _ in pairs if key in seen or seen.add(key))
    if len(tree.keys() & set(LISTS)) > 1:
      where = 'the outermost object'
    elif 'id' in tree:
      where = f'the object with id {shown(tree["id"])}'
    else:
      where = f'an object with {", ".join(map(shown, list(tree)[:4]))}'
    raise RepeatedKey(f'{shown(key)} stands twice in {where}; expected each key once')
  return tree
