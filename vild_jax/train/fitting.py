"""Takes from another detector all weights that fit (`train.init`), and says what was taken, what is new, what was left.

The backbone fits as a whole or the start is refused: a few layers of another depth among new ones are worth nothing.
Elsewhere each array is taken by its name and shape. Classes are not among the weights, so that any vocabulary fits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import traverse_util

from vild_jax.train import weights

_BACKBONE = ('backbone',)
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Fit:
  """Holds the arrays of a folder (`there`) and of the model (`here`), {name: shape}, and how they fit together."""

  there: Shapes
  here: Shapes

  @property
  def taken(self) -> list[str]:
    """Returns the names of the arrays that fit."""
    return [name for name, shape in self.here.items() if self.there.get(name) == shape]

  @property
  def reshaped(self) -> list[str]:
    """Returns the names of the arrays that have another shape in the folder; in the model they are new."""
    return [name for name, shape in self.here.items() if self.there.get(name, shape) != shape]

  @property
  def new(self) -> list[str]:
    """Returns the names of the arrays that the folder lacks."""
    return [name for name in self.here if name not in self.there]

  @property
  def left(self) -> list[str]:
    """Returns the names of the arrays of the folder that the model lacks."""
    return [name for name in self.there if name not in self.here]


def fit(folder: Path, expected: dict[str, Any]) -> Fit:
  """Compares the weights of a work directory or a bundle with those of the model, {'params', 'batch_stats'}.

  Raises ValueError if there are none, or if the backbone is another one; the message names the first difference.
  """
  path = weights.locate(folder)
  backbone = {key: {part: tree[part] for part in _BACKBONE} for key, tree in expected.items()}
  try:
    weights.check(path, backbone, parts=_BACKBONE)
  except ValueError as error:
    raise ValueError(f'train.init: {error}') from None
  return Fit(weights.shapes(weights.stored(path)), weights.shapes(expected))


def filled(folder: Path, expected: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
  """Returns the variables `values` with every array of `folder` that fits in its place; errors as `fit`.

  `expected` holds their shapes, types and shardings.
  """
  flat = traverse_util.flatten_dict(expected, sep='/')
  wanted = traverse_util.unflatten_dict({name: flat[name] for name in fit(folder, expected).taken}, sep='/')
  taken = traverse_util.flatten_dict(weights.read(weights.locate(folder), wanted), sep='/')
  return traverse_util.unflatten_dict(traverse_util.flatten_dict(values, sep='/') | taken, sep='/')


def report(folder: Path, found: Fit) -> str:
  """Returns lines of text: how many arrays of each module are taken, new or of another shape, and left."""
  lines = [f'train.init: {len(found.taken)} of {len(found.here)} arrays of parameters and statistics from {folder}']
  example = ''
  if found.reshaped:
    name = found.reshaped[0]
    example = f' ({_plain(name)} is {found.there[name]} there, {found.here[name]} here)'
  for title, names, note in (
    ('taken', found.taken, ''),
    ('new, not in the folder', found.new, ''),
    ('new, of another shape', found.reshaped, example),
    ('left in the folder', found.left, ''),
  ):
    modules = Counter(_plain(name).partition('/')[0] for name in names)
    if modules:
      lines.append(f'  {title}: {", ".join(f"{module} {count}" for module, count in modules.items())}{note}')
  return '\n'.join(lines)


def _plain(name: str) -> str:
  """Returns the name of an array without the collection that it is in."""
  return name.partition('/')[2]
