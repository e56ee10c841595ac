from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import small_set
from vild_jax.data import annotations, prepare, rle, sources
from vild_jax.data.schema import DataError
from vild_jax.eval import coco, lvis


def _read(tmp_path, tree, **options):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(tree))
  return annotations.read_annotations(path, **options)


def _first(tree, **changes):
  """The small set with its first annotation changed."""
  tree['annotations'][0] |= changes
  return tree


# --- reading JSON ---------------------------------------------------------------------------------------------------


def test_boxes_become_yxyx_and_everything_is_in_order_of_id(tmp_path):
  source = sources.JsonSource(*small_set.write(tmp_path))
  assert [source[i].image_id for i in range(len(source))] == [5, 7, 11, 300]
  assert [c.id for c in source.categories] == [1, 3, 8]
  example = source[2]
  assert (example.height, example.width) == (40, 60)
  assert example.objects.ids.tolist() == [20, 21]
  assert example.objects.category_ids.tolist() == [8, 3]
  np.testing.assert_array_equal(example.objects.boxes[1], np.float32([4.5, 5.25, 22.25, 30.75]))
  assert example.objects.boxes.dtype == np.float32
  assert source[0].neg_category_ids == (3,)
  assert source[1].not_exhaustive_category_ids == (8,)
  assert source[3].objects.boxes.shape == (0, 4)
  assert source.notes == ()


def test_pictures_are_found_by_file_name_by_url_and_under_train2017(tmp_path):
  tree = small_set.annotations()
  tree['images'][0] |= {'file_name': 'deep/er.jpg'}
  tree['images'][1] |= {'file_name': 'COCO_train2014_000000000005.jpg', 'coco_url': 'http://x/elsewhere/other.jpg'}
  path, images = small_set.write(tmp_path, tree)
  (images / 'deep').mkdir()
  moved = images / 'deep' / 'er.jpg'
  (images / 'train2017' / '000000000011.jpg').rename(moved)
  flat = images / 'other.jpg'
  (images / 'train2017' / '000000000005.jpg').rename(flat)
  source = sources.JsonSource(path, images)
  assert source.files[2] == moved
  assert source.files[0] == flat
  assert source.files[1] == images / 'train2017' / '000000000007.jpg'


def test_a_repeated_annotation_is_dropped_and_an_id_used_again_is_renumbered(tmp_path):
  tree = small_set.annotations()
  tree['annotations'].append(dict(tree['annotations'][0]))
  tree['annotations'].append({**tree['annotations'][0], 'image_id': 7})
  read = _read(tmp_path, tree)
  ids = [key for o in read.objects for key in o.ids.tolist()]
  assert sorted(ids) == [4, 9, 20, 21, 22]
  assert read.notes == ('1 repeated annotation dropped', '1 annotation with the id of another renumbered')


def test_the_dummy_of_tfds_with_its_repeated_id_is_read(shared):
  read = annotations.read_annotations(shared / 'data/tfds_lvis_dummy/lvis_v1_train.json')
  assert [o.ids.tolist() for o in read.objects] == [[1], [2]]
  assert read.notes == ('1 annotation with the id of another renumbered',)


def test_a_box_partly_outside_is_clipped_and_counted(tmp_path):
  read = _read(tmp_path, _first(small_set.annotations(), bbox=[-4, 30, 100, 40]))
  np.testing.assert_array_equal(read.objects[2].boxes[1], [30, 0, 40, 60])
  assert read.notes == ('1 box partly outside the picture clipped',)


def test_coco_crowd_with_counts_as_list_or_text_is_the_same(tmp_path):
  mask = np.zeros((40, 60), bool)
  mask[3:9, 10:20] = True
  as_text = rle.encode_mask(mask)
  flat = mask.T.reshape(-1)  # COCO counts down the columns, zeros first
  edges = np.flatnonzero(np.diff(flat)) + 1
  as_list = {'size': [40, 60], 'counts': np.diff([0, *edges, flat.size]).tolist()}
  for segmentation in (as_text, as_list):
    read = _read(tmp_path, _first(small_set.annotations(), iscrowd=1, segmentation=segmentation))
    o = read.objects[2]
    assert o.is_crowd.tolist() == [False, True]
    assert o.segmentations[1] == as_text
    np.testing.assert_array_equal(sources.decode_mask(o.segmentations[1], 40, 60), mask)


def test_boxes_of_no_size_can_be_dropped(tmp_path):
  read = _read(tmp_path, _first(small_set.annotations(), bbox=[1, 1, 0, 5]), drop_unusable=True)
  assert sum(len(o.ids) for o in read.objects) == 3
  assert read.notes == ('1 annotation with a box of no size or outside the picture dropped',)


