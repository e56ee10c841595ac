"""The page of an inspection holds what it is given, escaped, and nothing from elsewhere."""

from __future__ import annotations

import re

import numpy as np

from vild_jax.report import inspection
from vild_jax.report.inspection import Inspection, View

EVIL = '<script>alert(1)</script>'
SUMMARY = {
  'pictures': 1200,
  'pictures_without_objects': 7,
  'picture_sizes': {'height': [20, 300, 4000], 'width': []},
  'objects': 5600,
  'objects_without_mask': 31,
  'crowds': 17,
  'object_sizes': {'small': 1, 'medium': 2, 'large': 3},
  'categories': 48,
  'categories_without_objects': 5,
  'objects_by_class': {},
}
PICTURE = np.zeros((20, 30, 3), np.uint8)


def _page(tmp_path, **more) -> str:
  inspection.write_html(tmp_path / 'p.html', Inspection('toy/train', SUMMARY | more.pop('summary', {}), **more))
  text = (tmp_path / 'p.html').read_text()
  assert '<script' not in text and not re.search(r'(?:src|href)="(?!data:)', text) and 'http' not in text
  return text


def test_numbers_alone_make_a_page(tmp_path):
  page = _page(tmp_path)
  for text in ('1,200', '7 without objects', '5,600', '31', '17 crowds', 'Nothing looks wrong', '4,000', 'height'):
    assert text in page, text
  for absent in ('Categories', 'nearly the same', '<img', 'novel classes', '>width<', 'What was inspected'):
    assert absent not in page, absent


def test_an_empty_data_set_has_a_page(tmp_path):
  assert '>0<' in _page(tmp_path, summary={'pictures': 0, 'objects': 0, 'picture_sizes': {'height': [], 'width': []}})


def test_everything_is_shown_and_escaped(tmp_path):
  page = _page(
    tmp_path,
    summary={'objects_by_class': {'base': 5000, 'novel': 590, 'not in the vocabulary': 10}},
    smells=[(f'of {EVIL}', False), ('all is lost', True)],
    categories=[(EVIL, 4000, 'base'), ('owl', 12, 'novel'), ('yak', 1, 'not in the vocabulary'), ('gnu', 0, 'base')],
    histograms=[('Sides', 'objects', [('0–8', 5), ('8 or more', 2)]), ('Nothing', 'objects', [])],
    views=[View(f'Image {EVIL}', [(f'As annotated {EVIL}', PICTURE), ('To distil: 3 regions', PICTURE)])],
    how=f'drawn with {EVIL}',
    twins=[(f'Images {EVIL}', PICTURE, PICTURE)],
    twins_found=9,
    facts=[('data set', EVIL)],
  )
  assert page.count('data:image/jpeg') == 4
  for text in ('4,000', '★ owl', 'least of 3', '8 or more', 'To distil: 3 regions', '1 of 9 pairs', '590', 'Sides'):
    assert text in page, text
  assert page.index('All is lost') < page.index('Of &lt;script&gt;')  # what is grave comes first
  assert 'class=grave' in page and 'gnu' not in page and 'Nothing' not in page and '"views"' in page


def test_single_pictures_stand_side_by_side(tmp_path):
  page = _page(tmp_path, views=[View('Image 1', [('As annotated', PICTURE)])])
  assert 'class="gallery"' in page and 'class="views"' not in page


def test_the_fewest_are_not_the_most_again(tmp_path):
  page = _page(tmp_path, categories=[(f'c{i:02d}', 50 - i, '') for i in range(11)])
  most, fewest = page.split('Fewest objects')
  assert most.split('Most objects')[1].count('<tr>') == 9 and fewest.split('</table>')[0].count('<tr>') == 4
