"""Checks whether data sets, region stores, bundles, work directories, vocabularies and teachers are whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vild_jax import vocabulary as vocabulary_lib
from vild_jax.config import Config
from vild_jax.data import pictures, sources
from vild_jax.data.regions import records, verified
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.schema import DataError
from vild_jax.eval import summary
from vild_jax.runtime import files, messages, progress
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import files as teacher_files
from vild_jax.train import bundle_files, checkpoint, retention, sealed, timing, weights, writers
from vild_jax.workflows.training import DATA_FILE


@dataclass(frozen=True)
class Thing:
  """Holds what was found of one thing, such as a file or a checkpoint.

  Attributes:
    name: the thing.
    problem: what is wrong, in one line; '' if it is whole.
    note: what was checked, or could not be.
  """

  name: str
  problem: str
  note: str


@dataclass(frozen=True)
class Report:
  """Holds what was found below a path, which is of the `kind`, in words."""

  path: Path
  kind: str
  things: tuple[Thing, ...]

  @property
  def damaged(self) -> int:
    """Returns how many things are not whole."""
    return sum(bool(thing.problem) for thing in self.things)

  def lines(self) -> list[str]:
    """Returns a line for each thing, and one for all."""
    lines = [f'{"DAMAGED" if t.problem else "whole  "}  {t.name}: {t.problem or t.note}' for t in self.things]
    of = f'{self.damaged} of {len(self.things)} things are not whole' if self.damaged else 'whole'
    return [*lines, f'{self.path}: {self.kind}, {of}']

  def as_json(self) -> dict[str, Any]:
    """Returns the same in JSON values."""
    things = [{'name': thing.name, 'problem': thing.problem, 'note': thing.note} for thing in self.things]
    return {'path': str(self.path), 'kind': self.kind, 'whole': not self.damaged, 'things': things}


def check(path: str | Path) -> Report:
  """Finds out what is at a path, and checks all of it that can be checked.

  Raises ValueError if it is an address, nothing is there, or nothing that is known.
  """
  path = files.local(path)
  for kind, is_it, things in _KINDS:
    if is_it(path):
      return Report(path, kind, tuple(things(path)))
  if not path.exists():
    raise ValueError(f'{path} does not exist; expected {", ".join(kind for kind, _, _ in _KINDS)}')
  raise ValueError(f'{path} is nothing that is known; expected {", ".join(kind for kind, _, _ in _KINDS)}')


# --- kinds ----------------------------------------------------------------------------------------------------------


def _vocabulary(path: Path) -> Iterator[Thing]:
  def read() -> str:
    found = vocabulary_lib.load(path)
    return vocabulary_lib.describe(found)

  yield _tried(path.name, read)


def _bundle(path: Path) -> Iterator[Thing]:
  about: dict[str, Any] = {}
  yield _tried(bundle_files.BUNDLE_FILE, lambda: about.update(bundle_files.read_about(path)))
  listed = about.get('files', {})
  with _reading(sum(one['bytes'] for one in listed.values())) as told:
    problems = list(bundle_files.problems(path, listed, told=told)) if listed else []
  yield from (Thing('files', problem, '') for problem in problems)
  if not problems:
    yield Thing(
      'files', '', f'{len(listed)} files as exported' if listed else 'no checksums: format 1, or no bundle.json'
    )
  yield from _experiment(path)
  config = _config(path)
  if config:
    yield _tried(weights.VARIABLES, lambda: _arrays(path / weights.VARIABLES, config))
  for name in (bundle_files.TEXT_TOWER, bundle_files.IMAGE_TOWER):
    if (path / name).is_dir():
      yield from _teacher(path / name)


def _converted(path: Path) -> Iterator[Thing]:
  if (path / checkpoint.CONFIG_FILE).is_file():
    yield from _experiment(path)
  yield _sealed(weights.VARIABLES, path / weights.VARIABLES, _config(path))


def _workdir(path: Path) -> Iterator[Thing]:
  yield from _experiment(path)
  config = _config(path)
  for name in (DATA_FILE, timing.GOODPUT_FILE):
    if (path / name).is_file():
      yield _tried(name, lambda name=name: _json(path / name))
  if (path / writers.METRICS_FILE).is_file():
    yield _tried(writers.METRICS_FILE, lambda: _lines(path / writers.METRICS_FILE))
  if (path / retention.FOLDER).is_dir():
    yield _sealed(retention.FOLDER, path / retention.FOLDER, None)
  try:
    steps = weights.steps(path)
  except ValueError as error:
    yield Thing(weights.CHECKPOINTS, messages.first_line(error), '')
    return
  for step in steps:
    yield _sealed(f'{weights.CHECKPOINTS}/{step}', weights.find(path, step), config)


def _teacher(path: Path) -> Iterator[Thing]:
  def read() -> str:
    has = lambda name: (path / name).is_file()
    if has(teacher_files.TOKENIZER) and has(teacher_files.PREPROCESSOR):
      found = teacher_checkpoint.load_teacher(path)
      return f'towers {found.text_identity} and {found.image_identity}, all weights finite'
    if has(teacher_files.PREPROCESSOR):
      return f'image tower {teacher_checkpoint.load_image_tower(path).image_identity}, all weights finite'
    return f'text tower {teacher_checkpoint.load_text_tower(path).text_identity}, all weights finite'

  yield _tried(path.name, read)


def _store(path: Path) -> Iterator[Thing]:
  opened: list[RegionStore] = []
  yield _tried(records.MANIFEST_FILE, lambda: opened.append(RegionStore(path)))
  if not opened:
    return
  store, boxes = opened[0], []
  with progress.bar(store.images, 'read', unit='image') as bar:
    for number, (shard, _) in enumerate(store.shards()):
      yield _tried(shard.name, lambda number=number: _shard(store, number, boxes, bar.update))

  def identity() -> str:
    if hashlib.sha256(''.join(boxes).encode()).hexdigest() != store.boxes_identity:
      raise DataError(f'the boxes are not those that {records.MANIFEST_FILE} says')
    return f'{store.regions} regions of {store.images} images'

  yield _tried('boxes', identity)


def _shard(store: RegionStore, number: int, boxes: list[str], told: Callable[[], Any]) -> str:
  """Reads a shard and what its sidecar says of it; adds the hashes of its boxes to `boxes`."""
  shard, digest = store.shards()[number]
  verified.check(shard, digest)
  ids = [int(store.image_ids[i]) for i in store.job.examples(number)]
  counts, of_boxes = [], []
  for image_id in ids:
    regions = store[image_id]  # checks shapes, order and that all numbers are finite
    counts.append(len(regions.boxes))
    of_boxes.append(records.boxes_digest(image_id, regions.boxes))
    told()
  boxes.extend(of_boxes)
  sidecar = shard.with_suffix('.json')
  if sidecar.is_file():
    said = json.loads(sidecar.read_bytes())
    found = {'bytes': shard.stat().st_size, 'sha256': digest, 'image_ids': ids, 'regions': counts, 'boxes': of_boxes}
    found |= {'job': records.digest(store.job)} if 'job' in said else {}
    if said != found:
      raise DataError(f'{sidecar} does not say what the shard is; expected the file as it was written')
  return f'{len(ids)} images as written'


def _dataset(path: Path) -> Iterator[Thing]:
  folder, splits = sources.prepared_folder(path), []
  yield _tried(sources.METADATA_FILE, lambda: splits.extend(sources.read_metadata(folder)[1]))
  for split in splits:
    yield _tried(split, lambda split=split: _split(sources.PreparedDataset(folder, split)))


def _split(dataset: sources.PreparedDataset) -> str:
  if dataset.has_checksums:
    with _reading(dataset.size) as told:
      problems = dataset.damage(told)
    if problems:
      raise DataError('; '.join(problems))
  label_count = sum(1 for _ in dataset.labels())
  if label_count != len(dataset):
    raise DataError(f'{label_count} labels of {len(dataset)} pictures')
  if dataset.has_checksums:
    return f'{len(dataset)} pictures as prepared'
  for index in progress.track(range(len(dataset)), 'decode', unit='image'):
    try:
      pictures.decode_example(dataset[index])
    except DataError:
      raise
    except Exception as error:  # of ArrayRecord and protobuf
      raise DataError(f'{dataset.folder}: picture {index} cannot be read ({messages.first_line(error)})') from None
  return f'{len(dataset)} pictures decoded (no checksums: prepare the split again with the same command to add them)'


def _evaluation(path: Path) -> Iterator[Thing]:
  for name in (summary.RESULTS_FILE, summary.METRICS_FILE):
    if (path / name).is_file():
      yield _tried(name, lambda name=name: _json(path / name))
    else:
      yield Thing(name, f'{path / name} is missing; the same `vild-jax evaluate` writes it', '')
  if (path / summary.METRICS_FILE).is_file():
    yield _tried('identity', lambda: _identity(path / summary.METRICS_FILE))


_KINDS: tuple[tuple[str, Callable[[Path], bool], Callable[[Path], Iterator[Thing]]], ...] = (
  ('a vocabulary', lambda path: path.suffix == '.npz' and path.is_file(), _vocabulary),
  ('a bundle', bundle_files.is_bundle, _bundle),
  (
    'a region store',
    lambda path: any((path / name).is_file() for name in (records.MANIFEST_FILE, records.JOB_FILE)),
    _store,
  ),
  ('a work directory', lambda path: (path / weights.CHECKPOINTS).is_dir(), _workdir),
  ('converted weights', lambda path: (path / weights.VARIABLES).is_dir(), _converted),
  (
    'a teacher',
    lambda path: any((path / name).is_file() for name in (teacher_files.WEIGHTS, teacher_files.INDEX)),
    _teacher,
  ),
  (
    'an evaluation',
    lambda path: any((path / name).is_file() for name in (summary.RESULTS_FILE, summary.METRICS_FILE)),
    _evaluation,
  ),
  ('a prepared data set', lambda path: _is_dataset(path), _dataset),
)


def _is_dataset(path: Path) -> bool:
  try:
    sources.prepared_folder(path)
  except DataError as error:
    if 'data sets' in str(error):  # several: the message lists them
      raise
    return False
  return True


# --- parts ----------------------------------------------------------------------------------------------------------


def _tried(name: str, read: Callable[[], Any]) -> Thing:
  """A thing that `read` reads: it returns a note, or raises whatever a damaged file makes a library raise."""
  try:
    note = read()
  except Exception as error:
    known = isinstance(error, ValueError | OSError)
    return Thing(
      name, messages.first_line(error) if known else f'{type(error).__name__}: {messages.first_line(error)}', ''
    )
  return Thing(name, '', note if isinstance(note, str) else 'read')


@contextlib.contextmanager
def _reading(total: int) -> Iterator[Callable[[int], None]]:
  """Yields a function that is told how many bytes were read, and shows them."""
  done = 0
  with progress.bar(total >> 20, 'read', unit='MiB') as bar:

    def told(count: int) -> None:
      nonlocal done
      done += count
      bar.update((done >> 20) - bar.n)

    yield told


def _experiment(path: Path) -> Iterator[Thing]:
  yield _tried(checkpoint.CONFIG_FILE, lambda: checkpoint.read_config(path).name)
  yield from _vocabulary(path / checkpoint.VOCABULARY_FILE)


def _config(path: Path) -> Config | None:
  try:
    return checkpoint.read_config(path)
  except ValueError:
    return None


def _sealed(name: str, folder: Path, config: Config | None) -> Thing:
  """The weights of a folder of Orbax: files as written, arrays as the config says and finite."""

  def read() -> str:
    with _reading(sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())) as told:
      if problem := next(sealed.problems(folder, told), None):
        raise ValueError(problem)
    arrays = '' if config is None else f', {_arrays(folder, config)}'
    return ('files as saved' if sealed.is_sealed(folder) else 'no checksums: an older version saved it') + arrays

  return _tried(name, read)


def _arrays(folder: Path, config: Config) -> str:
  found = weights.restore(folder, checkpoint.abstract_variables(config))
  return f'{len(weights.shapes(found))} arrays finite'


def _json(path: Path) -> str:
  json.loads(path.read_bytes())
  return 'JSON'


def _lines(path: Path) -> str:
  found, lines = len(writers.read_metrics(path)), path.read_text(encoding='utf-8').splitlines()
  if found < len(lines) - 1:  # the last line of a killed run may be cut
    raise ValueError(f'{path}, line {found + 1} is not JSON; expected a line of metrics')
  return f'{found} lines'


def _identity(path: Path) -> str:
  metrics = json.loads(path.read_bytes())
  if problem := summary.problem(path, metrics):
    raise ValueError(problem)
  return 'metrics of these results' if metrics.get('identity') else 'the metrics do not say of which results they are'