def test_objects_without_segmentation_stay_and_are_noted(tmp_path):
  read = _read(tmp_path, _first(small_set.annotations(), segmentation=[]))
  assert read.objects[2].segmentations[1] == []
  assert '1 object without segmentation' in read.notes[0]
  with pytest.raises(DataError, match='without segmentation'):
    sources.decode_mask([], 4, 4)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'image_id': 99}, 'annotation 21 belongs to the unknown image 99; expected one of the 4 ids'),
    ({'image_id': [1]}, 'unknown image'),
    ({'category_id': 2}, 'annotation 21 has the unknown category 2; expected one of the 3 ids'),
    ({'bbox': [1, 1, 0, 5]}, r'annotation 21 has the box \[1, 1, 0, 5\] of no size \(60 wide, 40 high\)'),
    ({'bbox': [1, 1, 0, 5], 'iscrowd': 1}, 'of no size'),
    ({'bbox': [60, 1, 10, 5]}, 'wholly outside .*, or --drop-unusable to leave such out'),
    ({'bbox': [-9, 1, 9, 5]}, 'wholly outside'),
    ({'bbox': [1, 1, 5]}, 'expected four finite numbers'),
    ({'bbox': [1, 1, float('nan'), 5]}, 'expected four finite numbers'),
    ({'area': 'big'}, "has area 'big'"),
    ({'area': -1}, 'has area -1'),
    ({'iscrowd': 7}, 'has iscrowd 7'),
    ({'id': 'x'}, "has id 'x'"),
    ({'segmentation': [[1, 2, 3, 4]]}, 'no polygon of three points'),
    ({'segmentation': [[1, 2, 3, 4, 5, 6, 7]]}, 'not an even number'),
    ({'segmentation': 'text'}, 'type str'),
    ({'segmentation': {'size': [1, 1], 'counts': [1]}}, r'RLE of size \[1, 1\]; expected \[40, 60\]'),
    ({'segmentation': {'size': [40, 60], 'counts': [7]}}, 'do not add up'),
    ({'segmentation': {'size': [40, 60], 'counts': 'o'}}, 'do not add up'),
  ],
)
def test_bad_annotations_are_one_line(tmp_path, changes, message):
  with pytest.raises(DataError, match=message) as error:
    _read(tmp_path, _first(small_set.annotations(), **changes))
  assert '\n' not in str(error.value)
  assert str(tmp_path / 'a.json') in str(error.value)


