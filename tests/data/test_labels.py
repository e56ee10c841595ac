"""Labels without pictures: `PreparedDataset.labels` and what is counted with it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.helpers import small_set
from vild_jax.data import prepare, sources
from vild_jax.data.schema import DataError


def _same(a, b):
  assert dataclasses.replace(a, image=b'', objects=None) == dataclasses.replace(b, image=b'', objects=None)
  for field in dataclasses.fields(a.objects):
    one, other = getattr(a.objects, field.name), getattr(b.objects, field.name)
    assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
    assert getattr(one, 'dtype', None) == getattr(other, 'dtype', None)


def test_labels_are_the_examples_without_their_pictures_and_no_picture_is_read(tmp_path, monkeypatch):
  dataset = sources.open_dataset(prepare.prepare(*small_set.write(tmp_path), tmp_path / 'out'), 'train')
  examples = [dataset[i] for i in range(len(dataset))]
  by_examples = [e.image_id for e in examples]
  monkeypatch.setattr(sources.PreparedDataset, '__getitem__', None)
  labels = list(dataset.labels())
  assert [example.image for example in labels] == [b''] * len(examples)
  for one, other in zip(examples, labels, strict=True):
    _same(one, other)
  chosen = sources.Subset(dataset, np.array([2, 0]))
  assert [example.image_id for example in chosen.labels()] == [by_examples[2], by_examples[0]]
  assert sources.ground_truth(dataset)[1] == by_examples


def test_a_data_set_without_the_files_of_labels_is_read_whole(tmp_path):
  version = prepare.prepare(*small_set.write(tmp_path), tmp_path / 'out')
  dataset = sources.open_dataset(version, 'train')
  labels, truth = list(dataset.labels()), sources.ground_truth(dataset)
  for file in version.glob('*.labels-*'):
    file.unlink()
  for one, other in zip(labels, dataset.labels(), strict=True):
    _same(one, other)
  assert sources.ground_truth(dataset) == truth


def test_files_of_labels_that_are_those_of_another_data_set_are_refused(tmp_path):
  version = prepare.prepare(*small_set.write(tmp_path), tmp_path / 'out')
  tree = small_set.annotations()
  tree['images'], tree['annotations'] = tree['images'][:2], []
  (tmp_path / 'less').mkdir()
  path, images = small_set.write(tmp_path / 'less', tree)
  other = prepare.prepare(path, images, tmp_path / 'less' / 'out')
  (mine,), (theirs,) = (list(folder.glob('*.labels-*')) for folder in (version, other))
  mine.write_bytes(theirs.read_bytes())
  with pytest.raises(DataError, match=r'hold 2 records; expected 4: prepare the split anew$'):
    next(sources.open_dataset(version, 'train').labels())
