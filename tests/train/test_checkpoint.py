"""A checkpoint that is not as it was saved is named, and set aside on request; those of older versions still load."""

from __future__ import annotations

import functools
import shutil

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax.runtime import files
from vild_jax.train import checkpoint, sealed, sharding, state, weights

CONFIG = tiny.config(*tiny.SHALLOW)
STEPS = (4, 6, 8)


_abstract = functools.cache(state.abstract)  # it takes a second


@pytest.fixture(autouse=True, scope='module')
def _once():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint, 'abstract', _abstract)
    yield


@functools.cache
def _mesh():
  return sharding.make_mesh(CONFIG.mesh, jax.devices()[:1])


def _state(step):
  """A state that no training made: every array holds its step."""
  put = lambda x: jax.device_put(np.full(x.shape, step, x.dtype), x.sharding)
  return jax.tree.map(put, _abstract(CONFIG, _mesh()))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('saved')
  (workdir / checkpoint.VOCABULARY_FILE).write_bytes(b'words')
  checkpoints = checkpoint.Checkpoints(workdir)
  for step in STEPS:
    checkpoints.save(step, _state(step), loss=1 / step)
  checkpoints.close()
  return workdir


@pytest.fixture
def workdir(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / 'run')


def _flip(workdir, step):
  """Flips a bit in the largest file of a checkpoint, where its arrays are; returns the file."""
  path = max(
    (path for path in weights.find(workdir, step).rglob('*') if path.is_file()), key=lambda p: p.stat().st_size
  )
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)
  return path


def _restored(workdir):
  checkpoints = checkpoint.Checkpoints(workdir)
  try:
    return int(checkpoints.restore(CONFIG, _mesh()).step)
  finally:
    checkpoints.close()


def test_a_step_that_is_not_kept_goes_as_a_whole(saved, tmp_path, monkeypatch):
  """A kill while its files are removed leaves no part of it under its name."""
  workdir, whole = shutil.copytree(saved, tmp_path / 'run'), {}
  clear = files.clear

  def seen(folder):
    whole.update({path.name: len(list(path.rglob('*'))) for path in folder.iterdir()} if folder.exists() else {})
    assert files.is_temporary(folder.name)
    clear(folder)

  monkeypatch.setattr(files, 'clear', seen)
  before = {name: len(list((workdir / 'checkpoints' / name).rglob('*'))) for name in '46'}
  checkpoints = checkpoint.Checkpoints(workdir, keep=2)
  checkpoints.save(10, _state(10), loss=0.1)
  checkpoints.close()
  assert whole == before
  assert sorted(path.name for path in (workdir / 'checkpoints').iterdir()) == ['10', '8']


@pytest.mark.parametrize('error', [ValueError('UNKNOWN: Failed to close file descriptor'), OSError(5, 'Bad disk')])
def test_an_error_of_a_save_names_the_checkpoints(saved, monkeypatch, error):
  checkpoints = checkpoint.Checkpoints(saved)
  with monkeypatch.context() as patch, pytest.raises(type(error), match=f'{saved}/checkpoints'):
    patch.setattr(checkpoints._manager, 'save', lambda *_, **__: (_ for _ in ()).throw(error))
    checkpoints.save(20, _state(20), loss=0.1)
  checkpoints.close()


def test_every_step_is_sealed_before_it_counts(saved):
  assert weights.steps(saved) == [*STEPS] and _restored(saved) == 8
  assert all(sealed.is_sealed(weights.find(saved, step)) for step in STEPS)
  assert not any(list(sealed.problems(weights.find(saved, step))) for step in STEPS)


