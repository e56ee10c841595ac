"""The losses of a batch: that every part learns, and which classes and objects take part."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import sampled, tiny
from vild_jax import config as config_lib
from vild_jax import detector, objective, structs
from vild_jax.train import sharding


@pytest.fixture(scope='module')
def variables():
  return jax.jit(lambda: detector.init(tiny.config(), jax.random.PRNGKey(0)))()


@pytest.fixture(scope='module')
def run(variables):
  """(batch, vocabulary) -> loss, metrics, statistics, gradients, targets of one forward."""
  config = tiny.config()

  def forward(batch, vocabulary):
    def loss(params):
      return objective.objective(config, {**variables, 'params': params}, batch, vocabulary, jax.random.PRNGKey(3))

    (total, (metrics, statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(variables['params'])
    return total, metrics, statistics, gradients

  return jax.jit(forward)


@pytest.mark.parametrize('spatial', [1, 2])
def test_pictures_in_uint8_are_normalised_and_masked_on_the_devices(spatial):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (8, 256, 256, 3), np.uint8)  # the padding holds anything
  sizes = np.float32([[256, 256], [1, 256], [256, 1], [1, 1], [37, 101], [255, 129], [128, 127], [64, 3]])
  mesh = sharding.make_mesh(tiny.config('data.image_size=256', f'mesh.spatial={spatial}').mesh)
  where = sharding.image_sharding(mesh), sharding.batch_sharding(mesh)
  found = jax.jit(objective.network_input, in_shardings=where, out_shardings=where[0])(image, sizes)
  assert found.dtype == np.float32
  for one, picture, (height, width) in zip(np.asarray(found), image, sizes.astype(int), strict=True):
    content = picture[:height, :width].astype(np.float64) / 255
    expected = (content - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(one[:height, :width], expected, atol=2e-6)
    assert not one[height:].any() and not one[:, width:].any()
  assert objective.network_input(found, sizes) is found


def _outputs(targets, logits, mask_logits):
  """Outputs for the anchors and regions of `targets`: these logits, and zeros."""
  zeros = lambda *more: {level: jnp.zeros((*x.shape, *more)) for level, x in targets.rpn_labels.items()}
  first = detector.FirstStage({}, zeros(), zeros(4), None)
  return objective.Outputs(first, detector.SecondStage(None, logits, jnp.zeros((8, 16, 4))), mask_logits)


def test_losses_and_gradients_are_finite_and_every_part_learns(run):
  total, metrics, statistics, gradients = run(tiny.batch(), tiny.vocabulary())
  assert np.isfinite(total)
  np.testing.assert_allclose(total, sum(metrics[k] for k in metrics if k.endswith('_loss')), rtol=1e-6)
  for path, gradient in jax.tree_util.tree_flatten_with_path(gradients)[0]:
    assert np.isfinite(gradient).all(), path
  for part in ('backbone', 'fpn', 'rpn_head', 'region_head', 'mask_head', 'background'):
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradients[part])) > 0, part
  assert all(np.isfinite(s).all() for s in jax.tree.leaves(statistics))


def test_a_batch_without_any_object_trains_as_background(run):
  """docs/departures.md, 4; the reference indexes −1."""
  _, metrics, _, gradients = run(tiny.batch(empty=tuple(range(8))), tiny.vocabulary())
  assert metrics['foreground_regions'] == metrics['positive_anchors'] == 0
  assert metrics['box_loss'] == metrics['mask_loss'] == metrics['rpn_box_loss'] == 0
  assert metrics['class_loss'] > 0 and metrics['rpn_score_loss'] > 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_novel_classes_are_absent_from_the_softmax(run):
  """docs/departures.md, 6: what the novel rows are changes nothing, and neither do padding rows."""
  words = tiny.vocabulary()
  other = words.replace(embeddings=np.where(words.is_base[:, None], words.embeddings, -words.embeddings[::-1]))
  np.testing.assert_array_equal(run(tiny.batch(), words)[0], run(tiny.batch(), other)[0])


def test_which_classes_are_in_the_softmax_is_a_setting():
  """The reference's novel logits of zero (docs/departures.md, 6), and the novel labels of the supervised baseline."""
  config = tiny.config()
  zero = dataclasses.replace(config, assignment=dataclasses.replace(config.assignment, novel_logits_zero=True))
  rng = np.random.default_rng(0)
  batch = tiny.batch()
  proposals = sampled.proposals(batch)
  targets = sampled.assign(batch, proposals)
  logits = jnp.asarray(rng.normal(size=(8, 16, tiny.CLASSES + 1)).astype(np.float32) * 5)
  outputs = _outputs(targets, logits, jnp.zeros((8, 4, 28, 28)))
  targets = jax.tree.map(jnp.asarray, targets)
  logits = np.asarray(outputs.second.logits, np.float64)
  base = np.append(tiny.vocabulary().is_base, True)

  def expected(columns):
    log_sum = np.log(np.exp(columns).sum(-1))
    picked = np.take_along_axis(logits, targets.labels[..., None], -1)[..., 0]
    return (log_sum - picked)[targets.valid].mean()

  found = objective.losses(config, outputs, targets, tiny.vocabulary())['class_loss']
  np.testing.assert_allclose(found, expected(logits[..., base]), rtol=1e-5)
  found = objective.losses(zero, outputs, targets, tiny.vocabulary())['class_loss']
  np.testing.assert_allclose(found, expected(logits * base[None, None]), rtol=1e-5)
  # A class without labels in the data is what a region without a label may show.
  words = tiny.vocabulary().replace(labelled=np.arange(tiny.CLASSES) != 1)
  others = np.where(np.arange(tiny.CLASSES + 1) == 1, 0, np.exp(logits) * base)
  background = np.asarray(targets.labels == tiny.CLASSES)
  picked = np.take_along_axis(np.exp(logits), np.asarray(targets.labels)[..., None], -1)[..., 0]
  picked = np.where(background, np.exp(logits[..., 1]) + np.exp(logits[..., -1]), picked)
  total = others.sum(-1) + np.exp(logits[..., 1])
  found = objective.losses(config, outputs, targets, words)['class_loss']
  np.testing.assert_allclose(found, np.log(total / picked)[targets.valid].mean(), rtol=1e-5)
  # The supervised baseline learns of all classes but padding.
  words = tiny.vocabulary().replace(valid=np.arange(tiny.CLASSES) < tiny.CLASSES - 1)
  supervised = tiny.config('assignment.novel_labels=true')
  found = objective.losses(supervised, outputs, targets, words)['class_loss']
  np.testing.assert_allclose(found, expected(logits[..., np.append(words.valid, True)]), rtol=1e-5)


