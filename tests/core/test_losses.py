from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.core import losses, openvocab

_LEVELS = range(2, 7)


def _value_and_grad(loss):
  return jax.jit(jax.value_and_grad(loss))


def _close(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def _anchor_rows(g, name, last):
  """{level: [B, H * W * A(, 4)]} of maps that the reference keeps as [B, H, W, A * last]."""
  shape = (2, -1) if last == 1 else (2, -1, last)
  return {level: jnp.asarray(g[name.format(level)]).reshape(shape) for level in _LEVELS}


def _background_last(x):
  return jnp.roll(jnp.asarray(x), -1, axis=-1)


def _label(x, num_classes):
  return ((jnp.asarray(x) - 1) % (num_classes + 1)).astype(jnp.int32)


def _positive(targets):
  return {level: jnp.any(t != 0, axis=-1) for level, t in targets.items()}


def test_rpn_score_equals_the_reference(golden):
  g = golden('loss_rpn_score')
  logits, labels = _anchor_rows(g, 'in_s{}', 1), _anchor_rows(g, 'in_t{}', 1)
  loss, gradient = _value_and_grad(losses.rpn_score)(logits, labels)
  _close(loss, g['out_loss'])
  for level, expected in _anchor_rows(g, 'out_grad_s{}', 1).items():
    _close(gradient[level], expected)


def test_rpn_box_equals_the_reference(golden):
  g = golden('loss_rpn_box')
  deltas, targets = _anchor_rows(g, 'in_s{}', 4), _anchor_rows(g, 'in_t{}', 4)
  loss, gradient = _value_and_grad(losses.rpn_box)(deltas, targets, _positive(targets))
  _close(loss, g['out_loss'])
  for level, expected in _anchor_rows(g, 'out_grad_s{}', 4).items():
    _close(gradient[level], expected)


@pytest.mark.parametrize('rare_as_zero', [False, True])
def test_region_class_equals_the_reference(golden, rare_as_zero):
  g = golden('loss_class_mask_rare' if rare_as_zero else 'loss_class_no_mask')
  labels = _label(g['in_class_targets'], 20)
  # The reference multiplies the logits of rare classes by 0; that is the caller's affair here.
  factor = _background_last(g['in_rare_mask']) if rare_as_zero else jnp.ones(21)

  def loss_of(logits):
    everything = jnp.ones(labels.shape, bool), jnp.ones(21, bool)
    return losses.region_class(logits * factor[None, None, :], labels, *everything)

  loss, gradient = _value_and_grad(loss_of)(_background_last(g['in_class_outputs']))
  _close(loss, g['out_loss'])
  _close(gradient, _background_last(g['out_grad']))


@pytest.mark.parametrize('name', ['loss_box', 'loss_box_no_fg'])
def test_region_box_equals_the_reference(golden, name):
  g = golden(name)
  foreground = jnp.asarray(g['in_class_targets'] > 0)
  loss, gradient = _value_and_grad(losses.region_box)(
    jnp.asarray(g['in_box_outputs']), jnp.asarray(g['in_box_targets']), foreground
  )
  _close(loss, g['out_loss'])
  _close(gradient, g['out_grad'])


def test_mask_equals_the_reference(golden):
  g = golden('loss_mask')
  loss, gradient = _value_and_grad(losses.mask)(
    jnp.asarray(g['in_mask_outputs']), jnp.asarray(g['in_mask_targets']), jnp.asarray(g['in_classes'] > 0)
  )
  _close(loss, g['out_loss'])
  _close(gradient, g['out_grad'])


def _all_losses(a):
  """Every loss of the golden build_losses, by the reference's name."""
  box_targets = _anchor_rows(a, 'in_rpn_box_targets_{}', 4)
  foreground = a['in_class_targets'] > 0
  logits = _background_last(a['in_class_outputs'] * a['in_rare_mask'][None, None, :])
  return {
    'rpn_score_loss': losses.rpn_score(
      _anchor_rows(a, 'in_rpn_score_outputs_{}', 1), _anchor_rows(a, 'in_rpn_score_targets_{}', 1)
    ),
    'rpn_box_loss': losses.rpn_box(_anchor_rows(a, 'in_rpn_box_outputs_{}', 4), box_targets, _positive(box_targets)),
    'fast_rcnn_class_loss': losses.region_class(
      logits, _label(a['in_class_targets'], 20), jnp.ones(foreground.shape, bool), jnp.ones(21, bool)
    ),
    'fast_rcnn_box_loss': losses.region_box(a['in_box_outputs'], a['in_box_targets'], foreground),
    'mask_loss': losses.mask(a['in_mask_outputs'], a['in_mask_targets'], a['in_sampled_class_targets'] > 0),
  }


def test_all_losses_of_a_training_step_equal_the_reference(golden):
  g = golden('build_losses')
  parts = jax.jit(_all_losses)(g)
  for name, value in parts.items():
    _close(value, g[f'out_{name}'])
  valid = jnp.asarray(g['in_roi_boxes'].max(-1) > 0)
  distillation = lambda student: 0.5 * losses.distillation(student, jnp.asarray(g['in_gt_visual_feat']), valid)
  loss, gradient = _value_and_grad(distillation)(g['in_distill_feat_outputs'])
  _close(sum(parts.values()) + loss, g['out_total'])
  # The reference normalises the student in its head and gives the gradient behind that.
  behind = jax.jit(lambda x, cotangent: jax.vjp(openvocab.normalize, x)[1](cotangent)[0])
  _close(gradient, behind(g['in_distill_feat_outputs'], g['out_grad_distill_feat_outputs']))


def test_disallowed_classes_leave_the_softmax_whatever_their_logits():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(0, 5, (2, 4, 6)), jnp.float32)
  allowed = np.array([True, False, True, True, False, True])
  labels = jnp.asarray(rng.choice(np.flatnonzero(allowed), (2, 4)), jnp.int32)
  everyone = jnp.ones((2, 4), bool)
  both = _value_and_grad(lambda x: losses.region_class(x, labels, everyone, jnp.asarray(allowed)))
  new_labels = jnp.asarray(np.searchsorted(np.flatnonzero(allowed), labels), jnp.int32)
  expected = losses.region_class(logits[..., np.flatnonzero(allowed)], new_labels, everyone, jnp.ones(4, bool))
  for garbage in (0.0, 1e4, -np.inf):
    loss, gradient = both(jnp.where(jnp.asarray(allowed)[None, None, :], logits, garbage))
    _close(loss, expected)
    np.testing.assert_array_equal(gradient[..., ~allowed], 0.0)
    assert np.isfinite(gradient).all() and np.any(gradient != 0)


