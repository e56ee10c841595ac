"""The page of scores holds what it is given, and nothing that is not there."""

from __future__ import annotations

import re

import numpy as np

from vild_jax.report import scores

METRICS = {
  'protocol': 'lvis',
  'detections_counted': 'the best 300 of a picture',
  'images': 1200,
  'objects': 9,
  'categories': 3,
  'categories_with_objects': 2,
  'detections': 77,
  'annotations': {'file': 'a<b>.json', 'sha256': 'ab' * 32},
  'versions': {'hotcoco': '1.3.0'},
  'box': {'AP': 0.25, 'AP50': 0.5, 'APs': 0.125, 'APr': None, 'AP50_novel': 0.75},
  'mask': None,
}


def _page(tmp_path, **more):
  scores.write_html(tmp_path / 'r.html', scores.Scores(METRICS, **more))
  return (tmp_path / 'r.html').read_text()


def test_metrics_alone_make_a_page(tmp_path):
  page = _page(tmp_path)
  for text in ('25.0 %', '75.0 %', '1,200 pictures', 'a&lt;b&gt;.json', 'hotcoco 1.3.0', 'ab' * 32):
    assert text in page
  assert '<script' not in page and not re.search(r'(?:src|href)="(?!data:)', page)
  for absent in ('Comparison', 'Kinds of errors', 'taken for what', 'Calibration', 'mask AP'):
    assert absent not in page


def test_everything_is_shown(tmp_path):
  picture = np.zeros((20, 30, 3), np.uint8)
  page = _page(
    tmp_path,
    errors=[('Cls', 'right place, wrong class', 0.079, 2135)],
    calibration=[(0.05, 0.01, 6899)],
    calibration_error=0.033,
    confusions=[('cat & co', 'dog', 7, 0.28, [picture, picture])],
    best=[('fox', 33, 0.781)],
    worst=[('owl', 4, 0.012)],
    comparison={'AP50': (0.838, 0.804, 0.034, 0.025, -0.001)},
    differences=[('velko', 0.367, 0.073, 0.2, 0.345, 23), ('once', 0.5, 0.25, None, None, 1)],
    recall={
      'named': {'all': 0.511, 'base': 0.522, 'novel': None},
      'detections@100': {'all': 0.633, 'base': 0.644, 'novel': 0.655},
    },
    other='other.json',
    resamples=100,
    command='vild-jax score --x',
  )
  for text in (
    'right place, wrong class',
    '2,135',
    '6,899',
    '3.3 points',
    'cat &amp; co',
    '28 %',
    'fox',
    '78.1',
    'owl',
  ):
    assert text in page, text
  for text in (
    '+3.4',
    '+2.5 to -0.1',
    'velko',
    '+29.4',
    '+20.0 to +34.5',
    'other.json',
    '100 samples',
    'vild-jax score --x',
  ):
    assert text in page, text
  for text in ('51.1', 'under any name, best 100 of a picture', '65.5', 'which vild-jax score --proposals shows'):
    assert text in page, text
  assert page.count('data:image/jpeg') == 2


def test_proposals_are_not_called_missing_where_they_are_shown(tmp_path):
  page = _page(tmp_path, recall={'proposals@1000': {'all': 0.777, 'base': None, 'novel': None}})
  assert '77.7' in page and 'best 1,000' in page and 'score --proposals' not in page
