from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.core import nms


def _iou(box, boxes):
  area = lambda x: np.maximum(x[..., 2] - x[..., 0], 0) * np.maximum(x[..., 3] - x[..., 1], 0)
  sides = np.maximum(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]), 0)
  union = area(box) + area(boxes) - sides.prod(-1)
  return np.divide(sides.prod(-1), union, out=np.zeros_like(union), where=union > 0)


def _oracle(boxes, scores, threshold, max_outputs, valid):
  kept = []
  for i in sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i)):
    if len(kept) < max_outputs and not (_iou(boxes[i], boxes[kept]) >= threshold).any():
      kept.append(i)
  return kept


def _classwise_oracle(boxes, scores, iou_threshold, score_threshold, max_outputs, valid, top_k):
  found = []
  for label, column in enumerate(scores.T):
    candidates = np.flatnonzero(valid & (column > score_threshold))
    candidates = candidates[np.argsort(-column[candidates], kind='stable')][:top_k]
    allowed = np.isin(np.arange(len(boxes)), candidates)
    found += [(-column[i], label, i) for i in _oracle(boxes, column, iou_threshold, max_outputs, allowed)]
  found = sorted(found)[:max_outputs]
  return [i for _, _, i in found], [label for _, label, _ in found], [-s for s, _, _ in found]


def _scene(seed, num, side=100.0, size=40.0):
  rng = np.random.default_rng(seed)
  corner, sides = rng.uniform(0, side, (num, 2)), rng.uniform(4, size, (num, 2))
  return np.concatenate([corner, corner + sides], -1).astype(np.float32), rng


def _padded(x, length):
  return list(x) + [0] * (length - len(x))


@functools.partial(jax.jit, static_argnames=('iou_threshold', 'max_outputs'))
def _nms(boxes, scores, valid, iou_threshold, max_outputs):
  return nms.nms(boxes, scores, iou_threshold=iou_threshold, max_outputs=max_outputs, valid=valid)


@functools.partial(jax.jit, static_argnames=('iou_threshold', 'score_threshold', 'max_outputs', 'top_k'))
def _classwise(boxes, scores, valid, iou_threshold, score_threshold, max_outputs, top_k):
  return nms.classwise_nms(
    boxes, scores, iou_threshold=iou_threshold, score_threshold=score_threshold, max_outputs=max_outputs, valid=valid,
    pre_nms_top_k=top_k,
  )  # fmt: skip


@pytest.mark.parametrize(('threshold', 'max_outputs'), [(0.3, 700), (0.5, 20), (0.5, 700), (0.7, 700)])
def test_nms_equals_an_oracle(threshold, max_outputs):
  boxes, rng = _scene(0, 600)  # more than two blocks
  scores = rng.integers(0, 50, 600).astype(np.float32) / 50  # many ties
  valid = rng.random(600) < 0.9
  indices, kept = _nms(boxes, scores, valid, threshold, max_outputs)
  expected = _oracle(boxes, scores, threshold, max_outputs, valid)
  np.testing.assert_array_equal(kept, np.arange(max_outputs) < len(expected))
  np.testing.assert_array_equal(indices, _padded(expected, max_outputs))


def test_nms_settles_long_chains():
  """Each box overlaps only its neighbours: who stays depends on all boxes before it."""
  start = np.arange(700, dtype=np.float32) * 4.0
  boxes = np.stack([0 * start, start, 0 * start + 10, start + 10], -1)
  indices, kept = _nms(boxes, -start, np.ones(700, bool), 0.3, 700)
  np.testing.assert_array_equal(indices[kept], np.arange(0, 700, 2))


def test_nms_without_candidates_and_with_zero_boxes():
  boxes = np.zeros((5, 4), np.float32)
  indices, kept = _nms(boxes, np.ones(5, np.float32), np.zeros(5, bool), 0.5, 3)
  assert not kept.any() and not indices.any()
  # An all-zero box is an ordinary one; two of them share no area, so neither drops the other.
  indices, kept = _nms(boxes, np.ones(5, np.float32), np.ones(5, bool), 0.5, 7)
  np.testing.assert_array_equal(indices, [0, 1, 2, 3, 4, 0, 0])
  np.testing.assert_array_equal(kept, np.arange(7) < 5)