def test_the_background_stands_for_what_nobody_labels():
  """arXiv 2002.00718, equation 2: its probability is a sum; objects with labels are scored as always."""
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, (2, 6, 6))
  labels = np.array([[5, 5, 0, 3, 5, 0], [5, 0, 0, 3, 3, 5]])
  allowed, unlabelled = np.array([1, 1, 1, 1, 0, 1], bool), np.array([0, 1, 1, 0, 0, 0], bool)
  probability = np.exp(logits) * allowed
  probability /= probability.sum(-1, keepdims=True)
  picked = np.take_along_axis(probability, labels[..., None], -1)[..., 0]
  summed = probability[..., 1] + probability[..., 2] + probability[..., 5]
  expected = -np.log(np.where(labels == 5, summed, picked)).mean()
  everyone = jnp.ones((2, 6), bool)
  loss, gradient = _value_and_grad(
    lambda x: losses.region_class(
      x, jnp.asarray(labels, jnp.int32), everyone, jnp.asarray(allowed), unlabelled=jnp.asarray(unlabelled)
    )
  )(jnp.asarray(logits, jnp.float32))
  _close(loss, expected)
  assert np.isfinite(gradient).all()
  # Where nothing is labelled, classes without labels are never pushed down against the background.
  gradient = np.asarray(gradient)[labels == 5]
  assert (gradient[:, unlabelled] < 0).all() and (gradient[:, [0, 3]] > 0).all()
  _close(gradient[:, 1] / gradient[:, 5], np.exp(logits[..., 1] - logits[..., 5])[labels == 5])


