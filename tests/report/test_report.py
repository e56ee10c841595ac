"""The report: a page that stands alone and is well formed, and its JSON."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vild_jax.report import charts, report

KEYS = ('AP', 'AP50', 'APr', 'APc', 'APf', 'AP_base', 'AP_novel', 'AP50_base', 'AP50_novel')
_VOID = {'meta', 'img', 'br', 'line', 'polygon', 'polyline', 'circle'}


class _Reader(HTMLParser):
  """Checks that tags nest, and collects the words, links and table rows."""

  def __init__(self):
    super().__init__()
    self.stack, self.words, self.sources, self.rows = [], [], [], []

  def handle_starttag(self, tag, attributes):
    if tag not in _VOID:
      self.stack.append(tag)
    self.sources += [value for name, value in attributes if name in ('src', 'href')]
    if tag == 'tr':
      self.rows.append([])

  def handle_startendtag(self, tag, attributes):
    assert tag in _VOID

  def handle_endtag(self, tag):
    assert self.stack.pop() == tag

  def handle_data(self, data):
    self.words.append(data)
    if 'tr' in self.stack:
      self.rows[-1].append(data)


def _report(**change):
  box = dict(zip(KEYS, (0.251, 0.4625, 0.1, 0.2, None, 0.3, 0.1, 0.6, 0.2), strict=True))
  picture = np.full((40, 60, 3), (200, 30, 30), np.uint8)
  fields = {
    'title': 'Toy <world> & more',
    'summary': 'A run.',
    'seed': 3,
    'stages': [report.Stage('prepare', 'Wrote it.', 4.25), report.Stage('train', 'Trained.', 3725.0)],
    'data': {
      'training': {'images': 1000, 'occluded_fraction': 0.345, 'annotations_per_frequency': {'r': 1, 'c': 2}},
      'validation': {'images': 250},
    },
    'methods': {
      'vild_text': {'box': box, 'mask': None, 'seconds_per_image': 0.5},
      'supervised': {'box': box | {'AP50_novel': 0.9}, 'mask': box, 'seconds_per_image': None},
    },
    'titles': {'vild_text': 'ViLD-text', 'supervised': 'Supervised'},
    'curves': {'ViLD-text': [{'step': s, 'loss': 3.0 / s, 'learning_rate': 0.01} for s in (10, 20, 30)]},
    'gallery': [report.Pair('picture 7', picture, picture[:, ::-1])],
    'gallery_note': 'From 0.3 on.',
    'machine': {'command': 'vild-jax demo --workdir "<W>"'},
  }
  return report.Report(**(fields | change))


def _read(path):
  reader = _Reader()
  reader.feed(path.read_text(encoding='utf-8'))
  assert not reader.stack
  return reader


def test_the_page_stands_alone_and_tells_the_truth(tmp_path):
  report.write_html(tmp_path / 'report.html', _report())
  assert [path.name for path in tmp_path.iterdir()] == ['report.html']
  reader = _read(tmp_path / 'report.html')
  assert len(reader.sources) == 2 and all(source.startswith('data:image/jpeg;base64,') for source in reader.sources)
  page = (tmp_path / 'report.html').read_text()
  assert not re.search(r'https?://|@import|<script|url\(', page)
  picture = Image.open(io.BytesIO(base64.b64decode(reader.sources[0].split(',')[1])))
  assert picture.size == (60, 40) and np.abs(np.asarray(picture, int) - (200, 30, 30)).max() < 6
  assert reader.words.count('Toy <world> & more') == 2 and 'vild-jax demo --workdir "<W>"' in reader.words
  assert ['ViLD-text', '25.1', '46.2', '30.0', '60.0', '10.0', '20.0', '10.0', '20.0', '–', '0.50'] in reader.rows
  assert ['train', 'Trained.', '1 h 02 min'] in reader.rows and ['prepare', 'Wrote it.', '4.2 s'] in reader.rows
  assert ['objects partly occluded', '34.5 %', '–'] in reader.rows
  assert ['objects of rare / common / frequent classes', '1 / 2', '–'] in reader.rows
  assert '3 → 0.1' not in reader.words and '0.3 → 0.1' in reader.words
  assert '20.0 %' in reader.words and '90.0 %' not in reader.words  # the supervised row makes no headline


def test_a_page_of_nothing_is_still_a_page(tmp_path):
  report.write_html(tmp_path / 'r.html', _report(stages=[], data={}, methods={}, curves={}, gallery=[], machine={}))
  reader = _read(tmp_path / 'r.html')
  assert 'Toy <world> & more' in reader.words and 'Training' not in reader.words


def test_the_json_is_that_of_the_surface(tmp_path):
  given = _report(seed=np.int64(3))
  report.write_json(tmp_path / 'report.json', given)
  read = json.loads((tmp_path / 'report.json').read_text())
  assert read['seed'] == 3 and read['seconds'] == {'prepare': 4.25, 'train': 3725.0}
  assert list(read['methods']) == ['vild_text', 'supervised']
  assert read['methods']['vild_text']['box'] == given.methods['vild_text']['box']
  assert read['data']['training']['images'] == 1000
  with pytest.raises(ValueError, match='JSON'):
    report.write_json(tmp_path / 'report.json', _report(machine={'load': float('nan')}))
  assert json.loads((tmp_path / 'report.json').read_text()) == read


def _points(svg):
  text = re.search(r'<polyline points="([^"]+)"', svg).group(1)
  return np.array([[float(v) for v in pair.split(',')] for pair in text.split()])


def test_a_chart_draws_its_points_to_scale():
  points = _points(charts.line_chart('loss', [(0, 4.0), (50, 1.0), (100, 2.0), (150, float('nan'))]))
  assert points.shape == (3, 2)
  np.testing.assert_allclose(np.diff(points[:, 0], 2), 0, atol=0.11)
  fall, rise = points[1, 1] - points[0, 1], points[1, 1] - points[2, 1]
  np.testing.assert_allclose(fall / rise, 3, rtol=0.01)


def test_charts_of_odd_series():
  assert charts.line_chart('loss', []) == '' and charts.line_chart('loss', [(1, float('nan'))]) == ''
  for points in ([(5, 0.0)], [(5, 2.0)], [(0, 0.0), (9, 0.0)], [(0, -1.0), (9, 3.0)], [(0, 1e-6), (9, 2e-6)]):
    drawn = _points(charts.line_chart('a & b', points))
    assert len(drawn) == len(points) and np.isfinite(drawn).all()
    assert (drawn >= 0).all() and (drawn <= (340, 150)).all()
  long = _points(charts.line_chart('loss', [(s, 1 / (1 + s)) for s in range(5000)]))
  assert len(long) == 300 and (np.diff(long[:, 0]) > 0).all()
