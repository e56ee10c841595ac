"""Prepares annotations and pictures as a TFDS data set (ArrayRecord) on disk, completely or not at all.

A split is built in a new hidden folder beside the target. The names of its files contain a hash of their content, so
they never replace other files. The replacement of `dataset_info.json` at the end adds the split. If a run is killed at
any moment, the earlier data set is still complete, and the next run does not use files of the killed one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from vild_jax.config import defaults
from vild_jax.data import formats, label_files
from vild_jax.data.checked import Checked, Source
from vild_jax.data.contents import Contents
from vild_jax.data.schema import Category, DataError
from vild_jax.data.sources import FEATURES_FILE, INFO_FILE, METADATA_FILE, JsonSource, read_metadata
from vild_jax.runtime import digests, files, locks, messages, progress

_WAIT_SECONDS = 600.0  # how long to wait for another process that adds a split to the same data set


def prepare(
  annotations: str | Path,
  images: str | Path,
  out: str | Path,
  *,
  name: str | None = None,
  split: str | None = None,
  overwrite: bool = False,
  drop_unusable: bool = False,
  format: str = defaults.COCO,
  names: str | Path | None = None,
  max_megapixels: int = defaults.MAX_MEGAPIXELS,
  told: Callable[[str, Contents, tuple[str, ...]], Any] | None = None,
) -> Path:
  """Stores annotations and their pictures as one split of the data set OUT/NAME/1.0.0.

  Another split of a data set that exists is added to it; it must have the same categories. Storing a split again with
  the same content restores the files of its labels, if they are missing or damaged, and changes nothing else. The same
  content gives the same bytes.

  Args:
    annotations: a LVIS- or COCO-format JSON, or what `formats.read` takes of another format.
    images: the folder of the pictures; see `pictures.stored` for what is kept of them.
    out: folder of data sets.
    name: name of the data set; default: the stem of the file without the words train and val (`lvis_v1_train` ->
      `lvis_v1`). Training, valid and validation are such words too, between separators or digits.
    split: default: 'train' or 'val', whichever word the stem contains, or else is the name of its folder; else 'train'.
    overwrite: replaces the split if it exists with other content.
    drop_unusable: leaves out annotations whose box or segmentation is of no use (`annotations.read_annotations` says
      which); without it they are an error.
    format: of the annotations, one of `defaults.FORMATS`.
    names: the file of the classes' names, for formats without them; see `formats.read`.
    max_megapixels: larger pictures are refused. Training and evaluation later read what was accepted here.
    told: called with (split, what it holds, notes of what was repaired) when the split is stored.

  Returns:
    The folder OUT/NAME/1.0.0, for `sources.open_dataset` and `tfds.builder_from_directory`.

  Raises:
    DataError: annotations, pictures, names or an existing data set do not fit; one line, and nothing is written.
  """
  split, name = split or _default_split(Path(annotations)), name or _default_name(Path(annotations))
  _check_names(name, split)
  source = JsonSource(
    annotations,
    images,
    drop_unusable=drop_unusable,
    converted=formats.read(format, annotations, images, names, drop_unusable=drop_unusable),
  )
  return store(source, out, name, split, overwrite=overwrite, max_megapixels=max_megapixels, told=told)


def from_tfds(
  name_or_dir: str | Path,
  out: str | Path,
  *,
  data_dir: str | Path | None = None,
  name: str | None = None,
  split: str | None = None,
  overwrite: bool = False,
  max_megapixels: int = defaults.MAX_MEGAPIXELS,
  told: Callable[[str, Contents, tuple[str, ...]], Any] | None = None,
) -> Path:
  """Stores a stock TFDS `lvis` or `coco` data set that is on this machine already; see `stock_tfds` for what it holds.

  Args:
    name_or_dir: 'lvis', 'lvis:1.4.0', 'coco/2017' and the like, or the folder of the data set.
    out, overwrite, max_megapixels, told: as in `prepare`; `told` is called for each split.
    data_dir: folder in which TFDS keeps its data sets; default: $TFDS_DATA_DIR or ~/tensorflow_datasets.
    name: default: the name of the stock data set.
    split: one split of the stock data set; default: all except those without annotations ('test…'). Its `validation`
      is stored as `val`.

  Returns, raises: as in `prepare`.
  """
  from vild_jax.data import stock_tfds

  stock = stock_tfds.open_stock(name_or_dir, data_dir)
  for part in stock.splits(split):
    stored_as = 'val' if part == 'validation' else part
    version = store(
      stock.source(part),
      out,
      name or stock.name,
      stored_as,
      overwrite=overwrite,
      max_megapixels=max_megapixels,
      told=told,
    )
  return version


def store(
  source: Source,
  out: str | Path,
  name: str,
  split: str,
  *,
  overwrite: bool = False,
  max_megapixels: int = defaults.MAX_MEGAPIXELS,
  told: Callable[[str, Contents, tuple[str, ...]], Any] | None = None,
) -> Path:
  """Stores every example of `source` as a split; returns the folder. Details and errors are those of `prepare`."""
  from vild_jax.data.tfds_builders import detection

  _check_names(name, split)
  version = Path(out) / name / detection.VERSION
  _check_against(version, source, split)
  with files.temporary_folder(Path(out) / f'{name}-{split}') as staging:
    content = Checked(source, max_megapixels * 10**6)
    with progress.bar(len(source), f'prepare {name}/{split}', unit='img') as bar, _quiet_tfds():
      builder = detection.Detection(name, split, content.examples(bar.update), str(staging))
      try:
        builder.download_and_prepare()
      except RuntimeError as error:  # of ArrayRecord
        raise OSError(f'{Path(out) / name} cannot be written: {messages.first_line(error)}') from error
    stored = min(len(content), builder.info.splits[split].num_examples)
    if stored != len(source):  # TFDS asks for no examples at all where it takes a data set for finished
      raise DataError(f'{name}/{split}: {stored} examples were stored; expected the {len(source)} of the source')
    with locks.locked(out, wait_seconds=_WAIT_SECONDS):
      _check_against(version, source, split)
      _commit(staging / name / detection.VERSION, version, split, content, overwrite)
  for note in content.notes():
    print(f'{name}/{split}: {note}', file=sys.stderr)
  if told is not None:
    told(split, content.counter.contents(), content.notes())
  return version


_TRAIN, _VAL = 'train(?:ing|val)?', 'val(?:id|idation)?'


def _default_split(annotations: Path) -> str:
  stem, folder = annotations.stem.lower(), annotations.absolute().parent.name.lower()
  in_stem = [bool(re.search(_word(word), stem)) for word in (_TRAIN, _VAL)]
  return (
    'val' if in_stem == [False, True] or (not any(in_stem) and re.fullmatch(rf'{_VAL}[\W\d_]*', folder)) else 'train'
  )


def _default_name(annotations: Path) -> str:
  rest = re.sub(_word(f'{_TRAIN}|{_VAL}'), '_', annotations.stem.lower())
  return re.sub(r'[^a-z0-9]+', '_', rest).strip('_') or 'dataset'


def _word(words: str) -> str:
  return f'(?<![a-z])(?:{words})(?![a-z])'


def _check_names(name: str, split: str) -> None:
  if not re.fullmatch(r'[a-zA-Z][a-zA-Z0-9_]*', name):
    raise DataError(
      f'the name {name!r} is not a name of a data set; expected letters, digits and _, a letter first: --name gives one'
    )
  if not re.fullmatch(r'[a-zA-Z][a-zA-Z0-9_]*', split) or split.lower() == 'all':
    raise DataError(
      f'the split {split!r} is not a name of a split; expected letters, digits and _, such as train or val'
    )


def _check_against(version: Path, source: Source, split: str) -> None:
  """Raises DataError if the data set exists with other categories."""
  if not version.is_dir():
    return
  categories, splits = read_metadata(version)
  if categories == list(source.categories):
    return
  mine, theirs = {c.id: c for c in source.categories}, {c.id: c for c in categories}
  key = next(k for k in sorted(mine.keys() | theirs.keys()) if mine.get(k) != theirs.get(k))
  raise DataError(
    f'{version} holds {", ".join(sorted(splits))} with other categories than the new {split}: id {key} '
    f'is {_short(theirs.get(key))} there and {_short(mine.get(key))} here; expected equal ones, or '
    'another name'
  )


def _short(category: Category | None) -> str:
  return 'absent' if category is None else f'{category.name!r} ({category.frequency or "no frequency"})'


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
  """Silences the messages, progress bars and logs of TFDS; the only bar is ours."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.utils import tqdm_utils

  level, bars = logging.get_verbosity(), tqdm_utils._active
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.display_progress_bar(bars)
    logging.set_verbosity(level)


