"""Fonts of labels: every name is drawn in letters that its font has, or as a number."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vild_jax.inference import fonts

STIX = str(fonts._DEJAVU.with_name('STIXGeneral.ttf'))
ONLY_IN_STIX = '\u2af6'  # a sign that neither DejaVu Sans nor OpenCV has
NOWHERE = '\u0378'  # no character

with_opencv_5 = pytest.mark.skipif(not hasattr(cv2, 'FontFace'), reason='OpenCV 4 has no font of many scripts')


@pytest.fixture(autouse=True)
def no_other_fonts(monkeypatch):
  """Neither the machine's own fonts nor its FriBiDi decide the tests."""
  monkeypatch.setattr(fonts, '_system_fonts', list)
  monkeypatch.setattr(fonts, '_has_layout', lambda: True)
  forget()
  yield
  forget()


def forget() -> None:
  for function in (fonts.covers, fonts.line, fonts._font_of, fonts._in_opencv):
    function.cache_clear()


@pytest.mark.parametrize('name', ['red mug', 'Tasse à café', 'кружка', 'κούπα', 'كوب أحمر', 'כוס', 'می\u200cخواهم'])
def test_names_in_the_scripts_of_dejavu_are_drawn_as_they_are(name):
  assert fonts.label(name, 0) == name
  assert np.asarray(fonts.line(name, 20)).max() > 200


@with_opencv_5
@pytest.mark.parametrize('names', ['猫犬', 'ねぬ', '컵잔'])
def test_chinese_japanese_and_korean_come_from_opencv(names):
  one, other = (np.asarray(fonts.line(name, 20)) for name in names)
  assert fonts.label(names, 0) == names
  assert one.shape == (29, one.shape[1]) and one.max() > 200 and not one[[0, -1]].any()
  assert one.shape != other.shape or (one != other).any()  # boxes or question marks would be the same


def test_a_name_that_no_font_covers_becomes_its_number(monkeypatch):
  assert fonts.label(f'mug {NOWHERE}', 2) == '#3' and not fonts.covers(NOWHERE)
  monkeypatch.delattr(cv2, 'FontFace', raising=False)
  forget()
  assert fonts.label('猫', 11) == '#12' and fonts.label('mug?', 0) == 'mug?'


@pytest.mark.parametrize('missing', ['raqm', 'fribidi'])
def test_scripts_that_must_be_laid_out_are_numbers_where_pillow_cannot(monkeypatch, missing):
  monkeypatch.undo()
  monkeypatch.setattr(fonts, '_system_fonts', list)
  monkeypatch.setattr('PIL.features.check', lambda feature: feature != missing)
  for name in ('كوب أحمر', 'כוס', 'red כוס'):
    assert fonts.label(name, 1) == '#2'
  for name in ('Tasse à café', 'кружка', 'κούπα'):
    assert fonts.label(name, 1) == name


@with_opencv_5
def test_opencv_does_not_draw_arabic_backwards():
  assert fonts.label('أحمر 猫', 0) == '#1' and fonts.label('red 猫', 0) == 'red 猫'


def test_a_title_that_no_font_covers_leaves_the_name():
  assert fonts.label('mug', 2, 'red mug') == 'red mug'
  assert fonts.label('mug', 2, f'{NOWHERE} mug') == 'mug'
  assert fonts.label(NOWHERE, 2, f'red {NOWHERE}') == '#3'


def test_fonts_of_the_system_help(monkeypatch):
  assert fonts.label(ONLY_IN_STIX, 0) == '#1'
  monkeypatch.setattr(fonts, '_system_fonts', lambda: ['/no/font.ttf', __file__, STIX])
  forget()
  assert fonts.label(ONLY_IN_STIX, 0) == ONLY_IN_STIX
  assert np.asarray(fonts.line(ONLY_IN_STIX, 20)).max() > 100
  assert fonts._font_of('mug') == str(fonts._DEJAVU)


def test_the_fonts_of_the_system_are_listed_plain_ones_first(monkeypatch):
  monkeypatch.undo()
  fonts._system_fonts.cache_clear()
  paths = ['/f/B-Bold.ttf', '/f/LastResort.ttf', '/f/A.ttf', '/bold/C.ttf']
  monkeypatch.setattr('matplotlib.font_manager.findSystemFonts', lambda: paths)
  assert fonts._system_fonts() == ['/bold/C.ttf', '/f/A.ttf', '/f/B-Bold.ttf']
  fonts._system_fonts.cache_clear()


def test_an_empty_line_has_no_ink():
  assert fonts.line('', 20).size == (1, 29) and not np.asarray(fonts.line('', 20)).any()