def test_retention_is_the_divergence_from_the_starting_detector_over_what_the_data_do_not_label():
  """arXiv 2002.00718, equation 8; the labelled classes count as "anything else" on both sides."""
  rng = np.random.default_rng(0)
  logits, start = rng.normal(0, 2, (2, 2, 6, 7))
  allowed, unlabelled = np.array([1, 1, 1, 1, 0, 0, 1], bool), np.array([0, 1, 1, 0, 1, 0, 0], bool)
  valid = np.array([[1, 1, 0, 1, 1, 1], [0, 1, 1, 0, 1, 1]], bool)

  def groups(x):
    p = np.exp(x) * allowed
    p /= p.sum(-1, keepdims=True)
    return np.stack([p[..., 1], p[..., 2], p[..., 0] + p[..., 3] + p[..., 6]], axis=-1)

  p, q = groups(logits), groups(start)
  expected = (q * np.log(q / p)).sum(-1)[valid].mean()
  of = lambda x, **count: losses.retention(
    x, jnp.asarray(start, _F), jnp.asarray(valid), jnp.asarray(allowed), jnp.asarray(unlabelled), **count
  )
  loss, gradient = _value_and_grad(of)(jnp.asarray(logits, _F))
  _close(loss, expected)
  # By the softmax: a class pulls by the difference of its shares, and what is left out or has no part does not.
  _close(np.asarray(gradient)[valid][:, [1, 2]], (p - q)[valid][:, :2] / valid.sum())
  np.testing.assert_array_equal(np.asarray(gradient)[~valid], 0)
  np.testing.assert_array_equal(np.asarray(gradient)[..., ~allowed], 0)
  _close(of(jnp.asarray(logits, _F), count=jnp.asarray(2.0 * valid.sum(), _F)), expected / 2)
  loss, gradient = _value_and_grad(of)(jnp.asarray(start, _F) + 3.0)  # a softmax does not see a constant
  assert np.abs(loss) < 1e-6 and np.abs(gradient).max() < 1e-6


def test_boxes_are_kept_where_the_starting_detector_sees_what_the_data_do_not_label():
  rng = np.random.default_rng(0)
  deltas, start = rng.normal(0, 2, (2, 2, 6, 4))
  logits = rng.normal(0, 2, (2, 6, 5))
  allowed, unlabelled = np.array([1, 1, 1, 0, 1], bool), np.array([0, 1, 1, 1, 0], bool)
  valid = np.array([[1, 1, 0, 1, 1, 1], [0, 1, 1, 0, 1, 1]], bool)
  p = np.exp(logits) * allowed
  share = p[..., 1:3].sum(-1) / p.sum(-1)
  error = np.abs(deltas - start)
  huber = np.where(error < 1, error**2 / 2, error - 0.5)
  expected = (share[..., None] * huber)[valid].mean()
  fixed = [jnp.asarray(x, _F) for x in (start, logits)] + [jnp.asarray(x) for x in (valid, allowed, unlabelled)]
  of = lambda x, **count: losses.retention_box(x, *fixed, **count)
  loss, gradient = _value_and_grad(of)(jnp.asarray(deltas, _F))
  _close(loss, expected)
  slope = share[..., None] * np.clip(deltas - start, -1, 1) * valid[..., None]
  _close(gradient, slope / (4 * valid.sum()))
  _close(of(jnp.asarray(deltas, _F), count=jnp.asarray(2.0 * valid.sum(), _F)), expected / 2)
  # Where it sees nothing but the background, boxes are free.
  sure = jnp.broadcast_to(jnp.where(jnp.arange(5) == 4, 200.0, 0.0), (2, 6, 5))
  assert losses.retention_box(jnp.asarray(deltas, _F), fixed[0], sure, *fixed[2:]) == 0


