"""A bundle is whole or an error that names the damaged file, wherever it lies; bundles of format 1 are still read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import vild_jax
from tests.helpers import fake_hub, small_bundle, tiny
from tests.helpers.small_bundle import CONFIG, NAMES, files_of
from vild_jax import config as config_lib
from vild_jax.data import transforms
from vild_jax.inference import bundle as bundle_lib
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.train import bundle_files, checkpoint, state, weights


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  return small_bundle.parts(tmp_path_factory.mktemp('given'))


@pytest.fixture(scope='module')
def made(given, tmp_path_factory):
  """A bundle with both towers; tests must leave it as it is."""
  return small_bundle.write(tmp_path_factory.mktemp('made') / 'bundle', given)


def format_1(folder: Path, given) -> Path:
  """A bundle as it was written before it had checksums and a model card."""
  folder.mkdir()
  shutil.copyfile(given.vocabulary, folder / 'vocabulary.npz')
  (folder / 'config.json').write_text(config_lib.to_text(CONFIG))
  weights.save(folder / 'variables', given.variables)
  teacher_checkpoint.save_text_tower(folder / 'text_tower', teacher_checkpoint.load_text_tower(given.teacher))
  about = {
    'format': 1,
    'name': CONFIG.name,
    'teacher': given.identity,
    'masks': True,
    'preprocessing': {
      'image_size': CONFIG.data.image_size,
      'resize': 'bilinear, no half-pixel centres, no antialias',
      'mean': list(transforms.RGB_MEAN),
      'std': list(transforms.RGB_STD),
      'padding': 'bottom and right',
    },
  }
  (folder / 'bundle.json').write_text(json.dumps(about, indent=2) + '\n')
  return folder


def test_a_bundle_that_is_exported_anew_while_it_is_loaded_is_no_mixture_of_both(given, made, tmp_path, monkeypatch):
  here, other = shutil.copytree(made, tmp_path / 'here'), shutil.copytree(made, tmp_path / 'other')
  bundle_files.seal(other, {'format': 2, 'name': 'other', 'teacher': given.identity})
  real = checkpoint.load_variables

  def replaced_after(*args):
    found = real(*args)
    here.rename(tmp_path / 'gone')
    other.rename(here)
    return found

  monkeypatch.setattr(checkpoint, 'load_variables', replaced_after)
  with pytest.raises(ValueError, match=r'here was replaced while it was read'):
    vild_jax.load(here)


def test_the_next_export_keeps_the_pictures_that_people_put_into_a_bundle(given, made, tmp_path):
  out = shutil.copytree(made, tmp_path / 'out')
  (out / 'examples').mkdir()
  (out / 'examples' / 'mug.jpg').write_bytes(b'a picture')
  small_bundle.write(out, given)
  assert 'examples/mug.jpg' not in bundle_files.read_about(out)['files']
  assert (out / 'examples' / 'mug.jpg').read_bytes() == b'a picture'
  weights.locate(out)


def test_one_flipped_byte_in_any_file_is_an_error_that_names_it(made, tmp_path):
  bundle = shutil.copytree(made, tmp_path / 'bundle')
  names = files_of(bundle)
  assert {'bundle.json', 'config.json', 'vocabulary.npz', 'README.md'} | {
    f'{tower}/model.safetensors' for tower in ('text_tower', 'image_tower')
  } < set(names)
  assert sum(name.startswith('variables/') for name in names) > 5
  for name in names:
    path = bundle / name
    content = path.read_bytes()
    assert content, name
    for place in (0, len(content) // 2, len(content) - 1):
      path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
      if name == 'README.md':
        weights.locate(bundle)
      else:
        with pytest.raises(ValueError, match='expected') as error:
          vild_jax.load(bundle)
        assert str(error.value).startswith(f'{path} ') and '\n' not in str(error.value), (name, place)
    path.write_bytes(content)
  vild_jax.load(bundle)


@pytest.mark.parametrize('read', [weights.locate, checkpoint.read_config, lambda f: checkpoint.same_model(CONFIG, f)])
def test_every_way_to_read_a_bundle_finds_a_damaged_one(made, tmp_path, read):
  bundle = shutil.copytree(made, tmp_path / 'bundle')
  read(bundle)
  path = bundle / 'config.json'
  path.write_text(path.read_text().replace('"image_size": 64', '"image_size": 32'))
  with pytest.raises(ValueError, match=r'config\.json is damaged: it is not as it was written'):
    read(bundle)


def test_a_bundle_gives_back_its_weights_and_classes(made, given):
  detector = vild_jax.load(made)
  jax.tree.map(np.testing.assert_array_equal, detector.variables, given.variables)
  assert detector.vocabulary.names == NAMES and detector.config == CONFIG
  about = json.loads((made / 'bundle.json').read_text())
  assert about['format'] == 2 and sorted([*about['files'], 'README.md', 'bundle.json']) == files_of(made)


def test_a_bundle_of_format_1_is_still_read(given, tmp_path):
  detector = vild_jax.load(format_1(tmp_path / 'old', given))
  jax.tree.map(np.testing.assert_array_equal, detector.variables, given.variables)
  assert detector.vocabulary.names == NAMES


def test_a_bundle_on_the_hub_is_one_of_links_to_its_files(made, tmp_path, monkeypatch):
  for name in files_of(made):
    (tmp_path / 'snapshot' / name).parent.mkdir(parents=True, exist_ok=True)
    os.symlink(made / name, tmp_path / 'snapshot' / name)
  asked = fake_hub.install(monkeypatch, {'me/vild': tmp_path / 'snapshot'})
  assert vild_jax.load('hf://me/vild@main').vocabulary.names == NAMES
  assert asked.pop()[:2] == ('me/vild', 'main') and not asked
  for key in ('init', 'init_first_stage'):
    assert state.locate(tiny.config(f'train.{key}=hf://me/vild')) == tmp_path / 'snapshot' / 'variables'
  asked.clear()
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r'me/vild holds no config\.json'):  # a path, which the hub is not asked for
    vild_jax.load('me/vild')
  assert not asked


def test_nothing_but_a_bundle_is_replaced(made, given, tmp_path):
  (tmp_path / 'mine').mkdir()
  (tmp_path / 'mine' / 'file').write_text('mine')
  with pytest.raises(ValueError, match='mine exists and is not a bundle; expected a new folder'):
    bundle_lib.export_bundle(tmp_path / 'mine', CONFIG, given.variables, given.vocabulary, vocabulary_teacher='x')
  assert files_of(tmp_path) == ['mine/file']
