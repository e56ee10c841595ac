"""Reads the stock TFDS data sets `lvis` and `coco`, in ArrayRecord or TFRecord, without TensorFlow.

They differ from the original JSON files:
- Boxes are normalised float32. Here they are multiplied by the picture's size and clipped to it.
- `lvis` has labels = category id - 1 and no frequencies. Ids and frequencies are taken from our table of LVIS's
  categories.
- `lvis` holds full-size masks, drawn from polygons of whole pixels: a mask may differ from that of the JSON along its
  border, and areas are whole numbers. Masks are kept as RLE.
- `coco` has labels 0..79, which are mapped to COCO's ids by name, and NO masks. No rectangles take their place: the
  objects stay without segmentation (`PreparedDataset.has_masks` is False), and boxes alone are trained and scored.
  Prepare from COCO's own JSON to train masks.
- Boxes of no size (COCO 2017 has two) are dropped and counted.
"""

from __future__ import annotations

import collections
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data import pictures, rle, tfds_folder
from vild_jax.data.class_lists import coco_categories, lvis_categories
from vild_jax.data.schema import Category, DataError, Example, counted, make_objects
from vild_jax.data.sources import prepared_folder


def open_stock(name_or_dir: str | Path, data_dir: str | Path | None = None) -> StockDataset:
  """Opens a stock data set by its name or its folder.

  Args:
    name_or_dir: 'lvis', 'coco/2017', 'lvis:1.4.0', ..., or a folder.
    data_dir: where names are looked for; by default $TFDS_DATA_DIR, or else ~/tensorflow_datasets.

  Raises:
    DataError: there is no such data set, or not a stock one.
  """
  if Path(name_or_dir).is_dir():
    return StockDataset(prepared_folder(name_or_dir))
  root = Path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()
  folder = root / str(name_or_dir).replace(':', '/')
  if not folder.is_dir():
    raise DataError(
      f'{name_or_dir} is neither a folder nor a data set in {root}; expected a prepared TFDS data set, '
      'such as lvis or coco/2017'
    )
  return StockDataset(prepared_folder(folder))


class StockDataset:
  """Opens a stock data set on disk: its `name`, its splits, and each split as a source for `prepare.store`."""

  def __init__(self, folder: Path):
    self._builder = tfds_folder.builder(folder)
    try:
      fields = self._builder.info.features
      objects = fields['objects'].feature
      label, self.has_masks = objects['label'], 'segmentation' in objects
      lvis = self.has_masks and 'neg_category_ids' in fields
      if not lvis and 'is_crowd' not in objects:
        raise KeyError('is_crowd')
    except (KeyError, AttributeError, TypeError) as error:
      raise DataError(
        f'{folder} does not have the features of a stock lvis or coco data set (no {error}); expected image, '
        'image/id and objects with bbox, label, id and area'
      ) from None
    self._folder = folder
    self.name = self._builder.name
    self.categories = _categories(folder, label, lvis_categories() if lvis else coco_categories())

  def splits(self, split: str | None) -> list[str]:
    """Returns the splits to take: the given one, or all that have annotations. Raises DataError if there is none."""
    there = sorted(self._builder.info.splits)
    wanted = [s for s in there if s == split or (split is None and not s.startswith('test'))]
    if split == 'val' and not wanted and 'validation' in there:
      wanted = ['validation']
    if not wanted:
      raise DataError(
        f'{self._folder} has the splits {", ".join(there)}; expected {split or "train or validation"} among them'
      )
    return wanted

  def source(self, split: str) -> StockSource:
    """Opens one split as a source of examples."""
    return StockSource(self, self._folder, self._builder, split)


def _categories(folder: Path, label: Any, table: tuple[Category, ...]) -> tuple[Category, ...]:
  """Returns the category of each label: by name if the data set keeps names, else by its place in the table."""
  if not label.names:
    if label.num_classes != len(table):
      raise DataError(f'{folder} has {label.num_classes} labels without names; expected {len(table)}, or names')
    return table
  known = {c.name: c for c in table}
  if all(name in known for name in label.names):
    return tuple(known[name] for name in label.names)
  return tuple(Category(i + 1, name) for i, name in enumerate(label.names))


