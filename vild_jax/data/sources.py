"""Opens the sources of examples: an annotation file with its image folder, or a prepared data set on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data import label_files, tfds_folder
from vild_jax.data.json_source import JsonSource
from vild_jax.data.rle import decode_mask
from vild_jax.data.schema import Category, DataError, Example
from vild_jax.runtime import digests, files, progress, reading
from vild_jax.runtime.messages import shown

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

INFO_FILE, METADATA_FILE, FEATURES_FILE = 'dataset_info.json', 'metadata.json', 'features.json'
# Only one thread at a time may import TFDS. During its import TFDS replaces `import` in the whole process by a lazy
# one; a second thread that imports it at that time and the first would wait for each other.
_OPENING = threading.Lock()
_AGAIN = 'a whole file: copy the data set again, or prepare it anew'


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
    if (path / INFO_FILE).is_file()
    else sorted(
      info.parent
      for depth in ('*', '*/*')
      for info in path.glob(f'{depth}/{INFO_FILE}')
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

  The record of a split has `identity`, `files` with their `lengths` in pictures, `info`, `notes` and `has_masks`, and
  unless the split is of an older version `counts` ({category id: `label_files.Counts`}), `labels`
  and `records` (`label_files.described`). Its file names include the key of its content in `metadata.json`, so that
  `dataset_info.json`, which is written last, alone decides which files belong together. Raises DataError if
  `vild-jax prepare` did not write the folder, or a JSON file of it has changed.
  """
  problem = 'is not a data set that vild-jax prepare wrote'
  expected = 'one, through which a stock TFDS data set must go first: prepare --from-tfds'
  if lacking := [name for name in (INFO_FILE, METADATA_FILE) if not (folder / name).is_file()]:
    raise DataError(f'{folder} {problem}: it has no {lacking[0]}; expected {expected}')
  # When `prepare` adds a split, it writes the metadata first, with the hashes of the old INFO_FILE and of the new one.
  # Read in the other order, and once, the two fit together whenever that happens.
  of_prepare = 'what vild-jax prepare wrote'
  texts = {name: reading.json_bytes(folder / name, of_prepare, error=DataError) for name in (INFO_FILE, METADATA_FILE)}
  info, metadata = (
    reading.json_object(folder / name, of_prepare, error=DataError, text=text) for name, text in texts.items()
  )
  with reading.parsing(folder, expected, error=DataError, problem=problem):
    categories = [_category(c) for c in metadata['categories']]
    splits = {}
    for split in info['splits']:
      content = split['name'] + '-' + split['filepathTemplate'].partition('-{SPLIT}-')[2].partition('.')[0]
      splits[split['name']] = _record(metadata['contents'][content], split, folder, info['name'])
  if wrong := _damage(folder, metadata, texts):
    raise DataError(f'{wrong}; expected the data set as it was prepared: copy it again, or prepare it anew')
  return categories, splits


def _damage(folder: Path, metadata: dict[str, Any], texts: dict[str, bytes]) -> str:
  """Says which of the three JSON files of a data set is not as it was prepared; '' for none, or an older data set.

  `texts` are the contents of those that are read already.
  """
  if 'sha256' in metadata and not digests.is_whole(texts[METADATA_FILE]):
    return f'{folder / METADATA_FILE} is damaged: it does not have the checksum that it states'
  for name, expected in metadata.get('files', {}).items():
    text = texts[name] if name in texts else (folder / name).read_bytes() if (folder / name).is_file() else b''
    if hashlib.sha256(text).hexdigest() not in expected:
      return f'{folder / name} is damaged: it does not have the checksum that {METADATA_FILE} states'
  return ''


def _category(tree: dict[str, Any]) -> Category:
  made = Category(**{**tree, 'synonyms': tuple(tree['synonyms'])})
  if type(made.id) is not int or not all(isinstance(text, str) for text in (made.name, made.frequency, made.synset)):
    raise ValueError(f'the category {shown(tree)}')
  if not all(isinstance(word, str) for word in made.synonyms):
    raise ValueError(f'the synonyms {shown(tree["synonyms"])}')
  return made


