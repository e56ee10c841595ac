"""Targets and losses: what is sampled, what it should learn, and the departures from the reference that decide it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax import config as config_lib
from vild_jax import detector, objective
from vild_jax.core import boxes
from vild_jax.structs import Proposals


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


def _assign(batch, proposals, config=None, key=0):
  """`assign` on given proposals; the other outputs of the first stage play no part in it."""
  config = config or tiny.config()
  first = detector.FirstStage({}, {}, {}, proposals)
  return jax.device_get(
    jax.jit(objective.assign, static_argnums=0)(
      config, first, batch, tiny.vocabulary(), jax.random.split(jax.random.PRNGKey(key), len(batch.image))
    )
  )


def _proposals(batch, count=30, valid=20, seed=1):
  """Boxes near the ground truth and far from it; the last ones are padding."""
  rng = np.random.default_rng(seed)
  size, instances = batch.valid.shape
  near = batch.boxes[np.arange(size)[:, None], rng.integers(0, instances, (size, count))]
  jitter = rng.uniform(-3, 3, near.shape)
  far = np.sort(rng.uniform(0, 63, (size, count, 2, 2)), axis=2).reshape(size, count, 4)
  mixed = np.where(rng.random((size, count, 1)) < 0.5, near + jitter, far).clip(0, 63).astype(np.float32)
  mixed[..., 2:] = np.maximum(mixed[..., 2:], mixed[..., :2] + 2)  # every real proposal has an area; padding has none
  mask = np.tile(np.arange(count) < valid, (size, 1))
  return Proposals(mixed * mask[..., None], mask.astype(np.float32), mask)


def _outputs(targets, logits, mask_logits):
  """Outputs for the anchors and regions of `targets`: these logits, and zeros."""
  zeros = lambda *more: {level: jnp.zeros((*x.shape, *more)) for level, x in targets.rpn_labels.items()}
  first = detector.FirstStage({}, zeros(), zeros(4), None)
  return objective.Outputs(first, detector.SecondStage(None, logits, jnp.zeros((8, 16, 4))), mask_logits)


def _iou(a, b):
  return np.asarray(boxes.iou(jnp.asarray(a), jnp.asarray(b)))


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
  proposals = _proposals(batch)
  targets = _assign(batch, proposals)
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


def test_padding_is_never_sampled():
  """docs/departures.md, 3: neither padded proposals nor padded ground truth; too few candidates leave empty slots."""
  batch = tiny.batch()
  proposals = _proposals(batch, valid=6)
  targets = _assign(batch, proposals)
  for i in range(8):
    gt = batch.boxes[i][batch.valid[i]]
    candidates = np.concatenate([proposals.boxes[i, :6], gt])
    best = _iou(candidates, gt).max(axis=1) if len(gt) else np.zeros(6)
    assert targets.valid[i].sum() == min((best > 0.5).sum(), 4) + (best < 0.5).sum()
  assert (np.abs(targets.rois[targets.valid]).max(axis=-1) > 0).all()
  assert (targets.labels[~targets.foreground] == tiny.CLASSES).all()
  assert not targets.foreground[~targets.valid].any() and not targets.mask_foreground[~targets.mask_valid].any()


def test_labels_boxes_and_quota_follow_the_overlaps():
  batch = tiny.batch()
  targets = _assign(batch, _proposals(batch))
  assert (targets.foreground.sum(axis=1) <= 4).all() and targets.foreground.any()
  for i in range(8):
    gt = batch.boxes[i][batch.valid[i]]
    for j in np.flatnonzero(targets.valid[i]):
      overlap = _iou(targets.rois[i, j][None], gt)[0] if len(gt) else np.zeros(1)
      if targets.foreground[i, j]:
        best = overlap.argmax()
        assert overlap[best] > 0.5 and targets.labels[i, j] == batch.labels[i][batch.valid[i]][best]
        decoded = boxes.decode(
          jnp.asarray(targets.deltas[i, j][None]), jnp.asarray(targets.rois[i, j][None]), weights=(10.0, 10.0, 5.0, 5.0)
        )
        np.testing.assert_allclose(decoded[0], gt[best], atol=1e-3)
      else:
        assert overlap.max() < 0.5 and (targets.deltas[i, j] == 0).all()


def _with_some_masks(share):
  batch = tiny.batch()
  return batch.replace(has_mask=batch.valid & (np.random.default_rng(5).random(batch.valid.shape) < share))


@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_only_objects_with_a_mask_give_mask_targets(share):
  batch = _with_some_masks(share)
  whole, targets = (_assign(b, _proposals(batch)) for b in (tiny.batch(), batch))
  for name in ('rois', 'valid', 'foreground', 'labels', 'deltas'):  # boxes and classes are learnt of all
    np.testing.assert_array_equal(getattr(targets, name), getattr(whole, name))
  taken = 0
  for i in range(8):
    regions = np.flatnonzero(whole.foreground[i])
    if len(regions):
      best = _iou(whole.rois[i, regions], np.where(batch.valid[i][:, None], batch.boxes[i], 0)).argmax(1)
      regions = regions[batch.has_mask[i][best]]
    learns = targets.mask_foreground[i]
    np.testing.assert_array_equal(targets.mask_rois[i][learns], whole.rois[i, regions])
    same = [int(np.flatnonzero((whole.mask_rois[i] == roi).all(1))[0]) for roi in whole.rois[i, regions]]
    np.testing.assert_array_equal(targets.masks[i][learns], whole.masks[i][same])
    taken += learns.sum()
    assert targets.mask_valid[i].sum() == whole.mask_valid[i].sum()  # the others still enter batch statistics
  counted = objective.count(jax.tree.map(jnp.asarray, targets))['mask']
  assert taken == counted and (taken > 0) == (share > 0)
  assert (taken == whole.foreground.sum()) == (share == 1)


@pytest.mark.parametrize('share', [0.0, 0.5])
def test_the_mask_loss_is_the_mean_over_regions_that_have_a_mask(share):
  config, batch = tiny.config(), _with_some_masks(share)
  other = batch.replace(masks=np.where(batch.has_mask[..., None, None], batch.masks, 255 - batch.masks))
  targets, changed = (jax.tree.map(jnp.asarray, _assign(b, _proposals(batch))) for b in (batch, other))
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
def test_a_batch_that_does_not_say_has_all_masks():
  batch = tiny.batch()
  said, unsaid = (_assign(b, _proposals(batch)) for b in (batch, batch.replace(has_mask=None)))
  jax.tree.map(np.testing.assert_array_equal, said, unsaid)


@pytest.mark.slow
def test_without_any_mask_the_rest_learns_the_same_as_without_the_mask_head(variables):
  none = _with_some_masks(0.0)

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


def test_anchor_targets_use_the_decoders_convention():
  """docs/departures.md, 5: decoding a target gives the ground truth back; the reference's setting does not."""
  batch = tiny.batch()
  anchors = np.concatenate(list(detector.model_anchors(tiny.config().model, (64, 64)).values()))
  errors = {}
  for plus_one in (True, False):
    config = tiny.config(f'assignment.rpn_targets_plus_one={plus_one}')
    targets = _assign(batch, _proposals(batch), config)
    deltas, positive = (np.concatenate(list(x.values()), axis=1) for x in (targets.rpn_deltas, targets.rpn_positive))
    assert positive.sum() > 10 and (deltas[~positive] == 0).all()
    errors[plus_one] = 0.0
    for i in range(8):
      if positive[i].any():
        decoded = np.asarray(boxes.decode(jnp.asarray(deltas[i][positive[i]]), jnp.asarray(anchors[positive[i]])))
        gt = batch.boxes[i][batch.valid[i]]
        errors[plus_one] = max(errors[plus_one], np.abs(decoded[:, None] - gt[None]).max(-1).min(1).max())
  assert errors[True] < 1e-3 < 0.05 < errors[False]