def test_a_damaged_checkpoint_is_named_with_what_helps_and_others_load(workdir):
  path = _flip(workdir, 8)
  message = (
    rf'^{path} is damaged: .*expected the checkpoint of step 8 as it was saved: `vild-jax train --fallback` goes on '
    r'from the newest one that is whole, and --step N of the other commands takes another \(4, 6\)$'
  )
  for read in (lambda: checkpoint.load_variables(workdir, CONFIG), lambda: _restored(workdir)):
    with pytest.raises(ValueError, match=message):
      read()
  found = checkpoint.load_variables(workdir, CONFIG, step=6)
  assert all((np.asarray(x) == 6).all() for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('checkpoints/8/metrics/metrics', 'is damaged: it holds no loss of 0.125'),
    ('vocabulary.npz', 'is not the file that it was when step 8 was saved'),
  ],
)
def test_what_stands_beside_a_checkpoint_is_checked_too(workdir, name, message):
  path = workdir / name
  path.write_bytes(path.read_bytes()[:-1])
  for read in (weights.locate, _restored):
    with pytest.raises(ValueError, match=rf'^{path} {message}'):
      read(workdir)


def test_a_damaged_loss_of_an_older_step_is_named_and_set_aside(workdir):
  (workdir / 'checkpoints' / '4' / 'metrics' / 'metrics').write_bytes(b'{"lass": 1}')
  weights.locate(workdir)  # one step alone is read
  with pytest.raises(ValueError, match=r'4/metrics/metrics is damaged: .*as it was saved: `vild-jax train --fallback`'):
    _restored(workdir)
  checkpoint.set_aside_damaged(workdir)
  assert weights.steps(workdir) == [6, 8] and _restored(workdir) == 8


def test_fallback_sets_damaged_checkpoints_aside_and_says_so(workdir, capsys):
  damaged = [_flip(workdir, step) for step in (8, 6)]
  content = damaged[0].read_bytes()
  checkpoint.set_aside_damaged(workdir)
  lines = capsys.readouterr().err.splitlines()
  assert [line.partition(': the checkpoint')[2] for line in lines] == [
    f' of step {step} is now {workdir}/damaged/{step}' for step in (8, 6)
  ]
  assert (workdir / 'damaged' / damaged[0].relative_to(workdir / 'checkpoints')).read_bytes() == content
  assert weights.steps(workdir) == [4] and _restored(workdir) == 4
  checkpoint.set_aside_damaged(workdir)  # what is left is whole
  assert weights.steps(workdir) == [4] and not capsys.readouterr().err
  _flip(workdir, 4)
  with pytest.raises(ValueError, match=r'none of the checkpoints in .* is whole: .*; expected one, or a new --workdir'):
    checkpoint.set_aside_damaged(workdir)
  assert weights.steps(workdir) == [4]


def test_a_step_that_was_set_aside_can_be_saved_and_set_aside_again(workdir):
  _flip(workdir, 8)
  (workdir / 'damaged' / '8').mkdir(parents=True)
  checkpoint.set_aside_damaged(workdir)
  assert (workdir / 'damaged' / '8_' / 'state').is_dir()
  checkpoints = checkpoint.Checkpoints(workdir)
  checkpoints.save(8, _state(8), loss=0.1)
  checkpoints.close()
  assert not list(sealed.problems(weights.locate(workdir)))


def test_values_that_are_not_finite_are_refused_by_name(tmp_path):
  spoiled = _state(2)
  spoiled = spoiled.replace(params={**spoiled.params, 'background': spoiled.params['background'] * np.nan})
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(2, spoiled, loss=0.5)
  checkpoints.close()
  for read in (lambda: checkpoint.load_variables(tmp_path, CONFIG), lambda: _restored(tmp_path)):
    with pytest.raises(ValueError, match=r'params/background of the checkpoint .* is not finite; expected'):
      read()


def test_a_checkpoint_of_an_older_version_is_read_without_a_word(workdir, capsys):
  for path in workdir.rglob(sealed.FILE):
    path.unlink()
  assert _restored(workdir) == 8
  checkpoint.load_variables(workdir, CONFIG)
  assert capsys.readouterr() == ('', '')
