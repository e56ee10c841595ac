"""Takes from another detector all weights that fit (`train.init`), and says what was taken, what is new, what was left.

The backbone fits as a whole or the start is refused: a few layers of another depth among new ones are worth nothing.
Elsewhere each array is taken by its name and shape, but those of a mask head that has learnt nothing (`model.masks`)
are not. Classes are not among the weights, so that any vocabulary fits.
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
  """Holds the arrays of the weights at `path` (`there`) and of the model (`here`), {name: shape}, and how they fit."""

  path: Path
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


def fit(folder: Path, expected: dict[str, Any], path: Path | None = None) -> Fit:
  """Compares the weights of a work directory or a bundle with those of the model, {'params', 'batch_stats'}.

  `path` is that of the weights in `folder`, by default what `weights.locate` finds: a training may still add to it.

  Raises ValueError if there are none, or if the backbone is another one; the message names the first difference.
  """
  path = path or weights.locate(folder)
  backbone = {key: {part: tree[part] for part in _BACKBONE} for key, tree in expected.items()}
  try:
    weights.check(path, backbone, parts=_BACKBONE)
  except ValueError as error:
    raise ValueError(f'train.init: {error}') from None
  there = weights.shapes(weights.stored(path))
  if (folder / weights.CONFIG_FILE).is_file() and not weights.read_config(folder).model.masks:
    there = {name: shape for name, shape in there.items() if module(name) != 'mask_head'}
  return Fit(path, there, weights.shapes(expected))


def filled(found: Fit, expected: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
  """Returns the variables `values` with every array that fits in its place.

  `expected` holds their shapes, types and shardings.
  """
  flat = traverse_util.flatten_dict(expected, sep='/')
  wanted = traverse_util.unflatten_dict({name: flat[name] for name in found.taken}, sep='/')
  taken = traverse_util.flatten_dict(weights.read(found.path, wanted), sep='/')
  return traverse_util.unflatten_dict(traverse_util.flatten_dict(values, sep='/') | taken, sep='/')


def report(folder: Path, found: Fit) -> str:
  """Returns lines of text: how many arrays of each module are taken, new or of another shape, and left."""
  step = weights.step_of(found.path)
  source = folder if step is None else f'{folder}, step {step}'
  lines = [f'train.init: {len(found.taken)} of {len(found.here)} arrays of parameters and statistics from {source}']
  every = Counter(map(module, found.here))
  taken = Counter(map(module, found.taken))
  if taken:
    whole = lambda name: '' if taken[name] == every[name] else f' of {every[name]}'
    lines.append(f'  taken: {", ".join(f"{name} {count}{whole(name)}" for name, count in taken.items())}')
  sizes = lambda name: f' is {found.there[name]} there, {found.here[name]} here'
  for title, names, about in (
    ('new, not in the folder', found.new, lambda name: ' for one'),
    ('new, of another shape', found.reshaped, sizes),
    ('left in the folder', found.left, lambda name: ' for one'),
  ):
    if names:
      counts = Counter(map(module, names))
      text = ', '.join(f'{name} {count}' for name, count in counts.items())
      lines.append(f'  {title}: {text} ({plain(names[0])}{about(names[0])})')
  return '\n'.join(lines)


def module(name: str) -> str:
  """Returns the module of the array `name`, such as `backbone`."""
  return plain(name).partition('/')[0]


def plain(name: str) -> str:
  """Returns the name of an array without the collection that it is in."""
  return name.partition('/')[2]
