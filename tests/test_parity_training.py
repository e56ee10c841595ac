"""One training step of ViLD against the reference's numbers: losses, gradients, and what stands after the update.

The golden's own sampled regions and targets are injected in place of `assign`, all of them valid where the reference
knows no validity; the settings of docs/departures.md restore it elsewhere.

Gradients are compared by the norm of the difference. They pass through some thirty ReLUs: moving the weights by 6e-8 of
themselves in float64, one rounding of float32, changes them by up to 0.8 %, so that 2 % is what their float32 values
can be held to. Their norms agree to 1e-3, and the values after the step, in which they count little, to 1e-4, where
XLA's convolutions round as TensorFlow's do (Eigen, in jax below 0.11). Where they do not, one rounding of the weights
may move a norm by more than that: such a norm or value is held to the bound and what this movement adds, measured here
and capped, at 5e-3 for norms and at the bound itself for values.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import reference
from tests.helpers.reference import assert_close
from vild_jax import config as config_lib
from vild_jax import detector, objective
from vild_jax.interop import tf_vild
from vild_jax.structs import RegionTargets, Vocabulary
from vild_jax.targets import Targets
from vild_jax.train import optim

NAME = 'train_d14_vanilla_syncbn'
LEVELS = range(2, 7)
SETTINGS = [
  'distillation.weight=0.5',
  'assignment.novel_logits_zero=true',
  'model.rpn.max_proposals=200',
  'optimizer.drop_last_decay=true',
  'assignment.rpn_targets_plus_one=false',
]
# Below this a gradient is rounding: the biases in front of a normalisation have none.
NO_GRADIENT = 1e-5


@pytest.fixture(scope='module')
def golden_step(shared):
  return reference.arrays(shared, f'{NAME}.npz')


@pytest.fixture(scope='module')
def facts(shared):
  return reference.table(shared, f'{NAME}.json')


@pytest.fixture(scope='module')
def start(shared, facts):
  """(weights by TF name, our variables, config) before the step."""
  weights = reference.weights(shared, [v for v in facts['variables'] if not tf_vild.is_train_only(v['name'])])
  variables, config = tf_vild.from_variables(weights)
  return weights, variables, config_lib.override(config, SETTINGS)


def targets(arrays):
  """The golden's targets, all valid: its samplers drew 8 regions of padding, and its heads saw 4 more to distil."""
  rows = lambda name, *last: {level: arrays[name.format(level)].reshape(2, -1, *last) for level in LEVELS}
  rpn_deltas = rows('in_rpn_box_targets_{}', 4)
  everything = lambda *shape: np.ones(shape, bool)
  found = Targets(
    rpn_labels=rows('in_rpn_score_targets_{}'),
    rpn_deltas=rpn_deltas,
    rpn_positive={level: (deltas != 0).any(-1) for level, deltas in rpn_deltas.items()},
    rois=arrays['out_sampled_rois'],
    valid=everything(2, 48),
    foreground=arrays['out_matched_gt_classes'] > 0,
    labels=((arrays['out_matched_gt_classes'] - 1) % 21).astype(np.int32),
    deltas=arrays['out_box_targets'],
    mask_rois=arrays['out_mask_rois'],
    mask_valid=everything(2, 12),
    mask_foreground=arrays['out_mask_classes'] > 0,
    masks=arrays['out_mask_targets'],
    regions=RegionTargets(arrays['in_roi_boxes'], arrays['in_gt_visual_feat'], everything(2, 10)),
  )
  return jax.tree.map(jnp.asarray, found)


