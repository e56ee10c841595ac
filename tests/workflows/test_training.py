"""What a training reads: which pictures it is shown."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.helpers import small_set, tiny
from vild_jax.data import prepare
from vild_jax.data.schema import DataError
from vild_jax.vocabulary import VocabularyFile, save
from vild_jax.workflows import training

RED_MUG = 3  # its id


def _opened(folder, base, *more, crowds=(), without=None):
  """Pictures 5 (an ant), 7 (a tree), 11 (a mug and a tree) and 300 (nothing), with these classes as base."""
  tree = small_set.annotations()
  tree['annotations'] = [a for a in tree['annotations'] if a['category_id'] != without]
  for annotation in tree['annotations']:
    annotation['iscrowd'] = int(annotation['image_id'] in crowds)
  prepare.prepare(*small_set.write(folder, tree), folder / 'data')
  names = tuple(category['name'] for category in tree['categories'])
  words = VocabularyFile(np.eye(3, 16, dtype=np.float32), names, np.array([n in base for n in names]), 'made up', '')
  save(folder / 'v.npz', words)
  places = [f'data.train={folder / "data"}', f'vocabulary={folder / "v.npz"}', 'data.batch_size=2']
  return training.open_training(tiny.config(*places, *more))


def _seen(opened, batches=12):
  return {int(i) for arrays in itertools.islice(opened.stream(0), batches) for i in arrays['image_id']}


def test_pictures_without_a_base_object_are_trained_on_unless_the_config_says_otherwise(tmp_path, capsys):
  assert _seen(_opened(tmp_path / 'all', {'ant'})) == {5, 7, 11, 300}
  only = 'data.only_with_objects=true'
  assert _seen(_opened(tmp_path / 'ant', {'ant'}, only)) == {5}
  assert '1 of 4 pictures show an object of a class that training may use' in capsys.readouterr().err
  assert _seen(_opened(tmp_path / 'tree', {'tree'}, only)) == {7, 11}
  assert _seen(_opened(tmp_path / 'crowd', {'tree', 'ant'}, only, crowds=(7,))) == {5, 7, 11}
  assert _seen(_opened(tmp_path / 'repeat', {'tree'}, only, 'data.repeat_threshold=0.9')) == {7, 11}
  novel = 'assignment.novel_labels=true'
  assert _seen(_opened(tmp_path / 'novel', {'ant'}, only, novel)) == {5, 7, 11}


def test_without_any_such_picture_the_data_set_is_refused(tmp_path):
  with pytest.raises(DataError, match='none of the 4 pictures shows an object of a class that training may use'):
    _opened(tmp_path, {'red mug'}, 'data.only_with_objects=true', without=RED_MUG)


@pytest.mark.parametrize(
  ('base', 'options', 'found'),
  [
    ({'ant', 'tree', 'red mug'}, {'crowds': (5, 7, 11)}, 'of 4 objects, 0 are of no class .* and 4 are crowds'),
    ({'ant', 'tree'}, {'crowds': (5, 7, 11)}, 'of 4 objects, 1 are of no class .* and 3 are crowds'),
    ({'red mug'}, {'without': RED_MUG}, 'of 3 objects, 3 are of no class .* and 0 are crowds'),
  ],
)
def test_a_split_without_an_object_to_learn_is_refused(tmp_path, base, options, found):
  with pytest.raises(DataError, match=f"split 'train': nothing to learn; {found}") as error:
    _opened(tmp_path, base, **options)
  assert '\n' not in str(error.value)


def test_so_is_one_without_annotations(tmp_path):
  tree = small_set.annotations() | {'annotations': []}
  prepare.prepare(*small_set.write(tmp_path, tree), tmp_path / 'data')
  words = VocabularyFile(np.eye(1, 16, dtype=np.float32), ('ant',), np.array([True]), 'made up', '')
  save(tmp_path / 'v.npz', words)
  with pytest.raises(DataError, match='nothing to learn; of 0 objects'):
    training.open_training(tiny.config(f'data.train={tmp_path / "data"}', f'vocabulary={tmp_path / "v.npz"}'))
