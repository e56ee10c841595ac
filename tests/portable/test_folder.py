"""The folder of a portable model: all of it or nothing, with checksums, and a README that says what goes in and out."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.helpers import portable_model, tiny
from vild_jax.portable import folder, program


def test_the_folder_has_the_model_its_words_a_runner_and_checksums_of_them(tmp_path):
  out = portable_model.write(tmp_path / 'out')
  about = json.loads((out / 'model.json').read_text())
  names = {path.name for path in out.iterdir()}
  assert names == {'model.stablehlo', 'model.json', 'vocabulary.npz', 'names.txt', 'run.py', 'README.md'}
  assert set(about['files']) == names - {'model.json', 'README.md'}
  for name, listed in about['files'].items():
    content = (out / name).read_bytes()
    assert listed == {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
  assert (out / 'names.txt').read_text().splitlines() == list(portable_model.NAMES)
  assert about['license'] == 'mit' and about['teacher'] == portable_model.TEACHER
  assert about['suppression'] == {
    'done': True,
    'iou_threshold': 0.5,
    'score_threshold': 0.0,
    'candidates_per_class': 1000,
    'max_detections': 10,
  }
  # 30 proposals: with 35 rows there are the 1,024 pairs that suppression ranks at a time.
  assert about['fewest_classes'] == 35
  inputs = about['programs']['model']['inputs']
  assert inputs['image'] == {'type': 'float32', 'shape': ['b', 64, 64, 3]}
  assert inputs['embeddings'] == {'type': 'float32', 'shape': ['c', 16]}
  assert list(inputs) == ['image', 'size', 'embeddings', 'is_base', 'is_class']


def test_the_readme_says_what_goes_in_and_out_the_licence_and_how_to_run(tmp_path):
  text = (portable_model.write(tmp_path / 'out', suppress=False) / 'README.md').read_text()
  for said in (
    'Licence of the weights: mit.',
    "pip install numpy pillow 'jax>=0.10.2' flatbuffers",
    'python run.py photo.jpg --classes "ant, fire_hydrant"',
    '| input | `image` | float32 [b, 64, 64, 3] |',
    '| output | `logits` | float32 [b, 30, c + 1] |',
    '| output | `features_6` | float32 [b, 1, 1, 16] |',
    '| output | `masks` | float32 [b, 10, 28, 28] |',
    'is left to you: `suppress` in `run.py`',
    '| `model.stablehlo`, `masks.stablehlo` |',
  ):
    assert said in text, said


def test_the_example_has_names_that_a_shell_and_commas_leave_whole(tmp_path):
  path = portable_model.vocabulary(tmp_path / 'v.npz', names=('bird, blue', '"big" $5', 'red mug', 'ant'))
  source = program.Source(tiny.config(), None, None, True)
  out = folder.write(tmp_path / 'out', 'stablehlo', source, path, portable_model.empty_program)
  assert '--classes "red mug, ant" --out' in (out / 'README.md').read_text()


def test_an_older_model_is_replaced_and_nothing_else(tmp_path):
  out = portable_model.write(tmp_path / 'out')
  (out / 'of people.txt').write_text('stays')
  (out / 'run.py').write_text('of an older version')
  assert portable_model.write(tmp_path / 'out') == out
  assert (out / 'of people.txt').read_text() == 'stays' and 'older' not in (out / 'run.py').read_text()[:30]
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'file').write_text('precious')
  with pytest.raises(ValueError, match='other exists; expected a new folder'):
    portable_model.write(tmp_path / 'other')
  assert (tmp_path / 'other' / 'file').read_text() == 'precious'
  for about in ('{"format": "layers-model", "programs": 1}', '["stablehlo"]', '{"format": ["onnx"]}', 'no JSON'):
    (tmp_path / 'other' / 'model.json').write_text(about)
    assert not folder.is_portable(tmp_path / 'other')


def test_a_model_that_cannot_be_written_leaves_the_old_one(tmp_path):
  out = portable_model.write(tmp_path / 'out')
  before = (out / 'model.json').read_bytes()

  def fails(where, of):
    (where / 'half').write_text('half')
    raise OSError('disk full')

  source = program.Source(tiny.config(), None, None, True)
  with pytest.raises(OSError, match='disk full'):
    folder.write(out, 'stablehlo', source, tmp_path / 'out.npz', fails)
  assert (out / 'model.json').read_bytes() == before
  assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'out.npz']
