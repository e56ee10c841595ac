"""Draws line and bar charts as inline SVG with the colours of the page, so they fit light and dark mode."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from html import escape

import numpy as np

_WIDTH, _HEIGHT = 340, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 8, 8, 22
_MOST_POINTS = 300
_LETTER, _LINE = 6.5, 13  # width of a letter in the name of a group, about, and height of a line of it
_GROUP, _WIDEST = 150, 640  # widths of one group of bars, including the space between groups, and of a chart


def line_chart(title: str, points: Sequence[tuple[float, float]]) -> str:
  """Returns a <figure> with the line through the finite (x, y) points and its first and last value.

  The y axis includes zero. Without a finite point the result is empty.
  """
  data = np.array([p for p in points if math.isfinite(p[1])], float).reshape(-1, 2)
  if not len(data):
    return ''
  first, last = data[0, 1], data[-1, 1]
  if len(data) > _MOST_POINTS:
    data = np.array([part.mean(axis=0) for part in np.array_split(data, _MOST_POINTS)])
  low, high = min(data[:, 1].min(), 0.0), data[:, 1].max()
  ticks = _ticks(low, high)
  low, high = min(low, ticks[0]), max(high, ticks[-1])
  start, end = data[0, 0], max(data[-1, 0], data[0, 0] + 1)
  x = _LEFT + (data[:, 0] - start) / (end - start) * (_WIDTH - _LEFT - _RIGHT)
  place = lambda value: _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
  line = ' '.join(f'{a:.1f},{b:.1f}' for a, b in zip(x, place(data[:, 1]), strict=True))
  grid = ''.join(
    f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{place(t):.1f}" y2="{place(t):.1f}"/>'
    f'<text x="{_LEFT - 6}" y="{place(t) + 3.5:.1f}" text-anchor="end">{_label(t)}</text>'
    for t in ticks
  )
  foot = (
    f'<text x="{_LEFT}" y="{_HEIGHT - 5}">step {start:.0f}</text>'
    f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 5}" text-anchor="end">{end:.0f}</text>'
  )
  area = f'{x[0]:.1f},{place(low):.1f} {line} {x[-1]:.1f},{place(low):.1f}'
  return (
    f'<figure class="chart"><figcaption><b>{escape(title)}</b><span>{_label(first)} → {_label(last)}</span>'
    f'</figcaption><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
    f'{grid}{foot}<polygon points="{area}"/><polyline points="{line}"/>'
    f'<circle cx="{x[-1]:.1f}" cy="{place(last):.1f}" r="2.6"/></svg></figure>'
  )


def bar_chart(
  title: str,
  groups: Sequence[tuple[str, Sequence[float | None]]],
  names: Sequence[str],
  *,
  first: int = 0,
  widest: int = _WIDEST,
) -> str:
  """Returns a <figure> of grouped bars from zero up; empty if there is no value.

  `groups` are (group, one value for each of `names`); None draws no bar. The bars of the i-th name have the class
  `bar{first + i}`, for which the page defines a colour. The chart is at most `widest` pixels wide.
  """
  values = [value for _, row in groups for value in row if value is not None]
  if not values:
    return ''
  ticks = _ticks(0.0, max(values))
  space = min(_GROUP, (widest - _LEFT - _RIGHT) / len(groups))  # drawn smaller, more groups would have tiny letters
  names_of = [textwrap.wrap(group, max(1, int(space / _LETTER))) for group, _ in groups]
  below = _LINE * (max(map(len, names_of)) - 1)  # of names with several lines
  width, height, bottom = _LEFT + _RIGHT + len(groups) * space, 2 * _HEIGHT + below, 2 * _BOTTOM + below
  place = lambda value: height - bottom - value / ticks[-1] * (height - _TOP - bottom)
  grid = ''.join(
    f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{place(t):.1f}" y2="{place(t):.1f}"/>'
    f'<text x="{_LEFT - 6}" y="{place(t) + 3.5:.1f}" text-anchor="end">{_label(t)}</text>'
    for t in ticks
  )
  step, bars = 0.8 * space / len(names), ''
  for i, (group, row) in enumerate(groups):
    left = _LEFT + (i + 0.1) * space
    for j, value in enumerate(row):
      if value is not None:
        x, middle = left + j * step, left + (j + 0.45) * step
        bars += (
          f'<rect class="bar{first + j}" x="{x:.1f}" y="{place(value):.1f}" width="{0.9 * step:.1f}" '
          f'height="{place(0) - place(value):.1f}"><title>{escape(group)}, {escape(names[j])}: {value:.1f}'
          f'</title></rect><text x="{middle:.1f}" y="{place(value) - 4:.1f}" text-anchor="middle">{_short(value)}'
          '</text>'
        )
    for k, line in enumerate(names_of[i]):
      bars += (
        f'<text class="name" x="{left + 0.4 * space:.1f}" y="{height - bottom + 16 + k * _LINE}" '
        f'text-anchor="middle">{escape(line)}</text>'
      )
  legend = ''.join(f'<span><i class="bar{first + j}"></i>{escape(name)}</span>' for j, name in enumerate(names))
  return (
    f'<figure class="chart bars" style="width:{60 + width:.0f}px"><figcaption>'
    f'<b>{escape(title)}</b><span class="legend">{legend}</span>'
    f'</figcaption><svg viewBox="0 0 {width:.0f} {height - _BOTTOM}" role="img" aria-label="{escape(title)}">'
    f'{grid}{bars}</svg></figure>'
  )


def ranking(title: str, entries: Sequence[tuple[str, int, int]], names: Sequence[str]) -> str:
  """Returns a <figure> of one bar for each entry, the largest first, on a logarithmic scale; empty without entries.

  `entries` are (name, number, 1 or more, kind); bars of the k-th kind have the class `bar{k}`, and `names[k]` is in
  the legend if the kind occurs.
  """
  ordered = sorted(entries, key=lambda entry: -entry[1])
  if not ordered:
    return ''
  most, width, height = math.log10(2 * ordered[0][1]), _WIDEST, 200
  step = (width - _LEFT - _RIGHT) / len(ordered)
  place = lambda value: height - _BOTTOM - math.log10(2 * value) / most * (height - _TOP - _BOTTOM)
  grid = ''.join(
    f'<line x1="{_LEFT}" x2="{width - _RIGHT}" y1="{place(10**k):.1f}" y2="{place(10**k):.1f}"/>'
    f'<text x="{_LEFT - 6}" y="{place(10**k) + 3.5:.1f}" text-anchor="end">{10**k:,}</text>'
    for k in range(int(math.log10(ordered[0][1])) + 1)
  )
  bars = ''.join(
    f'<rect class="bar{kind}" x="{_LEFT + i * step:.2f}" y="{place(number):.1f}" '
    f'width="{max(0.85 * step, step - 2):.2f}" height="{height - _BOTTOM - place(number):.1f}">'
    f'<title>{escape(name)}: {number:,}</title></rect>'
    for i, (name, number, kind) in enumerate(ordered)
  )
  foot = (
    f'<text x="{_LEFT}" y="{height - 5}">most</text>'
    f'<text x="{width - _RIGHT}" y="{height - 5}" text-anchor="end">least of {len(ordered):,}</text>'
  )
  kinds = sorted({kind for _, _, kind in ordered})
  legend = ''.join(f'<span><i class="bar{kind}"></i>{escape(names[kind])}</span>' for kind in kinds if names[kind])
  return (
    f'<figure class="chart bars" style="width:{60 + width}px"><figcaption><b>{escape(title)}</b>'
    f'<span class="legend">{legend}</span></figcaption><svg viewBox="0 0 {width} {height}" role="img" '
    f'aria-label="{escape(title)}">{grid}{foot}{bars}</svg></figure>'
  )


def _short(value: float) -> str:
  return f'{value:.1f}' if 0 < value < 1 else f'{value:.0f}'


def _ticks(low: float, high: float) -> list[float]:
  """Two to six round numbers, from low or below to high or above."""
  high = high if high > low else low + 1
  span = high - low
  step = 10.0 ** math.floor(math.log10(span / 4))
  step *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / (step * factor) <= 4)
  return [step * k for k in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def _label(value: float) -> str:
  if value and abs(value) < 1e-3:
    return f'{value:.1e}'.replace('e-0', 'e-')
  return f'{value:.3g}' if abs(value) < 1000 else f'{value:.0f}'