def test_every_image_and_every_step_draws_anew():
  """docs/departures.md, 9: equal images of one batch are sampled differently, and so are two keys."""
  batch = tiny.batch()
  same = jax.tree.map(lambda x: np.repeat(x[1:2], 8, axis=0), batch)
  proposals = jax.tree.map(lambda x: np.repeat(x[1:2], 8, axis=0), _proposals(batch))
  targets, again, other = (_assign(same, proposals, key=key) for key in (0, 0, 1))
  np.testing.assert_array_equal(targets.rois, again.rois)
  assert (targets.rois != other.rois).any()
  assert all((targets.rois[0] != targets.rois[i]).any() for i in range(1, 8))


def test_a_full_size_step_has_the_expected_shapes():
  config = config_lib.load('configs/vild_text_r50_lvis.py')
  side, count = 1024, config.data.max_instances
  shape = jax.ShapeDtypeStruct
  batch = objective.Batch(
    shape((2, side, side, 3), jnp.float32),
    shape((2, 2), jnp.float32),
    shape((2, count, 4), jnp.float32),
    shape((2, count), jnp.int32),
    shape((2, count, 112, 112), jnp.uint8),
    shape((2, count), bool),
  )
  words = objective.Vocabulary(shape((1203, 512), jnp.float32), shape((1203,), bool), shape((1203,), bool))
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