@pytest.fixture(scope='module')
def forward_and_backward(shared, golden_step, start):
  """params -> (losses by name, outputs, statistics, gradients) of one forward and backward pass, compiled."""
  weights, variables, config = start
  words = Vocabulary(
    jnp.asarray(weights[tf_vild.CLASS_EMBEDDINGS].T), jnp.asarray(reference.is_base(shared)), jnp.ones(20, bool)
  )
  seen = targets(golden_step)
  # The loss of the reference counts the regions with some coordinate above 0; its head saw all of them.
  learnt = seen.replace(regions=seen.regions.replace(valid=jnp.asarray(golden_step['in_roi_boxes'].max(-1) > 0)))

  def loss(params, batch_stats, images):
    model_variables = {'params': params, 'batch_stats': batch_stats}
    first, model_variables = detector.first_stage(config.model, model_variables, images, train=True)
    outputs, model_variables = objective.outputs_of(config, model_variables, first, seen, words)
    parts = objective.losses(config, outputs, learnt, words)
    return sum(parts.values()), (parts, outputs, model_variables['batch_stats'])

  compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))

  def run(params):
    (_, found), gradients = jax.device_get(compiled(params, variables['batch_stats'], golden_step['in_images']))
    return *found, gradients

  return run


@pytest.fixture(scope='module')
def step(forward_and_backward, start):
  return forward_and_backward(start[1]['params'])


@pytest.fixture(scope='module')
def moved_gradients(forward_and_backward, start):
  """The gradients at weights that are one rounding away: how far float32 determines them on this processor."""
  rng = np.random.default_rng(0)
  move = lambda w: (w * (1 + 6e-8 * rng.choice([-1.0, 1.0], w.shape))).astype(np.float32)
  return [forward_and_backward(jax.tree.map(move, start[1]['params']))[-1] for _ in range(3)]


def test_the_golden_has_what_the_settings_are_for(golden_step, facts):
  assert golden_step['out_scalar_valid_roi_ratio'] == np.float32(0.8) and facts['no_gradient'] == []
  assert (golden_step['out_sampled_rois'].max(-1) <= 0).sum() == 8


def test_every_loss(step, golden_step, start):
  parts = step[0]
  for ours, theirs, factor in (
    ('rpn_score_loss', 'rpn_score_loss', 1),
    ('rpn_box_loss', 'rpn_box_loss', 1),
    ('class_loss', 'fast_rcnn_class_loss', 1),
    ('box_loss', 'fast_rcnn_box_loss', 1),
    ('mask_loss', 'mask_loss', 1),
    ('distillation_loss', 'feat_distill_loss', 0.5),
  ):
    assert_close(parts[ours], factor * golden_step[f'out_scalar_{theirs}'], reference.LOSSES, ours)
  assert len(parts) == 6
  assert_close(sum(parts.values()), golden_step['out_scalar_model_loss'], reference.LOSSES)
  _, variables, config = start
  decays = optim.decay_mask(variables['params'])
  squares = jax.tree.map(lambda w, d: np.sum(np.square(w, dtype=np.float64)) if d else 0.0, variables['params'], decays)
  decay = 0.5 * config.optimizer.weight_decay * sum(jax.tree.leaves(squares))
  assert_close(decay, golden_step['out_scalar_l2_regularization_loss'], reference.LOSSES)
  assert_close(sum(parts.values()) + decay, golden_step['out_total_loss'], reference.LOSSES)


def test_outputs_of_both_stages(step, golden_step):
  outputs = step[1]
  for level in LEVELS:
    assert_close(outputs.first.objectness[level], golden_step[f'out_rpn_score_{level}'].reshape(2, -1))
    assert_close(outputs.first.deltas[level], golden_step[f'out_rpn_box_{level}'].reshape(2, -1, 4))
  proposals = outputs.first.proposals
  assert proposals.valid.all()
  assert_close(proposals.boxes, golden_step['out_proposals'])
  assert_close(proposals.scores, golden_step['out_proposal_scores'])
  assert_close(outputs.second.logits, reference.background_last(golden_step['out_class_outputs']))
  assert_close(outputs.second.deltas, golden_step['out_box_outputs'])
  assert_close(outputs.mask_logits, golden_step['out_mask_outputs'])
  student = outputs.second.student / np.linalg.norm(outputs.second.student, axis=-1, keepdims=True)
  assert_close(student, golden_step['out_distill_feat_outputs'])