def _commit(built: Path, version: Path, split: str, content: Checked, overwrite: bool) -> None:
  """Adds the split in the folder `built` to the data set `version`."""
  identity = content.identity()
  old = json.loads((version / INFO_FILE).read_text(encoding='utf-8')) if version.is_dir() else None
  if old and split in (present := read_metadata(version)[1]):
    if present[split]['identity'] == identity:
      _restore(built, version, split, present[split], content)
      return
    if not overwrite:
      raise DataError(
        f'{version} has a split {split!r} with other content; expected the same, another split or name, or --overwrite'
      )
  info = json.loads((built / INFO_FILE).read_text(encoding='utf-8'))
  entry, tag = info['splits'][0], identity[:16]
  entry['filepathTemplate'] = '{DATASET}-{SPLIT}-' + tag + '.{FILEFORMAT}-{SHARD_X_OF_Y}'
  shards = []
  for shard in sorted(built.glob('*-of-*')):
    tagged = shard.with_name(f'{shard.stem}-{tag}{shard.suffix}')
    files.move(shard, tagged)
    shards.append(tagged)
  labels = [shard for shard in shards if '.labels-' in shard.name]
  records = [shard for shard in shards if shard not in labels]
  metadata = {'categories': [dataclasses.asdict(c) for c in content.source.categories], 'contents': {}}
  if old:
    metadata = json.loads((version / METADATA_FILE).read_text(encoding='utf-8'))
    info['splits'] = sorted([s for s in old['splits'] if s['name'] != split] + [entry], key=lambda s: s['name'])
  metadata['contents'][f'{split}-{tag}'] = {
    'identity': identity,
    'info': content.source.info,
    'notes': list(content.notes()),
    'has_masks': bool(content.counter.contents().has_mask.all()),
    'records': label_files.described(records),
    **_of_labels(labels, content),
  }
  text = json.dumps(info, indent=2).encode()
  _list_json(metadata, built, version if old else None, text)
  files.write(built / METADATA_FILE, digests.sealed(metadata))
  files.write(built / INFO_FILE, text)
  if old is None:
    version.parent.mkdir(parents=True, exist_ok=True)
    try:
      files.move(built, version)
    except OSError:
      with contextlib.suppress(OSError):  # not empty
        version.parent.rmdir()
      raise
    return
  for file in [*shards, built / METADATA_FILE, built / INFO_FILE]:  # the last one adds the split
    files.move(file, version / file.name)
  for template in [s['filepathTemplate'] for s in old['splits'] if s['name'] == split]:
    stale = template.partition('-{SPLIT}-')[2].partition('.')[0]
    for shard in version.glob(f'*-{split}-{stale}.*-of-*'):
      shard.unlink()


