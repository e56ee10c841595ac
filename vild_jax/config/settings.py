"""Reads and overrides settings that are frozen dataclasses: dotted keys, checked types, no unknown keys.

It works with any frozen dataclass; `config.experiment` defines the settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import re
import reprlib
import sys
import types
import typing
from typing import Any, TypeVar

from vild_jax.runtime import reading

T = TypeVar('T')
_TOO_LARGE = 2**53  # no setting counts so far, and not all larger numbers are floats too


class ConfigError(ValueError):
  """Reports a configuration that cannot be used; one line that names the key and what was expected."""


def require(condition: bool, key: str, found: object, expected: str) -> None:
  """Raises ConfigError unless `condition`; one line that names the key, what was found and what was expected."""
  if not condition:
    raise ConfigError(f'{key} is {found if isinstance(found, str) else repr(found)}; expected {expected}')


def require_positive(settings: Any, section: str, *names: str, zero: tuple[str, ...] = ()) -> None:
  """Raises ConfigError unless the named numbers of a section are positive; those in `zero` may be 0."""
  for name in (*names, *zero):
    value, key = getattr(settings, name), f'{section}.{name}' if section else name
    require(
      value >= 0 if name in zero else value > 0,
      key,
      value,
      'zero or a positive number' if name in zero else 'a positive number',
    )


def require_at_most(settings: Any, section: str, most: int, *names: str) -> None:
  """Raises ConfigError if one of the named numbers of a section exceeds `most`."""
  for name in names:
    value = getattr(settings, name)
    require(value <= most, f'{section}.{name}', value, f'at most {most}')


def require_fraction(settings: Any, section: str, *names: str) -> None:
  """Raises ConfigError unless the named numbers of a section lie between 0 and 1, both included."""
  for name in names:
    require(0 <= getattr(settings, name) <= 1, f'{section}.{name}', getattr(settings, name), 'a number from 0 to 1')


def given(value: str, key: str) -> str:
  """Returns `value`; raises ConfigError if it is empty. `key` is an option (`--data`) or a key of the config."""
  if not value:
    raise ConfigError(f'{key} is empty; expected --{key.removeprefix("--")}=PATH or a value in the config')
  return value


def matches(patterns: tuple[str, ...], name: str) -> bool:
  """Says whether one of the patterns (`backbone/*`; a star stands for any text, `/` too) matches the whole `name`."""
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def flatten(settings: Any, prefix: str = '') -> dict[str, Any]:
  """Returns {dotted key: value} of all single values, in order of definition."""
  leaves = {}
  for f in dataclasses.fields(settings):
    value = getattr(settings, f.name)
    if dataclasses.is_dataclass(value):
      leaves.update(flatten(value, f'{prefix}{f.name}.'))
    else:
      leaves[prefix + f.name] = value
  return leaves


def difference(a: Any, b: Any) -> list[str]:
  """Returns one line for each value that differs: `key: value in a and value in b`."""
  left, right = flatten(a), flatten(b)
  return [f'{key}: {left[key]!r} and {right[key]!r}' for key in left if left[key] != right[key]]


def override(settings: T, assignments: list[str]) -> T:
  """Applies command-line overrides `--key.path=value` (the dashes may be left out); of one key the last counts.

  Settings that exclude or need each other are checked when all are applied, so that their order does not matter.

  Raises ConfigError for an unknown key, naming the nearest valid one, and for a value of the wrong type.
  """
  leaves, tree = flatten(settings), dataclasses.asdict(settings)
  for assignment in assignments:
    key, equals, text = assignment.removeprefix('--').partition('=')
    if not equals:
      raise ConfigError(f'{reprlib.repr(assignment)} is not an override; expected --key.path=value')
    _check_known(key, list(leaves))
    *parents, leaf = key.split('.')
    functools.reduce(lambda node, parent: node[parent], parents, tree)[leaf] = _parse(text.strip(), leaves[key])
  return from_tree(type(settings), tree) if assignments else settings


def from_tree(kind: type[T], tree: Any, prefix: str = '') -> T:
  """Makes a settings object from nested dictionaries; `prefix` is its dotted key, for messages.

  Raises:
    ConfigError: for an unknown key or a value of the wrong type.
  """
  if not isinstance(tree, dict):
    raise ConfigError(f'{prefix or "the config"} is {type(tree).__name__}; expected a mapping')
  kinds = typing.get_type_hints(kind)
  for key in tree:
    _check_known(prefix + key, [prefix + known for known in kinds])
  return kind(**{key: _coerce(kinds[key], value, prefix + key) for key, value in tree.items()})


def _parse(text: str, current: Any) -> Any:
  """Parses a command-line value as JSON; a value that is not JSON stays text, which `_coerce` then checks."""
  if isinstance(current, str):
    return text
  listed = '[' + text.strip('()[]').rstrip(',') + ']' if isinstance(current, tuple) else text
  try:
    return reading.json_text(listed.lower())
  except ValueError:
    return text


def _coerce(kind: Any, value: Any, key: str) -> Any:
  if dataclasses.is_dataclass(kind):
    return from_tree(kind, value, key + '.')
  if isinstance(kind, types.UnionType) and value is None:
    return None
  if typing.get_origin(kind) is tuple:
    inner = typing.get_args(kind)
    if inner[0] is str and isinstance(value, str):  # words of a command line; `[` at one end alone is part of a word
      bare = re.fullmatch(r'[(\[](.*)[)\]]', value)
      value = [word.strip(' \'"') for word in (bare[1] if bare else value).rstrip(',').split(',')]
    if isinstance(value, list | tuple) and (inner[-1] is Ellipsis or len(value) == len(inner)):
      return tuple(_coerce(inner[0], v, key) for v in value)
  elif float in (kind, *typing.get_args(kind)) and isinstance(value, int | float) and not isinstance(value, bool):
    if abs(value) <= sys.float_info.max:  # neither NaN, infinity nor a whole number of hundreds of digits
      return float(value)
  elif type(value) in (kind, *typing.get_args(kind)) and not (type(value) is int and abs(value) >= _TOO_LARGE):
    return value
  raise ConfigError(f'{key}={reprlib.repr(value)} does not fit; expected {_kind_name(kind)}')


def _check_known(key: str, known: list[str]) -> None:
  if key not in known:
    shown = key if len(key) < 80 else f'{key[:80]}...'
    nearest = difflib.get_close_matches(shown, known, n=1, cutoff=0.0)[0]
    raise ConfigError(f'unknown key {shown!r}; the nearest valid one is {nearest!r}')


def _kind_name(kind: Any) -> str:
  if isinstance(kind, types.UnionType):
    return f'{_kind_name(typing.get_args(kind)[0])}, or null'
  if typing.get_origin(kind) is tuple:
    inner = typing.get_args(kind)
    what = 'names' if inner[0] is str else 'numbers'
    return f'{"" if inner[-1] is Ellipsis else f"{len(inner)} "}{what} separated by commas'
  return {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'text'}.get(kind, str(kind))
