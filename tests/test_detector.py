"""The detector: shapes of the full-size model, what padding may not do, and predictions under jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax import config as config_lib
from vild_jax import detector
from vild_jax.config import Config
from vild_jax.core import roi_align
from vild_jax.structs import Attributes, Vocabulary
from vild_jax.train import sharding


@pytest.fixture(scope='module')
def variables():
  return jax.jit(lambda: detector.init(tiny.config(), jax.random.PRNGKey(0)))()


@pytest.fixture(scope='module')
def predicted(variables):
  batch = tiny.batch()
  predict = jax.jit(
    lambda v, image, size, words: detector.predict(tiny.config(), v, image, size, words, return_intermediates=True)
  )
  return predict, jax.device_get(predict(variables, batch.image[0], np.array([40, 64], np.float32), tiny.vocabulary()))


@pytest.mark.parametrize('depth', [10, 14, 18, 26, 34, 50, 101, 152])
def test_every_depth_has_strides_4_to_32(depth):
  from vild_jax.nn.resnet import ResNet

  features = jax.eval_shape(
    lambda image: ResNet(depth).init_with_output(jax.random.PRNGKey(0), image, train=False)[0],
    jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32),
  )
  bottleneck = depth not in (10, 18, 34)
  assert {level: f.shape for level, f in features.items()} == {
    level: (1, 128 >> level, 128 >> level, 64 * 2 ** (level - 2) * (4 if bottleneck else 1)) for level in (2, 3, 4, 5)
  }


def test_full_size_prediction_has_the_shapes_of_the_surface():
  config = config_lib.load('configs/vild_text_r50_lvis.py')
  variables = jax.eval_shape(lambda: detector.init(config, jax.random.PRNGKey(0)))
  words = Vocabulary(
    *(jax.ShapeDtypeStruct(s, d) for s, d in (((1203, 512), jnp.float32), ((1203,), bool), ((1203,), bool)))
  )
  found, inside = jax.eval_shape(
    lambda *args: detector.predict(config, *args, return_intermediates=True),
    variables,
    jax.ShapeDtypeStruct((1024, 1024, 3), jnp.float32),
    jax.ShapeDtypeStruct((2,), jnp.float32),
    words,
  )
  assert found.boxes.shape == (300, 4) and found.masks.shape == (300, 28, 28) and found.valid.shape == (300,)
  assert inside['text_logits'].shape == (1000, 1204) and inside['box_deltas'].shape == (1000, 4)
  assert {level: f.shape for level, f in inside['features'].items()} == {
    level: (1024 >> level, 1024 >> level, 256) for level in range(2, 7)
  }
  assert inside['features'][2].dtype == jnp.bfloat16 and found.scores.dtype == jnp.float32


def test_detections_are_sorted_inside_the_picture_and_valid_first(predicted):
  _, (found, _) = predicted
  count = found.valid.sum()
  assert count > 0 and found.valid[:count].all()
  assert (np.diff(found.scores[:count]) <= 0).all() and (found.scores[:count] > 0).all()
  assert (found.boxes >= 0).all() and (found.boxes[:, [0, 2]] <= 39).all() and (found.boxes[:, [1, 3]] <= 63).all()
  assert (found.labels[:count] < tiny.CLASSES).all()


def test_padding_of_the_vocabulary_changes_nothing(variables, predicted):
  predict, (expected, inside) = predicted
  words = tiny.vocabulary()
  padded = Vocabulary(
    np.pad(words.embeddings, ((0, 5), (0, 0)), constant_values=7.0),
    np.pad(words.is_base, (0, 5)),
    np.pad(words.valid, (0, 5)),
  )
  found, inside_padded = jax.device_get(
    predict(variables, tiny.batch().image[0], np.array([40, 64], np.float32), padded)
  )
  np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)
  np.testing.assert_array_equal(found.labels, expected.labels)
  assert np.isneginf(inside_padded['text_logits'][:, tiny.CLASSES : -1]).all()
  assert np.isfinite(inside['text_logits']).all()


def test_a_fixed_background_and_attributes_of_the_vocabulary(variables, predicted):
  predict, _ = predicted
  image, size = tiny.batch().image[0], np.array([40, 64], np.float32)
  row = np.random.default_rng(1).normal(size=16).astype(np.float32)
  row /= np.linalg.norm(row)
  learnt = {**variables, 'params': {**variables['params'], 'background': 0.01 * row}}
  expected, inside = jax.device_get(predict(learnt, image, size, tiny.vocabulary()))
  # With the classes as attributes, their cosines are known.
  attributes = Attributes(np.pad(tiny.vocabulary().embeddings, ((0, 2), (0, 0))), np.arange(8) < 6)
  words = tiny.vocabulary().replace(background=row, attributes=attributes)
  found, with_row = jax.device_get(predict(variables, image, size, words))
  np.testing.assert_allclose(with_row['text_logits'], inside['text_logits'], rtol=1e-6, atol=1e-4)
  assert found.valid.any() and expected.attributes is None
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4),
    found.replace(attributes=None),
    expected,
  )
  logits = np.float64(with_row['text_logits'])[found.regions]
  power = np.exp(logits - logits.max(axis=1, keepdims=True))
  of_classes = power[np.arange(len(power)), found.labels] / power.sum(axis=1)
  np.testing.assert_allclose(found.scores[found.valid], of_classes[found.valid], rtol=1e-4)
  np.testing.assert_allclose(
    found.attributes[:, :6], power[:, :6] / power[:, :6].sum(axis=1, keepdims=True), rtol=1e-3, atol=1e-5
  )
  np.testing.assert_array_equal(found.attributes[:, 6:], 0)


def test_the_learnt_background_learns_nothing_beside_a_fixed_one():
  model, row = tiny.config().model, np.eye(16, dtype=np.float32)[0]
  embeddings = np.random.default_rng(2).normal(size=(1, 3, 16)).astype(np.float32)

  def of_background(learnt, words):
    return detector.class_logits(model, {'params': {'background': learnt}}, embeddings, words)[..., -1].sum()

  gradient = jax.jit(jax.grad(of_background))
  assert np.any(gradient(0.5 * row + 0.1, tiny.vocabulary()) != 0)
  np.testing.assert_array_equal(gradient(0.5 * row + 0.1, tiny.vocabulary().replace(background=row)), 0)


def test_padded_proposals_give_no_detection(variables):
  """The reference's padded all-zero proposals become detections (docs/departures.md, 11)."""
  config = tiny.config('model.rpn.max_proposals=2000', 'model.rpn.test_pre_nms_top_k=30')
  predict = jax.jit(
    lambda v, image, words: detector.predict(config, v, image, (64, 64), words, return_intermediates=True)
  )
  found, inside = predict(variables, tiny.batch().image[0], tiny.vocabulary())
  padding = ~np.asarray(inside['proposals'].valid)
  assert padding.sum() > 1000
  assert not (np.asarray(found.boxes)[np.asarray(found.valid)].max(axis=1) <= 0).any()