def test_nms_drops_at_exactly_the_threshold():
  boxes = jnp.asarray([[0, 0, 10, 10], [0, 0, 10, 5]], jnp.float32)
  keeps = lambda t: _nms(boxes, jnp.asarray([1.0, 0.5]), jnp.ones(2, bool), t, 2)[1].sum()
  assert (keeps(0.5), keeps(0.5 + 1e-6)) == (1, 2)


def test_nms_of_a_batch_equals_nms_of_each():
  scenes = [_scene(seed, 300) for seed in range(3)]
  boxes = jnp.asarray(np.stack([b for b, _ in scenes]))
  scores = jnp.asarray(np.stack([rng.random(300) for _, rng in scenes]), jnp.float32)
  valid = jnp.asarray([[True] * 300, [False] * 300, [True] * 100 + [False] * 200])
  run = lambda b, s, v: nms.nms(b, s, iou_threshold=0.4, max_outputs=50, valid=v)
  together = jax.jit(jax.vmap(run))(boxes, scores, valid)
  for i in range(3):
    for a, b in zip(together, _nms(boxes[i], scores[i], valid[i], 0.4, 50), strict=True):
      np.testing.assert_array_equal(a[i], b)


@pytest.mark.parametrize('threshold', [0.5, 0.7])
@pytest.mark.parametrize('max_outputs', [100, 1000])
def test_nms_equals_the_reference(golden, threshold, max_outputs):
  g = golden('sorted_nms')
  name = f't{round(10 * threshold)}_k{max_outputs}'
  boxes, scores = g['in_boxes'][0], g['in_scores'][0]
  indices, kept = (np.asarray(x) for x in _nms(boxes, scores, boxes.max(-1) > 0, threshold, max_outputs))
  np.testing.assert_array_equal(np.where(kept[:, None], boxes[indices], 0), g[f'out_boxes_{name}'][0])
  np.testing.assert_array_equal(np.where(kept, scores[indices], -1), g[f'out_scores_{name}'][0])


def test_one_class_equals_the_reference_of_a_new_tensorflow(golden):
  g = golden('nms_tf_versions')
  boxes, scores = g['in_boxes'], g['in_scores']
  indices, labels, found, valid = _classwise(boxes, scores[:, None], boxes.max(-1) > 0, 0.5, 0.0, 100, 1000)
  np.testing.assert_array_equal(indices, g['out_v2_idx'])
  assert valid.sum() == g['out_v2_num'] and not labels.any()
  np.testing.assert_array_equal(found, np.where(valid, scores[np.asarray(indices)], 0))


@pytest.mark.parametrize(
  'name',
  [
    'detections_vanilla',
    'detections_double_branch',
    'detections_few',
    'detections_pre_nms_30',
    'detections_discard_background',
  ],
)
def test_detections_equal_the_reference(golden, name):
  g = golden(name)
  top_k = 30 if name == 'detections_pre_nms_30' else 1000
  for i, num in enumerate(g['out_num_detections']):
    boxes, scores = g['out_raw_boxes'][i, :, 0], g['out_raw_scores'][i]
    slots = g['out_detection_scores'].shape[1]
    indices, labels, found, valid = (
      np.asarray(x) for x in _classwise(boxes, scores, boxes.max(-1) > 0, 0.5, 0.0, slots, top_k)
    )
    np.testing.assert_array_equal(valid, np.arange(slots) < num)
    np.testing.assert_array_equal(labels[:num] + 1, g['out_detection_classes'][i, :num])
    np.testing.assert_array_equal(found[:num], g['out_detection_scores'][i, :num])
    np.testing.assert_array_equal(boxes[indices][:num], g['out_detection_boxes'][i, :num])


