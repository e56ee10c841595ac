"""The reference's checkpoints: every variable has its place, and the converted model computes what they say."""

from __future__ import annotations

import sys

import jax
import numpy as np
import pytest

import vild_jax
from tests.helpers import numpy_resnet, reference
from vild_jax import cli, detector, vocabulary
from vild_jax import config as config_lib
from vild_jax.data import class_lists
from vild_jax.interop import tf_vild
from vild_jax.train import checkpoint, sharding, state

VARIANTS = {
  'r50_text': (425, 'vild_r50'),
  'r50_vanilla': (425, 'vild_r50'),
  'r50_double_branch': (463, 'vild_ensemble_r50'),
  'r152_vanilla': (935, 'vild_r152'),
  'r152_double_branch': (973, 'vild_ensemble_r152'),
}
# Full-size models that are computed: {variant: depth}.
COMPUTED = {'r50_vanilla': 50, 'r152_double_branch': 152}


@pytest.fixture(scope='module')
def layout(shared):
  return reference.table(shared, 'checkpoint_layout.json')


def hollow(layout, variant, *, train_only=True):
  """Ones of every variable's shape that take no memory."""
  listed = layout[variant]['model_variables'] + (layout[variant]['train_only'] if train_only else [])
  return {v['name']: np.broadcast_to(np.float32(1), v['shape']) for v in listed}


@pytest.mark.parametrize('variant', VARIANTS)
def test_every_variable_of_every_variant_has_a_place(layout, variant):
  count, name = VARIANTS[variant]
  text = tf_vild.mapping_text(hollow(layout, variant)).splitlines()
  assert len(text) == count + 1 and text[-1].startswith(f'{name}: {count} of {count} variables have a place')
  assert f'{len(layout[variant]["train_only"])} are left out' in text[-1]
  assert {line.split()[0] for line in text[:-1]} == {v['name'] for v in layout[variant]['model_variables']}


def test_what_decays_is_what_decays_there(layout):
  """Optimised and decayed variables of the layout are our parameters and those that decay."""
  from vild_jax.train import optim

  variables, config = tf_vild.from_variables(hollow(layout, 'r50_double_branch'))
  table = tf_vild.parameter_table(config.model)
  decays = optim.decay_mask(variables['params'])
  for v in layout['r50_double_branch']['model_variables']:
    if v['name'] == tf_vild.CLASS_EMBEDDINGS:
      assert not v['optimized'] and not v['weight_decay']
      continue
    path = table[v['name']].path
    assert v['optimized'] == (path[0] == 'params'), v['name']
    if v['optimized']:
      node = decays
      for key in path[1:]:
        node = node[key]
      assert node == v['weight_decay'], v['name']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda v: v.update({'fpn/l9/kernel': v['fpn/l2/kernel']}), 'fpn/l9/kernel has no place in vild_r50'),
    (lambda v: v.pop('rpn_head/rpn-l4-bn-1/beta'), 'rpn_head/rpn-l4-bn-1/beta is missing; expected it for params/rpn'),
    (lambda v: v.pop('resnet50/batch_normalization_52/moving_mean'), 'batch_normalization_52/moving_mean is missing'),
    (lambda v: v.update({'fpn/p6/bias': np.ones(255, np.float32)}), r'fpn/p6/bias has shape \(255,\)'),
    (lambda v: v.update({'fpn/p6/bias': np.full(256, np.nan)}), 'fpn/p6/bias holds numbers that are not finite'),
    (lambda v: v.pop(tf_vild.CLASS_EMBEDDINGS), 'class-predict/kernel is missing'),
    (lambda v: v.update({tf_vild.CLASS_EMBEDDINGS: np.zeros((512, 3))}), 'no direction in column 0'),
    (lambda v: v.pop('resnet50/conv2d/kernel'), 'there is no ViLD in these'),
    (
      lambda v: v.update({'resnet20/conv2d/kernel': v.pop('resnet50/conv2d/kernel')}),
      'is of a ResNet-20; expected one',
    ),
  ],
)
def test_a_checkpoint_that_does_not_fit_names_the_variable(layout, change, message):
  variables = hollow(layout, 'r50_vanilla')
  change(variables)
  with pytest.raises(ValueError, match=message) as error:
    tf_vild.from_variables(variables)
  assert '\n' not in str(error.value)


def test_class_embeddings_keep_their_order_and_have_unit_rows():
  columns = np.random.default_rng(0).normal(size=(512, 4)).astype(np.float32) * np.array([1, 2, 3, 4])
  rows = tf_vild.class_embeddings({tf_vild.CLASS_EMBEDDINGS: columns})
  np.testing.assert_allclose(rows, (columns / np.linalg.norm(columns, axis=0)).T, rtol=1e-6)


