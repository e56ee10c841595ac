"""Charts of groups: no wider than the page shows without shrinking their letters, names on lines of their own."""

from __future__ import annotations

import re

import pytest

from vild_jax.report import charts

NAMES = ('ViLD-text', 'ViLD-ensemble, text head alone', 'ViLD-ensemble, image head alone', 'supervised')


@pytest.mark.parametrize('count', [1, 3, 12])
def test_names_of_groups_fit_their_place(count):
  groups = [(NAMES[i % 4], [10.0, None]) for i in range(count)]
  figure = charts.bar_chart('AP', groups, ['box', 'mask'])
  width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', figure).groups())
  assert width <= 640
  lines = re.findall(r'<text class="name" x="([\d.]+)" y="(\d+)"[^>]*>([^<]*)</text>', figure)
  assert max(float(y) for _, y, _ in lines) < height
  per_group = (width - 50) / count
  for x, y, text in lines:
    others = [abs(float(a) - float(x)) for a, b, _ in lines if b == y and a != x]
    assert not others or min(others) == pytest.approx(per_group, abs=0.2)
    assert len(text) * 6.5 <= per_group or ' ' not in text
  words = ' '.join(text for _, _, text in lines).split()
  assert sorted(''.join(words)) == sorted(''.join(name for name, _ in groups).replace(' ', ''))


def test_without_a_value_there_is_no_chart():
  assert charts.bar_chart('AP', [('ViLD', [None])], ['box']) == ''
  assert charts.bar_chart('AP', [], ['box']) == ''


def test_small_values_keep_a_digit():
  figure = charts.bar_chart('cost', [('Cls', [14.4]), ('Bkg', [0.2]), ('Miss', [0.0])], ['points'])
  assert re.findall(r'text-anchor="middle">([\d.]+)</text>', figure) == ['14', '0.2', '0']


def test_a_ranking_is_ordered_and_logarithmic():
  chart = charts.ranking('Tail', [('owl', 1, 0), ('a<b', 1000, 2), ('yak', 10, 2)], ['novel', '', 'base', 'other'])
  bars = re.findall(r'<rect class="bar(\d)".*? y="([\d.]+)".*? height="([\d.]+)"><title>(.*?): ([\d,]+)<', chart)
  assert [(kind, name, number) for kind, _, _, name, number in bars] == [
    ('2', 'a&lt;b', '1,000'),
    ('2', 'yak', '10'),
    ('0', 'owl', '1'),
  ]
  heights = [float(bar[2]) for bar in bars]
  assert heights[0] - heights[1] == pytest.approx(2 * (heights[1] - heights[2]), abs=0.2) and heights[2] > 0
  assert len({round(float(y) + float(h), 1) for _, y, h, _, _ in bars}) == 1  # all stand on one line
  assert 'novel' in chart and 'base' in chart and 'other' not in chart and 'least of 3' in chart
  assert charts.ranking('Tail', [], ['']) == ''


def test_many_bars_stay_inside():
  chart = charts.ranking('Tail', [(str(i), 5000 - i, 2) for i in range(1203)], ['', '', ''])
  ends = [float(x) + float(w) for x, w in re.findall(r'<rect class="bar2" x="([\d.]+)".*? width="([\d.]+)"', chart)]
  assert len(ends) == 1203 and max(ends) <= 632 and ends == sorted(ends)
