"""Single pictures on the page: drawn or in a table, of one detector and of two."""

from __future__ import annotations

import json

import numpy as np

from vild_jax.report import shots
from vild_jax.report.shots import Shot, Shots

PICTURE = np.zeros((20, 30, 3), np.uint8)
ONE = Shot(5, 'a<b>.jpg', 4, ((3, 1, 0.75),))
TWO = Shot(2**40, 'c.jpg', 4, ((3, 1, 0.75), (0, 2, 0.0)))


def _drawn(shot):
  return Shot(shot.image_id, shot.name, shot.objects, shot.detectors, (PICTURE,) * len(shot.detectors))


def test_pictures_without_a_folder_are_a_table():
  section = shots.single(Shots((0.293,), best=(ONE,)))
  for text in ('score of 0.293', 'a&lt;b&gt;.jpg', '<td>4</td><td>3</td><td>1</td><td>0.75</td>', 'Best'):
    assert text in section, text
  assert 'Worst' not in section and '<img' not in section and 'right box' not in section
  section = shots.pairs(Shots((0.293, None), better=(TWO,)), 'other.json')
  for text in ('other.json', '0.293 and none', 'other F1', '<td>0</td><td>2</td><td>0.00</td>', 'This one is better'):
    assert text in section, text
  assert 'The other is better' not in section


def test_pictures_are_drawn_once_for_each_detector():
  section = shots.single(Shots((0.5,), best=(_drawn(ONE),), worst=(_drawn(ONE), _drawn(ONE))))
  assert section.count('data:image/jpeg') == 3 and '3 of 4 found, 1 wrong, F1 0.75' in section
  section = shots.pairs(Shots((0.5, 0.25), worse=(_drawn(TWO),)), 'other.json')
  assert section.count('data:image/jpeg') == 2 and 'wrong box' in section
  assert section.index('this: 3 of 4 found') < section.index('other: 0 of 4 found, 2 wrong, F1 0.00')


def test_where_there_is_nothing_to_show_there_is_no_section():
  assert shots.single(Shots((None,), best=(ONE,))) == ''
  assert shots.single(Shots((0.5,))) == ''
  assert shots.pairs(Shots((0.5,), best=(ONE,)), '') == ''


def test_numbers_are_json():
  made = json.loads(json.dumps(Shots((0.5, None), best=(_drawn(ONE),), better=(TWO,)).as_json(), allow_nan=False))
  assert made['scores'] == [0.5, None] and made['worst'] == []
  assert made['best'] == [
    {'image_id': 5, 'file': 'a<b>.jpg', 'objects': 4, 'this': {'found': 3, 'wrong': 1, 'f1': 0.75}}
  ]
  assert made['better'][0]['other'] == {'found': 0, 'wrong': 2, 'f1': 0.0}