def _list_json(metadata: dict[str, Any], built: Path, version: Path | None, info: bytes) -> None:
  """Adds the hashes of dataset_info.json and features.json, {name: hashes that are right}, to the metadata.

  The metadata are replaced before dataset_info.json, so that both the old and the new one are right.
  """
  digest = hashlib.sha256(info).hexdigest()
  features = digests.sha256(built / FEATURES_FILE)
  if version is None:
    metadata['files'] = {INFO_FILE: [digest], FEATURES_FILE: [features]}
    return
  listed = metadata.setdefault('files', {})
  listed[INFO_FILE] = list(dict.fromkeys([digests.sha256(version / INFO_FILE), digest]))
  if FEATURES_FILE not in listed and digests.sha256(version / FEATURES_FILE) == features:
    listed[FEATURES_FILE] = [features]


def _of_labels(paths: list[Path], content: Checked) -> dict[str, Any]:
  """What the metadata of a split says of its labels."""
  found = content.counter.contents()
  ids = np.array([category.id for category in found.categories], np.int64)[found.category]
  counts = label_files.count(found.categories, ids, found.is_crowd, found.has_mask)
  return {'labels': label_files.described(paths), 'counts': counts}


def _restore(built: Path, version: Path, split: str, record: dict[str, Any], content: Checked) -> None:
  """Repairs the split in `version` by the same one in `built`: missing or damaged files, and what older versions lack.

  Raises DataError if records are damaged and those of `built` have other bytes, as another version of TFDS makes them.
  """
  from vild_jax.data.tfds_builders import detection

  tag, labels_made = record['identity'][:16], sorted(built.glob('*.labels-*-of-*'))
  made, listed = sorted(built.glob('*.array_record-*')), record.get('records')
  if listed and len(listed) == len(made):
    named = [version / f'{path.stem}-{tag}{path.suffix}' for path in made]
  else:
    named = sorted(version.glob(f'*-{split}-{tag}.array_record-*-of-*'))
  named_labels = [detection.labels_file(path) for path in named]
  wrong = label_files.problem(named, listed) if listed else ''
  if listed and not wrong and 'counts' in record and not label_files.problem(named_labels, record['labels']):
    return
  of_made, moved = label_files.described(made), []
  if wrong:
    if of_made != listed:
      raise DataError(f'{wrong}; expected the records as they were prepared: prepare into another --out')
    moved = list(zip(made, named, strict=True))
    print(f'{wrong}; {version} gets its records again', file=sys.stderr)
  if len(labels_made) != len(named_labels):
    return  # another version of TFDS or of a PNG writer divides the records otherwise; theirs are read whole
  metadata = json.loads((version / METADATA_FILE).read_text(encoding='utf-8'))
  ours = metadata['contents'][f'{split}-{tag}']
  if not listed and of_made == label_files.described(named):
    ours['records'] = of_made
  ours |= _of_labels(labels_made, content)
  for path, target in [*moved, *zip(labels_made, named_labels, strict=True)]:
    files.move(path, target)
  _list_json(metadata, built, version, (version / INFO_FILE).read_bytes())
  files.write(version / METADATA_FILE, digests.sealed(metadata))
