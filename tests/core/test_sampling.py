from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.core import anchors, matching, sampling


def _oracle(positive, negative, priority, num_samples, fraction):
  best = lambda mask, num: sorted(np.flatnonzero(mask), key=lambda i: (-priority[i], i))[:num]
  taken = best(positive, int(num_samples * fraction))
  return sorted(taken + best(negative, num_samples - len(taken)))


@pytest.mark.parametrize(('num', 'share'), [(200, 0.5), (200, 0.02), (20, 0.5), (40, 0.0), (0, 0.0)])
def test_balanced_samples_equal_an_oracle(num, share):
  rng = np.random.default_rng(num)
  positive = rng.random(num) < share
  negative = ~positive & (rng.random(num) < 0.8)
  priority = rng.integers(0, 9, num).astype(np.float32)  # many ties
  draw = jax.jit(lambda p, n, q: sampling.sample_balanced(p, n, q, num_samples=32, positive_fraction=0.25))
  indices, valid = draw(jnp.asarray(positive), jnp.asarray(negative), jnp.asarray(priority))
  expected = _oracle(positive, negative, priority, 32, 0.25)
  np.testing.assert_array_equal(valid, np.arange(32) < len(expected))
  np.testing.assert_array_equal(indices, expected + [0] * (32 - len(expected)))


def test_random_priorities_are_made_apart_from_the_selections():
  """Without the barrier all results are the same, and a TPU's compiler takes minutes."""
  draw = lambda key, labels: sampling.sample_labels(
    labels, jax.random.uniform(key, labels.shape), num_samples=4, positive_fraction=0.5
  )
  text = jax.jit(draw).lower(jax.random.key(0), jnp.zeros((9,), jnp.int32)).as_text()
  assert text.count('optimization_barrier') == 1


def test_first_true_counts_slots_not_entries():
  indices, valid = sampling.first_true(jnp.asarray([False, True, False, True, True]), 2)
  np.testing.assert_array_equal(indices, [1, 3])
  np.testing.assert_array_equal(valid, [True, True])
  indices, valid = sampling.first_true(jnp.asarray([False, True]), 4)
  np.testing.assert_array_equal(indices, [1, 0, 0, 0])
  np.testing.assert_array_equal(valid, [True, False, False, False])


def test_anchor_sampling_equals_the_reference(golden):
  g = golden('rpn_labels_sampled_identity_shuffle')
  levels = anchors.pyramid_anchors(
    (256, 256), min_level=2, max_level=6, aspect_ratios=(1.0, 2.0, 0.5), num_scales=1, anchor_size=8.0
  )
  gt = jnp.asarray(g['in_gt_boxes'])
  labels, _ = matching.match_anchors(
    jnp.concatenate(list(levels.values())), gt, jnp.ones(len(gt), bool), positive_iou=0.7, negative_iou=0.3
  )
  priority = -jnp.arange(labels.shape[0], dtype=jnp.float32)
  sampled = sampling.sample_labels(labels, priority, num_samples=256, positive_fraction=0.5)
  expected = np.concatenate([g[f'out_score_{level}'].reshape(-1) for level in range(2, 7)])
  np.testing.assert_array_equal(sampled, expected)
  assert (expected >= 0).sum() == 256


def test_region_sampling_equals_the_reference(golden):
  """The reference samples its padding (boxes of -1): the golden's own candidates are fed, all valid."""
  g = golden('assign_sampled_identity_shuffle')
  for proposals, gt, rois, index in zip(
    g['in_proposals'], g['in_gt_boxes'], g['out_rois'], g['out_gt_indices'], strict=True
  ):
    candidates = jnp.concatenate([jnp.asarray(proposals), jnp.asarray(gt)])
    matched, iou = jax.jit(matching.match_regions)(candidates, jnp.asarray(gt), jnp.asarray(gt.max(-1) >= 0))
    priority = jnp.arange(len(candidates), dtype=jnp.float32)
    slots, valid = sampling.sample_balanced(iou > 0.5, iou < 0.5, priority, num_samples=64, positive_fraction=0.25)
    assert valid.all()
    np.testing.assert_array_equal(candidates[slots], rois)
    np.testing.assert_array_equal(jnp.where(iou > 0.5, matched, 0)[slots], index)


def test_candidates_without_subsampling_equal_the_reference(golden):
  g = golden('assign_no_subsampling')
  for proposals, gt, rois, index in zip(
    g['in_proposals'], g['in_gt_boxes'], g['out_rois'], g['out_gt_indices'], strict=True
  ):
    candidates = jnp.concatenate([jnp.asarray(proposals), jnp.asarray(gt)])
    np.testing.assert_array_equal(candidates, rois)
    matched, iou = jax.jit(matching.match_regions)(candidates, jnp.asarray(gt), jnp.asarray(gt.max(-1) >= 0))
    np.testing.assert_array_equal(jnp.where(iou > 0.5, matched, 0), index)


def test_a_quarter_million_anchors_are_sampled_evenly():
  labels = jnp.where(jnp.arange(260_000) % 1000 == 0, 1, 0).astype(jnp.int32)
  priority = jax.random.uniform(jax.random.key(0), labels.shape)
  sampled = np.asarray(sampling.sample_labels(labels, priority, num_samples=256, positive_fraction=0.5))
  assert (sampled == 1).sum() == 128 and (sampled == 0).sum() == 128
  assert 100_000 < np.flatnonzero(sampled >= 0).mean() < 160_000
