"""The parts of the report's first figure: objects that can be seen, chosen without a look at what is found in them."""

from __future__ import annotations

import dataclasses
import types

import numpy as np
import pytest

from vild_jax.data import pictures as pictures_lib
from vild_jax.data import prepare, sources
from vild_jax.data.schema import DataError
from vild_jax.demo import lesson
from vild_jax.demo import world as toy_world
from vild_jax.vocabulary import VocabularyFile

NAMES = toy_world.category_names()
NOVEL = {c.name for c in toy_world.categories() if c.frequency == 'r'}


@pytest.fixture(scope='module')
def splits(tmp_path_factory):
  folder = tmp_path_factory.mktemp('toy')
  toy_world.generate(folder / 'world', seed=2, train_images=30, val_images=30)
  for split in ('train', 'val'):
    prepare.prepare(folder / f'world/annotations/toy_{split}.json', folder / 'world' / split, folder / 'data')
  return tuple(sources.open_dataset(folder / 'data', split) for split in ('train', 'val'))


def _vocabulary():
  is_base = np.array([name not in NOVEL for name in NAMES])
  return VocabularyFile(np.eye(len(NAMES), dtype=np.float32), NAMES, is_base, 'teacher', 'none')


def _embed(name, seen=None):
  """A teacher to which every picture shows `name`, and a little the class after it."""

  def embed(pictures):
    if seen is not None:
      seen.append(pictures)
    row = NAMES.index(name)
    return np.stack([0.8 * np.eye(len(NAMES))[row] + 0.6 * np.eye(len(NAMES))[row + 1]] * len(pictures))

  return embed


class _Detector:
  """Finds all that is annotated in the given pictures, under the names that `call` makes of the true ones."""

  def __init__(self, dataset, call=lambda name: name, score=0.8):
    names = {c.id: c.name for c in dataset.categories}
    self._known, self._call, self._score = {}, call, score
    for example in (dataset[i] for i in range(len(dataset))):
      true = [names[int(i)] for i in example.objects.category_ids]
      self._known[pictures_lib.decode(example.image).tobytes()] = example.objects.boxes, true

  def __call__(self, picture):
    boxes, true = self._known[picture.tobytes()]
    scores = np.full(len(boxes), self._score)
    return np.concatenate([boxes, boxes + 1]), [*map(self._call, true), *true], np.concatenate([scores, scores - 0.4])


def _made(splits, call=lambda name: name, score=0.8, **change):
  return lesson.lesson(*splits, _vocabulary(), _embed('kirba'), _Detector(splits[1], call, score), finder='X', **change)


def test_each_class_has_one_card_that_the_seed_decides():
  cards = lesson.class_cards(3)
  assert [(card.name, card.novel) for card in cards] == [(name, name in NOVEL) for name in NAMES]
  assert {(card.picture.shape, card.picture.dtype) for card in cards} == {((72, 72, 3), np.dtype(np.uint8))}
  assert len({card.picture.tobytes() for card in cards}) == len(NAMES)
  assert all((a.picture == b.picture).all() for a, b in zip(cards, lesson.class_cards(3), strict=True))
  assert all((a.picture != b.picture).any() for a, b in zip(cards, lesson.class_cards(4), strict=True))


@pytest.mark.parametrize(
  ('look', 'expected'), [('red square', [1, 0, 0]), ('green heart', [0, 1, 0]), ('blue circle', [0, 0, 1])]
)
def test_a_card_shows_its_class(look, expected):
  card = lesson.class_cards(0, 48)[toy_world.looks().index(look)]
  centre = np.median(card.picture[20:28, 20:28].astype(float), axis=(0, 1))
  np.testing.assert_array_equal(centre > 0.75 * centre.max(), np.array(expected, bool))


def test_annotations_mark_the_base_object_alone(splits):
  made = _made(splits)
  assert made.base.name in set(NAMES) - NOVEL and made.novel.name in NOVEL
  assert (made.base.novel, made.novel.novel) == (False, True)
  (annotated,), (bare,) = made.base.annotation.shots, made.novel.annotation.shots
  assert made.base.name in {mark.label for mark in annotated.marks} and made.base.name in made.base.annotation.caption
  assert made.novel.annotation.caption == 'no annotation' and not NOVEL & {mark.label for mark in bare.marks}
  for row in (made.base, made.novel):  # the same picture, first with nothing marked
    (plain,), (marked,) = row.picture.shots, row.annotation.shots
    assert (plain.picture == marked.picture).all() and not plain.marks
    assert plain.picture.shape[:2] == (320, 480)


