"""Stock TFDS data sets become what the JSON path makes of the same annotations, up to what the stock form loses."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource

from tests.helpers import small_set
from vild_jax.data import prepare, sources
from vild_jax.data.class_lists import coco_categories, lvis_categories
from vild_jax.data.schema import DataError

_LVIS_CATEGORIES = [
  {'id': c.id, 'name': c.name, 'frequency': c.frequency, 'synset': c.synset, 'synonyms': list(c.synonyms)}
  for c in lvis_categories()
]


class StockLvis(tfds.core.GeneratorBasedBuilder):
  """The schema of TFDS's own `lvis` 1.4.0, made of a small annotation file."""

  VERSION = tfds.core.Version('1.4.0')

  def __init__(self, tree, images, splits, **options):
    self.name = 'lvis'
    self._tree, self._images, self._split_names = tree, images, splits
    super().__init__(**options)

  def _info(self):
    label = tfds.features.ClassLabel(names=[c['name'] for c in _LVIS_CATEGORIES])
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(encoding_format='jpeg'),
          'image/id': np.int64,
          'neg_category_ids': tfds.features.Sequence(label),
          'not_exhaustive_category_ids': tfds.features.Sequence(label),
          'objects': tfds.features.Sequence(
            {
              'id': np.int64,
              'area': np.int64,
              'bbox': tfds.features.BBoxFeature(),
              'label': label,
              'segmentation': tfds.features.Image(shape=(None, None, 1)),
            }
          ),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples() for split in self._split_names}

  def _generate_examples(self):
    for image in self._tree['images']:
      height, width = image['height'], image['width']
      objects = [a for a in self._tree['annotations'] if a['image_id'] == image['id']]
      yield (
        image['id'],
        {
          'image': str(self._images / 'train2017' / f'{image["id"]:012d}.jpg'),
          'image/id': image['id'],
          'neg_category_ids': [c - 1 for c in image['neg_category_ids']],
          'not_exhaustive_category_ids': [c - 1 for c in image['not_exhaustive_category_ids']],
          'objects': [
            {
              'id': a['id'],
              'area': int(a['area']),
              'bbox': _normalised(a['bbox'], height, width),
              'label': a['category_id'] - 1,
              'segmentation': _png(a['segmentation'], height, width),
            }
            for a in objects
          ],
        },
      )


class StockCoco(tfds.core.GeneratorBasedBuilder):
  """The schema of TFDS's own `coco`: boxes and crowd flags, no masks; one box of no size, as COCO 2017 has."""

  VERSION = tfds.core.Version('1.1.0')

  def __init__(self, images, **options):
    self.name = 'coco'
    self._images = images
    super().__init__(**options)

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(encoding_format='jpeg'),
          'image/filename': tfds.features.Text(),
          'image/id': np.int64,
          'objects': tfds.features.Sequence(
            {
              'id': np.int64,
              'area': np.int64,
              'bbox': tfds.features.BBoxFeature(),
              'label': tfds.features.ClassLabel(names=[c.name for c in coco_categories()]),
              'is_crowd': np.bool_,
            }
          ),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {'validation': self._generate_examples()}

  def _generate_examples(self):
    yield (
      5,
      {
        'image': str(self._images / 'train2017' / '000000000005.jpg'),
        'image/filename': '5.jpg',
        'image/id': 5,
        'objects': [
          {'id': 8, 'area': 60, 'bbox': _normalised([2, 3, 10, 20], 33, 21), 'label': 79, 'is_crowd': True},
          {'id': 9, 'area': 0, 'bbox': _normalised([2, 3, 10, 0], 33, 21), 'label': 0, 'is_crowd': False},
        ],
      },
    )


def _normalised(bbox, height, width):
  x, y, w, h = bbox
  return tfds.features.BBox(ymin=y / height, xmin=x / width, ymax=(y + h) / height, xmax=(x + w) / width)


def _truncated_mask(polygons, height, width):
  mask = np.zeros((height, width), np.uint8)
  for polygon in polygons:
    cv2.fillPoly(mask, np.asarray(polygon, np.int32).reshape(1, -1, 2), 255)
  return mask


def _grown(mask):
  """Two pixels larger: cutting the corners to whole pixels moves a sharp tip by that much."""
  return cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0


def _png(polygons, height, width):
  return cv2.imencode('.png', _truncated_mask(polygons, height, width))[1].tobytes()


def _write_tfrecord_by_hand(stock: Path) -> None:
  """Turns an ArrayRecord data set on disk into TFRecord: the same records in TFRecord's frame, no checksums."""
  for old in sorted(stock.glob('*.array_record-*')):
    with open(stock / old.name.replace('array_record', 'tfrecord'), 'wb') as f:
      for record in ArrayRecordDataSource([str(old)]):
        f.write(struct.pack('<QI', len(record), 0) + bytes(record) + struct.pack('<I', 0))
    old.unlink()
  info = json.loads((stock / 'dataset_info.json').read_text())
  (stock / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))


@pytest.fixture(params=['array_record', 'tfrecord by hand', 'tfrecord by tensorflow'])
def stock(request, tmp_path):
  """(data_dir of a stock `lvis`, annotations and images it was made of)."""
  if request.param == 'tfrecord by tensorflow' and importlib.util.find_spec('tensorflow') is None:
    pytest.skip('TensorFlow is not installed (extra [tf]); only it can write a TFRecord data set through TFDS')
  tree = small_set.annotations(_LVIS_CATEGORIES)
  path, images = small_set.write(tmp_path, tree)
  builder = StockLvis(
    tree,
    images,
    ['train', 'validation', 'test'],
    data_dir=str(tmp_path / 'stock'),
    file_format='tfrecord' if request.param == 'tfrecord by tensorflow' else 'array_record',
  )
  builder.download_and_prepare()
  if request.param == 'tfrecord by hand':
    _write_tfrecord_by_hand(tmp_path / 'stock' / 'lvis' / '1.4.0')
  return tmp_path / 'stock', path, images