_ON_A_MESH = sharding.per_image(sharding.make_mesh(config_lib.Mesh(), jax.devices()[:1]))


@pytest.mark.parametrize(
  ('train', 'per_image', 'at_once'),
  [
    (True, _ON_A_MESH, True),
    (False, _ON_A_MESH, False),
    (True, jax.vmap, False),  # several chips could not split a kernel
  ],
)
def test_only_training_on_a_tpu_pools_a_batch_at_once(train, per_image, at_once):
  features = {level: jnp.zeros((2, 64 >> level, 64 >> level, 16)) for level in range(2, 7)}
  pool = lambda f, rois: detector._pool(f, rois, size=7, train=train, per_image=per_image)
  gradient = jax.jit(jax.grad(lambda f, rois: pool(f, rois).sum()))
  traced = gradient.trace(features, jnp.zeros((2, 4, 4)))
  lowered = {of: traced.lower(lowering_platforms=(of,)).as_text() for of in ('cpu', 'tpu')}
  assert {of: 'stablehlo.while' in text for of, text in lowered.items()} == {'cpu': True, 'tpu': not at_once}
  assert {of: 'tpu_custom_call' in text for of, text in lowered.items()} == {'cpu': False, 'tpu': at_once}


@pytest.mark.parametrize('axes', [{'fsdp': 2}, {'fsdp': 2, 'spatial': 2}])
def test_gradients_of_pooled_regions_are_the_same_on_every_mesh(axes, as_on):
  """By the kernel for TPUs, which each device runs on its own pictures, and by the loop elsewhere."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  features = {level: draw(8, 128 >> level, 128 >> level, 4) for level in range(2, 7)}
  corner = rng.uniform(0, 90, (8, 12, 2))
  rois = jnp.asarray(np.concatenate([corner, corner + rng.uniform(4, 38, (8, 12, 2))], -1), jnp.float32)
  cotangent = draw(8, 12, 7, 7, 4)

  def gradient(per_image):
    pool = lambda f: detector._pool(f, rois, size=7, train=True, per_image=per_image)
    return jax.jit(jax.grad(lambda f: jnp.vdot(pool(f), cotangent)))(features)

  expected = gradient(jax.vmap)
  as_on('tpu')
  found = gradient(sharding.per_image(sharding.make_mesh(config_lib.Mesh(**axes))))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2**-20 * np.abs(b).max()), found, expected)


@pytest.mark.parametrize(('count', 'filled'), [(300, 304), (5, 5), (8, 8)])
@pytest.mark.parametrize('share', [0.7, 0.0])
def test_regions_that_fill_up_to_a_multiple_of_eight_change_nothing(variables, count, filled, share):
  """In training; against the head on the features of the given regions alone."""
  model, rng = tiny.config().model, np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  features = {level: draw(2, 64 >> level, 64 >> level, 16) for level in range(2, 7)}
  corner, valid = rng.uniform(0, 30, (2, count, 2)), rng.uniform(size=(2, count)) < share
  rois = jnp.asarray(np.concatenate([corner, corner + rng.uniform(4, 30, (2, count, 2))], -1), jnp.float32)

  def expected(variables):
    pool = lambda f, boxes: roi_align.multilevel_roi_align(f, boxes, output_size=7)
    pooled = jax.vmap(pool)(features, rois).reshape(2 * count, 7, 7, 16)
    apply = detector.ViLD(model).apply
    return apply(variables, pooled, valid.ravel(), train=True, method='regions', mutable=['batch_stats'])

  pooled = jax.eval_shape(lambda: detector._pool(features, rois, size=7, train=True, per_image=jax.vmap))
  assert pooled.shape == (2, filled, 7, 7, 16)
  found, after = jax.jit(lambda v: detector.second_stage(model, v, features, rois, valid, None, train=True))(variables)
  (embeddings, deltas), changed = jax.jit(expected)(variables)
  assert found.embeddings.shape[:2] == found.deltas.shape[:2] == (2, count)
  np.testing.assert_allclose(found.embeddings.reshape(2 * count, -1), embeddings, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(found.deltas.reshape(2 * count, 4), deltas, rtol=1e-4, atol=1e-6)
  for a, b in zip(*(jax.tree.leaves(stats['batch_stats']) for stats in (after, {**variables, **changed})), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_initial_values_follow_the_method(variables):
  """Initial values of docs/method.md, 3."""
  full = Config()
  shapes = jax.eval_shape(lambda: detector.init(full, jax.random.PRNGKey(0)))['params']
  assert shapes['region_head']['fc1']['kernel'].shape == (7 * 7 * 256, 1024)
  assert shapes['region_head']['projection']['kernel'].shape == (1024, 512)
  assert shapes['mask_head']['deconv']['kernel'].shape == (2, 2, 256, 256)
  params = variables['params']
  assert all(
    (np.asarray(x) == 0).all() for path, x in jax.tree_util.tree_flatten_with_path(params)[0] if path[-1].key == 'bias'
  )
  assert all(
    (np.asarray(x) == 1).all() for path, x in jax.tree_util.tree_flatten_with_path(params)[0] if path[-1].key == 'scale'
  )
  std = lambda x: float(np.std(np.asarray(x)))
  np.testing.assert_allclose(std(params['background']), 0.01, rtol=0.6)
  np.testing.assert_allclose(std(params['rpn_head']['conv1']['kernel']), 0.01, rtol=0.1)
  np.testing.assert_allclose(std(params['region_head']['box']['kernel']), 0.001, rtol=0.3)
  np.testing.assert_allclose(std(params['region_head']['conv1']['kernel']), np.sqrt(2 / (9 * 16)), rtol=0.1)
  np.testing.assert_allclose(
    std(params['backbone']['group4_block1']['conv2']['kernel']), np.sqrt(1 / (9 * 64)), rtol=0.05
  )
  np.testing.assert_allclose(std(params['fpn']['output2']['kernel']), np.sqrt(2 / (9 * 16 + 9 * 16)), rtol=0.1)