@pytest.mark.parametrize('share', [0.0, 0.5])
def test_the_mask_loss_is_the_mean_over_regions_that_have_a_mask(share):
  config, batch = tiny.config(), sampled.with_some_masks(share)
  other = batch.replace(masks=np.where(batch.has_mask[..., None, None], batch.masks, 255 - batch.masks))
  targets, changed = (jax.tree.map(jnp.asarray, sampled.assign(b, sampled.proposals(batch))) for b in (batch, other))
  logits = np.random.default_rng(1).normal(0, 3, (8, 4, 28, 28)).astype(np.float32)

  @jax.jit
  def loss_of(mask_logits, targets):
    outputs = _outputs(targets, jnp.zeros((8, 16, tiny.CLASSES + 1)), mask_logits)
    return objective.losses(config, outputs, targets, tiny.vocabulary())['mask_loss']

  rows = np.asarray(targets.mask_foreground)
  x, y = logits[rows].astype(np.float64), np.asarray(targets.masks)[rows]
  found, gradient = jax.value_and_grad(loss_of)(logits, targets)
  expected = (np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0) - x * y).mean() if rows.any() else 0.0
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert loss_of(logits, changed) == found
  np.testing.assert_allclose(gradient[rows], (1 / (1 + np.exp(-x)) - y) / max(x.size, 1), rtol=1e-4, atol=1e-8)
  assert not np.asarray(gradient)[~rows].any() and rows.any() == (share > 0)


@pytest.mark.slow
def test_without_any_mask_the_rest_learns_the_same_as_without_the_mask_head(variables):
  none = sampled.with_some_masks(0.0)

  def gradients(config, batch):
    loss = lambda params, batch, words: objective.objective(
      config, {**variables, 'params': params}, batch, words, jax.random.PRNGKey(3)
    )
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables['params'], batch, tiny.vocabulary())

  (total, (metrics, _)), grads = gradients(tiny.config(), none)
  (alone, (fewer, statistics)), other = gradients(tiny.config('model.masks=false'), none.replace(masks=None))
  assert metrics.keys() - fewer.keys() == {'mask_loss'} and metrics['mask_loss'] == 0
  np.testing.assert_allclose(total, alone, rtol=1e-6)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6, err_msg=str(path))
  assert not any(np.any(g) for of in (grads, other) for g in jax.tree.leaves(of['mask_head']))
  for a, b in zip(*(jax.tree.leaves(s['mask_head']) for s in (statistics, variables['batch_stats'])), strict=True):
    np.testing.assert_array_equal(a, b)