@pytest.mark.parametrize(
  ('threshold', 'max_outputs', 'score_threshold', 'top_k'),
  [(0.3, 100, 0.0, 1000), (0.7, 100, 0.5, 1000), (0.5, 30, 0.0, 7), (0.6, 800, 0.3, 40)],
)
def test_classwise_nms_equals_an_oracle(threshold, max_outputs, score_threshold, top_k):
  boxes, rng = _scene(1, 120)
  scores = rng.integers(0, 64, (120, 30)).astype(np.float32) / 64
  valid = rng.random(120) < 0.8
  indices, labels, found, kept = _classwise(boxes, scores, valid, threshold, score_threshold, max_outputs, top_k)
  expected = _classwise_oracle(boxes, scores, threshold, score_threshold, max_outputs, valid, top_k)
  np.testing.assert_array_equal(kept, np.arange(max_outputs) < len(expected[0]))
  for actual, e in zip((indices, labels, found), expected, strict=True):
    np.testing.assert_array_equal(actual, _padded(e, max_outputs))


def test_classwise_nms_goes_on_when_the_best_pairs_leave_too_few():
  """700 boxes of one object: the best 1,024 pairs of all hold one class or two, with one survivor each."""
  rng = np.random.default_rng(2)
  boxes = (np.array([10, 10, 90, 90]) + rng.uniform(0, 2, (700, 4))).astype(np.float32)
  scores = (rng.random((700, 12)) + 2.0 * np.arange(12)[::-1]).astype(np.float32) / 25
  scores[:, 9:] = 0.0  # nothing to find: the search must end
  indices, labels, found, kept = _classwise(boxes, scores, np.ones(700, bool), 0.5, 0.0, 20, 1000)
  best = scores.argmax(0)[:9]
  np.testing.assert_array_equal(indices[kept], best)
  np.testing.assert_array_equal(labels[kept], np.arange(9))
  np.testing.assert_array_equal(found[kept], scores[best, np.arange(9)])


def test_classwise_nms_without_candidates():
  boxes, _ = _scene(3, 40)
  for scores, valid in ((np.zeros((40, 5)), np.ones(40, bool)), (np.ones((40, 5)), np.zeros(40, bool))):
    out = _classwise(boxes, scores.astype(np.float32), valid, 0.5, 0.0, 10, 1000)
    assert not any(np.any(x) for x in out)


def test_classwise_nms_of_a_batch_equals_that_of_each():
  scenes = [_scene(seed, 200) for seed in (4, 5)]
  boxes = np.stack([scenes[0][0], np.tile(scenes[1][0][:1], (200, 1))])  # the second image needs many rounds
  scores = np.stack([rng.random((200, 15)) for _, rng in scenes]).astype(np.float32)
  run = lambda b, s: nms.classwise_nms(b, s, iou_threshold=0.5, score_threshold=0.0, max_outputs=60)
  together = jax.jit(jax.vmap(run))(boxes, scores)
  assert together[3][0].all() and together[3][1].sum() == 15
  for i in range(2):
    alone = _classwise(boxes[i], scores[i], np.ones(200, bool), 0.5, 0.0, 60, 1000)
    for a, b in zip(together, alone, strict=True):
      np.testing.assert_array_equal(a[i], b)


def test_no_gradient_passes_and_none_breaks():
  """Boxes under differentiation run through the loops: the choice has no gradient, what is chosen has."""
  boxes, rng = _scene(6, 50)
  scores = jnp.asarray(rng.random((50, 3)), jnp.float32)

  def chosen(b):
    one, kept = nms.nms(b, scores[:, 0], iou_threshold=0.5, max_outputs=5)
    many = nms.classwise_nms(b, scores, iou_threshold=0.5, score_threshold=0.0, max_outputs=5)[0]
    return jnp.where(kept[:, None], b[one], 0.0).sum() + b[many].sum()

  assert jax.jit(jax.grad(chosen))(jnp.asarray(boxes)).sum() == 40.0


def test_the_same_under_64_bits():
  boxes, rng = _scene(7, 300)
  scores = rng.random((300, 4)).astype(np.float32)
  expected = _classwise(boxes, scores, np.ones(300, bool), 0.5, 0.1, 40, 100)
  one = _nms(boxes, scores[:, 0], np.ones(300, bool), 0.5, 40)
  with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
    b, s, v = jnp.asarray(boxes, jnp.float64), jnp.asarray(scores, jnp.float64), jnp.ones(300, bool)
    for a, e in zip(_classwise(b, s, v, 0.5, 0.1, 40, 100) + _nms(b, s[:, 0], v, 0.5, 40), expected + one, strict=True):
      np.testing.assert_array_equal(a, e)