def test_it_gives_what_the_json_gives(stock, tmp_path):
  data_dir, path, images = stock
  version = prepare.from_tfds('lvis', tmp_path / 'out', data_dir=data_dir)
  assert version == tmp_path / 'out' / 'lvis' / '1.0.0'
  found = sources.open_dataset(version, 'train')
  expected = sources.open_dataset(prepare.prepare(path, images, tmp_path / 'json'), 'train')
  assert found.splits == ('train', 'val')
  assert found.categories == expected.categories
  assert found.categories[0].frequency == 'c'
  assert (found.has_masks, found.notes, len(found)) == (True, (), len(expected))
  for i in range(len(expected)):
    a, b = found[i], expected[i]  # in the same order, so that both give the same batches
    assert (a.image_id, a.height, a.width, a.neg_category_ids, a.not_exhaustive_category_ids) == (
      b.image_id,
      b.height,
      b.width,
      b.neg_category_ids,
      b.not_exhaustive_category_ids,
    )
    assert a.image == b.image
    np.testing.assert_array_equal(a.objects.ids, b.objects.ids)
    np.testing.assert_array_equal(a.objects.category_ids, b.objects.category_ids)
    np.testing.assert_array_equal(a.objects.is_crowd, b.objects.is_crowd)
    np.testing.assert_allclose(a.objects.boxes, b.objects.boxes, atol=64 * 2**-23)
    np.testing.assert_array_equal(a.objects.areas, np.floor(b.objects.areas))
    for mask, polygons in zip(a.objects.segmentations, b.objects.segmentations, strict=True):
      assert set(mask) == {'size', 'counts'}
      mask = sources.decode_mask(mask, a.height, a.width)
      np.testing.assert_array_equal(mask, _truncated_mask(polygons, a.height, a.width) > 0)
      exact = sources.decode_mask(polygons, a.height, a.width)
      assert exact.any() and not (mask & ~_grown(exact)).any() and not (exact & ~_grown(mask)).any()


def test_one_split_and_a_folder(stock, tmp_path):
  data_dir, _, _ = stock
  version = prepare.from_tfds(data_dir / 'lvis', tmp_path / 'out', name='ours', split='validation')
  assert version == tmp_path / 'out' / 'ours' / '1.0.0'
  assert sources.open_dataset(version, 'val').splits == ('val',)
  assert prepare.from_tfds('lvis:1.4.0', tmp_path / 'out', data_dir=data_dir, name='ours', split='val') == version
  with pytest.raises(DataError, match='has the splits test, train, validation; expected minival among them'):
    prepare.from_tfds('lvis', tmp_path / 'out', data_dir=data_dir, split='minival')


def test_coco_has_boxes_and_no_masks(tmp_path):
  _, images = small_set.write(tmp_path)
  StockCoco(images, data_dir=str(tmp_path / 'stock'), file_format='array_record').download_and_prepare()
  dataset = sources.open_dataset(prepare.from_tfds('coco', tmp_path / 'out', data_dir=tmp_path / 'stock'), 'val')
  assert not dataset.has_masks
  assert dataset.notes[0] == '1 object with a box of no size dropped'
  assert [(c.id, c.name) for c in dataset.categories] == [(c.id, c.name) for c in coco_categories()]
  o = dataset[0].objects
  assert (o.ids.tolist(), o.category_ids.tolist(), o.is_crowd.tolist(), o.segmentations) == ([8], [90], [True], ([],))
  np.testing.assert_allclose(o.boxes, [[3, 2, 23, 12]], rtol=1e-6)


def test_what_is_no_stock_data_set_is_one_line(tmp_path):
  with pytest.raises(DataError, match=r'lvis is neither a folder nor a data set in .*stock'):
    prepare.from_tfds('lvis', tmp_path / 'out', data_dir=tmp_path / 'stock')
  version = prepare.prepare(*small_set.write(tmp_path), tmp_path / 'ours')
  with pytest.raises(DataError, match='does not have the features of a stock lvis or coco'):
    prepare.from_tfds(version, tmp_path / 'out')


def test_a_picture_of_unknown_format_is_one_line_without_addresses(tmp_path):
  path, images = small_set.write(tmp_path, small_set.annotations(_LVIS_CATEGORIES))
  (images / 'train2017' / '000000000005.jpg').write_bytes(b'')
  StockLvis(
    json.loads(path.read_text()), images, ['train'], data_dir=str(tmp_path), file_format='array_record'
  ).download_and_prepare()
  with pytest.raises(
    DataError, match=r'the picture of record \d: no readable picture \(unknown format\); expected'
  ) as error:
    prepare.from_tfds(tmp_path / 'lvis' / '1.4.0', tmp_path / 'out')
  assert '0x' not in str(error.value)


def test_a_cut_tfrecord_is_one_line(tmp_path):
  tree = small_set.annotations(_LVIS_CATEGORIES)
  _, images = small_set.write(tmp_path, tree)
  StockLvis(tree, images, ['train'], data_dir=str(tmp_path), file_format='array_record').download_and_prepare()
  folder = tmp_path / 'lvis' / '1.4.0'
  _write_tfrecord_by_hand(folder)
  file = next(folder.glob('*.tfrecord-*'))
  data = file.read_bytes()
  file.write_bytes(data[:-7])
  with pytest.raises(DataError, match='ends in the middle of a record'):
    prepare.from_tfds(folder, tmp_path / 'out')
  file.unlink()
  with pytest.raises(DataError, match='is missing'):
    prepare.from_tfds(folder, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