def _record(content: dict[str, Any], split: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
  """Returns the record of a split; raises for whatever is not as preparation writes it."""
  for key, kind in (('identity', str), ('info', dict), ('notes', list), ('has_masks', bool)):
    if not isinstance(content[key], kind):
      raise ValueError(f'{key} is {shown(content[key])}')
  if (counts := content.get('counts')) is not None:
    content = content | {'counts': {int(key): label_files.Counts(*map(int, row)) for key, row in counts.items()}}
  for key in ('labels', 'records'):
    if (listed := content.get(key)) is not None:
      content = content | {key: [{'bytes': int(one['bytes']), 'sha256': str(one['sha256'])} for one in listed]}
  lengths = [int(length) for length in split['shardLengths']]
  fixed = split['filepathTemplate'].replace('{DATASET}', name).replace('{SPLIT}', split['name'])
  fixed = fixed.replace('{FILEFORMAT}', 'array_record')
  if min(lengths, default=-1) < 0 or '/' in fixed or not reading.is_place(fixed):
    raise ValueError(f'a split of the files {shown(fixed)} with {lengths[:3]} pictures')
  files = [
    folder / fixed.replace('{SHARD_X_OF_Y}', f'{number:05d}-of-{len(lengths):05d}') for number in range(len(lengths))
  ]
  return {**content, 'notes': [str(note) for note in content['notes']], 'files': files, 'lengths': lengths}


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
    self._ends = np.cumsum([0, *record['lengths']])[1:]
    self._length, self._files = int(self._ends[-1]), record['files']
    if missing := [path for path in self._files if not path.is_file()]:
      raise DataError(f'{missing[0]} is missing ({len(missing)} of {len(self._files)} files); expected {_AGAIN}')
    self._counts, self._labels, self._records = record.get('counts'), record.get('labels'), record.get('records')
    self._opened: tuple[Any, Any, list[Path]] | None = None

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index: int) -> Example:
    if not -self._length <= index < self._length:
      raise IndexError(f'example {index} of {self._length}')
    source, from_features, _ = self._open()
    index %= self._length
    file = self._files[int(np.searchsorted(self._ends, index, side='right'))]
    with reading.parsing(file, _AGAIN, error=DataError, problem=f'has no readable example {index}'):
      return from_features(source[index])

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

  @property
  def has_checksums(self) -> bool:
    """Tells whether the metadata list checksums of all files of the split; those of older versions do not."""
    return self._records is not None and self._labels is not None

  @property
  def size(self) -> int:
    """Returns the bytes of all files that the metadata list."""
    return sum(file['bytes'] for file in (self._records or []) + (self._labels or []))

  def damage(self, told: Callable[[int], Any] = lambda count: None) -> list[str]:
    """Returns what is not as it was prepared, a line each for records and labels; reads all that the metadata list.

    `told` is as in `digests.sha256`.
    """
    from vild_jax.data.tfds_builders import detection

    _, _, records = self._open()
    labels = [detection.labels_file(path) for path in records]
    pairs = ((records, self._records), (labels, self._labels))
    lines = [label_files.problem(paths, listed, told) for paths, listed in pairs if listed is not None]
    return [line for line in lines if line]

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
    return dict(self._counts)

  def __repr__(self) -> str:  # Grain prints it; the default repr changes from run to run
    return f'PreparedDataset({self.folder.parent.name!r}, split={self.split!r}, identity={self.identity[:12]!r})'

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_opened': None}

  def _open(self) -> tuple[Any, Any, list[Path]]:
    """Returns the records, the function that turns one into an example, and the files of the records."""
    if self._opened is None:
      with _OPENING:
        if self._opened is None:
          builder = tfds_folder.builder(self.folder)
          import tensorflow_datasets as tfds

          from vild_jax.data.tfds_builders.detection import from_features

          with reading.parsing(self.folder, _AGAIN, error=DataError):
            source = builder.as_data_source(self.split, decoders={'image': tfds.decode.SkipDecoding()})
            if len(source) != self._length:
              raise DataError(f'{self.folder} has {len(source)} examples; expected {self._length}')
          self._opened = source, from_features, self._files
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
  dataset = PreparedDataset(path, split)
  # Before there are other threads: what they import meanwhile would be lazy modules of TFDS, which cannot be called.
  import tensorflow_datasets  # noqa: F401

  return dataset


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
