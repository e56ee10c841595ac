"""Writes the page of `vild-jax inspect`: what is in a data set, what smells, and what the network sees of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.report import charts, page, pictures
from vild_jax.runtime import files

_EXTREMES = 8  # categories with the most and with the fewest objects in the tables
_HISTOGRAM = 500  # pixels, the width of a histogram at most
_KINDS = {'novel': 0, '': 2, 'base': 2, 'not in the vocabulary': 3}  # -> the class of the bars


@dataclass(frozen=True)
class View:
  """Shows one picture of the data set in several ways.

  Attributes:
    title: the picture's name.
    shots: (a line below, picture uint8 [H, W, 3]) of each way.
  """

  title: str
  shots: Sequence[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Inspection:
  """Holds what the page shows.

  Attributes:
    title: of the page.
    summary: of `data.contents.summary`.
    smells: (what looks wrong, whether training would be useless with it).
    categories: (name, objects, 'base', 'novel', 'not in the vocabulary' or '') of each category.
    histograms: (title, what is counted, (interval, how many) of each).
    views: pictures as annotated and as the network sees them.
    how: says how these were chosen and what is drawn.
    twins: (names of two pictures that are nearly the same, both uint8 [H, W, 3]).
    twins_found: how many such pairs there are.
    facts: (name, value) of what was inspected.
  """

  title: str
  summary: Mapping[str, Any]
  smells: Sequence[tuple[str, bool]] = ()
  categories: Sequence[tuple[str, int, str]] = ()
  histograms: Sequence[tuple[str, str, Sequence[tuple[str, int]]]] = ()
  views: Sequence[View] = ()
  how: str = ''
  twins: Sequence[tuple[str, np.ndarray, np.ndarray]] = ()
  twins_found: int = 0
  facts: Sequence[tuple[str, str]] = ()


def write_html(path: str | Path, found: Inspection) -> None:
  """Writes the page, one file with pictures inside."""
  summary = found.summary
  lead = (
    f'{summary["pictures"]:,} pictures with {summary["objects"]:,} objects of {summary["categories"]:,} categories, '
    'looked at before training.'
  )
  sections = [
    _tiles(summary),
    _smells(found.smells),
    page.section('Pictures', found.how, _views(found.views)),
    _categories(found.categories),
    _sizes(found),
    _twins(found),
    page.section('What was inspected', '', page.facts(found.facts)),
  ]
  files.write(path, page.document(found.title, lead, sections))


def _tiles(summary: Mapping[str, Any]) -> str:
  by_class, sizes = summary['objects_by_class'], summary['object_sizes']
  entries = [
    ('', 'pictures', summary['pictures'], f'{summary["pictures_without_objects"]:,} without objects'),
    ('', 'objects', summary['objects'], ', '.join(f'{n:,} {size}' for size, n in sizes.items())),
  ]
  if by_class:
    entries += [
      ('base', 'of base classes', by_class['base'], 'annotations that training sees'),
      ('novel', 'of novel classes', by_class['novel'], f'{by_class["not in the vocabulary"]:,} not in the vocabulary'),
    ]
  entries += [
    ('', 'categories', summary['categories'], f'{summary["categories_without_objects"]:,} without objects'),
    ('', 'without a mask', summary['objects_without_mask'], f'and {summary["crowds"]:,} crowds, not trained on'),
  ]
  return page.tiles([(kind, label, f'{value:,}', note) for kind, label, value, note in entries])


def _smells(smells: Sequence[tuple[str, bool]]) -> str:
  if not smells:
    return page.section('What to look at', '', '<p>Nothing looks wrong.</p>')
  items = ''.join(
    f'<li{" class=grave" if grave else ""}>{escape(text[:1].upper() + text[1:])}.</li>'
    for text, grave in sorted(smells, key=lambda smell: not smell[1])
  )
  marked = any(grave for _, grave in smells)
  text = 'With what is coloured, training would most likely learn nothing useful.' if marked else ''
  return page.section('What to look at', text, f'<ul class="smells">{items}</ul>')


def _views(views: Sequence[View]) -> str:
  if not views:
    return ''
  cards = ''
  for view in views:
    shots = ''.join(
      f'<div><img alt="{escape(view.title)}" src="{pictures.inline(shown)}"><span>{escape(line)}</span></div>'
      for line, shown in view.shots
    )
    cards += f'<figure><figcaption>{escape(view.title)}</figcaption><div class="view">{shots}</div></figure>'
  wide = any(len(view.shots) > 1 for view in views)
  return f'<div class="{"views" if wide else "gallery"}">{cards}</div>'


def _categories(categories: Sequence[tuple[str, int, str]]) -> str:
  names = ['novel', '', 'base', 'not in the vocabulary']
  legend = names if any(kind for _, _, kind in categories) else [''] * len(names)
  ordered = sorted((entry for entry in categories if entry[1]), key=lambda entry: -entry[1])
  chart = charts.ranking(
    'Objects of each category that has any, logarithmic',
    [(name, number, _KINDS[kind]) for name, number, kind in ordered],
    legend,
  )
  parts = [('Most objects', ordered[:_EXTREMES]), ('Fewest objects', ordered[_EXTREMES:][-_EXTREMES:])]
  tables = ''.join(f'<div><h3>{heading}</h3>{_table(rows)}</div>' for heading, rows in parts if rows)
  return page.section('Categories', '', page.row(chart + (f'<div>{page.row(tables)}</div>' if tables else '')))


def _table(rows: Sequence[tuple[str, int, str]]) -> str:
  return page.table(
    ['category', 'objects'], [[('★ ' if kind == 'novel' else '') + name, f'{n:,}'] for name, n, kind in rows]
  )


def _sizes(found: Inspection) -> str:
  bars = ''.join(
    charts.bar_chart(title, [(interval, [number]) for interval, number in rows], [what], first=2, widest=_HISTOGRAM)
    for title, what, rows in found.histograms
    if rows
  )
  rows = [
    [side, *(f'{value:,}' for value in values)] for side, values in found.summary['picture_sizes'].items() if values
  ]
  table = page.table(['pixels of pictures', 'least', 'median', 'most'], rows)
  return page.section('Sizes', '', page.row(bars + (f'<div>{table}</div>' if table else '')))


def _twins(found: Inspection) -> str:
  cards = ''.join(
    f'<figure><figcaption>{escape(title)}</figcaption><div class="pair">'
    + ''.join(f'<div><img alt="{escape(title)}" src="{pictures.inline(shown)}"></div>' for shown in both)
    + '</div></figure>'
    for title, *both in found.twins
  )
  text = f'{len(found.twins)} of {found.twins_found:,} pairs.' if found.twins_found > len(found.twins) else ''
  return page.section('Pictures that are nearly the same', text, f'<div class="gallery">{cards}</div>' if cards else '')
