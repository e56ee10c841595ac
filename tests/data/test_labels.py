"""Labels without pictures: `PreparedDataset.labels` and what is counted with it."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest

from tests.helpers import small_set
from vild_jax.data import label_files, prepare, sources
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
  with pytest.raises(DataError, match=r'prepare the split again, which restores them$'):
    next(sources.open_dataset(version, 'train').labels())


def _damages(version):
  """Ways to damage the one file of labels of a data set."""
  (file,) = version.glob('*.labels-*')
  good = file.read_bytes()
  flipped = bytearray(good)
  flipped[len(good) // 2] ^= 0x55
  return file, good, (good[: len(good) // 2], b'', bytes(flipped))


def test_damaged_files_of_labels_are_one_line_and_preparing_again_restores_them(tmp_path):
  given = small_set.write(tmp_path)
  version = prepare.prepare(*given, tmp_path / 'out')
  file, good, damages = _damages(version)
  metadata = (version / 'metadata.json').read_bytes()
  for content in damages:
    file.write_bytes(content)
    with pytest.raises(DataError, match=r'prepare the split again, which restores them$') as error:
      list(sources.open_dataset(version, 'train').labels())
    assert '\n' not in str(error.value)
    prepare.prepare(*given, tmp_path / 'out')
    assert file.read_bytes() == good and (version / 'metadata.json').read_bytes() == metadata
  file.unlink()
  prepare.prepare(*given, tmp_path / 'out')
  assert file.read_bytes() == good and len(list(version.glob('*.labels-*'))) == 1


def test_a_data_set_of_an_older_version_gets_labels_and_counts_by_preparing_it_again(tmp_path):
  given = small_set.write(tmp_path)
  version = prepare.prepare(*given, tmp_path / 'out')
  file, good, damages = _damages(version)
  whole = json.loads((version / 'metadata.json').read_text())
  counted = sources.open_dataset(version, 'train').counts()
  older = copy.deepcopy(whole)
  del older['sha256'], older['files']
  for record in older['contents'].values():
    del record['labels'], record['counts'], record['records']
  (version / 'metadata.json').write_text(json.dumps(older))
  dataset = sources.open_dataset(version, 'train')
  assert dataset.counts(quiet=True) == counted and len(list(dataset.labels())) == 4
  for content in damages[:2]:
    file.write_bytes(content)
    with pytest.raises(DataError, match=r'cannot be read|hold 0 records'):
      list(sources.open_dataset(version, 'train').labels())
  file.unlink()
  prepare.prepare(*given, tmp_path / 'out')
  assert json.loads((version / 'metadata.json').read_text()) == whole and file.read_bytes() == good


def test_damaged_records_are_restored_by_preparing_again(tmp_path, capsys):
  given = small_set.write(tmp_path)
  version = prepare.prepare(*given, tmp_path / 'out')
  (file,) = version.glob('*.array_record-*')
  good, metadata = file.read_bytes(), (version / 'metadata.json').read_bytes()
  for content in (good[:-1], b'', good[:50] + b'?' + good[51:]):
    file.write_bytes(content)
    (line,) = sources.open_dataset(version, 'train').damage()
    assert line.startswith(str(file))
    prepare.prepare(*given, tmp_path / 'out')
    assert f'{version} gets its records again' in capsys.readouterr().err
    assert file.read_bytes() == good and (version / 'metadata.json').read_bytes() == metadata
  assert not sources.open_dataset(version, 'train').damage()
  file.unlink()
  prepare.prepare(*given, tmp_path / 'out')
  assert file.read_bytes() == good


@pytest.mark.parametrize('name', ['metadata.json', 'dataset_info.json', 'features.json'])
def test_a_changed_json_file_of_a_data_set_is_named(tmp_path, name):
  version = prepare.prepare(*small_set.write(tmp_path), tmp_path / 'out')
  prepare.prepare(*small_set.write(tmp_path, stem='small_val'), tmp_path / 'out')  # replaces two of them
  assert len(sources.read_metadata(version)[1]) == 2
  text = (version / name).read_text()
  digit = next(i for i, c in enumerate(text) if c in '0123456789' and text[i - 1] not in '0123456789')
  (version / name).write_text(text[:digit] + ('8' if text[digit] == '9' else '9') + text[digit + 1 :])
  with pytest.raises(
    DataError, match=rf'{name} is damaged: .*; expected the data set as it was prepared|is not a data'
  ):
    sources.open_dataset(version, 'train')


def test_a_kill_between_metadata_and_info_leaves_the_older_split_whole(tmp_path, monkeypatch):
  version = prepare.prepare(*small_set.write(tmp_path), tmp_path / 'out')

  def move(source, target, real=prepare.files.move):
    if target == version / 'dataset_info.json':
      raise KeyboardInterrupt
    real(source, target)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(prepare.files, 'move', move)
    prepare.prepare(*small_set.write(tmp_path, stem='small_val'), tmp_path / 'out')
  assert [*sources.read_metadata(version)[1]] == ['train']
  assert not sources.open_dataset(version, 'train').damage()
  prepare.prepare(*small_set.write(tmp_path, stem='small_val'), tmp_path / 'out')
  assert [*sources.read_metadata(version)[1]] == ['train', 'val']


def test_labels_of_another_data_set_with_as_many_pictures_are_refused(tmp_path):
  version = prepare.prepare(*small_set.write(tmp_path), tmp_path / 'out')
  tree = small_set.annotations()
  for annotation in tree['annotations']:
    annotation['category_id'] = tree['categories'][0]['id']
  (tmp_path / 'b').mkdir()
  other = prepare.prepare(*small_set.write(tmp_path / 'b', tree), tmp_path / 'b' / 'out')
  (mine,), (theirs,) = (list(folder.glob('*.labels-*')) for folder in (version, other))
  mine.write_bytes(theirs.read_bytes())
  with pytest.raises(DataError, match=r'another content than was written|bytes; expected'):
    next(sources.open_dataset(version, 'train').labels())


def test_one_file_of_several_that_is_missing_is_an_error(tmp_path):
  paths = [tmp_path / 'a', tmp_path / 'b']
  for path in paths:
    path.write_bytes(b'x')
  known = label_files.described(paths)
  assert label_files.problem(paths, known) == ''
  assert label_files.problem(paths[:1], known) == f'{paths[0]} is one of 1 files; expected 2'
  paths[1].unlink()
  assert label_files.problem(paths, known) == label_files.problem(paths, None) == f'{paths[1]} is missing'


def test_objects_are_counted_once_when_they_are_prepared(tmp_path, monkeypatch):
  tree = small_set.annotations()
  ids = [category['id'] for category in tree['categories']]
  given = [a['category_id'] for a in tree['annotations']]
  tree['annotations'][0]['iscrowd'] = 1
  del tree['annotations'][1]['segmentation']
  version = prepare.prepare(*small_set.write(tmp_path, tree), tmp_path / 'out')
  monkeypatch.setattr(sources.PreparedDataset, 'labels', None)
  expected = {key: [given.count(key), given.count(key), 0] for key in ids}
  expected[given[0]] = [n + d for n, d in zip(expected[given[0]], (-1, -1, 1), strict=True)]
  expected[given[1]][1] -= 1
  assert {key: list(row) for key, row in sources.open_dataset(version, 'train').counts().items()} == expected


def test_labels_of_ascending_pictures_are_not_kept(tmp_path):
  dataset = sources.open_dataset(prepare.prepare(*small_set.write(tmp_path), tmp_path / 'out'), 'train')
  taken = []

  class Counted:
    folder, categories, info = dataset.folder, dataset.categories, dataset.info

    def labels(self):
      for example in dataset.labels():
        taken.append(example.image_id)
        yield example

  assert [example.image_id for example in sources.Subset(Counted(), np.array([0, 2])).labels()] == [taken[0], taken[2]]
  taken.clear()
  next(sources.Subset(Counted(), np.array([0, 2])).labels())
  assert len(taken) == 1
