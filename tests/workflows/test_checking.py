"""`vild-jax check` recognises what it is given, finds what is not whole, and says which thing it is."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.helpers import portable_model, small_teacher
from tests.helpers.small_experiment import run
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.workflows import checking

KINDS = {
  'data': 'a prepared data set',
  'regions': 'a region store',
  'bundle': 'a bundle',
  'run': 'a work directory',
  'v.npz': 'a vocabulary',
  'evaluation': 'an evaluation',
}


def test_whole_things_are_recognised_and_whole(made, tmp_path, capsys):
  teacher_checkpoint.save_teacher(tmp_path / 'teacher', small_teacher.make())
  capsys.readouterr()
  assert run('check', *(made / name for name in KINDS), tmp_path / 'teacher', '--json', tmp_path / 'j.json') == 0
  lines = capsys.readouterr().out.splitlines()
  for path, kind in [(made / name, kind) for name, kind in KINDS.items()] + [(tmp_path / 'teacher', 'a teacher')]:
    assert f'{path}: {kind}, whole' in lines
  assert 'whole    train: 4 pictures as prepared' in lines
  assert 'whole    checkpoints/2: files as saved, 160 arrays finite' in lines
  found = json.loads((tmp_path / 'j.json').read_text())
  assert [one['kind'] for one in found] == [*KINDS.values(), 'a teacher'] and all(one['whole'] for one in found)
  assert not any(thing['problem'] for one in found for thing in one['things'])


def _change(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize(
  ('name', 'pattern', 'thing'),
  [
    ('data', '**/*.array_record-*', 'train'),
    ('data', '**/*.labels-*', 'train'),
    ('data', '**/features.json', 'metadata.json'),
    ('data', '**/dataset_info.json', 'metadata.json'),
    ('data', '**/metadata.json', 'metadata.json'),
    ('regions', '*.array_record', 'shard-00000-of-00002.array_record'),
    ('regions', 'shard-*.json', 'shard-00000-of-00002.array_record'),
    ('regions', 'images.npy', 'manifest.json'),
    ('bundle', 'variables/d/*', 'files'),
    ('bundle', 'bundle.json', 'bundle.json'),
    ('run', 'checkpoints/2/state/d/*', 'checkpoints/2'),
    ('run', 'checkpoints/2/state/digests.json', 'checkpoints/2'),
    ('run', 'vocabulary.npz', 'checkpoints/2'),
    ('run', 'config.json', 'config.json'),
    ('evaluation', 'results.json', 'identity'),
  ],
)
def test_one_changed_byte_is_found_and_its_thing_is_named(made, tmp_path, capsys, name, pattern, thing):
  path = shutil.copytree(made / name, tmp_path / name)
  file = sorted(path.glob(pattern))[0]
  if pattern == 'config.json':
    file.write_bytes(file.read_bytes()[:-9])  # people may edit it: only what cannot be read is found
  else:
    _change(file)
  capsys.readouterr()
  assert run('check', path) == 2
  lines = capsys.readouterr().out.splitlines()
  assert [line for line in lines if line.startswith(f'DAMAGED  {thing}: ')]
  assert 'not whole' in lines[-1] and lines[-1].startswith(f'{path}: {KINDS[name]}, ')


def test_what_older_versions_wrote_is_read_whole_instead(made, tmp_path, capsys):
  workdir, data = (shutil.copytree(made / name, tmp_path / name) for name in ('run', 'data'))
  for file in workdir.rglob('digests.json'):
    file.unlink()
  metadata = next(data.rglob('metadata.json'))
  tree = json.loads(metadata.read_text())
  del tree['sha256'], tree['files']
  for record in tree['contents'].values():
    del record['records'], record['labels'], record['counts']
  metadata.write_text(json.dumps(tree))
  capsys.readouterr()
  assert run('check', workdir, data) == 0
  told = capsys.readouterr().out
  assert 'whole    checkpoints/2: no checksums: an older version saved it, 160 arrays finite' in told
  assert 'whole    train: 4 pictures decoded (no checksums: prepare the split again with the same command' in told
  _change(sorted(data.rglob('*.array_record-*'))[0])
  assert run('check', data) == 2 and 'DAMAGED  train: ' in capsys.readouterr().out


def test_an_unfinished_store_is_not_whole(made, tmp_path, capsys):
  path = shutil.copytree(made / 'regions', tmp_path / 'regions')
  (path / 'manifest.json').unlink()
  assert run('check', path) == 2 and 'is not whole: writing it was interrupted' in capsys.readouterr().out


def test_what_is_nothing_known_is_one_line(tmp_path, capsys):
  (tmp_path / 'thesis.txt').write_text('mine')
  for path, message in (
    (tmp_path, 'is nothing that is known; expected a vocabulary, a bundle'),
    (tmp_path / 'thesis.txt', 'is nothing that is known'),
    (tmp_path / 'none', 'does not exist; expected'),
    ('hf://owner/name', 'is an address, and nothing is read or written there'),
  ):
    assert run('check', path) == 2
    assert capsys.readouterr().err.strip().startswith(f'vild-jax check: {path} {message}')
  words = portable_model.vocabulary(tmp_path / 'v.npz')
  assert run('check', tmp_path / 'none', words, '--json', tmp_path / 'found.json') == 2  # the second one all the same
  assert str(words) in capsys.readouterr().out and len(json.loads((tmp_path / 'found.json').read_text())) == 1


def test_a_thing_that_makes_a_library_raise_anything_is_damaged():
  def fails():
    raise ZeroDivisionError('one\ntwo')

  assert checking._tried('x', fails) == checking.Thing('x', 'ZeroDivisionError: one', '')
