"""Export, from a work directory and from a bundle: what goes into the model card, and that devices do not matter."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import vild_jax
from tests.helpers import fake_hub, small_bundle
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax.config import Mesh
from vild_jax.inference import bundle
from vild_jax.train import checkpoint, sharding, state
from vild_jax.workflows import exporting


def test_a_bundle_exported_under_eight_devices_detects_the_same_on_one(made, tmp_path):
  config = checkpoint.read_config(made / 'run')
  whole = checkpoint.load_variables(made / 'run', config)
  mesh = sharding.make_mesh(Mesh(fsdp=8))
  split = jax.tree.map(
    lambda x, like: jax.device_put(x, like.sharding), whole, state.variables(state.abstract(config, mesh))
  )
  assert len(jax.devices()) == 8 and not all(x.is_fully_replicated for x in jax.tree.leaves(split))
  identity = vild_jax.load(made / 'run').vocabulary.teacher
  bundle.export_bundle(tmp_path / 'out', config, split, made / 'run' / 'vocabulary.npz', vocabulary_teacher=identity)
  here, there = vild_jax.load(made / 'run'), vild_jax.load(tmp_path / 'out')
  assert all(len(x.devices()) == 1 for x in jax.tree.leaves(there.variables))
  jax.tree.map(np.testing.assert_array_equal, there.variables, here.variables)
  here, there = (detector.detect(made / 'picture.png', min_score=0.0) for detector in (here, there))
  assert len(here.scores) > 0
  np.testing.assert_allclose(there.boxes, here.boxes, atol=1e-5)
  np.testing.assert_allclose(there.scores, here.scores, atol=1e-5)


def test_the_card_has_step_data_licence_and_the_metrics_of_these_weights_alone(made, tmp_path, capsys):
  workdir = shutil.copytree(made / 'run', tmp_path / 'run')
  for name in ('evaluation', 'other', 'old'):
    (workdir / name).mkdir()
    metrics = json.loads((made / 'evaluation' / 'metrics.json').read_text())
    if name == 'other':
      metrics['detector']['weights'] = 'of another step'
    elif name == 'old':
      del metrics['detector']
    (workdir / name / 'metrics.json').write_text(json.dumps(metrics))
  for name, content in (('foreign', '[0.5]'), ('damaged', '{')):
    (workdir / name).mkdir()
    (workdir / name / 'metrics.json').write_text(content)
  words = ('export', made / 'config.json', '--checkpoint', workdir, '--license', 'cc-by-4.0', '--out')
  capsys.readouterr()
  assert run(*words, tmp_path / 'b') == 0
  told = capsys.readouterr().err
  assert f'{workdir}/other/metrics.json is not of these weights and settings: the model card leaves it out' in told
  assert f'{workdir}/foreign/metrics.json has no box metrics' in told and 'damaged/metrics.json is no' in told
  assert f'{workdir}/old/metrics.json does not say of which weights it is' in told and 'evaluation/' not in told
  card, about = (tmp_path / 'b' / 'README.md').read_text(), json.loads((tmp_path / 'b' / 'bundle.json').read_text())
  assert card.startswith('---\nlicense: cc-by-4.0\n') and '| steps | 2 of 2 |' in card
  assert [found['file'] for found in about['metrics']] == ['evaluation/metrics.json']
  assert about['metrics'][0]['box'] == metrics['box'] and 'from `evaluation/metrics.json`)' in card
  assert about['training']['data'] == json.loads((made / 'run' / 'data.json').read_text())
  # Again, from the bundle: what is known of the weights stays with them.
  assert run('export', made / 'config.json', '--checkpoint', tmp_path / 'b', '--out', tmp_path / 'c') == 0
  assert (tmp_path / 'c' / 'README.md').read_text() == card
  other = ('--model.postprocess.nms_threshold=0.25', '--out', tmp_path / 'd')
  assert run('export', made / 'config.json', '--checkpoint', tmp_path / 'b', *other) == 0
  assert json.loads((tmp_path / 'd' / 'bundle.json').read_text())['metrics'] == []
  # Given by hand.
  assert run(*words, tmp_path / 'e', '--metrics', workdir / 'old' / 'metrics.json') == 0
  assert 'which does not say which weights it is of' in (tmp_path / 'e' / 'README.md').read_text()
  with pytest.raises(ValueError, match='has metrics of other weights, settings or scores; expected those of this'):
    config = config_lib.load(made / 'config.json')
    exporting.export(config, workdir, tmp_path / 'f', metrics=str(workdir / 'other' / 'metrics.json'))
  assert not (tmp_path / 'f').exists()


def test_a_bundle_of_a_bundle_keeps_the_towers(tmp_path, monkeypatch):
  parts = small_bundle.parts(tmp_path)
  first = small_bundle.write(tmp_path / 'first', parts)
  config = config_lib.load(first / 'config.json')  # whose teacher is not known on this machine
  second = exporting.export(dataclasses.replace(config, teacher='gone'), first, tmp_path / 'second', license='mit')
  towers = [name for name in small_bundle.files_of(first) if '_tower/' in name]
  assert {name.partition('/')[0] for name in towers} == {'text_tower', 'image_tower'}
  for name in towers:
    assert (second / name).read_bytes() == (first / name).read_bytes()
  about = json.loads((second / 'bundle.json').read_text())
  assert about['image_teacher'] == json.loads((first / 'bundle.json').read_text())['image_teacher']
  card = (second / 'README.md').read_text()
  assert '| example pictures as classes | yes' in card and '| any class name | yes' in card
  # In its own place, with another teacher given by name.
  exporting.export(config, second, second, teacher=str(parts.teacher))
  assert json.loads((second / 'bundle.json').read_text())['license'] == 'mit'
  assert config_lib.load(second / 'config.json').teacher == str(parts.teacher)
  assert towers == [name for name in small_bundle.files_of(second) if '_tower/' in name]
  # Or by its name on the hub.
  fake_hub.install(monkeypatch, {'me/clip': parts.teacher})
  words = ('export', second / 'config.json', '--checkpoint', second, '--teacher', 'hf://me/clip')
  assert run(*words, '--out', tmp_path / 'third') == 0
  assert config_lib.load(tmp_path / 'third' / 'config.json').teacher == 'hf://me/clip'


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (('--format', 'stablehlo', '--teacher', 'T'), '--teacher is not of --format stablehlo; expected bundle'),
    (('--format', 'onnx', '--image-tower'), '--image-tower is not of --format onnx; expected bundle'),
    (('--without-nms',), '--without-nms is not of --format bundle; expected stablehlo, onnx, savedmodel'),
    (('--format', 'savedmodel', '--classes', '9'), '--classes is not of --format savedmodel; expected onnx'),
    (('--format', 'onnx', '--classes', '0'), '--classes is 0; expected 1 or more'),
    (('--format', 'onnx', '--onnx-python', 'absent'), "--onnx-python is 'absent', which does not run"),
  ],
)
def test_options_of_another_format_are_refused(words, message, tmp_path, capsys):
  config = Path(__file__).resolve().parents[2] / 'configs' / 'vild_text_toy.py'
  assert run('export', config, '--checkpoint', tmp_path / 'none', '--out', tmp_path / 'out', *words) == 2
  assert message in capsys.readouterr().err and not list(tmp_path.iterdir())