def test_the_line_says_how_many_more_problems_there_are(tmp_path):
  tree = small_set.annotations()
  for annotation in tree['annotations'][:3]:
    annotation['category_id'] = 77
  tree['annotations'][3]['bbox'] = [0, 0, 0, 0]
  with pytest.raises(DataError, match=r'annotation 21 .*category 77.* \(2 more such problems and 1 of other kinds\)$'):
    _read(tmp_path, tree)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda t: t['images'].append(t['images'][0] | {'width': 61}), 'image id 11 appears twice'),
    (lambda t: t['categories'].append(t['categories'][0]), 'category id 3 appears twice'),
    (lambda t: t['categories'][0].update(name='tree'), "category name 'tree' appears twice"),
    (lambda t: t['categories'].extend({'id': i, 'name': 'x'} for i in (55, 56)), "category name 'x' appears twice"),
    (lambda t: t['categories'][0].update(frequency='often'), "frequency 'often'"),
    (lambda t: t['images'][0].update(height='40'), "height '40'"),
    (lambda t: t['images'][0].pop('coco_url'), 'names no file'),
    (lambda t: t['images'][0].update(neg_category_ids=[4]), 'lists the unknown category 4'),
    (lambda t: t.pop('annotations'), "it has no 'annotations'"),
    (lambda t: t.update(images={}), "'images' is not a list"),
    (lambda t: t['categories'].clear(), 'list of categories is empty'),
  ],
)
def test_bad_files_are_one_line(tmp_path, change, message):
  tree = small_set.annotations()
  change(tree)
  with pytest.raises(DataError, match=message) as error:
    _read(tmp_path, tree)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('content', 'message'),
  [(b'{"images": [', 'is not JSON'), (b'\xff\xd8\xff', 'is not JSON'), (b'[1]', 'it holds a list')],
)
def test_what_is_no_annotation_file_is_one_line(tmp_path, content, message):
  (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(DataError, match=message) as error:
    annotations.read_annotations(tmp_path / 'a.json')
  assert '\n' not in str(error.value)
  with pytest.raises(DataError, match='is not a file'):
    annotations.read_annotations(tmp_path / 'b.json')


def test_missing_pictures_are_counted(tmp_path):
  path, images = small_set.write(tmp_path)
  for key in (5, 7):
    (images / 'train2017' / f'{key:012d}.jpg').unlink()
  with pytest.raises(DataError, match=r'image 5 .*000000000005.jpg.* is not in .*\(1 more such problem\)$'):
    sources.JsonSource(path, images)
  with pytest.raises(DataError, match='is not a folder'):
    sources.JsonSource(path, tmp_path / 'nowhere')


# --- prepared data sets ---------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp('prepared')
  path, images = small_set.write(folder)
  tree = small_set.annotations()
  prepare.prepare(path, images, folder / 'out')
  prepare.prepare(small_set.write(folder, tree, stem='small_val')[0], images, folder / 'out')
  return folder, sources.JsonSource(path, images)


def _equal(a, b):
  for field in dataclasses.fields(a):
    if field.name != 'objects':
      assert getattr(a, field.name) == getattr(b, field.name), field.name
  for field in dataclasses.fields(a.objects):
    left, right = getattr(a.objects, field.name), getattr(b.objects, field.name)
    if field.name == 'segmentations':
      assert left == right
    else:
      assert left.dtype == right.dtype and left.shape == right.shape, field.name
      np.testing.assert_array_equal(left, right.astype(np.float32) if field.name == 'areas' else right)


def test_what_was_prepared_comes_back(prepared):
  folder, source = prepared
  dataset = sources.open_dataset(folder / 'out', 'train')
  assert len(dataset) == len(source) == 4
  assert dataset.categories == source.categories
  assert dataset.info == {'description': 'small set', 'year': 2020}
  assert (dataset.split, dataset.splits, dataset.has_masks, dataset.notes) == ('train', ('train', 'val'), True, ())
  by_id = {e.image_id: e for e in map(dataset.__getitem__, range(4))}
  assert len(by_id) == 4
  for i in range(4):
    _equal(by_id[source[i].image_id], source[i])
  _equal(dataset[-1], dataset[3])
  with pytest.raises(IndexError):
    dataset[4]


def test_any_folder_above_will_do_while_it_is_unambiguous(prepared, tmp_path):
  folder, _ = prepared
  version = folder / 'out' / 'small' / '1.0.0'
  for path in (version, version.parent, version.parent.parent, str(version)):
    assert sources.open_dataset(path, 'val').folder == version
  with pytest.raises(DataError, match="has no split 'test'; expected one of train, val"):
    sources.open_dataset(version, 'test')
  with pytest.raises(DataError, match='holds no data set'):
    sources.open_dataset(tmp_path, 'train')
  with pytest.raises(DataError, match='is not a folder'):
    sources.open_dataset(tmp_path / 'x', 'train')
  for name in 'ab':
    (tmp_path / name).mkdir()
    (tmp_path / name / 'dataset_info.json').write_text('{}')
  with pytest.raises(DataError, match=r'holds 2 data sets; expected one of .*/a, .*/b'):
    sources.open_dataset(tmp_path, 'train')
  with pytest.raises(DataError, match='--from-tfds'):
    sources.open_dataset(tmp_path / 'a', 'train')


def test_identity_tells_content_not_place(prepared, tmp_path):
  folder, _ = prepared
  train = sources.open_dataset(folder / 'out', 'train')
  path, images = small_set.write(tmp_path)
  other = sources.open_dataset(prepare.prepare(path, images, tmp_path / 'out', name='other', split='x'), 'x')
  assert other.identity == train.identity
  path, images = small_set.write(tmp_path, _first(small_set.annotations(), area=1.0), stem='changed')
  assert sources.open_dataset(prepare.prepare(path, images, tmp_path / 'out'), 'train').identity != train.identity


def test_it_can_be_pickled_and_shared_by_threads(prepared):
  folder, _ = prepared
  dataset = sources.open_dataset(folder / 'out', 'train')
  ids = [dataset[i].image_id for i in range(4)]
  copy = pickle.loads(pickle.dumps(dataset))
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda i: copy[i % 4].image_id, range(64))) == ids * 16


def _copied(prepared, tmp_path):
  return Path(shutil.copytree(sources.prepared_folder(prepared[0] / 'out'), tmp_path / 'copy'))


