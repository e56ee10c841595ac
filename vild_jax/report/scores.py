"""Writes the page of `vild-jax score`: what was scored, why the detector fails, and how it compares with another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.report import charts, page, pictures
from vild_jax.report import shots as shots_lib
from vild_jax.report.shots import Shots
from vild_jax.runtime import files

_SIZES = {'APs': 'small', 'APm': 'medium', 'APl': 'large'}
_FREQUENCIES = {'APr': 'rare', 'APc': 'common', 'APf': 'frequent', 'AP_base': 'base', 'AP_novel': 'novel'}
_DIFFERENCES = 20  # categories that the comparison shows
_RECALL = {
  'named': 'detections, under the right name',
  'detections': 'detections, under any name',
  'proposals': 'proposals',
}


@dataclass(frozen=True)
class Scores:
  """Holds what the page shows; all numbers are fractions.

  Attributes:
    metrics: of `eval.protocols.score`.
    errors: (kind, what it means, AP50 that it costs, number) of TIDE.
    calibration: (mean score, share of right detections, number) in intervals of scores.
    calibration_error: the mean difference; None where scores are no shares.
    confusions: (category, what it is called, number, share of the found ones, pictures uint8 [H, W, 3]).
    best, worst: (name, instances, box AP) of categories.
    shots: single pictures.
    recall: {'named', 'detections@N' or 'proposals@N', for the best N of a picture: {'all', 'base', 'novel': recall}}.
    comparison: {metric: (this one, the other, difference, lower, upper)}, or empty.
    differences: (name, AP of this one, of the other, lower, upper, number of pictures) of categories.
    other: the name of the other results file.
    resamples: of the bootstrap.
    command: that made the page.
  """

  metrics: Mapping[str, Any]
  errors: Sequence[tuple[str, str, float, int]] = ()
  calibration: Sequence[tuple[float, float, int]] = ()
  calibration_error: float | None = None
  confusions: Sequence[tuple[str, str, int, float, Sequence[np.ndarray]]] = ()
  best: Sequence[tuple[str, int, float]] = ()
  worst: Sequence[tuple[str, int, float]] = ()
  shots: Shots | None = None
  recall: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
  comparison: Mapping[str, tuple[float, float, float, float, float]] = field(default_factory=dict)
  differences: Sequence[tuple[str, float, float, float | None, float | None, int]] = ()
  other: str = ''
  resamples: int = 0
  command: str = ''


def write_html(path: str | Path, scores: Scores) -> None:
  """Writes the page, one file with pictures inside."""
  metrics = scores.metrics
  lead = (
    f'Protocol {metrics["protocol"]}: {metrics["detections_counted"]} count. {metrics["images"]:,} pictures, '
    f'{metrics["objects"]:,} objects, {metrics["detections"]:,} detections.'
  )
  sections = [
    _tiles(metrics),
    _averages(metrics),
    _comparison(scores),
    _errors(scores),
    _recall(scores),
    _confusions(scores),
    _categories(scores),
    shots_lib.single(scores.shots) if scores.shots else '',
    shots_lib.pairs(scores.shots, scores.other) if scores.shots else '',
    _calibration(scores),
    page.section('What was scored', '', page.facts(_facts(scores))),
  ]
  files.write(path, page.document('How well it detects', lead, sections))


def _tiles(metrics: Mapping[str, Any]) -> str:
  entries = []
  for kind in ('box', 'mask'):
    values = metrics.get(kind) or {}
    for key, note, colour in (
      ('AP', 'IoU 0.5 to 0.95', ''),
      ('AP50', 'IoU 0.5', ''),
      ('AP50_novel', 'classes without annotations in training', 'novel'),
      ('AR@300', 'class-agnostic recall of 300 proposals', ''),
    ):
      if values.get(key) is not None:
        entries.append((colour, f'{kind} {key.replace("_", ", ")}', f'{100 * values[key]:.1f} %', note))
  return page.tiles(entries)


def _averages(metrics: Mapping[str, Any]) -> str:
  kinds = [kind for kind in ('box', 'mask') if metrics.get(kind)]
  keys = [key for key in (metrics[kinds[0]] if kinds else {}) if metrics[kinds[0]][key] is not None]
  rows = [[kind, *(page.percent(metrics[kind].get(key)) for key in keys)] for kind in kinds]
  bars = ''
  for title, names in (('AP by size of the object', _SIZES), ('AP by group of categories', _FREQUENCIES)):
    groups = [
      (name, [None if (value := metrics[kind].get(key)) is None else 100 * value for kind in kinds])
      for key, name in names.items()
      if any(metrics[kind].get(key) is not None for kind in kinds)
    ]
    bars += charts.bar_chart(title, groups, kinds, first=1) if groups else ''
  return page.section('Averages', 'In per cent.', page.table(['', *keys], rows), page.row(bars))


def _errors(scores: Scores) -> str:
  rows = [[f'{kind}: {meaning}', page.percent(cost), f'{number:,}'] for kind, meaning, cost, number in scores.errors]
  text = (
    'What AP50 of boxes would gain if one kind of error were mended and all else stayed (TIDE, Bolya et al. 2020). '
    'The gains do not add up.'
  )
  bars = charts.bar_chart(
    'box AP50 that an error costs',
    [(kind, [100 * max(cost, 0.0)]) for kind, _, cost, _ in scores.errors],
    ['points'],
    first=2,
  )
  return page.section('Kinds of errors', text, bars, page.table(['error', 'costs', 'number'], rows))


def _recall(scores: Scores) -> str:
  columns = ['all', 'base', 'novel']
  rows = []
  for key, values in scores.recall.items():
    what, _, count = key.partition('@')
    name = _RECALL[what] + (f', best {int(count):,} of a picture' if count else '')
    rows.append([name, *(page.percent(values[column]) for column in columns)])
  text = (
    'The share of objects that boxes find, a mean over IoU 0.5 to 0.95. Objects that are found under any name and not '
    'under the right one are missed by their names; the others are missed by the boxes. Boxes of detections are what '
    'class scores and suppression left of the proposals, each moved to fit its object: this is not the recall of the '
    'proposals themselves'
  )
  known = any(key.startswith('proposals') for key in scores.recall)
  text += ', which is below.' if known else ', which vild-jax score --proposals shows.'
  return page.section('What boxes find', text, page.table(['', *columns], rows))


def _confusions(scores: Scores) -> str:
  rows, figures = [], ''
  for category, called, number, share, shown in scores.confusions:
    rows.append([f'{category}, called {called}', f'{number:,}', f'{100 * share:.0f} %'])
    if shown:
      images = ''.join(f'<img alt="{escape(category)}" src="{pictures.inline(picture)}">' for picture in shown)
      figures += (
        f'<figure><figcaption>{escape(category)}, called {escape(called)}</figcaption>'
        f'<div class="crops">{images}</div></figure>'
      )
  text = 'Objects whose surest box, at IoU 0.5 or more, names another category; shares are of the objects found at all.'
  gallery = f'<div class="gallery">{figures}</div>' if figures else ''
  return page.section('What is taken for what', text, page.table(['object', 'objects', 'share'], rows), gallery)


def _categories(scores: Scores) -> str:
  of = lambda rows: page.table(
    ['category', 'objects', 'box AP'], [[n, f'{i:,}', page.percent(ap)] for n, i, ap in rows]
  )
  parts = [
    f'<h3>{heading}</h3>{of(rows)}' for heading, rows in (('Best', scores.best), ('Worst', scores.worst)) if rows
  ]
  return page.section('Categories', '', page.row(''.join(f'<div>{part}</div>' for part in parts)))


def _calibration(scores: Scores) -> str:
  if scores.calibration_error is None:
    return ''
  rows = [[page.percent(score), page.percent(right), f'{number:,}'] for score, right, number in scores.calibration]
  text = (
    'How many detections with about the same score are right, by class and IoU 0.5. In a calibrated detector both '
    f'are equal; here they differ by {100 * scores.calibration_error:.1f} points on average.'
  )
  return page.section('Calibration', text, page.table(['mean score', 'right', 'detections'], rows))


def _comparison(scores: Scores) -> str:
  if not scores.comparison:
    return ''
  rows = [
    [key, page.percent(one), page.percent(two), f'{100 * delta:+.1f}', _interval(low, high)]
    for key, (one, two, delta, low, high) in scores.comparison.items()
  ]
  changed = [
    [name, f'{number:,}', page.percent(one), page.percent(two), f'{100 * (one - two):+.1f}', _interval(low, high)]
    for name, one, two, low, high, number in scores.differences[:_DIFFERENCES]
  ]
  text = (
    f'Boxes, against {scores.other}. The interval holds 95 % of the differences over {scores.resamples} samples of the '
    'pictures: without zero in it, the difference is more than the choice of pictures explains.'
  )
  more = (
    '<h3>Categories that differ most</h3><p>Each has an interval of its own. They are chosen by their differences, so '
    'some of these are large by chance; with few pictures an interval is too narrow.</p>'
    + page.table(['category', 'pictures', 'this', 'other', 'difference', '95 % interval'], changed)
  )
  return page.section(
    'Comparison',
    text,
    page.table(['', 'this', 'other', 'difference', '95 % interval'], rows),
    more if changed else '',
  )


def _interval(low: float | None, high: float | None) -> str:
  return '–' if low is None else f'{100 * low:+.1f} to {100 * high:+.1f}'


def _facts(scores: Scores) -> list[tuple[str, str]]:
  metrics = scores.metrics
  entries = [
    ('protocol', f'{metrics["protocol"]}; {metrics["detections_counted"]} count'),
    ('annotations', metrics['annotations']['file']),
    ('sha256', metrics['annotations']['sha256']),
    ('categories', f'{metrics["categories"]:,}, {metrics["categories_with_objects"]:,} of them with objects'),
    ('versions', ', '.join(f'{name} {version}' for name, version in metrics['versions'].items())),
  ]
  return [*entries, ('command', scores.command)] if scores.command else entries
