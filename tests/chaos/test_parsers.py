"""Every file that others may have made, damaged at random: it is read, or refused in one line that names it.

`launch/test.sh -m soak tests/chaos/test_parsers.py --inputs 100000 --record FILE` tries more of them than the suite
does, and goes on from the record, so that the counts of several days add up. What once broke a parser lies in
`crashers/`, a folder for each parser, and is tried first.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import mutate, record, small_experiment, small_set, small_teacher, tiny
from tests.helpers.once import once
from vild_jax import config as config_lib
from vild_jax import vocabulary
from vild_jax.data import annotations, pictures, rle, sources
from vild_jax.data.regions.store import RegionStore
from vild_jax.eval import detections, truth
from vild_jax.portable import run as portable_run
from vild_jax.runtime import reading
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import image as image_tower
from vild_jax.teacher import prompts
from vild_jax.teacher.tokenizer import Tokenizer
from vild_jax.train import bundle_files, writers

CRASHERS = Path(__file__).parent / 'crashers'
INPUTS = 40  # of each parser in the suite
MEMORY = 1.5 * 2**30  # bytes that a batch of inputs may take beyond what the process has: some arrays of ARRAYS
ARRAYS = 0.25  # GiB
PIXELS = 20 * 10**6  # of a picture: at the default of 179 megapixels a header of lies may cost 1.7 GB
TOGETHER = 50  # inputs after which the memory is looked at
SECONDS = 120  # after which an input counts as one that never ends
_INFO = 'data/small/1.0.0/{}'


@dataclasses.dataclass(frozen=True)
class Parser:
  """One kind of file.

  Attributes:
    file: where the damaged file is written, below the folder of the test; its content there is what is damaged.
    damage: (bytes, random numbers) -> bytes.
    read: reads it by the path of that folder.
    finish: what makes a file consistent that the damage left so, such as its checksums.
    named: whether the message has the name of the file.
  """

  file: str
  damage: Callable[[bytes, random.Random], bytes]
  read: Callable[[Path], Any]
  finish: Callable[[bytes], bytes] = bytes
  named: bool = True


def _make(folder: Path) -> None:
  """A file of every kind."""
  small_experiment.prepare(folder)
  small_experiment.plant_regions(folder)
  # As an older version wrote it, without checksums, which would refuse a damaged file before all of it is read.
  metadata = folder / _INFO.format('metadata.json')
  tree = json.loads(metadata.read_text())
  metadata.write_text(json.dumps({key: value for key, value in tree.items() if key not in ('sha256', 'files')}))
  teacher_checkpoint.save_teacher(folder / 'teacher', small_teacher.make(drawn=True))
  bundle = folder / 'bundle'
  bundle.mkdir()
  (bundle / 'config.json').write_text(config_lib.to_text(tiny.config()))
  (bundle / 'vocabulary.npz').write_bytes((folder / 'v.npz').read_bytes())
  bundle_files.seal(bundle, {'format': 2, 'name': 'x', 'teacher': 'y', 'training': {}, 'metrics': []})
  found = [
    {'image_id': 11, 'category_id': 3, 'bbox': [5, 4, 25, 17.5], 'score': 0.5},
    {'image_id': 5, 'category_id': 1, 'bbox': [3, 3, 15, 27], 'score': 0.25},
  ] * 3
  (folder / 'results.json').write_text(json.dumps(found))
  masks = [
    rle.encode_mask(np.arange(h * w).reshape(h, w) % 7 == 0)
    for h, w in (small_set.SIZES[row['image_id']] for row in found)
  ]
  (folder / 'masks.json').write_text(json.dumps([a | {'segmentation': b} for a, b in zip(found, masks, strict=True)]))
  lines = [{'step': step, 'loss': 1 / (step + 1), 'learning_rate': 0.1} for step in range(6)]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  (folder / 'settings.json').write_text(json.dumps({'settings': {'model.postprocess.nms_threshold': 0.4}}))
  (folder / 'override.txt').write_text('--model.rpn.num_convs=2')
  (folder / 'prompts.txt').write_text('a photo of a {}\na drawing of {article} {}\n')
  for kind in ('.jpg', '.png', '.webp', '.bmp', '.tiff'):
    (folder / f'picture{kind}').write_bytes(small_set.picture(12, 10, kind=kind))


def _resealed(text: bytes) -> bytes:
  """bundle.json with a checksum that fits, where it still has one."""
  sealed = re.fullmatch(rb'(.*"sha256": ")([0-9a-f]{64})("\n}\n)', text, re.DOTALL)
  if not sealed:
    try:
      tree = json.loads(text)
      text = (json.dumps({**tree, 'sha256': '0' * 64}, indent=2) + '\n').encode()
      sealed = re.fullmatch(rb'(.*"sha256": ")([0-9a-f]{64})("\n}\n)', text, re.DOTALL)
    except (ValueError, TypeError, RecursionError):
      return text
  if not sealed:
    return text
  import hashlib

  digest = hashlib.sha256((b'0' * 64).join(sealed.group(1, 3))).hexdigest().encode()
  return digest.join(sealed.group(1, 3))


def _dataset(folder: Path) -> None:
  dataset = sources.open_dataset(folder / 'data', 'train')
  assert len([example.image_id for example in dataset.labels()]) == len(dataset)
  for i in range(len(dataset)):
    assert dataset[i].image
  dataset.counts()


def _bundle(folder: Path) -> None:
  about = bundle_files.read_about(folder / 'bundle')
  bundle_files.check(folder / 'bundle')
  assert isinstance(about['format'], int)


def _store(folder: Path) -> None:
  store = RegionStore(folder / 'regions')
  for image_id in store.image_ids.tolist():
    store[image_id].boxes.sum()


def _text_tower(folder: Path) -> None:
  teacher = teacher_checkpoint.load_text_tower(folder / 'teacher')
  assert teacher.text_identity
  Tokenizer(teacher.tokenizer_json, teacher.config.context_length)(['a red mug', '<|endoftext|> é', ''])


def _image_tower(folder: Path) -> None:
  teacher = teacher_checkpoint.load_image_tower(folder / 'teacher')
  made = image_tower.parse_preprocessing(teacher.preprocessor, teacher.config.image_size)
  assert made(np.zeros((20, 30, 3), np.uint8)).shape == (teacher.config.image_size,) * 2 + (3,)


def _results(name: str) -> Callable[[Path], Any]:
  return lambda folder: detections.read(folder / name, truth.read(folder / 'small_val.json'))


def _prompts(folder: Path) -> None:
  for template in prompts.load_templates(folder / 'prompts.txt'):
    template.format('mug', article='a')


def _override(folder: Path) -> None:
  words = (folder / 'override.txt').read_text(errors='replace')
  config_lib.override(config_lib.Config(), [words])


PARSERS = {
  'annotations': Parser(
    'small_train.json', mutate.damaged_json, lambda f: annotations.read_annotations(f / 'small_train.json')
  ),
  'truth': Parser('small_val.json', mutate.damaged_json, lambda f: truth.read(f / 'small_val.json')),
  'results': Parser('results.json', mutate.damaged_json, _results('results.json')),
  'masks': Parser('masks.json', mutate.damaged_json, _results('masks.json')),
  'vocabulary': Parser('v.npz', mutate.damaged_zip, lambda f: vocabulary.load(f / 'v.npz')),
  'portable vocabulary': Parser('v.npz', mutate.damaged_zip, lambda f: portable_run.read_vocabulary(f / 'v.npz')),
  'rows': Parser(
    'rows.npy', mutate.damaged_npy, lambda f: vocabulary.from_npy(f / 'rows.npy', 'abc', 't', np.ones(3, bool))
  ),
  'manifest': Parser('regions/manifest.json', mutate.damaged_json, _store),
  'shard': Parser('regions/shard-00000-of-00002.array_record', mutate.damaged_bytes, _store),
  'bundle': Parser('bundle/bundle.json', mutate.damaged_json, _bundle, finish=_resealed, named=False),
  'config': Parser('bundle/config.json', mutate.damaged_json, lambda f: config_lib.read(f / 'bundle/config.json')),
  'settings': Parser(
    'settings.json',
    mutate.damaged_json,
    lambda f: config_lib.override(config_lib.Config(), config_lib.calibrated(f / 'settings.json')),
    named=False,
  ),
  'overrides': Parser('override.txt', mutate.damaged_bytes, _override, named=False),
  'teacher config': Parser('teacher/config.json', mutate.damaged_json, _text_tower, named=False),
  'preprocessor': Parser('teacher/preprocessor_config.json', mutate.damaged_json, _image_tower),
  'tokenizer': Parser('teacher/tokenizer.json', mutate.damaged_json, _text_tower),
  'safetensors': Parser('teacher/model.safetensors', mutate.damaged_safetensors, _text_tower),
  'metrics': Parser('metrics.jsonl', mutate.damaged_lines, lambda f: writers.read_metrics(f / 'metrics.jsonl')),
  'prompts': Parser('prompts.txt', mutate.damaged_bytes, _prompts),
  **{
    f'data set {name}': Parser(_INFO.format(name), mutate.damaged_json, _dataset, named=False)
    for name in ('dataset_info.json', 'metadata.json', 'features.json')
  },
  **{
    f'picture {kind}': Parser(
      f'picture.{kind}',
      mutate.damaged_png,
      lambda f, kind=kind: pictures.decode(f / f'picture.{kind}', max_pixels=PIXELS),
    )
    for kind in ('jpg', 'png', 'webp', 'bmp', 'tiff')
  },
}


@pytest.fixture(scope='module')
def base(tmp_path_factory) -> Path:
  return once(tmp_path_factory, 'files-of-others', lambda folder: _make(folder))[0]


@pytest.fixture
def folder(base, tmp_path, monkeypatch) -> Path:
  """A copy of all files, and limits that a test can reach."""
  import shutil

  monkeypatch.setenv(reading.ARRAY_LIMIT, str(ARRAYS))
  return shutil.copytree(base, tmp_path / 'files')


def _peak(reset: bool = False) -> int:
  """Bytes that the process has had in memory at most since the last reset."""
  try:
    if reset:
      Path('/proc/self/clear_refs').write_text('5')
    return int(re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024
  except (OSError, TypeError):  # another system
    return 0


def _outcome(parser: Parser, folder: Path, data: bytes) -> str:
  """'read' or 'refused'; anything else raises."""
  path = folder / parser.file
  path.write_bytes(data)
  try:
    with warnings.catch_warnings(action='ignore'):
      parser.read(folder)
  except ValueError as error:
    text = str(error)
    assert len(text.splitlines()) == 1 and len(text) < 2000, f'not one line: {text[:300]!r}'
    assert not parser.named or path.name in text or path.parent.name in text, f'does not name the file: {text[:300]}'
    return 'refused'
  return 'read'


def _try(name: str, folder: Path, inputs: Iterator[tuple[Any, bytes]]) -> dict[str, int]:
  parser, outcomes = PARSERS[name], {'read': 0, 'refused': 0}

  def never_ends(*_: Any) -> None:
    raise TimeoutError(f'no end after {SECONDS} s')

  before = signal.signal(signal.SIGALRM, never_ends)
  had = _peak(reset=True)
  try:
    for number, (seed, data) in enumerate(inputs):
      signal.alarm(SECONDS)
      try:
        outcomes[_outcome(parser, folder, data)] += 1
      except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
          raise
        kept = folder.parent / f'{name.replace(" ", "_")}-{seed}'
        kept.write_bytes(data)
        pytest.fail(f'{name}, input {seed}, kept as {kept}: {type(error).__name__}: {str(error)[:600]}')
      if number % TOGETHER == TOGETHER - 1:
        took = _peak() - had
        assert took < MEMORY, f'{name}, an input up to {seed} takes {took >> 20} MiB'
        had = _peak(reset=True)
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
  return outcomes


def _inputs(name: str, folder: Path, seeds: range) -> Iterator[tuple[Any, bytes]]:
  parser = PARSERS[name]
  whole = (folder / parser.file).read_bytes()
  for seed in seeds:
    try:
      yield seed, parser.finish(parser.damage(whole, random.Random(f'{name} {seed}')))
    except RecursionError:  # the damage nests more than Python follows, which `nest` in texts covers
      continue


@pytest.mark.parametrize('name', PARSERS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name, folder):
  assert _outcome(PARSERS[name], folder, (folder / PARSERS[name].file).read_bytes()) == 'read'
  known = sorted((CRASHERS / name.replace(' ', '_')).glob('*'))
  _try(name, folder, ((path.name, path.read_bytes()) for path in known))
  outcomes = _try(name, folder, _inputs(name, folder, range(INPUTS)))
  assert outcomes['refused'] or name == 'metrics', outcomes


@pytest.mark.soak
@pytest.mark.parametrize('name', PARSERS)
def test_many_more(name, folder, pytestconfig):
  path = pytestconfig.getoption('record')
  start = INPUTS + record.read(path, name).get('inputs', 0)
  outcomes = _try(name, folder, _inputs(name, folder, range(start, start + pytestconfig.getoption('inputs'))))
  record.add(path, name, {'inputs': sum(outcomes.values()), **outcomes})
  print(name, outcomes)