def test_the_teacher_gets_both_crops_and_its_nearest_names_are_shown(splits):
  seen = []
  made = lesson.lesson(*splits, _vocabulary(), _embed('kirba', seen), _Detector(splits[1]), finder='X')
  assert [len(pictures) for pictures in seen] == [2, 2]
  for row, (once, wider) in zip((made.base, made.novel), seen, strict=True):
    assert once.dtype == np.uint8 and all(a <= b for a, b in zip(once.shape, wider.shape, strict=True))
    assert len(row.teacher.shots) == 2
    assert [name for name, _ in row.teacher.scores[:2]] == ['kirba', 'lomeg'] and len(row.teacher.scores) == 3
    np.testing.assert_allclose([score for _, score in row.teacher.scores], [0.8, 0.6, 0], atol=1e-6)


def test_what_the_detector_finds_is_told_as_it_is(splits):
  made = _made(splits)
  for row in (made.base, made.novel):
    assert f'found as {row.name}, score 80\xa0%; also found as {row.name} 40\xa0%' in row.detection.caption
    assert f'{row.name} 80' in {mark.label for mark in row.detection.shots[0].marks}
  wrong = _made(splits, lambda name: 'kirba')
  for row in (wrong.base, wrong.novel):
    assert row.name != 'kirba' and f'found as kirba, score 80\xa0%, but it is a {row.name}' in row.detection.caption
    assert {(mark.label, mark.novel) for mark in row.detection.shots[0].marks} >= {('kirba 80', True)}
  nothing = _made(splits, score=0.29)
  for row in (nothing.base, nothing.novel):
    assert f'nothing found where the {row.name} is' in row.detection.caption and not row.detection.shots[0].marks


def test_the_choice_does_not_depend_on_what_is_found(splits):
  captions = {
    tuple((row.name, row.picture.caption, row.detection.caption.partition(':')[0]) for row in (made.base, made.novel))
    for made in (_made(splits), _made(splits, lambda name: 'kirba'), _made(splits, score=0.1))
  }
  assert len(captions) == 1
  assert 'played no part' in _made(splits).note and 'X with a score of 30\xa0%' in _made(splits).note
  assert 'teacher gives it' in _made(splits).text and 'teacher gives it' not in _made(splits, distils=False).text


def test_what_is_covered_cut_off_or_not_alone_is_harder_to_see(splits):
  def flaws(*boxes):
    objects = dataclasses.replace(splits[0][0].objects, boxes=np.array(boxes, np.float32))
    example = dataclasses.replace(splits[0][0], height=100, width=150, objects=objects)
    return [lesson._flaw(example, i) for i in range(len(boxes))]

  large = (40, 50, 60, 70)
  assert flaws(large, (5, 100, 15, 110)) == [(0, -20), (0, -10)]
  assert flaws(large, (45, 75, 55, 85)) == [(1, -20), (0, -10)]  # the small one is in what is shown of the large one
  assert flaws(large, (55, 65, 65, 75)) == [(2, -20), (2, -10)]
  assert flaws((0, 50, 20, 70), (80, 130, 95, 150)) == [(2, -20), (2, -15)]
  np.testing.assert_array_equal(lesson._window(np.array(large), 100, 150), [35, 38, 65, 83])
  np.testing.assert_array_equal(lesson._window(np.array([0, 0, 90, 149]), 100, 150), [0, 0, 100, 150])


def test_the_class_chosen_is_easy_to_see_in_both_splits():
  def objects(**flaws):
    return {name: types.SimpleNamespace(name=name, flaw=flaw) for name, flaw in flaws.items()}

  training = objects(a=(0, -50), b=(0, -30), c=(0, -90), d=(0, -99))
  validation = objects(a=(1, -80), b=(0, -40), c=(0, -20), e=(0, -70))
  chosen = lambda names, there=validation: [item and item.name for item in lesson._choose(training, there, names)]
  assert chosen('abcde') == ['b', 'b'] and chosen('a') == ['a', 'a'] and chosen('de') == ['d', 'e']
  assert chosen('d') == ['d', None] and chosen('e') == [None, 'e'] and chosen('abc', {}) == ['c', None]


def test_a_world_without_novel_objects_is_one_line(splits):
  only_base = VocabularyFile(np.eye(2, dtype=np.float32), NAMES[1:3], np.ones(2, bool), 'teacher', 'none')
  with pytest.raises(DataError, match='the training pictures show no novel object'):
    lesson.lesson(*splits, only_base, lambda crops: np.eye(2)[[0] * len(crops)], _Detector(splits[1]), finder='X')
