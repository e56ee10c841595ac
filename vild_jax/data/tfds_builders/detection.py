"""Writes a split of pictures with boxes and masks as a TFDS data set in ArrayRecord, without TensorFlow.

`to_features` and `from_features` convert between `schema.Example` and the stored record.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.proto import tf_example_pb2

from vild_jax.data.schema import Example, make_objects

VERSION = '1.0.0'
_IMAGE = 'image'
_LABELS_TOGETHER = 64  # records that are compressed as one: those without a picture are small, and read in order


def features() -> tfds.features.FeaturesDict:
  """Returns the fields of a record.

  Boxes are yxyx in absolute pixels (TFDS's own BBoxFeature would normalise them); ids are those of the data set.
  """
  return tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(doc='JPEG or PNG'),
      'image/id': np.int64,
      'height': np.int64,
      'width': np.int64,
      'neg_category_ids': tfds.features.Sequence(np.int64),
      'not_exhaustive_category_ids': tfds.features.Sequence(np.int64),
      'objects': tfds.features.Sequence(
        {
          'id': np.int64,
          'bbox': tfds.features.Tensor(shape=(4,), dtype=np.float32, doc='ymin, xmin, ymax, xmax in pixels'),
          'category_id': np.int64,
          'area': np.float32,
          'is_crowd': np.bool_,
          'segmentation': tfds.features.Text(doc='JSON: polygons [[x, y, ...], ...] or an RLE {"size", "counts"}'),
        }
      ),
    }
  )


def label_features() -> tfds.features.FeaturesDict:
  """Returns the fields of a record without its picture, as the file `labels_file` holds them."""
  return tfds.features.FeaturesDict({key: field for key, field in features().items() if key != _IMAGE})


def labels_file(path: str | os.PathLike[str]) -> Path:
  """Returns the file beside a file of records that has the same ones without pictures, in the same order."""
  return Path(path).with_name(Path(path).name.replace('.array_record', '.labels'))


def to_features(example: Example) -> dict[str, Any]:
  """Turns an example into the fields of a record, for TFDS to encode."""
  o = example.objects
  return {
    'image': example.image,
    'image/id': example.image_id,
    'height': example.height,
    'width': example.width,
    'neg_category_ids': list(example.neg_category_ids),
    'not_exhaustive_category_ids': list(example.not_exhaustive_category_ids),
    'objects': [
      {
        'id': o.ids[i],
        'bbox': o.boxes[i],
        'category_id': o.category_ids[i],
        'area': np.float32(o.areas[i]),
        'is_crowd': o.is_crowd[i],
        'segmentation': json.dumps(o.segmentations[i], separators=(',', ':')),
      }
      for i in range(len(o.ids))
    ],
  }


def from_features(record: dict[str, Any]) -> Example:
  """Turns a record that was read without decoding its picture into an example: the inverse of `to_features`.

  A record of a `labels_file` gives an example whose `image` is empty.
  """
  o = record['objects']
  rows = zip(
    o['id'], o['category_id'], o['bbox'], o['area'], o['is_crowd'], map(json.loads, o['segmentation']), strict=True
  )
  return Example(
    record['image/id'],
    record.get(_IMAGE, b''),
    record['height'],
    record['width'],
    make_objects(list(rows)),
    tuple(int(c) for c in record['neg_category_ids']),
    tuple(int(c) for c in record['not_exhaustive_category_ids']),
  )


class Detection(tfds.core.GeneratorBasedBuilder):
  """Writes one split. TFDS orders the records by a hash of the image id; the order of `examples` does not matter."""

  VERSION = tfds.core.Version(VERSION)

  def __init__(self, name: str, split: str, examples: Iterable[Example], data_dir: str):
    self.name = name  # by default TFDS uses the name of the class
    self._split, self._examples = split, examples
    super().__init__(data_dir=data_dir, file_format='array_record')

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      features=features(),
      description='Pictures with boxes, masks and federated category lists, by vild-jax '
      'prepare. The categories stand in the metadata.',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    del dl_manager  # nothing is downloaded
    return {self._split: self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    for example in self._examples:
      yield example.image_id, to_features(example)

  def _example_writer(self) -> tfds_writer.ExampleWriter:
    return _CanonicalWriter(file_format=self.info.file_format)


class _CanonicalWriter(tfds_writer.ExampleWriter):
  """Writes each file of records and its `labels_file`.

  Equal content gives equal bytes: by default protobuf orders the fields differently in every process.
  """

  def write(self, path, examples):
    labels = array_record_module.ArrayRecordWriter(str(labels_file(path)), f'group_size:{_LABELS_TOGETHER}')

    def records() -> Iterator[tuple[Any, bytes]]:
      for key, data in examples:
        example = tf_example_pb2.Example.FromString(data)
        yield key, example.SerializeToString(deterministic=True)
        del example.features.feature[_IMAGE]
        labels.write(example.SerializeToString(deterministic=True))

    written = super().write(path, records())
    labels.close()
    return written
