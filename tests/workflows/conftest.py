"""What the tests of commands share: one small experiment, made by commands from the data to the bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import settings_read, small_experiment, tiny
from tests.helpers.once import once
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib


@pytest.fixture(scope='session')
def small_run(tmp_path_factory) -> tuple[Path, set[tuple[str, str]]]:
  """The folder of a small experiment, and the settings that were read while it was made, as {(class, field)}.

  The folder holds a prepared set, a vocabulary, a region store, a trained work directory, a bundle and an evaluation.
  The training distils, so that every setting has its reader. Tests must leave the folder's files as they are: the
  processes of a run share them.
  """
  folder, read = once(tmp_path_factory, 'small-run', _make)
  return folder, set(map(tuple, read))


def _make(folder: Path) -> list[tuple[str, str]]:
  small_experiment.prepare(folder)
  small_experiment.plant_regions(folder)
  config = tiny.config(
    f'vocabulary={folder / "v.npz"}',
    f'data.train={folder / "data"}',
    f'data.val={folder / "data"}',
    'mesh.data=1',
    'train.steps=2',
    'train.pictures=1',
    'distillation.weight=0.5',
    f'distillation.store={folder / "regions"}',
    'distillation.regions_per_image=6',
  )
  (folder / 'config.json').write_text(config_lib.to_text(config))
  checkpoint = (folder / 'config.json', '--checkpoint', folder / 'run')
  with settings_read.recorded() as read:
    assert run('train', folder / 'config.json', '--workdir', folder / 'run') == 0
    assert run('export', *checkpoint, '--out', folder / 'bundle') == 0
    assert run('evaluate', *checkpoint, '--out', folder / 'evaluation', '--json', folder / 'm.json') == 0
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 72, 3), dtype=np.uint8)).save(folder / 'picture.png')
  return sorted(read)


@pytest.fixture(scope='session')
def made(small_run) -> Path:
  """The folder of the small experiment."""
  return small_run[0]
