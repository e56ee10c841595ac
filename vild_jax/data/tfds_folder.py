"""Opens a data set of TFDS on disk; what its files say cannot load code, and what is damaged is one line.

TFDS imports the module of any class that `features.json` names. Here only TFDS's own are named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vild_jax.data.schema import DataError
from vild_jax.runtime import reading

_OWN = 'tensorflow_datasets.core.features.'
_KEYS = ('pythonClassName', 'python_class_name', 'type')  # `type` of older versions
_EXPECTED = 'the folder of a data set as vild-jax prepare or TFDS wrote it'


def builder(folder: Path) -> Any:
  """Returns TFDS's builder of a folder. Raises DataError if it names foreign classes or TFDS cannot read it."""
  path = folder / 'features.json'
  tree = reading.json_file(path, _EXPECTED, error=DataError)
  with reading.parsing(path, _EXPECTED, error=DataError):
    names = _classes(tree)
  for name in names:
    if not (isinstance(name, str) and name.startswith(_OWN)):
      raise DataError(
        f'{path} names the class {str(name)[:80]!r}, whose module would be run; expected classes of {_OWN[:-1]} alone'
      )
  with reading.parsing(folder, _EXPECTED, error=DataError):
    import tensorflow_datasets as tfds  # takes a second, and only reading pictures needs it

    return tfds.builder_from_directory(folder)


def _classes(tree: Any) -> list[Any]:
  """Returns the names of classes anywhere in a tree, and in the JSON texts that older versions have in it.

  A field of a record may be called `type`: its value is an object, and no name.
  """
  if isinstance(tree, list):
    return [name for inner in tree for name in _classes(inner)]
  if not isinstance(tree, dict):
    return []
  own = [tree[key] for key in _KEYS if key in tree and not (key == 'type' and isinstance(tree[key], dict))]
  inner = [*tree.values(), *(reading.json_text(text) for text in [tree.get('json')] if isinstance(text, str))]
  return own + [name for value in inner for name in _classes(value)]
