"""Shows single pictures of what was scored: the best, the worst, and those on which two detectors differ most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from vild_jax.report import page, pictures

RIGHT, WRONG = (47, 111, 219), (226, 113, 29)  # RGB of boxes; also told apart by people who see few colours


@dataclass(frozen=True)
class Shot:
  """Describes one picture.

  Attributes:
    image_id: its id.
    name: its file.
    objects: their number.
    detectors: (objects found, wrong boxes, F1) of each.
    drawn: the picture with the boxes of each detector, uint8 [H, W, 3]; empty if it is only named.
  """

  image_id: int
  name: str
  objects: int
  detectors: tuple[tuple[int, int, float], ...]
  drawn: tuple[np.ndarray, ...] = ()

  def as_json(self) -> dict[str, Any]:
    """Returns the numbers."""
    keys = ('found', 'wrong', 'f1')
    return {
      'image_id': self.image_id,
      'file': self.name,
      'objects': self.objects,
      **{
        who: dict(zip(keys, values, strict=True))
        for who, values in zip(('this', 'other'), self.detectors, strict=False)
      },
    }


@dataclass(frozen=True)
class Shots:
  """Holds the pictures that the page shows.

  Attributes:
    scores: from which on boxes of a detector count, one for each detector; None if none of its boxes is right.
    best, worst: pictures with the highest and the lowest F1.
    better, worse: pictures where F1 of this detector is higher than that of the other by most, and lower.
  """

  scores: tuple[float | None, ...]
  best: tuple[Shot, ...] = ()
  worst: tuple[Shot, ...] = ()
  better: tuple[Shot, ...] = ()
  worse: tuple[Shot, ...] = ()

  def as_json(self) -> dict[str, Any]:
    """Returns the numbers, for diagnosis.json."""
    parts = ('best', 'worst', 'better', 'worse')
    return {'scores': self.scores} | {part: [shot.as_json() for shot in getattr(self, part)] for part in parts}


def single(shots: Shots) -> str:
  """Returns the section of the best and the worst pictures, HTML; empty if no box is right."""
  if shots.scores[0] is None:
    return ''
  text = (
    f'Boxes count from the score of {shots.scores[0]:.3g} on: with it, F1 over all pictures is greatest. An object is '
    'found by a box of its class at IoU 0.5 or more, and a box that finds none is wrong. F1 of a picture is '
    '2 × found / (objects + found + wrong boxes); of pictures with equal F1, those with most objects are chosen.'
  )
  return _section('Best and worst pictures', text, (('Best', shots.best), ('Worst', shots.worst)), [''])


def pairs(shots: Shots, other: str) -> str:
  """Returns the section of the pictures on which two detectors differ most, HTML; empty without such."""
  if not shots.better and not shots.worse:
    return ''
  scores = ' and '.join('none' if score is None else f'{score:.3g}' for score in shots.scores)
  text = (
    f'By F1 of the picture, 2 × found / (objects + found + wrong boxes), against {other}. Boxes of a detector count '
    f'from the score on with which its F1 over all pictures is greatest, here {scores}.'
  )
  parts = (('This one is better', shots.better), ('The other is better', shots.worse))
  return _section('Pictures on which the two differ most', text, parts, ['this', 'other'])


def _section(heading: str, text: str, parts: Sequence[tuple[str, Sequence[Shot]]], names: Sequence[str]) -> str:
  drawn = any(shot.drawn for _, of in parts for shot in of)

  def show(of: Sequence[Shot]) -> str:
    if not drawn:
      return _table(of, names)
    return _singles(of) if len(names) == 1 else _doubles(of, names)

  content = [f'<h3>{title}</h3>{show(of)}' for title, of in parts if of]
  return page.section(heading, text, _LEGEND if drawn else '', *content)


def _singles(of: Sequence[Shot]) -> str:
  cards = ''.join(
    f'<figure>{_image(shot.drawn[0], shot.name)}'
    f'<figcaption>{escape(shot.name)}<br>{escape(_words(shot, 0))}</figcaption></figure>'
    for shot in of
  )
  return f'<div class="shots">{cards}</div>'


def _doubles(of: Sequence[Shot], names: Sequence[str]) -> str:
  cards = ''
  for shot in of:
    sides = ''.join(
      f'<div>{_image(picture, f"{shot.name}, {name}")}<span>{escape(f"{name}: {_words(shot, k)}")}</span></div>'
      for k, (picture, name) in enumerate(zip(shot.drawn, names, strict=True))
    )
    cards += f'<figure><figcaption>{escape(shot.name)}</figcaption><div class="pair">{sides}</div></figure>'
  return f'<div class="gallery">{cards}</div>'


def _table(of: Sequence[Shot], names: Sequence[str]) -> str:
  columns = [f'{name} {what}'.strip() for name in names for what in ('found', 'wrong', 'F1')]
  rows = [
    [shot.name, f'{shot.objects:,}']
    + [cell for found, wrong, f1 in shot.detectors for cell in (f'{found:,}', f'{wrong:,}', f'{f1:.2f}')]
    for shot in of
  ]
  return page.table(['picture', 'objects', *columns], rows)


def _words(shot: Shot, k: int) -> str:
  found, wrong, f1 = shot.detectors[k]
  return f'{found} of {shot.objects} found, {wrong} wrong, F1 {f1:.2f}'


def _image(picture: np.ndarray, title: str) -> str:
  return f'<img alt="{escape(title)}" src="{pictures.inline(picture)}">'


_LEGEND = '<p class="legend">{}</p>'.format(
  ''.join(
    f'<span><i style="background:rgb{color};outline:1px solid var(--soft)"></i>{name}</span>'
    for color, name in ((RIGHT, 'right box'), (WRONG, 'wrong box'), ((255, 255, 255), 'object'))
  )
)
