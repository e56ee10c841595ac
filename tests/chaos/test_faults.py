"""Every command with a call of the system that fails: nothing good is lost, and the same command given again completes.

One call after the other of those that write, flush, rename or remove fails once, in a real command on a small data set
(`tests.helpers.faults`); the suite tries a few. All of them, by command, with a record that a later run goes on from:

  launch/test.sh -m soak tests/chaos/test_faults.py --faults 1 --record FILE

With `--faults 4` each call fails four times, by each of FAULTS.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from tests.helpers import planted_store, record, small_resnet, small_set, small_teacher, tiny, trees
from tests.helpers.faults import FULL, HALF, ONCE, Faulty, Ran
from tests.helpers.once import once
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax.data import sources
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.train import bundle_files, checkpoint

ROOT = '{root}'  # of a trial, in the words of commands
# (error, manner): a disk that is full for one call, and then for the rest of the command; half of a write; a bad disk.
FAULTS = [(errno.ENOSPC, ONCE), (errno.EIO, ONCE), (errno.ENOSPC, HALF), (errno.ENOSPC, FULL)]
LINES = 6  # of output, progress left out, that a failed command may have at most


@dataclasses.dataclass(frozen=True)
class Command:
  """One command and what it starts from.

  Attributes:
    words: its words.
    given: files and folders of the small world that it reads.
    before: commands that make the older output that it replaces or adds to.
    removed: a folder that is removed after that.
    units: folders of the output that are the older or the new one as a whole.
    may_go: pattern of older files that may be gone, since others describe something else by then.
    unfinished: pattern of names that a failed run may leave for the next one to go on with.
  """

  words: str
  given: str
  before: tuple[str, ...] = ()
  removed: str = ''
  units: tuple[str, ...] = ()
  unfinished: str = '(?!)'
  may_go: str = '(?!)'


_PREPARE = 'prepare --annotations {root}/small_train.json --images {root}/images --out {root}/data'
_CHECKPOINT = '{root}/run/config.json --checkpoint {root}/run'
_EMBED = 'embed-text --classes {root}/small_train.json --teacher {root}/teacher --out {root}/w.npz'
_REGIONS = 'embed-regions --teacher {root}/teacher --data {root}/data --proposals {root}/proposals --images-per-shard 2'
_DETECT = 'detect {root}/pictures --checkpoint {root}/bundle --min-score 0 --batch-size 2 --out {root}/found'
COMMANDS = {
  'prepare': Command(_PREPARE, 'small_train.json images'),
  'prepare a second split': Command(
    _PREPARE.replace('train', 'val'), 'small_train.json small_val.json images', before=(_PREPARE,)
  ),
  'prepare another content': Command(
    _PREPARE.replace('train.json', 'other.json') + ' --name small --split train --overwrite',
    'small_train.json small_other.json images',
    before=(_PREPARE,),
  ),
  'embed-text': Command(_EMBED, 'small_train.json teacher', before=(_EMBED + ' --prompts single',)),
  'propose': Command(
    f'propose {_CHECKPOINT} --images-per-shard 2 --max-proposals 20 --out {ROOT}/made',
    'run data',
  ),
  'embed-regions': Command(f'{_REGIONS} --out {ROOT}/made --batch-size 16', 'teacher data proposals'),
  'train': Command(
    f'train {ROOT}/config.json --workdir {ROOT}/new --train.steps=1',
    'config.json data v.npz',
    unfinished='new/(tensorboard|checkpoints|metrics.jsonl|goodput.json).*',
  ),
  'train on': Command(
    f'train {ROOT}/config.json --workdir {ROOT}/new',
    'config.json data v.npz',
    before=(f'train {ROOT}/config.json --workdir {ROOT}/new',),
    removed='new/checkpoints/2',
    unfinished='new/(tensorboard|checkpoints|metrics.jsonl|goodput.json).*',
  ),
  'evaluate': Command(
    f'evaluate {_CHECKPOINT} --out {ROOT}/evaluation --json {ROOT}/metrics.json',
    'run older data',
    before=(
      f'evaluate {ROOT}/older/config.json --checkpoint {ROOT}/older --out {ROOT}/evaluation --json {ROOT}/metrics.json',
    ),
    unfinished='evaluation/unfinished/.*',
    may_go=r'evaluation/(metrics|diagnosis|per_category|ap_by_group|precision_recall|report)\.\w+',
  ),
  'detect': Command(
    f'{_DETECT} --classes ant,tree --format coco',
    'pictures bundle',
    before=(f'{_DETECT} --classes ant',),
    unfinished='found/unfinished/.*',
  ),
  'export': Command(
    f'export {_CHECKPOINT} --teacher {ROOT}/teacher --out {ROOT}/bundle', 'run teacher bundle', units=('bundle',)
  ),
  'convert': Command(f'convert resnet --from {ROOT}/resnet.safetensors --out {ROOT}/backbone', 'resnet.safetensors'),
  'score': Command(
    f'score --annotations {ROOT}/small_val.json --results {ROOT}/results.json --protocol lvis --out {ROOT}/scored '
    f'--json {ROOT}/scores.json',
    'small_val.json results.json others.json',
    before=(
      f'score --annotations {ROOT}/small_val.json --results {ROOT}/others.json --protocol lvis --out {ROOT}/scored '
      f'--json {ROOT}/scores.json',
    ),
  ),
}
# {command: how many faults}: the cheapest ones
IN_THE_SUITE = {'prepare another content': 2, 'embed-text': 3, 'convert': 2}


def _make(world: Path) -> None:
  """What the commands start from."""
  tree = small_set.annotations()
  small_set.write(world, tree, stem='small_train')
  small_set.write(world, tree, stem='small_val')
  small_set.write(world, {**tree, 'annotations': tree['annotations'][:3]}, stem='small_other')
  for split in ('train', 'val'):
    words = ('--annotations', world / f'small_{split}.json', '--images', world / 'images', '--out', world / 'data')
    assert run('prepare', *words) == 0
  teacher_checkpoint.save_teacher(world / 'teacher', small_teacher.make(sigmoid=True))
  words = ('--classes', world / 'small_train.json', '--teacher', world / 'teacher', '--out', world / 'v.npz')
  assert run('embed-text', *words) == 0
  planted_store.write_proposals(world / 'proposals', sources.open_dataset(world / 'data' / 'small' / '1.0.0', 'train'))
  config = tiny.config(
    *tiny.SHALLOW,
    f'vocabulary={ROOT}/v.npz',
    f'data.train={ROOT}/data',
    f'data.val={ROOT}/data',
    'data.batch_size=4',
    'evaluation.batch_size=4',
    'mesh.data=1',
    'train.steps=2',
    'train.log_every=1',
    'train.checkpoint_every=1',
    'train.pictures=1',
  )
  (world / 'config.json').write_text(config_lib.to_text(config))
  for seed, name in enumerate(('run', 'older')):
    (world / name).mkdir()
    shutil.copyfile(world / 'config.json', world / name / 'config.json')
    shutil.copyfile(world / 'v.npz', world / name / 'vocabulary.npz')
    checkpoint.save_variables(world / name, tiny.variables(config, seed, deltas=0.02))
  words = (world / 'older' / 'config.json', '--checkpoint', world / 'older', '--out', world / 'bundle')
  assert run('export', *words) == 0
  (world / 'pictures').mkdir()
  for seed in range(3):
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 72, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(world / 'pictures' / f'{seed}.png')
  safetensors.numpy.save_file(small_resnet.tensors(), world / 'resnet.safetensors')
  found = [{'image_id': 11, 'category_id': 3, 'bbox': [5, 4, 25, 17.5], 'score': 0.5}]
  (world / 'results.json').write_text(json.dumps(found))
  (world / 'others.json').write_text(json.dumps([{**found[0], 'category_id': 8}]))


@pytest.fixture(scope='module')
def world(tmp_path_factory) -> Path:
  return once(tmp_path_factory, 'world-of-faults', lambda folder: _make(folder))[0]


class Bench:
  """One command, tried again and again in fresh copies of what it starts from."""

  def __init__(self, command: Command, world: Path, folder: Path, faulty: Faulty):
    self.command, self.root, self._base, self._faulty = command, faulty.below, folder / 'base', faulty
    self._words = command.words.format(root=self.root).split()
    shutil.rmtree(self._base, ignore_errors=True)
    self._base.mkdir()
    for name in command.given.split():
      copy = shutil.copytree if (world / name).is_dir() else shutil.copyfile
      copy(world / name, self._base / name)
    for file in self._base.rglob('config.json'):
      if file.parent.name not in ('bundle', 'teacher'):
        file.write_text(file.read_text().replace(ROOT, str(self.root)))
    self._restore()
    for before in command.before:
      ran = faulty.run(before.format(root=self.root).split())
      assert ran.code == 0, ran.said
    if command.removed:
      shutil.rmtree(self.root / command.removed)
    shutil.rmtree(self._base)
    shutil.copytree(self.root, self._base, symlinks=True)
    self.older = trees.read(self.root)
    self.reference = self._undisturbed()[1]
    self._restore()
    ran, again = self._undisturbed()
    assert not (found := trees.differences(self.reference, again)), found
    assert self.reference != self.older
    self.calls, self._said = ran.calls, set(_lines(ran.said))

  def _restore(self) -> None:
    shutil.rmtree(self.root, ignore_errors=True)
    shutil.copytree(self._base, self.root, symlinks=True)

  def _undisturbed(self) -> tuple[Ran, trees.Tree]:
    ran = self._faulty.run(self._words)
    assert ran.code == 0, ran.said
    return ran, trees.read(self.root)

  def problems(self, number: int, error: int, manner: int) -> tuple[Ran, list[str]]:
    """How the command ends whose call `number` fails, and a line for each thing that is not as it should be."""
    self._restore()
    ran = self._faulty.run(self._words, number, error, manner)
    kept = re.compile(r'(unlink|unlinkat|rmdir) ').match(ran.hit)  # what should have been removed is still there
    problems = list(self._of_the_end(ran))
    after = _read(self.root, hidden=False)
    if ran.code == 0:
      for line in trees.differences(self.reference, after):
        if not kept or not line.endswith(' is left over'):
          problems.append(f'it ended well, but {line}')
    unfinished = re.compile(self.command.unfinished)
    for name, value in self.older.items():
      may_go = name not in after and re.fullmatch(self.command.may_go, name)
      if not may_go and after.get(name) not in (value, self.reference.get(name)) and not unfinished.fullmatch(name):
        problems.append(f'{name} is neither the old one nor the new one')
    for name in after.keys() - self.older.keys():
      expected = (self.reference.get(name), 'an empty folder')
      if after[name] not in expected and not unfinished.fullmatch(name):
        problems.append(f'{name} is new, and not as it should be')
    for unit in self.command.units:
      part = lambda tree, unit=unit: {name: value for name, value in tree.items() if name.startswith(f'{unit}/')}
      if part(after) not in (part(self.older), part(self.reference)):
        problems.append(f'{unit} is a mixture')
      bundle_files.check(self.root / unit)
    left = [name for name in _temporary(self.root) if not unfinished.fullmatch(name)]
    if left and not kept:
      problems.append(f'left over: {left}')
    if ran.code == 0:
      return ran, problems
    again = self._faulty.run(self._words)
    if again.code:
      problems.append(f'given again, it ended with {again.code}: {again.said[-1000:]}')
    else:
      found = trees.differences(self.reference, _read(self.root))
      problems += [f'given again, {line}' for line in found]
    return ran, problems

  def _of_the_end(self, ran: Ran) -> Iterator[str]:
    """Whether exit code and output are those of an error that a user can read."""
    lines = [line for line in _lines(ran.said) if line not in self._said]
    if 'Traceback (most recent' in ran.said or len(lines) > LINES:
      yield f'it says {len(lines)} lines: {ran.said[-3000:]}'
    if ran.code == 0:
      return
    if ran.code != 2:
      yield f'it ended with {ran.code}: {lines[-1:]}'
    elif not re.search(rf'vild-jax [a-z-]+: .*{re.escape(str(self.root))}', lines[-1] if lines else ''):
      yield f'the last line names no file: {lines[-1:]}'


def _lines(said: str) -> list[str]:
  """Lines of output without progress bars."""
  return [line for line in re.split(r'[\r\n]+', said) if line.strip() and not re.search(r'\d%\||it/s|[0-9]s/', line)]


def _read(root: Path, **how: bool) -> trees.Tree:
  try:
    return trees.read(root, **how)
  except Exception as error:  # of Orbax, which has many kinds
    return {'a folder of Orbax that cannot be read': repr(error)}


def _temporary(root: Path) -> list[str]:
  return [
    path.relative_to(root).as_posix()
    for path in root.rglob('*')
    if path.name.startswith('.') or 'orbax-checkpoint-tmp' in path.name
  ]


@pytest.fixture(scope='module')
def faulty(tmp_path_factory) -> Iterator[Faulty]:
  folder = tmp_path_factory.mktemp('faulty')
  with Faulty(folder, folder / 'root') as started:
    yield started


@pytest.mark.slow
@pytest.mark.parametrize('name', IN_THE_SUITE)
def test_a_call_that_fails_costs_nothing_that_was_good(name, world, faulty, tmp_path):
  bench, seed = Bench(COMMANDS[name], world, tmp_path, faulty), random.randrange(2**32)
  draw = random.Random(seed)
  for fault in draw.sample(FAULTS, IN_THE_SUITE[name]):
    trial = (draw.randint(1, bench.calls), *fault)
    ran, problems = bench.problems(*trial)
    assert not problems, (seed, trial, ran, problems)


@pytest.mark.soak
@pytest.mark.parametrize('name', COMMANDS)
def test_each_call_of_a_command(name, world, faulty, tmp_path, pytestconfig):
  """Of a record that is complete nothing more is tried; another file begins anew."""
  bench, path = Bench(COMMANDS[name], world, tmp_path, faulty), pytestconfig.getoption('record')
  order, found = random.Random(name), []
  for turn in range(pytestconfig.getoption('faults')):
    numbers = order.sample(range(1, bench.calls + 1), bench.calls)
    for number in numbers[max(record.read(path, name).get('faults', 0) - turn * bench.calls, 0) :]:
      fault = FAULTS[(number + turn) % len(FAULTS)]
      ran, problems = bench.problems(number, *fault)
      ended = {f'ended with {ran.code}': 1} if ran.failed else {'not reached': 1}
      record.add(path, name, {'faults': 1, **ended, **({'problems': 1} if problems else {})})
      if problems:
        found.append(f'call {number}, {fault}, {ran.hit}: exit code {ran.code}\n  ' + '\n  '.join(problems))
        print(found[-1], flush=True)
  assert not found, '\n'.join(found)