def test_without_tensorflow_one_line_says_so(monkeypatch, tmp_path, capsys):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  assert cli.main(['convert', 'tf-vild', '--from', str(tmp_path / 'c'), '--out', str(tmp_path / 'o')]) == 2
  message = capsys.readouterr().err
  assert 'needs TensorFlow' in message and "pip install 'vild_jax[tf]'" in message and message.count('\n') == 1
  assert not (tmp_path / 'o').exists()


@pytest.fixture(scope='module', params=COMPUTED)
def computed(request, shared, layout):
  """(variant, weights by TF name, image, expected features, function of our variables) of a full-size model."""
  depth = COMPUTED[request.param]
  weights = reference.weights(shared, layout[request.param]['model_variables'])
  image = np.random.default_rng(depth).normal(size=(128, 128, 3)).astype(np.float32)
  backbone = numpy_resnet.resnet(image, depth, numpy_resnet.by_tf_name(weights, depth))
  expected = backbone, numpy_resnet.pyramid(backbone, weights)
  config = tf_vild.from_variables(weights)[1]

  def features(variables, image):
    of = lambda name: {key: tree[name] for key, tree in variables.items()}
    found = detector.ResNet(depth).apply(of('backbone'), image[None], train=False)
    pyramid = detector.FPN(2, 6, 256).apply(of('fpn'), found, train=False)
    return jax.tree.map(lambda x: x[0], (found, pyramid))

  return request.param, weights, image, expected, jax.jit(features), config


def _error(found, expected):
  return max(reference.error(found[level], expected[level]) for level in expected)


def test_an_independent_forward_agrees(computed):
  _, weights, image, (backbone, pyramid), features, _ = computed
  variables, _ = tf_vild.from_variables(weights)
  found = jax.device_get(features(variables, image))
  assert _error(found[0], backbone) <= reference.VALUES and _error(found[1], pyramid) <= reference.VALUES
  # Two blocks of equal shapes in each other's place: only the values can tell.
  for tree in variables.values():
    blocks = tree['backbone']
    blocks['group3_block2'], blocks['group3_block3'] = blocks['group3_block3'], blocks['group3_block2']
  swapped = jax.device_get(features(variables, image))
  assert _error(swapped[0], backbone) > 100 * reference.VALUES and _error(swapped[1], pyramid) > 100 * reference.VALUES


def test_round_trip_through_a_tensorflow_checkpoint(computed, layout, tmp_path, capsys):
  tf = pytest.importorskip('tensorflow')
  variant, weights, image, (_, pyramid), features, config = computed
  train_only = {v['name']: np.zeros(v['shape'], v['dtype']) for v in layout[variant]['train_only'][:40]}
  written, prefix = {**weights, **train_only}, str(tmp_path / 'model.ckpt-180000')
  tf.raw_ops.SaveV2(
    prefix=prefix,
    tensor_names=list(written),
    shape_and_slices=[''] * len(written),
    tensors=[tf.constant(value) for value in written.values()],
  )
  out = tmp_path / 'converted'
  assert cli.main(['convert', 'tf-vild', '--from', prefix, '--dry-run']) == 0
  assert f'{len(weights)} of {len(weights)} variables have a place' in capsys.readouterr().out.splitlines()[-1]
  assert not out.exists()
  assert cli.main(['convert', 'tf-vild', '--from', prefix, '--out', str(out)]) == 0
  assert '1203 classes, 866 base' in capsys.readouterr().out
  assert config_lib.load(out / 'config.json') == config == checkpoint.read_config(out)
  variables = checkpoint.load_variables(out, config)
  for a, b in zip(jax.tree.leaves(variables), jax.tree.leaves(tf_vild.from_variables(weights)[0]), strict=True):
    np.testing.assert_array_equal(a, b)
  assert _error(jax.device_get(features(variables, image))[1], pyramid) <= reference.VALUES
  file, lvis = vocabulary.load(out / 'vocabulary.npz'), class_lists.class_list('lvis')
  assert file.names == lvis.names and file.is_base.tolist() == list(lvis.is_base)
  np.testing.assert_allclose(file.embeddings, tf_vild.class_embeddings(weights), rtol=1e-6)
  assert vild_jax.load(out).vocabulary.teacher == file.teacher
  start = config_lib.override(config, [f'train.init={out}'])
  count = len(jax.tree.leaves(variables))
  assert f'{count} of {count} arrays' in state.check_start(start, sharding.make_mesh(start.mesh)).report
  if variant == 'r50_vanilla':
    bundle = str(tmp_path / 'model_bundle')
    assert cli.main(['export', str(out / 'config.json'), '--checkpoint', str(out), '--out', bundle]) == 0
    assert vild_jax.load(bundle).config == config
  assert cli.main(['convert', 'tf-vild', '--from', prefix, '--out', str(out)]) == 2  # never over something there
  assert cli.main(['convert', 'tf-vild', '--from', str(tmp_path / 'nothing'), '--out', str(tmp_path / 'o')]) == 2
  assert 'not a readable TensorFlow checkpoint' in capsys.readouterr().err
  assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith('model')) == ['converted']