def test_retention_compares_the_regions_without_a_label_with_the_starting_detector():
  config, batch, rng = tiny.config('train.init=bundle', 'train.retention=3'), tiny.batch(), np.random.default_rng(0)
  targets = jax.tree.map(jnp.asarray, sampled.assign(batch, sampled.proposals(batch)))
  logits, start = (jnp.asarray(rng.normal(0, 3, (8, 16, tiny.CLASSES + 1)), jnp.float32) for _ in range(2))
  outputs = _outputs(targets, logits, jnp.zeros((8, 4, 28, 28)))
  boxes = jnp.asarray(rng.normal(0, 0.3, (8, 16, 4)), jnp.float32)
  outputs = outputs.replace(kept=detector.SecondStage(None, start, boxes))
  words = tiny.vocabulary().replace(labelled=np.arange(tiny.CLASSES) != 1)

  def groups(x):  # class 1 and all else; the last two classes are novel, and take no part
    shares = np.exp(np.asarray(x, np.float64))[..., [0, 1, 2, 3, 6]]
    one = shares[..., 1] / shares.sum(-1)
    return np.stack([one, 1 - one], axis=-1)

  free = np.asarray(targets.valid & ~targets.foreground)
  p, q = groups(logits), groups(start)
  expected = 3 * (q * np.log(q / p)).sum(-1)[free].mean()
  found = objective.losses(config, outputs, targets, words)
  np.testing.assert_allclose(found['retention_loss'], expected, rtol=1e-4)
  plain = objective.losses(tiny.config(), outputs, targets, words)
  assert found.keys() - plain.keys() == {'retention_loss', 'retention_box_loss'}
  size = np.abs(np.asarray(boxes, np.float64))
  huber = np.where(size < 1, size**2 / 2, size - 0.5).mean(-1)
  expected = 3 * (q[..., 0] * huber)[free].sum() / np.asarray(targets.foreground).sum()
  np.testing.assert_allclose(found['retention_box_loss'], expected, rtol=1e-4)
  # With the reference's novel logits of zero, what is kept is seen as the model is.
  zero = tiny.config('train.init=bundle', 'train.retention=3', 'assignment.novel_logits_zero=true')
  p, q = (np.exp(np.where(np.isin(np.arange(7), [4, 5]), 0, np.asarray(x, np.float64))) for x in (logits, start))
  p, q = (np.stack([x[..., 1], x.sum(-1) - x[..., 1]], -1) / x.sum(-1, keepdims=True) for x in (p, q))
  found = objective.losses(zero, outputs, targets, words)['retention_loss']
  np.testing.assert_allclose(found, 3 * (q * np.log(q / p)).sum(-1)[free].mean(), rtol=1e-4)
  with pytest.raises(ValueError, match=r'train\.retention is 3, but'):
    objective.losses(config, outputs.replace(kept=None), targets, words)


def test_a_batch_without_any_object_keeps_boxes_by_their_mean():
  config, batch = tiny.config('train.init=bundle', 'train.retention=3'), tiny.batch(empty=tuple(range(8)))
  targets = jax.tree.map(jnp.asarray, sampled.assign(batch, sampled.proposals(tiny.batch())))
  free = np.asarray(targets.valid)
  assert free.any() and not np.asarray(targets.foreground).any()
  logits = jnp.zeros((8, 16, tiny.CLASSES + 1))  # each of four base classes and the background has a fifth
  kept = detector.SecondStage(None, logits, jnp.full((8, 16, 4), 0.5))
  outputs = _outputs(targets, logits, jnp.zeros((8, 4, 28, 28))).replace(kept=kept)
  words = tiny.vocabulary().replace(labelled=np.arange(tiny.CLASSES) != 1)
  found = objective.losses(config, outputs, targets, words)
  np.testing.assert_allclose(found['retention_box_loss'], 3 * 0.2 * 0.5 * 0.5**2, rtol=1e-5)


def test_a_full_size_step_has_the_expected_shapes():
  config = config_lib.load('configs/vild_text_r50_lvis.py')
  side, count = 1024, config.data.max_instances
  shape = jax.ShapeDtypeStruct
  batch = structs.Batch(
    shape((2, side, side, 3), jnp.float32),
    shape((2, 2), jnp.float32),
    shape((2, count, 4), jnp.float32),
    shape((2, count), jnp.int32),
    shape((2, count, 112, 112), jnp.uint8),
    shape((2, count), bool),
  )
  words = structs.Vocabulary(shape((1203, 512), jnp.float32), shape((1203,), bool), shape((1203,), bool))
  variables = jax.eval_shape(lambda: detector.init(config, jax.random.PRNGKey(0)))

  def gradients(variables, batch, words):
    loss = lambda params: objective.objective(
      config, {**variables, 'params': params}, batch, words, jax.random.PRNGKey(0)
    )
    return jax.value_and_grad(loss, has_aux=True)(variables['params'])

  (total, (metrics, statistics)), grads = jax.eval_shape(gradients, variables, batch, words)
  assert total.shape == () and total.dtype == jnp.float32 and set(metrics) >= {'mask_loss', 'class_loss'}
  same = lambda a, b: jax.tree.map(lambda x: (x.shape, x.dtype), a) == jax.tree.map(lambda x: (x.shape, x.dtype), b)
  assert same(grads, variables['params']) and same(statistics, variables['batch_stats'])
