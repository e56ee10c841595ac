"""What is in a data set: numbers by hand, and the same by NumPy's histogram."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from tests.helpers import examples
from vild_jax.data import class_lists, contents
from vild_jax.data.class_lists import ClassList
from vild_jax.data.schema import Category, Example

CATEGORIES = (Category(3, 'ball'), Category(5, 'kite'), Category(9, 'zebra'))
CLASSES = ClassList(('kite', 'ball', 'mug'), (False, True, True), (1, 2, 3))


def picture(image_id: int, height: int, width: int, *entries: tuple) -> Example:
  return Example(image_id, b'', height, width, examples.objects(*entries))


def counted() -> contents.Contents:
  return contents.count(
    CATEGORIES,
    [
      picture(7, 100, 200, (3, (0, 0, 31, 32), False), (9, (0, 0, 32, 32), False), (3, (0, 0, 96, 96), False)),
      picture(2, 50, 60, (5, (1, 1, 5, 6), True), (5, (10, 10, 20, 20), False, [])),
      picture(4, 80, 90, (5, (0, 0, 9, 9), True)),
      picture(5, 70, 300),
    ],
  )


def test_numbers_by_hand():
  found = contents.summary(counted(), CLASSES, ['1 box clipped'])
  assert found == {
    'pictures': 4,
    'pictures_without_objects': 2,  # a crowd is no object
    'picture_sizes': {'height': [50, 75, 100], 'width': [60, 145, 300]},
    'objects': 4,
    'objects_without_mask': 1,
    'crowds': 2,
    'object_sizes': {'small': 2, 'medium': 1, 'large': 1},  # areas 992 and 100, 1024, 9216
    'categories': 3,
    'categories_without_objects': 0,
    'objects_by_class': {'base': 2, 'novel': 1, 'not in the vocabulary': 1},
    'objects_by_category': {'ball': 2, 'kite': 1, 'zebra': 1},
    'notes': ['1 box clipped'],
  }
  assert json.loads(json.dumps(found)) == found
  text = contents.text(found)
  for part in (
    '4, 2 of them without objects',
    '2 objects of base classes, 1 of novel ones, 1 not in',
    '2 small, 1 medium, 1 large',
    '60 to 300',
    'median 75',
  ):
    assert part in text, part
  assert counted().objects_in().tolist() == [3, 1, 0, 0]


def test_without_a_vocabulary_there_are_no_classes():
  found = contents.summary(counted())
  assert found['objects_by_class'] == {} and 'base' not in contents.text(found)
  assert counted().kinds(None) == ('', '', '') and counted().kinds(CLASSES) == ('base', 'novel', contents.UNKNOWN)


def test_columns_are_those_of_the_examples():
  found = counted()
  assert found.image_ids.tolist() == [7, 2, 4, 5] and found.sizes[1].tolist() == [50, 60]
  assert found.picture.tolist() == [0, 0, 0, 1, 1, 2] and found.category.tolist() == [0, 2, 0, 1, 1, 1]
  assert found.has_mask.tolist() == [True, True, True, True, False, True]
  assert found.boxes[4].tolist() == [10, 10, 20, 20]


def test_parts_are_joined_in_order(monkeypatch):
  whole = counted()
  monkeypatch.setattr(contents, '_AT_ONCE', 3)
  for one, other in zip(vars(whole).values(), vars(counted()).values(), strict=True):
    assert one is other or (isinstance(one, np.ndarray) and np.array_equal(one, other))


def test_nothing_is_counted_as_nothing():
  empty = contents.count(CATEGORIES, [])
  found = contents.summary(empty, CLASSES)
  assert found['pictures'] == found['objects'] == 0 and found['picture_sizes'] == {'height': [], 'width': []}
  assert 'median' not in contents.text(found)
  assert [rows for _, _, rows in contents.histograms(empty)] == [[], [], []]
  assert empty.boxes.shape == (0, 4) and empty.sizes.shape == (0, 2)


def test_histograms_count_everything_once():
  rng = np.random.default_rng(0)
  sizes = rng.integers(20, 5000, (40, 2)).tolist()
  found = contents.count(
    CATEGORIES,
    [picture(i, h, w, *[(3, (0, 0, h * rng.random(), w), False)] * (i % 12)) for i, (h, w) in enumerate(sizes)],
  )
  sides, objects, lengths = (rows for _, _, rows in contents.histograms(found))
  assert sum(n for _, n in sides) == sum(i % 12 for i in range(40))
  assert dict(objects) == {'0': 4, '1': 4, '2': 4, '3–4': 7, '5–8': 12, '9–16': 9}
  expected = np.histogram([max(size) for size in sizes], (0, 256, 512, 768, 1024, 2048, 4096, 10**9))[0]
  assert [n for _, n in lengths] == np.trim_zeros(expected).tolist() and lengths[-1][0] == '4096 or more'


def test_misspelt_categories_of_objects365_have_their_class():
  misspelt, name = next(iter(class_lists._corrected().items()))
  found = dataclasses.replace(counted(), categories=(Category(3, misspelt), *CATEGORIES[1:]))
  classes = ClassList((name, 'kite'), (True, False), (1, 2))
  assert found.known_as(classes) == (name, 'kite', None) and found.kinds(classes)[0] == 'base'
