"""Each smell on a small case that has it, and on one that does not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import examples
from vild_jax.data import contents, rle, smells
from vild_jax.data.class_lists import ClassList
from vild_jax.data.schema import Category, Example

CATEGORIES = (Category(1, 'ant'), Category(2, 'mug'), Category(3, 'tree'), Category(4, 'zebra'))
SIZE = (100, 160)  # height, width


def found_in(*pictures: list[tuple], classes=None, **limits: int) -> dict[str, smells.Smell]:
  """The smells of pictures of SIZE, by their kind."""
  made = [Example(i, b'', *SIZE, examples.objects(*entries)) for i, entries in enumerate(pictures)]
  found = smells.of_contents(contents.count(CATEGORIES, made), classes, **limits)
  return {smell.kind: smell for smell in found}


def fine() -> list[tuple]:
  """One object of every category."""
  return [(key, (10.0 * key, 90, 10.0 * key + 20, 120), False) for key in (1, 2, 3, 4)]


def random_xywh(count: int = 40) -> np.ndarray:
  rng = np.random.default_rng(1)
  start = rng.random((count, 2)) * [120, 70]
  return np.concatenate([start, 5 + rng.random((count, 2)) * ([155, 95] - start)], axis=1)


def as_prepared(xywh: np.ndarray) -> list[tuple]:
  """What `prepare` makes of boxes: yxyx, cut at the edges of the picture."""
  limits = np.array([SIZE[1], SIZE[0]])
  start, end = xywh[:, :2], np.minimum(xywh[:, :2] + xywh[:, 2:], limits)
  return [(1 + i % 4, (*low[::-1], *high[::-1]), False) for i, (low, high) in enumerate(zip(start, end, strict=True))]


def test_nothing_smells_where_all_is_well():
  assert found_in(fine(), classes=ClassList(('ant', 'mug'), (True, False), (1, 2)), image_size=64) == {}


def test_corners_are_told_from_sizes():
  good = random_xywh()
  bad = np.concatenate([good[:, :2], good[:, :2] + good[:, 2:]], axis=1)
  limits = np.full((len(good), 2), SIZE[::-1])
  expected = (bad[:, :2] + bad[:, 2:] > limits + 1).any(axis=1).mean()
  assert smells.share_of_corners(bad, limits) == expected > 0.1
  assert smells.share_of_corners(good, limits) == 0 == smells.share_of_corners(bad[:19], limits[:19])
  assert smells.share_of_corners(np.zeros((0, 4)), np.zeros((0, 2))) == 0
  found = found_in(as_prepared(bad))
  assert found['corners'].grave and 'x1, y1, x2, y2' in found['corners'].text
  assert 'corners' not in found_in(as_prepared(good))


def test_boxes_that_fill_their_pictures_are_no_corners():
  assert 'corners' not in found_in([(1, (0, 0, *SIZE), False)] * 30)


def test_fractions():
  assert found_in([(1, (0.1, 0.2, 0.5, 0.6), False), (2, (0.25, 0.5, 1.0, 1.0), False)])['fractions'].grave
  assert 'fractions' not in found_in([(1, (0.1, 0.2, 0.5, 0.6), False), (2, (0, 0, 3, 3), False)])


@pytest.mark.parametrize(('crowds', 'said'), [([], 'learn from'), ([(1, (0, 0, 9, 9), True)], 'all 1 annotations')])
def test_nothing_to_learn(crowds, said):
  found = found_in(crowds)
  assert list(found) == ['nothing'] and found['nothing'].grave and said in found['nothing'].text


def test_a_giant_category():
  found = found_in(fine() + [(2, (5, 5, 30, 30), False)] * 12)
  assert found['giant'].text == "81 % of all objects are of one category, 'mug'" and not found['giant'].grave
  assert 'giant' not in found_in(fine() + [(2, (5, 5, 30, 30), False)] * 4)


def test_categories_and_pictures_without_objects():
  found = found_in(fine()[:2], [], [(3, (5, 5, 30, 30), True)])
  assert found['categories'].text == '2 of 4 categories have no object: tree, zebra'
  assert found['empty'].text.startswith('2 of 3 pictures show no object')


def test_base_classes_without_objects():
  classes = ClassList(('ant', 'tree', 'yak', 'mug'), (True, True, True, False), (1, 2, 3, 4))
  found = found_in(fine()[:2], classes=classes)['base']
  assert found.text == '2 of 3 base classes have no object: tree, yak' and not found.grave
  assert found_in(fine()[1:2], classes=classes)['base'].grave


def test_one_fact_is_said_once():
  classes = ClassList(('ant', 'mug', 'zebra'), (True, True, False), (1, 2, 4))
  found = found_in(fine()[1:2], classes=classes)
  assert found['base'].text == '1 of 2 base classes have no object: ant'
  assert found['categories'].text == '2 of 2 categories that are no base classes have no object: tree, zebra'
  assert 'categories' not in found_in(fine()[1:], classes=classes)


def test_more_objects_than_training_uses():
  crowd = (1, (5, 5, 30, 30), True)
  pictures = [*fine(), crowd], fine()[:3] + [crowd] * 3, fine() * 2
  assert found_in(*pictures, max_instances=3)['many'].text.startswith('2 of 3 pictures have more than 3 objects')
  assert 'many' not in found_in(*pictures, max_instances=8) and 'many' not in found_in(*pictures)
  classes = ClassList(('ant', 'mug'), (True, False), (1, 2))  # of the last picture two objects train
  assert found_in(*pictures, max_instances=1, classes=classes)['many'].text.startswith('1 of 3 pictures')
  assert 'many' not in found_in(*pictures, max_instances=2, classes=classes)


def test_objects_that_become_tiny():
  entries = [*fine(), (1, (10, 10, 20, 60), False), (1, (10, 10, 20.1, 60), False)]
  # 160 pixels become 64: a side of 10 becomes 4, which is not below 4; and 32: 4 pixels are 20.
  assert 'tiny' not in found_in(entries, image_size=64)
  assert found_in(entries, image_size=32)['tiny'].text.startswith('2 of 6 objects (33.3 %)')


def test_masks_that_do_not_fit_their_boxes():
  mask = np.zeros(SIZE, bool)
  mask[20:40, 30:90] = True
  code, polygon = rle.encode_mask(mask), [[30, 20, 90, 20, 90, 40], [30, 40, 35, 35, 31, 22]]
  fitting = (20, 30, 40, 90)
  entries = [
    (1, fitting, False, code),
    (1, fitting, False, polygon),
    (1, (21.5, 30, 40, 88.5), False, code),
    (1, (20, 30, 60, 150), False, code),  # IoU 1200 / 4800
    (1, (20, 30, 60, 150), False, polygon),
    (1, (50, 30, 60, 90), False, code),
    (1, (50, 30, 60, 90), False, []),
    (1, (5, 5, 7, 7), False, [[6, 6, 8, 6, 8, 8]]),  # small, and within two pixels
  ]
  made = Example(7, b'', *SIZE, examples.objects(*entries))
  assert smells.misfits(made) == [3, 4, 5]
  (found,) = smells.of_misfits({7: [3, 4, 5]}, 7)
  assert found.text == '3 of 7 masks do not fit their box (IoU below 0.5), in image 7' and not found.grave
  assert smells.of_misfits({7: [3, 4]}, 3)[0].grave
  assert smells.of_misfits({}, 7) == [] == smells.misfits(Example(7, b'', *SIZE, examples.objects()))


def test_long_lists_are_cut():
  assert smells.of_misfits({i: [1] for i in range(6)}, 90)[0].text.endswith('in image 0, 1, 2, 3, 4 and others')
