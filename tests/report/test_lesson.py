"""The first figure of the page and the cards of the classes: all that they are given is there, and nothing else."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vild_jax.report import lesson, report

HEADS = ['In the picture', 'What the annotations said', 'What the teacher said', 'What the detector finds']
BASE, NOVEL = 'mug <blue> & "big"', 'té'


class _Reader(HTMLParser):
  """Checks that tags nest, and collects the words below each class, the pictures and the styles of the boxes."""

  def __init__(self):
    super().__init__()
    self.stack, self.words, self.pictures, self.marks = [], [], [], []

  def handle_starttag(self, tag, attributes):
    attributes = dict(attributes)
    if tag == 'img':
      self.pictures.append((attributes['alt'], attributes['src']))
    elif tag != 'meta':
      self.stack.append((tag, attributes.get('class', '')))
    if attributes.get('class', '').startswith('mark'):
      self.marks.append((attributes['class'], attributes['style']))

  def handle_endtag(self, tag):
    assert self.stack.pop()[0] == tag

  def handle_data(self, data):
    self.words.append((self.stack[-1] if self.stack else ('', ''), data))

  def of(self, tag, kind=''):
    return [data for where, data in self.words if where == (tag, kind)]


def _picture(red, height=40, width=60):
  return np.full((height, width, 3), (red, 30, 30), np.uint8)


def _row(name, novel, red):
  mark = lesson.Mark((0.25, 0.1, 0.75, 0.5), f'{name} 62', novel)
  return lesson.Row(
    name,
    novel,
    picture=lesson.Panel([lesson.Shot(_picture(red), f'picture of {name}')], f'in picture {red}'),
    annotation=lesson.Panel(
      [lesson.Shot(_picture(red + 10), f'annotation of {name}', [] if novel else [mark])],
      'no annotation' if novel else f'the box of {name}',
    ),
    teacher=lesson.Panel(
      [lesson.Shot(_picture(red + 20, 30, 30), f'{k} crop of {name}') for k in ('1x', '1.5x')],
      'nearest names',
      [(name, 0.913), ('<other>', 0.52)],
    ),
    detection=lesson.Panel([lesson.Shot(_picture(red + 30), f'found {name}', [mark])], f'{name}, score 62 %'),
  )


def _lesson():
  return lesson.Lesson(_row(BASE, False, 60), _row(NOVEL, True, 120), 'Taught & learned.', 'The <largest> ones.')


def _report(**change):
  fields = {
    'title': 'Toy world',
    'summary': 'A run.',
    'seed': 3,
    'stages': [report.Stage('train', 'Trained.', 4.0)],
    'data': {},
    'methods': {},
    'titles': {},
    'curves': {},
    'gallery': [],
    'gallery_note': '',
    'machine': {},
  }
  return report.Report(**(fields | change))


def _read(text):
  reader = _Reader()
  reader.feed(text)
  assert not reader.stack
  return reader


def _body(folder, **change):
  report.write_html(folder / 'r.html', _report(**change))
  page = (folder / 'r.html').read_text(encoding='utf-8')
  _read(page)
  return page[page.index('<body>') :]


def _reds(reader):
  """The red of each picture, in the order of the page."""
  decode = lambda source: Image.open(io.BytesIO(base64.b64decode(source.partition('base64,')[2])))
  return [int(np.asarray(decode(source), int)[..., 0].mean().round()) for _, source in reader.pictures]


def test_every_name_caption_and_picture_is_in_the_figure():
  reader = _read(lesson.figure(_lesson()))
  assert reader.of('h3') == 2 * HEADS
  assert reader.of('b') == [BASE, f'★ {NOVEL}'] and reader.of('span') != []
  for row in (_lesson().base, _lesson().novel):
    panels = (row.picture, row.annotation, row.teacher, row.detection)
    assert {panel.caption for panel in panels} <= set(reader.of('p'))
    assert {shot.alt for panel in panels for shot in panel.shots} <= {alt for alt, _ in reader.pictures}
  assert {'base class', 'novel class', '0.91', '0.52', '<other>'} <= set(reader.of('span'))
  assert {'Taught & learned.', 'The <largest> ones.'} <= set(reader.of('p'))
  assert np.abs(np.subtract(_reds(reader), [60, 70, 80, 80, 90, 120, 130, 140, 140, 150])).max() <= 3


def test_boxes_stand_where_they_are_and_say_what_is_novel():
  reader = _read(lesson.figure(_lesson()))
  place = 'left:10.0%;top:25.0%;width:40.0%;height:50.0%'
  assert reader.marks == [('mark base', place), ('mark base', place), ('mark novel', place)]
  assert reader.of('span', 'chip base') == 2 * [f'{BASE} 62'] and reader.of('span', 'chip novel') == [f'★ {NOVEL} 62']


@pytest.mark.parametrize(
  ('box', 'place'),
  [
    ((0.25, 0.1, 0.75, 0.5), 'left:10.0%;bottom:75.0%'),
    ((0.05, 0.6, 0.75, 0.9), 'right:10.0%;top:75.0%'),  # no room above
    ((0.0, 0.1, 1.0, 0.5), 'left:10.0%;top:0.0%'),  # nor below
    ((-0.5, -0.5, 1.5, 1.5), 'left:0.0%;top:0.0%'),  # larger than the picture
  ],
)
def test_the_label_of_a_box_is_inside_the_picture(box, place):
  assert f'<span class="chip base" style="{place}">' in lesson._mark(lesson.Mark(box, 'mug', False))


def test_names_are_text_and_no_html():
  text = lesson.figure(_lesson()) + lesson.cards([lesson.ClassCard(BASE, True, _picture(9))])
  assert '<blue>' not in text and '<other>' not in text and '<largest>' not in text and '&lt;blue&gt; &amp;' in text
  assert 'alt="found mug &lt;blue&gt; &amp; &quot;big&quot;"' in text


def test_pictures_of_any_shape_keep_it():
  assert 'aspect-ratio:60/40;width:100%' in lesson._shot(lesson.Shot(_picture(9), 'x'), 3 / 2)
  assert 'aspect-ratio:30/40;height:100%' in lesson._shot(lesson.Shot(_picture(9, 40, 30), 'x'), 3 / 2)


def test_each_class_is_once_beside_its_name_and_says_whether_it_is_novel():
  given = (('ant', False), ('bee', True), (BASE, False), ('<cow>', True))
  classes = [lesson.ClassCard(*card, _picture(40 * i)) for i, card in enumerate(given)]
  reader = _read(lesson.cards(classes))
  assert reader.of('summary') == ['The 4 classes and their names']
  assert reader.of('h3') == [
    'base classes, annotated in training (2)',
    '★ novel classes, not annotated in training (2)',
  ]
  assert reader.of('span') == ['ant', BASE, '★ bee', '★ <cow>']
  assert np.abs(np.subtract(_reds(reader), [0, 80, 40, 120])).max() <= 3
  only = _read(lesson.cards(classes[:1]))
  assert only.of('h3') == ['base classes, annotated in training (1)']
  assert lesson.cards([]) == ''


def test_the_figure_is_the_first_thing_below_the_title(tmp_path):
  body = _body(tmp_path, lesson=_lesson(), classes=[lesson.ClassCard('ant', False, _picture(9))])
  parts = ('</header><section class="opening">', '</section><details class="classes"', '</details><div class="tiles">')
  assert [body.count(part) for part in parts] == [1, 1, 1]


def test_without_a_lesson_the_page_is_as_before(tmp_path):
  body = _body(tmp_path)
  assert '</header><div class="tiles">' in body and 'opening' not in body and 'lesson' not in body
  assert body == _body(tmp_path, lesson=None, classes=())
