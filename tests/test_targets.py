"""What is sampled and what it should learn, and the departures from the reference that decide it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import sampled, tiny
from vild_jax import detector
from vild_jax import targets as targets_lib
from vild_jax.core import boxes


def _iou(a, b):
  return np.asarray(boxes.iou(jnp.asarray(a), jnp.asarray(b)))


def test_padding_is_never_sampled():
  """docs/departures.md, 3: neither padded proposals nor padded ground truth; too few candidates leave empty slots."""
  batch = tiny.batch()
  proposals = sampled.proposals(batch, valid=6)
  targets = sampled.assign(batch, proposals)
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
  targets = sampled.assign(batch, sampled.proposals(batch))
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


@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_only_objects_with_a_mask_give_mask_targets(share):
  batch = sampled.with_some_masks(share)
  whole, targets = (sampled.assign(b, sampled.proposals(batch)) for b in (tiny.batch(), batch))
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
  counted = targets_lib.count(jax.tree.map(jnp.asarray, targets))['mask']
  assert taken == counted and (taken > 0) == (share > 0)
  assert (taken == whole.foreground.sum()) == (share == 1)


@pytest.mark.slow
def test_a_batch_that_does_not_say_has_all_masks():
  batch = tiny.batch()
  said, unsaid = (sampled.assign(b, sampled.proposals(batch)) for b in (batch, batch.replace(has_mask=None)))
  jax.tree.map(np.testing.assert_array_equal, said, unsaid)


def test_anchor_targets_use_the_decoders_convention():
  """docs/departures.md, 5: decoding a target gives the ground truth back; the reference's setting does not."""
  batch = tiny.batch()
  anchors = np.concatenate(list(detector.model_anchors(tiny.config().model, (64, 64)).values()))
  errors = {}
  for plus_one in (True, False):
    config = tiny.config(f'assignment.rpn_targets_plus_one={plus_one}')
    targets = sampled.assign(batch, sampled.proposals(batch), config)
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
  proposals = jax.tree.map(lambda x: np.repeat(x[1:2], 8, axis=0), sampled.proposals(batch))
  targets, again, other = (sampled.assign(same, proposals, key=key) for key in (0, 0, 1))
  np.testing.assert_array_equal(targets.rois, again.rois)
  assert (targets.rois != other.rois).any()
  assert all((targets.rois[0] != targets.rois[i]).any() for i in range(1, 8))