@pytest.mark.parametrize(
  'spoil',
  [
    lambda text: text.replace('tensorflow_datasets.core.features.text_feature.Text', 'planted.Text'),
    lambda text: text.replace(
      '"pythonClassName": "tensorflow_datasets.core.features.text', '"python_class_name": "planted.x'
    ),
    lambda text: '{"type": "planted.Text", "content": {}}',
    lambda text: json.dumps({**json.loads(text), 'jsonFeature': {'json': '{"x": {"type": "planted.Text"}}'}}),
  ],
)
def test_features_of_foreign_classes_are_refused_and_their_module_is_not_run(prepared, tmp_path, monkeypatch, spoil):
  folder = _copied(prepared, tmp_path)
  (tmp_path / 'planted.py').write_text(f'open({str(tmp_path / "was run")!r}, "w")')
  monkeypatch.syspath_prepend(tmp_path)
  path = folder / 'features.json'
  path.write_text(spoil(path.read_text()))
  metadata = json.loads((folder / 'metadata.json').read_text())
  unsealed = {key: value for key, value in metadata.items() if key not in ('files', 'sha256')}
  (folder / 'metadata.json').write_text(json.dumps(unsealed))  # whoever plants a class leaves no checksum against it
  with pytest.raises(DataError, match=r"features\.json names the class 'planted"):
    sources.open_dataset(folder, 'train')[0]
  assert not (tmp_path / 'was run').exists()


def test_a_damaged_or_missing_file_is_named(prepared, tmp_path):
  folder = _copied(prepared, tmp_path)
  (shard,) = folder.glob('*-train-*.array_record-*')
  content = bytearray(shard.read_bytes())
  for at in range(0, len(content), 97):
    content[at] ^= 16
  shard.write_bytes(content)
  with pytest.raises(DataError, match=rf'{shard.name} has no readable example 0 .*; expected a whole file'):
    sources.open_dataset(folder, 'train')[0]
  shard.unlink()
  with pytest.raises(DataError, match=rf'{shard.name} is missing \(1 of 1 files\)'):
    sources.open_dataset(folder, 'train')


def test_tfds_reads_it_by_itself(prepared):
  import tensorflow_datasets as tfds

  folder, _ = prepared
  source = tfds.builder_from_directory(folder / 'out' / 'small' / '1.0.0').as_data_source('train')
  record = next(r for r in source if r['image/id'] == 11)
  assert record['image'].shape == (40, 60, 3)
  assert record['objects']['category_id'] == [8, 3]
  assert set(record) == {
    'image',
    'image/id',
    'height',
    'width',
    'neg_category_ids',
    'not_exhaustive_category_ids',
    'objects',
  }


@pytest.mark.parametrize('without', [[21], [21, 20, 4, 9]])
def test_objects_without_masks_are_evaluated_by_box_alone(tmp_path, without):
  tree = small_set.annotations()
  for annotation in tree['annotations']:
    if annotation['id'] in without:
      annotation['segmentation'] = []
  prepare.prepare(*small_set.write(tmp_path, tree), tmp_path / 'out')
  dataset = sources.open_dataset(tmp_path / 'out', 'train')
  truth, _ = sources.ground_truth(dataset)
  assert [a['id'] for a in truth['annotations'] if 'segmentation' not in a] == sorted(without) and not dataset.has_masks
  found = []
  for a in truth['annotations']:
    size = next((i['height'], i['width']) for i in truth['images'] if i['id'] == a['image_id'])
    found.append(
      {key: a[key] for key in ('image_id', 'category_id', 'bbox')}
      | {'score': 0.9, 'segmentation': rle.encode_mask(np.ones(size, bool))}
    )
  for protocol in (lvis, coco):
    metrics = protocol.evaluate(truth, found)
    assert metrics['mask'] is None and metrics['box']['AP'] == pytest.approx(1)


def test_ground_truth_comes_back_as_lvis_json(prepared):
  folder, _ = prepared
  given = small_set.annotations()
  found, _ = sources.ground_truth(sources.open_dataset(folder / 'out', 'train'))
  json.dumps(found)
  assert [i['id'] for i in found['images']] == [5, 7, 11, 300]
  assert {i['id']: (i['height'], i['width']) for i in found['images']} == small_set.SIZES
  assert found['images'][0]['neg_category_ids'] == [3]
  assert {c['id']: c['frequency'] for c in found['categories']} == {1: 'r', 3: 'f', 8: 'c'}
  for a in given['annotations']:
    b = next(b for b in found['annotations'] if b['id'] == a['id'])
    np.testing.assert_allclose(b['bbox'], a['bbox'], atol=1e-5)
    np.testing.assert_allclose(b['area'], a['area'], rtol=1e-7)
    assert (b['image_id'], b['category_id'], b['segmentation'], b['iscrowd']) == (
      a['image_id'],
      a['category_id'],
      a['segmentation'],
      0,
    )
  assert len(found['annotations']) == len(given['annotations'])
