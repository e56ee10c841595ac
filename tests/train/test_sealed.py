"""Folders of weights are sealed when they are written; a changed bit, or a value that is not finite, is named."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import flips
from vild_jax.train import sealed, weights

TREE = {'params': {'a': jnp.arange(50.0), 'b': {'c': jnp.ones((3, 4))}}, 'batch_stats': {}}


@pytest.fixture
def folder(tmp_path):
  weights.save(tmp_path / 'variables', TREE)
  return tmp_path / 'variables'


def test_what_is_saved_is_sealed_and_whole(folder):
  assert sealed.is_sealed(folder) and not list(sealed.problems(folder))
  weights.save(folder, TREE, replace=True)
  assert not list(sealed.problems(folder)) and weights.find(folder.parent) == weights.locate(folder.parent)


def test_a_flush_that_fails_is_one_line_with_the_folder(tmp_path, monkeypatch):
  def save(*_, **__):
    raise ValueError('RESOURCE_EXHAUSTED: Failed to fsync file: No space left on device\nSource locations: x.cc')

  monkeypatch.setattr('orbax.checkpoint.Checkpointer.save', save)
  with pytest.raises(ValueError, match=f'^{tmp_path}/v cannot be written: RESOURCE_EXHAUSTED: Failed to fsync[^\n]*$'):
    weights.save(tmp_path / 'v', TREE)


def test_flips_are_named(folder):
  files = [path for path in folder.rglob('*') if path.is_file() and path.name not in flips.NO_VALUE]
  assert len(files) > 5
  for path, bit in flips.places(files, 40, seed=0):
    with flips.flipped(path, bit), pytest.raises(ValueError, match='expected') as error:
      weights.locate(folder.parent)
    assert str(error.value).startswith(f'{path} is damaged') and '\n' not in str(error.value)
  weights.locate(folder.parent)


def test_a_folder_of_an_older_version_has_nothing_to_check(folder, capsys):
  (folder / sealed.FILE).unlink()
  assert weights.locate(folder.parent) == folder and not list(sealed.problems(folder))
  assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_weights_that_are_not_finite_are_refused_by_their_name(folder, tmp_path, dtype):
  weights.check_finite(TREE, folder)
  weights.check_finite({'step': np.int32(3), 'key': jnp.zeros(2, jnp.uint32)}, folder)
  for bad in (np.nan, np.inf):
    tree = {**TREE, 'params': {**TREE['params'], 'b': {'c': jnp.ones((3, 4), dtype).at[1, 2].set(bad)}}}
    with pytest.raises(ValueError, match=r'params/b/c of the checkpoint .* is not finite; expected'):
      weights.check_finite(tree, folder)