def _gradients(gradients, start, facts):
  """Yields (TF name, gradient of the total loss with weight decay) for every variable that is optimised."""
  _, variables, config = start
  table = tf_vild.parameter_table(config.model)
  decays = optim.decay_mask(variables['params'])
  total = jax.tree.map(
    lambda g, w, d: g + config.optimizer.weight_decay * w if d else g, gradients, variables['params'], decays
  )
  for name in facts['order']:
    yield name, _at(total, table[name].path[1:])


def _at(tree, path):
  for key in path:
    tree = tree[key]
  return np.asarray(tree)


def test_every_gradient(step, moved_gradients, start, facts, golden_step):
  compared = 0
  norm_of = lambda gradient: np.linalg.norm(gradient.astype(np.float64))
  moved = [dict(_gradients(gradients, start, facts)) for gradients in moved_gradients]
  for name, found in _gradients(step[3], start, facts):
    norm, _, largest = facts['norms'][name]
    if norm == 0:  # no anchor of levels 5 and 6 is sampled
      assert not found.any(), name
      continue
    if norm < NO_GRADIENT:
      assert name.endswith('bias') and np.linalg.norm(found) < NO_GRADIENT, name
      continue
    rounding = max(abs(norm_of(other[name]) - norm_of(found)) for other in moved)
    assert abs(norm_of(found) - norm) <= 1e-3 * norm + min(rounding, 5e-3 * norm), name
    assert abs(np.abs(found).max() - largest) <= 2e-2 * largest, name
    if (expected := golden_step.get(f'grad/{name}')) is not None:
      difference = np.linalg.norm((found.reshape(expected.shape) - expected).astype(np.float64))
      assert difference <= 2e-2 * norm, f'{name}: {difference / norm:.2e}'
      compared += 1
  assert len(facts['order']) == len(jax.tree.leaves(start[1]['params'])) == 158
  assert (
    compared
    == sum(key.startswith('grad/') and np.linalg.norm(value) >= NO_GRADIENT for key, value in golden_step.items())
    > 80
  )


def test_values_after_the_step(step, moved_gradients, start, golden_step):
  _, variables, config = start
  table = tf_vild.parameter_table(config.model)
  update = optim.optimizer(config)

  @jax.jit
  def updated(params, gradients):
    return optax.apply_updates(params, update.update(gradients, update.init(params), params)[0])

  after = {'params': jax.device_get(updated(variables['params'], step[3])), 'batch_stats': step[2]}
  moved = [
    {'params': jax.device_get(updated(variables['params'], gradients)), 'batch_stats': step[2]}
    for gradients in moved_gradients
  ]
  assert_close(optim.schedule(config.optimizer, config.train.steps)(0), golden_step['out_lr'], reference.LOSSES)
  names = [key.removeprefix('after/') for key in golden_step if key.startswith('after/') and 'global_step' not in key]
  assert len(names) == 194 and sum('moving' in name for name in names) > 60
  for name in names:
    expected = golden_step[f'after/{name}']
    found = _at(after, table[name].path).reshape(expected.shape)
    rounding = max(
      (reference.error(_at(other, table[name].path).reshape(expected.shape), found) for other in moved), default=0.0
    )
    assert_close(found, expected, reference.VALUES + min(rounding, reference.VALUES), what=name)
    before = np.asarray(_at(variables, table[name].path)).reshape(expected.shape)
    if table[name].path[0] == 'batch_stats':  # the change itself, which is 0.3 % of the value
      np.testing.assert_allclose(found - before, expected - before, rtol=1e-3, atol=2e-6, err_msg=name)


def test_the_settings_restore_the_reference_and_are_off_by_default(start):
  default, restored = config_lib.Config(), start[2]
  changed = [
    f.name
    for f in dataclasses.fields(default.assignment)
    if getattr(default.assignment, f.name) != getattr(restored.assignment, f.name)
  ]
  assert changed == ['rpn_targets_plus_one', 'novel_logits_zero'] and not default.optimizer.drop_last_decay