class StockSource:
  """Reads one split of a stock data set as an indexable of `schema.Example`; see the top of this file."""

  def __init__(self, dataset: StockDataset, folder: Path, builder: Any, split: str):
    import tensorflow_datasets as tfds

    self.categories = tuple(sorted(dataset.categories, key=lambda c: c.id))
    self.info = {'description': f'TFDS {builder.info.full_name}, split {split}'}
    self._ids = np.array([c.id for c in dataset.categories])  # label -> category id
    self._name, self._has_masks = f'{folder}, split {split}', dataset.has_masks
    self._features, self._counts = builder.info.features, collections.deque()
    # Masks are decoded: they lie in a Sequence, where only TensorFlow can skip that.
    # Boxes are fractions of the stored picture, whatever its EXIF orientation.
    self.upright, self.clipped = False, frozenset()
    self._decoders = {'image': tfds.decode.SkipDecoding()}
    files = [Path(f) for f in builder.info.splits[split].filepaths]
    missing = [f for f in files if not f.is_file()]
    if missing:
      raise DataError(f'{missing[0]} is missing ({len(missing)} of {len(files)} files); expected a whole data set')
    self._records = _open_records(files, builder.info.file_format.value)

  @property
  def notes(self) -> tuple[str, ...]:
    """Returns one line for each kind of thing that was left out of the examples read so far."""
    dropped = len(self._counts)
    notes = (f'{counted(dropped, "object")} with a box of no size dropped',) if dropped else ()
    return notes if self._has_masks else (*notes, 'no segmentations: boxes alone are trained and scored')

  def __len__(self) -> int:
    return len(self._records)

  def where(self, index: int) -> str:
    """Returns what messages call example `index`."""
    return f'{self._name}: the picture of record {index}'

  def __getitem__(self, index: int) -> Example:
    try:
      record = self._features.deserialize_example_np(self._records[index], decoders=self._decoders)
      height, width = pictures.size(record['image'], self.where(index))
    except DataError:
      raise
    except Exception as error:  # damaged bytes can raise anything in the parsers
      reason = (str(error).splitlines() or [''])[0]
      raise DataError(
        f'{self._name}: record {index} does not decode ({type(error).__name__}: {reason}); expected the '
        'features of the data set'
      ) from None
    o, rows = record['objects'], []
    crowds, masks = o.get('is_crowd', [False] * len(o['id'])), o.get('segmentation', [None] * len(o['id']))
    size = np.array([height, width, height, width], np.float64)
    columns = (o['id'], o['label'], o['bbox'], o['area'], crowds, masks)
    for key, label, box, area, crowd, mask in zip(*columns, strict=True):
      box = np.clip(np.asarray(box, np.float64) * size, 0, size)
      if box[0] >= box[2] or box[1] >= box[3]:
        self._counts.append(int(key))
        continue
      rows.append((int(key), int(self._ids[label]), box, float(area), bool(crowd), self._rle(index, key, mask, size)))
    lists = [
      tuple(int(self._ids[label]) for label in record.get(k, ()))
      for k in ('neg_category_ids', 'not_exhaustive_category_ids')
    ]
    return Example(record['image/id'], record['image'], height, width, make_objects(rows), *lists)

  def _rle(self, index: int, key: int, mask: np.ndarray | None, size: np.ndarray) -> Any:
    if mask is None:
      return []
    if mask.shape[:2] != tuple(size[:2].astype(int)):
      raise DataError(
        f'{self._name}: the mask of object {key} in record {index} has the shape {mask.shape[:2]}; '
        f'expected {tuple(size[:2].astype(int))}, that of the picture'
      )
    return rle.encode_mask(mask[:, :, 0] > 0)


def _open_records(files: list[Path], file_format: str) -> Any:
  """Opens files as an indexable of serialised examples."""
  if file_format == 'array_record':
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    return ArrayRecordDataSource([str(f) for f in files])
  if file_format == 'tfrecord':
    return _TfRecords(files)
  raise DataError(f'{files[0].parent} is in the format {file_format}; expected array_record or tfrecord')


class _TfRecords:
  """Reads TFRecord files at random: a record is its length (8 bytes, 4 of checksum), its data, 4 bytes of checksum."""

  def __init__(self, files: list[Path]):
    self._places: list[tuple[Path, int, int]] = []
    for path in files:
      size, at = path.stat().st_size, 0
      with open(path, 'rb') as f:
        while at < size:
          f.seek(at)
          header = f.read(12)
          length = struct.unpack('<Q', header[:8])[0] if len(header) == 12 else size
          if at + 16 + length > size:
            raise DataError(f'{path} ends in the middle of a record (byte {at} of {size}); expected a whole TFRecord')
          self._places.append((path, at + 12, length))
          at += 16 + length

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> bytes:
    path, at, length = self._places[index]
    with open(path, 'rb') as f:
      f.seek(at)
      return f.read(length)
