"""Writes the first figure of the page, what was learnt from what, and the cards that show each class once.

The boxes and their labels are elements of the page above the pictures, so that the text keeps its size where the
pictures are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from vild_jax.report import pictures

_FRAME = 3 / 2  # width by height of the place of a panel's pictures; the style sheet has the same number
_HEADS = ('In the picture', 'What the annotations said', 'What the teacher said', 'What the detector finds')
_CHIP = 0.13  # about the height of a label, as a share of the frame: what must be free above or below a box


@dataclass(frozen=True)
class Mark:
  """Describes a box to draw on a picture: y1, x1, y2, x2 as shares of its sides, and the label.

  A box of a novel class is dashed and its label has a star, as in the gallery.
  """

  box: tuple[float, float, float, float]
  label: str
  novel: bool


@dataclass(frozen=True)
class Shot:
  """Holds a picture, uint8 [H, W, 3], the words for those who cannot see it, and the boxes to draw on it."""

  picture: np.ndarray
  alt: str
  marks: Sequence[Mark] = ()


@dataclass(frozen=True)
class Panel:
  """Holds one cell of the figure: one picture, or several side by side, and a short caption.

  Attributes:
    shots: the pictures.
    caption: a line or two.
    scores: (name, number in [0, 1]), best first, which are drawn as bars.
  """

  shots: Sequence[Shot]
  caption: str
  scores: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True)
class Row:
  """Holds what is shown of one object: the name of its class, whether that is novel, and the four cells."""

  name: str
  novel: bool
  picture: Panel
  annotation: Panel
  teacher: Panel
  detection: Panel


@dataclass(frozen=True)
class Lesson:
  """Holds the figure: a base object, a novel object, what they teach, and a note that says how they were chosen."""

  base: Row
  novel: Row
  text: str
  note: str


@dataclass(frozen=True)
class ClassCard:
  """Holds the name of a class, whether it is novel, and a picture of one object of it, uint8 [H, W, 3]."""

  name: str
  novel: bool
  picture: np.ndarray


def figure(lesson: Lesson) -> str:
  """Returns the figure: two rows of four pictures under column heads, or two by two on a phone."""
  rows = ''.join(_row(row) for row in (lesson.base, lesson.novel))
  return (
    '<section class="opening"><h2>What was learnt from what</h2>'
    f'<figure class="lesson">{rows}<figcaption><p>{escape(lesson.text)}</p>'
    f'<p>{escape(lesson.note)}</p></figcaption></figure></section>'
  )


def cards(classes: Sequence[ClassCard]) -> str:
  """Returns the classes as pictures beside their names, base and novel ones under headings of their own."""
  groups = ''
  for novel, what in ((False, 'base classes, annotated'), (True, '★ novel classes, not annotated')):
    shown = [card for card in classes if card.novel == novel]
    entries = ''.join(
      f'<li><img alt="" src="{pictures.inline(card.picture)}"><span>{_starred(card.name, novel)}</span></li>'
      for card in shown
    )
    if shown:
      groups += f'<h3>{what} in training ({len(shown)})</h3><ul class="cards">{entries}</ul>'
  if not groups:
    return ''
  return (
    f'<details class="classes" open><summary>The {len(classes)} classes and their names</summary>{groups}</details>'
  )


def _row(row: Row) -> str:
  kind, what = ('novel', 'not annotated in training') if row.novel else ('base', 'annotated in training')
  panels = (row.picture, row.annotation, row.teacher, row.detection)
  cells = ''.join(_panel(head, panel, row) for head, panel in zip(_HEADS, panels, strict=True))
  return (
    f'<div class="row {kind}"><div class="who"><b>{_starred(row.name, row.novel)}</b><span>{kind} class</span>'
    f'<small>{what}</small></div>{cells}</div>'
  )


def _panel(head: str, panel: Panel, row: Row) -> str:
  shots = ''.join(_shot(shot, _FRAME / len(panel.shots)) for shot in panel.shots)
  scores = ''.join(
    f'<li{" class=right" if name == row.name else ""}><span>{escape(name)}</span>'
    f'<i><i style="width:{100 * min(max(score, 0), 1):.1f}%"></i></i><span>{score:.2f}</span></li>'
    for name, score in panel.scores
  )
  return (
    f'<div class="panel"><h3>{head}</h3><div class="frame">{shots}</div><p>{escape(panel.caption)}</p>'
    f'{f"<ol>{scores}</ol>" if scores else ""}</div>'
  )


def _shot(shot: Shot, frame: float) -> str:
  """One picture as large as it fits into a part of the frame with the given width by height."""
  height, width = shot.picture.shape[:2]
  side = 'width' if width / height >= frame else 'height'
  return (
    f'<div class="cell"><div class="shot" style="aspect-ratio:{width}/{height};{side}:100%">'
    f'<img alt="{escape(shot.alt)}" src="{pictures.inline(shot.picture)}">{"".join(map(_mark, shot.marks))}</div></div>'
  )


def _mark(mark: Mark) -> str:
  y1, x1, y2, x2 = (min(max(float(v), 0.0), 1.0) for v in mark.box)
  kind = 'novel' if mark.novel else 'base'
  box = f'left:{x1:.1%};top:{y1:.1%};width:{x2 - x1:.1%};height:{y2 - y1:.1%}'
  across = f'left:{x1:.1%}' if x1 + x2 <= 1 else f'right:{1 - x2:.1%}'
  above, below, inside = f'bottom:{1 - y1:.1%}', f'top:{y2:.1%}', f'top:{y1:.1%}'
  down = above if y1 >= _CHIP else below if y2 <= 1 - _CHIP else inside
  return (
    f'<i class="mark {kind}" style="{box}"></i>'
    f'<span class="chip {kind}" style="{across};{down}">{_starred(mark.label, mark.novel)}</span>'
  )


def _starred(text: str, novel: bool) -> str:
  return f'{"★ " if novel else ""}{escape(text)}'
