"""A second training, evaluation, detection or demo in a folder in use ends in one line, and changes nothing there."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from tests.helpers import small_experiment, tiny
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax.runtime import locks
from vild_jax.train import checkpoint


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A config on prepared data, and a work directory with weights as if it had been trained."""
  folder = tmp_path_factory.mktemp('made')
  small_experiment.prepare(folder)
  config = tiny.config(
    f'vocabulary={folder / "v.npz"}',
    f'data.train={folder / "data"}',
    f'data.val={folder / "data"}',
    'mesh.data=1',
    'data.batch_size=1',
  )
  (folder / 'config.json').write_text(config_lib.to_text(config))
  checkpoint.claim_workdir(folder / 'run', config)
  (folder / 'run' / checkpoint.VOCABULARY_FILE).write_bytes((folder / 'v.npz').read_bytes())
  checkpoint.save_variables(folder / 'run', jax.device_get(tiny.variables(config)))
  return folder


@pytest.mark.parametrize(
  ('words', 'option'),
  [
    (['train', 'MADE/config.json'], '--workdir'),
    (['evaluate', 'MADE/config.json', '--checkpoint', 'MADE/run'], '--out'),
    (['demo'], '--workdir'),
    (['detect', 'MADE/images', '--checkpoint', 'MADE/run', '--classes', 'ant'], '--out'),
  ],
  ids=['train', 'evaluate', 'demo', 'detect'],
)
def test_a_folder_in_use_is_refused(made, tmp_path, capsys, words, option):
  words = [word.replace('MADE', str(made)) for word in words]
  with locks.locked(tmp_path):
    before = (tmp_path / locks.LOCK_FILE).read_bytes()
    assert run(*words, option, tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == [locks.LOCK_FILE]
    assert (tmp_path / locks.LOCK_FILE).read_bytes()[30:] == before[30:]
  error = capsys.readouterr().err.splitlines()
  assert error[-1].startswith(f'vild-jax {words[0]}: {tmp_path} is in use by process ') and len(error) == 1


def test_a_refused_training_leaves_the_config_as_it_was(made, tmp_path, capsys):
  """The vocabulary may lie elsewhere, so the config with another path is the same; its content is checked after."""
  shutil.copytree(made / 'run', tmp_path / 'run')
  before = (tmp_path / 'run' / 'config.json').read_bytes()
  with np.load(made / 'v.npz', allow_pickle=False) as arrays:
    fields = {key: arrays[key] for key in arrays if key != 'sha256'}
    np.savez(tmp_path / 'other.npz', **{**fields, 'names': arrays['names'][::-1]})
  words = ['train', made / 'config.json', '--workdir', tmp_path / 'run', f'--vocabulary={tmp_path / "other.npz"}']
  assert run(*words) == 2
  assert 'differs from the given vocabulary' in capsys.readouterr().err
  assert (tmp_path / 'run' / 'config.json').read_bytes() == before