_F = jnp.float32
# Each loss as a function of (predictions, mask of what takes part), with padding of NaN where it takes no part.
_CASES = {
  'rpn_score': ((2, 9), lambda x, m: losses.rpn_score({2: x}, {2: jnp.where(m, 1, -1)}), (2, 9)),
  'rpn_box': ((2, 9, 4), lambda x, m: losses.rpn_box({2: x}, {2: jnp.full((2, 9, 4), 0.3)}, {2: m}), (2, 9)),
  'region_class': (
    (2, 9, 5),
    lambda x, m: losses.region_class(x, jnp.full((2, 9), 4, jnp.int32), m, jnp.ones(5, bool)),
    (2, 9),
  ),
  'region_class of unlabelled ones': (
    (2, 9, 5),
    lambda x, m: losses.region_class(
      x, jnp.full((2, 9), 4, jnp.int32), m, jnp.ones(5, bool), unlabelled=jnp.arange(5) == 2
    ),
    (2, 9),
  ),
  'retention': (
    (2, 9, 5),
    lambda x, m: losses.retention(x, jnp.zeros((2, 9, 5)), m, jnp.arange(5) != 1, jnp.arange(5) % 3 == 0),
    (2, 9),
  ),
  'retention_box': (
    (2, 9, 4),
    lambda x, m: losses.retention_box(
      x, jnp.full((2, 9, 4), 0.3), jnp.zeros((2, 9, 5)), m, jnp.arange(5) != 1, jnp.arange(5) % 3 == 0
    ),
    (2, 9),
  ),
  'region_box': ((2, 9, 4), lambda x, m: losses.region_box(x, jnp.full((2, 9, 4), 0.3), m), (2, 9)),
  'mask': ((2, 3, 4, 4), lambda x, m: losses.mask(x, jnp.full((2, 3, 4, 4), 0.3), m), (2, 3)),
  'distillation': ((2, 9, 8), lambda x, m: losses.distillation(x, jnp.full((2, 9, 8), 0.3), m), (2, 9)),
}


@pytest.mark.parametrize('name', _CASES)
def test_nothing_valid_gives_zero_and_padding_never_leaks(name):
  shape, loss_of, mask_shape = _CASES[name]
  x = jnp.asarray(np.random.default_rng(0).normal(0, 2, shape), _F)
  both = _value_and_grad(loss_of)
  loss, gradient = both(jnp.full(shape, np.nan, _F), jnp.zeros(mask_shape, bool))
  assert loss == 0.0
  np.testing.assert_array_equal(gradient, np.zeros(shape))
  taken = jnp.zeros(mask_shape, bool).at[0, :2].set(True)
  expand = taken.reshape(mask_shape + (1,) * (len(shape) - 2))
  clean = both(x, taken)
  dirty = both(jnp.where(expand, x, np.nan), taken)
  assert clean[0] > 0
  np.testing.assert_array_equal(clean[0], dirty[0])
  np.testing.assert_array_equal(clean[1], dirty[1])


@pytest.mark.parametrize('name', _CASES)
def test_half_precision_predictions_give_float32_losses(name):
  shape, loss_of, mask_shape = _CASES[name]
  x = jnp.asarray(np.random.default_rng(0).normal(0, 2, shape), jnp.bfloat16)
  loss_of = jax.jit(loss_of)
  loss = loss_of(x, np.ones(mask_shape, bool))
  assert loss.dtype == jnp.float32
  _close(loss, loss_of(x.astype(_F), np.ones(mask_shape, bool)))


def test_distillation_is_the_l1_distance_of_directions():
  student = jnp.asarray([[[3.0, 4.0], [0.0, 0.0]]])
  teacher = jnp.asarray([[[10.0, 0.0], [0.0, 2.0]]])
  expected = ((0.4 + 0.8) + 1.0) / 2
  _close(losses.distillation(student, teacher, jnp.ones((1, 2), bool)), expected)
  assert np.isfinite(jax.grad(lambda s: losses.distillation(s, teacher, jnp.ones((1, 2), bool)))(student)).all()
