"""ImageNet ResNets: both namings give the same backbone, it computes what theirs does, and training starts from it."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.helpers import numpy_resnet, reference, tiny
from tests.helpers.small_resnet import DEPTH, WIDTH, layers, tensors
from vild_jax import cli, detector
from vild_jax.interop import timm_resnet
from vild_jax.nn.resnet import ResNet
from vild_jax.train import sharding, state


@pytest.mark.parametrize('hugging_face', [False, True], ids=['timm and torchvision', 'Hugging Face'])
def test_the_backbone_computes_what_theirs_does(hugging_face):
  """Their forward in NumPy, eps 1e-5, but with our max-pool, which is the one difference that stays."""
  variables, backbone = timm_resnet.from_tensors(tensors(hugging_face))
  assert (backbone.depth, backbone.width) == (DEPTH, WIDTH)
  image = np.random.default_rng(1).normal(size=(64, 64, 3)).astype(np.float32)
  kernels = [(kernel.transpose(2, 3, 1, 0), *norm) for kernel, *norm in layers()]
  expected = numpy_resnet.resnet(image, DEPTH, lambda i: kernels[i], eps=1e-5)
  of = {key: tree['backbone'] for key, tree in variables.items()}
  found = jax.jit(lambda v, x: ResNet(DEPTH, WIDTH).apply(v, x, train=False))(of, image[None])
  for level in (2, 3, 4, 5):
    reference.assert_close(found[level][0], expected[level], what=f'C{level}')
  wrong = numpy_resnet.resnet(image, DEPTH, lambda i: kernels[i], eps=1e-4)
  assert reference.error(wrong[5], expected[5]) > 10 * reference.VALUES


def test_eps_is_folded_exactly():
  var = np.array([0, 1e-7, 8.9e-5, 9.1e-5, 0.3, 5], np.float32)
  scale = np.linspace(-1, 2, 6).astype(np.float32)
  new_scale, new_var = timm_resnet.fold_eps(scale, var)
  np.testing.assert_allclose(new_scale / np.sqrt(new_var + 1e-4), scale / np.sqrt(var + 1e-5), rtol=2e-6)
  assert (new_var >= 0).all()
  np.testing.assert_allclose(new_scale[3:], scale[3:], rtol=1e-6)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda t: t.pop('layer1.0.downsample.0.weight'),
      'layer1.0.downsample.0.weight is missing; expected a plain ResNet',
    ),
    (lambda t: t.update({'layer1.0.se.fc1.weight': np.zeros(3)}), 'layer1.0.se.fc1.weight fits nothing'),
    (lambda t: t.update({'layer2.0.conv2.weight': np.zeros((16, 4, 3, 3))}), r'conv2.weight has shape \(16, 4, 3, 3\)'),
    (lambda t: t.update({'bn1.bias': np.full(8, np.inf)}), 'bn1.bias holds numbers that are not finite'),
    (lambda t: t.update({'bn1.running_var': np.full(8, -1.0)}), 'bn1.running_var holds a negative number'),
    (lambda t: t.update({'layer3.1.conv1.weight': np.zeros((32, 128, 1, 1))}), r'blocks \(1, 1, 2, 1\) of 3'),
    (lambda t: t.update({'conv1.0.weight': t.pop('conv1.weight')}), 'there is no ResNet of timm, torchvision'),
  ],
)
def test_another_architecture_is_refused_by_name(change, message):
  given = tensors()
  change(given)
  with pytest.raises(ValueError, match=message) as error:
    timm_resnet.from_tensors(given)
  assert '\n' not in str(error.value)


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'model.safetensors'
  safetensors.numpy.save_file(tensors(), path)
  return path


def test_training_starts_from_a_converted_backbone(file, tmp_path, capsys, monkeypatch):
  out = tmp_path / 'backbone'
  assert cli.main(['convert', 'resnet', '--from', str(file), '--out', str(out)]) == 0
  assert f'--train.init_backbone={out}' in capsys.readouterr().out
  config = tiny.config(f'model.backbone.depth={DEPTH}', f'train.init_backbone={out}')
  mesh, scratch = sharding.make_mesh(config.mesh), tiny.variables(config)
  monkeypatch.setattr(detector, 'init', lambda config, key: scratch)  # initialisers compile slowly
  made = state.create_on(config, mesh)
  expected, _ = timm_resnet.from_tensors(tensors())
  for found, tree in ((made.params, expected['params']), (made.batch_stats, expected['batch_stats'])):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found['backbone']), tree['backbone'])
    assert set(found) > {'backbone', 'fpn'}
  np.testing.assert_array_equal(made.params['fpn']['output2']['kernel'], scratch['params']['fpn']['output2']['kernel'])
  assert jax.tree.map(lambda x: (x.shape, x.sharding), made.params) == jax.tree.map(
    lambda x: (x.shape, x.sharding), state.abstract(config, mesh).params
  )


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (['model.backbone.depth=26'], 'of another architecture: batch_stats/backbone/group1_block2'),
    (['model.backbone.depth=14', 'model.backbone.width=16'], r'is \(1, 1, 8, 8\), expected|expected \('),
  ],
)
def test_a_backbone_of_another_depth_or_width_is_refused(file, tmp_path, overrides, message, monkeypatch):
  out = tmp_path / 'backbone'
  assert cli.main(['convert', 'resnet', '--from', str(file), '--out', str(out)]) == 0
  config = tiny.config(*overrides, f'train.init_backbone={out}')
  mesh = sharding.make_mesh(config.mesh)
  monkeypatch.setattr(state.jax, 'jit', lambda *args, **kwargs: lambda: None)  # what it makes is replaced anyway
  with pytest.raises(ValueError, match=message):
    state.create_on(config, mesh)


def test_bad_input_gets_one_line_and_leaves_nothing(file, tmp_path, capsys):
  out = tmp_path / 'o'

  def refused(*words):
    assert cli.main(['convert', *map(str, words)]) == 2
    message = capsys.readouterr().err
    assert message.count('\n') == 1 and not out.exists()
    return message

  assert 'is not a file' in refused('resnet', '--from', tmp_path / 'none.safetensors', '--out', out)
  broken = tmp_path / 'broken.safetensors'
  broken.write_bytes(file.read_bytes()[:1000])
  assert 'not a complete .safetensors file' in refused('resnet', '--from', broken, '--out', out)
  assert 'exists; expected a new folder' in refused('resnet', '--from', file, '--out', tmp_path)
  assert '--out DIR, or --dry-run' in refused('resnet', '--from', file)
  assert 'belong to convert tf-vild' in refused('resnet', '--from', file, '--out', out, '--classes', 'lvis')
  (tmp_path / 'config.json').write_text(json.dumps({'downsample_in_bottleneck': True}))
  assert 'ResNet v1.5, which strides on the 3x3' in refused('resnet', '--from', file, '--out', out)
  assert not [path for path in tmp_path.iterdir() if path.name.endswith('.tmp')]


def test_dry_run_prints_the_mapping(file, tmp_path, capsys):
  assert cli.main(['convert', 'resnet', '--from', str(file), '--dry-run']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 18 and 'ResNet-14: 85 of 104 tensors have a place; 19' in lines[-1]
  with pytest.raises(SystemExit):
    cli.main(['convert', '--help'])
  assert 'example: vild-jax convert' in ' '.join(capsys.readouterr().out.split())
