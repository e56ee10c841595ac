"""Reads the names of classes from YOLO's data.yaml or from a text file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from vild_jax.data.schema import DataError


class _Loader(yaml.SafeLoader):
  """Reads plain data, and whole numbers as they are written: YAML takes 010 for 8, and 1:30 for 90.

  An alias can stand for a list of aliases, so that a file of one kilobyte would take more memory than there is.
  """

  def compose_node(self, parent: Any, index: Any) -> yaml.Node:
    if self.check_event(yaml.AliasEvent):
      event = self.peek_event()
      raise yaml.composer.ComposerError(None, None, 'an alias (*name); expected none', event.start_mark)
    return super().compose_node(parent, index)

  def number(self, node: yaml.ScalarNode) -> int | str:
    """Returns the value of a scalar that YAML takes for a whole number; others than decimal ones stay text."""
    text = self.construct_scalar(node)
    return int(text) if re.fullmatch('0|-?[1-9][0-9]{0,17}', text) else text


_Loader.add_constructor('tag:yaml.org,2002:int', _Loader.number)


def read_names(path: Path) -> tuple[list[str], int]:
  """Returns the names, by index, and how many columns of keypoints follow each box (`kpt_shape`; 0: none).

  Args:
    path: a .yaml or .yml file whose `names` is a list, or a mapping from index to name; any other file has one name a
      line.

  Raises:
    DataError: the file cannot be read, has no names, or an index lacks one.
  """
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f'{path} cannot be read ({error}); expected data.yaml, or text with one name a line') from None
  if path.suffix.lower() not in ('.yaml', '.yml'):
    return [_name(path, i, line.strip()) for i, line in enumerate(text.rstrip().split('\n'))], 0
  try:
    tree = yaml.load(text, _Loader)  # which is a SafeLoader
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    raise DataError(f'{path} is not YAML ({" ".join(str(error).split())}); expected a data.yaml of YOLO') from None
  names = tree.get('names') if isinstance(tree, dict) else None
  if isinstance(names, dict):
    if set(names) != set(range(len(names))):
      raise DataError(f'{path} has names for the indices {sorted(map(str, names))[:5]} ...; expected 0, 1, 2 and so on')
    names = [names[i] for i in range(len(names))]
  if not isinstance(names, list) or not names:
    raise DataError(f'{path} has no list "names"; expected the names of the classes, as a list or as index: name')
  return [_name(path, i, name) for i, name in enumerate(names)], _keypoint_columns(path, tree.get('kpt_shape'))


def _name(path: Path, index: int, name: Any) -> str:
  if type(name) is int:  # a digit, say; YAML makes other words true, false or a date, which nobody means
    name = str(name)
  if not isinstance(name, str) or not name.strip():
    raise DataError(f'{path}: the name of class {index} is {name!r}; expected text (in quotes, if YAML needs them)')
  return name.strip()


def _keypoint_columns(path: Path, shape: Any) -> int:
  if shape is None:
    return 0
  if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
    raise DataError(f'{path} has kpt_shape {shape!r}; expected [keypoints, 2 or 3 numbers each]')
  return shape[0] * shape[1]
