"""Opens the sources of examples: an annotation file with its image folder, or a prepared data set on disk."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data import label_files
from vild_jax.data.json_source import JsonSource
from vild_jax.data.rle import decode_mask
from vild_jax.data.schema import Category, DataError, Example
from vild_jax.runtime import files, progress

__all__ = [
  'JsonSource',
  'PreparedDataset',
  'Subset',
  'decode_mask',
  'ground_truth',
  'open_dataset',
  'prepared_folder',
  'read_metadata',
  'showing',
]

# Only one thread at a time may import TFDS. During its import TFDS replaces `import` in the whole process by a lazy
# one; a second thread that imports it at that time and the first would wait for each other.
_OPENING = threading.Lock()


def prepared_folder(path: str | Path) -> Path:
  """Finds the folder OUT/NAME/VERSION of a data set in TFDS's layout.

  Args:
    path: that folder, or OUT/NAME or OUT if there is only one data set below.

  Raises:
    DataError: there is no data set, or there are several, which the message lists.
  """
  path = files.local(path)
  if not path.is_dir():
    raise DataError(f'{path} is not a folder; expected the folder of a data set, as vild-jax prepare writes it')
  found = (
    [path]
    if (path / 'dataset_info.json').is_file()
    else sorted(
      info.parent
      for depth in ('*', '*/*')
      for info in path.glob(f'{depth}/dataset_info.json')
      if not any(part.startswith('.') for part in info.relative_to(path).parts)
    )
  )
  if not found:
    raise DataError(f'{path} holds no data set; expected the folder of one, as vild-jax prepare writes it')
  if len(found) > 1:
    raise DataError(f'{path} holds {len(found)} data sets; expected one of ' + ', '.join(str(f) for f in found))
  return found[0]


def read_metadata(folder: Path) -> tuple[list[Category], dict[str, dict[str, Any]]]:
  """Returns (categories, {split: its record}) of the prepared data set in the folder OUT/NAME/VERSION.

  The record of a split has `identity`, `examples`, `info`, `notes` and `has_masks`, and unless the split is of an older
  version `counts` ({category id: `label_files.Counts`}) and `labels` (`label_files.described`). Its file names include
  the key of its content in `metadata.json`, so that `dataset_info.json`, which is written last, alone decides which
  files belong together. Raises DataError if `vild-jax prepare` did not write the folder.
  """
  try:
    info = json.loads((folder / 'dataset_info.json').read_text(encoding='utf-8'))
    metadata = json.loads((folder / 'metadata.json').read_text(encoding='utf-8'))
    categories = [Category(**{**c, 'synonyms': tuple(c['synonyms'])}) for c in metadata['categories']]
    splits = {}
    for split in info['splits']:
      content = split['name'] + '-' + split['filepathTemplate'].partition('-{SPLIT}-')[2].partition('.')[0]
      splits[split['name']] = {**metadata['contents'][content], 'examples': sum(map(int, split['shardLengths']))}
  except (OSError, KeyError, TypeError, ValueError) as error:
    raise DataError(
      f'{folder} is not a data set that vild-jax prepare wrote ({type(error).__name__}: {error}); a stock '
      'TFDS data set must go through prepare --from-tfds first'
    ) from None
  return categories, splits


class PreparedDataset:
  """Reads one split of a prepared data set: `len`, and `[i] -> Example` with the picture still encoded.

  Files are opened on first use, once in each process, so that it can be pickled for Grain's workers; threads may share
  it.

  Attributes:
    folder: OUT/NAME/VERSION.
    categories: of the whole data set, by id.
    split, splits: the name of this split, and those of all splits.
    info: `info` of the annotation file.
    notes: what preparation repaired.
    has_masks: False if some object has no segmentation.
    identity: hash of the split's content; it does not depend on where and when the split was prepared.
  """

  def __init__(self, path: str | Path, split: str):
    self.folder = prepared_folder(path).resolve()
    categories, records = read_metadata(self.folder)
    if split not in records:
      raise DataError(f'{self.folder} has no split {split!r}; expected one of ' + ', '.join(sorted(records)))
    record = records[split]
    self.categories: tuple[Category, ...] = tuple(categories)
    self.split, self.splits = split, tuple(sorted(records))
    self.info: dict[str, Any] = record['info']
    self.notes: tuple[str, ...] = tuple(record['notes'])
    self.has_masks: bool = record['has_masks']
    self.identity: str = record['identity']
    self._length: int = record['examples']
    self._counts, self._labels = record.get('counts'), record.get('labels')
    self._opened: tuple[Any, Any, list[Path]] | None = None

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Example:
    if not -self._length <= index < self._length:
      raise IndexError(f'example {index} of {self._length}')
    source, from_features, _ = self._open()
    return from_features(source[index % self._length])

  def labels(self) -> Iterator[Example]:
    """Yields all examples in order without their pictures: `image` is b''.

    They stand in files of their own, so that a large data set takes seconds. A data set without any of these files, as
    older ones are, is read whole. Raises DataError if they are not those of the data set.
    """
    _, _, written = self._open()
    from vild_jax.data.tfds_builders import detection

    paths = [detection.labels_file(path) for path in written]
    if any(path.is_file() for path in paths):
      yield from label_files.read(paths, len(self), self._labels)
    else:
      yield from (dataclasses.replace(self[i], image=b'') for i in range(len(self)))

  def counts(self, *, quiet: bool = False) -> dict[int, label_files.Counts]:
    """Returns how many objects there are of each category, by its id.

    Preparation has counted them. In data sets of older versions they are counted now, with progress unless `quiet`.
    """
    if self._counts is None:
      labels = progress.track(self.labels(), 'count objects', total=len(self), unit='image', disable=quiet)
      objects = (example.objects for example in labels)
      found = [(o.category_ids, o.is_crowd, np.array([*map(bool, o.segmentations)], bool)) for o in objects]
      columns = zip((np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, bool)), *found, strict=True)
      self._counts = label_files.count(self.categories, *map(np.concatenate, columns))
    return {int(key): label_files.Counts(*row) for key, row in self._counts.items()}

  def __repr__(self) -> str:  # Grain prints it; the default repr changes from run to run
    return f'PreparedDataset({self.folder.parent.name!r}, split={self.split!r}, identity={self.identity[:12]!r})'

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_opened': None}

  def _open(self) -> tuple[Any, Any, list[Path]]:
    """Returns the records, the function that turns one into an example, and the files of the records."""
    if self._opened is None:
      with _OPENING:
        if self._opened is None:
          import tensorflow_datasets as tfds  # takes a second, and only reading pictures needs it

          from vild_jax.data.tfds_builders.detection import from_features

          builder = tfds.builder_from_directory(self.folder)
          source = builder.as_data_source(self.split, decoders={'image': tfds.decode.SkipDecoding()})
          self._opened = source, from_features, [Path(p) for p in builder.info.splits[self.split].filepaths]
    return self._opened


class Subset:
  """Holds some pictures of a prepared data set, in their order; otherwise used as one.

  Attributes:
    dataset: the whole data set.
    indices: int64 [n], the pictures.
  """

  def __init__(self, dataset: PreparedDataset, indices: np.ndarray):
    self.dataset, self.indices = dataset, indices
    self.folder, self.categories, self.info = dataset.folder, dataset.categories, dataset.info

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, index: int) -> Example:
    return self.dataset[int(self.indices[index])]

  def labels(self) -> Iterator[Example]:
    """Yields its examples in order without their pictures, as `PreparedDataset.labels` does."""
    wanted = set(self.indices.tolist())
    chosen = ((i, example) for i, example in enumerate(self.dataset.labels()) if i in wanted)
    if (np.diff(self.indices) > 0).all():
      yield from (example for _, example in chosen)
      return
    found = dict(chosen)
    yield from (found[i] for i in self.indices.tolist())

  def __repr__(self) -> str:  # Grain prints it
    return f'Subset({self.dataset!r}, {len(self)} pictures)'


def showing(dataset: PreparedDataset, categories: Collection[int], what: str, *, quiet: bool = False) -> Subset:
  """Returns the pictures that show an object of one of these category ids, crowds included; says how many on stderr.

  Raises DataError if there is no such picture.

  Args:
    dataset: the data set.
    categories: ids.
    what: what the categories are, for messages, and which setting asks for it.
    quiet: say nothing, for all processes but the first.
  """
  wanted = np.array(sorted(categories), np.int64)
  kept = [
    i
    for i, example in enumerate(
      progress.track(dataset.labels(), 'pictures with objects', total=len(dataset), unit='image', disable=quiet)
    )
    if np.isin(example.objects.category_ids, wanted).any()
  ]
  if not kept:
    raise DataError(f'{dataset.folder}: none of the {len(dataset)} pictures shows an object of {what}')
  if not quiet:
    print(f'{len(kept):,} of {len(dataset):,} pictures show an object of {what}', file=sys.stderr)
  return Subset(dataset, np.array(kept, np.int64))


def open_dataset(path: str | Path, split: str) -> PreparedDataset:
  """Opens one split of what `vild-jax prepare` wrote; `path` is OUT/NAME/VERSION, OUT/NAME or OUT.

  Raises DataError if there is no data set, if there are several, or if it has no such split.
  """
  return PreparedDataset(path, split)


def ground_truth(dataset: PreparedDataset, *, quiet: bool = False) -> tuple[dict[str, Any], list[int]]:
  """Returns the ground truth of a split in LVIS's format, for evaluation, and the image ids in the split's order.

  It has xywh boxes, areas, segmentations and the federated lists. Categories have a `frequency` if the data set has
  frequencies, and objects a `segmentation` if they have a mask. Boxes and areas equal those of the annotation file, up
  to clipping and float32. `quiet` hides the progress.
  """
  images, annotations = [], []
  for example in progress.track(dataset.labels(), 'read labels', total=len(dataset), unit='image', disable=quiet):
    images.append(
      {
        'id': example.image_id,
        'height': example.height,
        'width': example.width,
        'neg_category_ids': list(example.neg_category_ids),
        'not_exhaustive_category_ids': list(example.not_exhaustive_category_ids),
      }
    )
    o = example.objects
    for j in range(len(o.ids)):
      y1, x1, y2, x2 = (float(v) for v in o.boxes[j])
      annotations.append(
        {
          'id': int(o.ids[j]),
          'image_id': example.image_id,
          'category_id': int(o.category_ids[j]),
          'bbox': [x1, y1, x2 - x1, y2 - y1],
          'area': float(o.areas[j]),
          'iscrowd': int(o.is_crowd[j]),
        }
        | ({'segmentation': o.segmentations[j]} if o.segmentations[j] else {})
      )
  categories = [
    {'id': c.id, 'name': c.name, 'synset': c.synset, 'synonyms': list(c.synonyms)}
    | ({'frequency': c.frequency} if c.frequency else {})
    for c in dataset.categories
  ]
  tree = {
    'info': dataset.info,
    'images': sorted(images, key=lambda image: image['id']),
    'annotations': sorted(annotations, key=lambda annotation: annotation['id']),
    'categories': categories,
  }
  return tree, [image['id'] for image in images]
