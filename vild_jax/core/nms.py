"""Suppresses non-maximum boxes with static shapes, exactly at every threshold (docs/method.md, 2).

Greedy suppression is sequential: a better box drops a worse one only if the better one is kept. Two steps make it
parallel and keep it exact. Inside a block of boxes in descending order, the rule "a box is kept if it is valid and no
earlier kept box overlaps it" is iterated until nothing changes. The result is the greedy one, because each round
decides at least one more box. The blocks are processed one after the other, and each drops the boxes of all later
blocks that it overlaps, until enough boxes are kept.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vild_jax.core import boxes as box_ops
from vild_jax.core import ranking, sampling

_BLOCK = 256
# (box, class) pairs in one round of the class-wise suppression; one round is usually enough.
PAIRS = 1024


def _settle(alive, overlaps):
  """Marks the boxes of one block that greedy suppression keeps; `overlaps[i, j]`: a kept i drops the later j."""

  def unsettled(state):
    return jnp.any(state[0] != state[1])

  def again(state):
    stays, _ = state
    return alive & ~jnp.any(stays[:, None] & overlaps, axis=0), stays

  return jax.lax.while_loop(unsettled, again, again((alive, alive)))[0]


def _pad(x, length):
  return jnp.pad(x, [(0, length - x.shape[0])] + [(0, 0)] * (x.ndim - 1))


def _survivors(boxes, valid, groups, iou_threshold, enough):
  """Marks the kept ones of boxes [N, 4] in descending order; only boxes of the same group drop each other.

  Stops after the block in which the `enough`-th kept box was found. Boxes of later blocks are then not examined, and
  their marks are False.
  """
  num = boxes.shape[0]
  block = min(_BLOCK, num)
  num_blocks = -(-num // block)
  padded = num_blocks * block
  boxes, valid, groups = _pad(boxes, padded), _pad(valid, padded), _pad(groups, padded)
  index = jnp.arange(padded)

  def unfinished(state):
    number, _, kept = state
    return (number < num_blocks) & (jnp.sum(kept, dtype=jnp.int32) < enough)

  def take_block(state):
    number, alive, kept = state
    start = number * block
    part = lambda x: jax.lax.dynamic_slice_in_dim(x, start, block)
    overlaps = box_ops.iou(part(boxes), boxes) >= iou_threshold
    overlaps &= (part(groups)[:, None] == groups[None, :]) & (part(index)[:, None] < index[None, :])
    stays = _settle(part(alive), jax.lax.dynamic_slice_in_dim(overlaps, start, block, axis=1))
    alive &= ~jnp.any(stays[:, None] & overlaps, axis=0)
    return number + 1, alive, jax.lax.dynamic_update_slice_in_dim(kept, stays, start, 0)

  state = (jnp.zeros((), jnp.int32), valid, jnp.zeros_like(valid))
  return jax.lax.while_loop(unfinished, take_block, state)[2][:num]


def sorted_nms(
  boxes: Float[Array, 'n 4'], valid: Bool[Array, 'n'], *, iou_threshold: float, max_outputs: int
) -> tuple[Int[Array, '{max_outputs}'], Bool[Array, '{max_outputs}']]:
  """Does the same as `nms` for boxes that are already in descending order of their scores."""
  groups = jnp.zeros(boxes.shape[:1], jnp.int32)
  return sampling.first_true(_survivors(boxes, valid, groups, iou_threshold, max_outputs), max_outputs)


def nms(
  boxes: Float[Array, 'n 4'],
  scores: Float[Array, 'n'],
  *,
  iou_threshold: float,
  max_outputs: int,
  valid: Bool[Array, 'n'] | None = None,
) -> tuple[Int[Array, '{max_outputs}'], Bool[Array, '{max_outputs}']]:
  """Suppresses greedily: a kept box drops every worse box with IoU >= iou_threshold.

  Args:
    boxes: yxyx pixels.
    max_outputs: slots of the result.
    valid: None means that all boxes are valid. An all-zero box is a box like any other.

  Returns:
    Indices of the kept boxes in descending score (ties: the lower index first), and which slots are used; an unused
    slot holds index 0 and False.
  """
  valid = jnp.ones(scores.shape, bool) if valid is None else valid
  order = jnp.argsort(jnp.where(valid, scores, -jnp.inf), descending=True, stable=True)
  slots, kept = sorted_nms(boxes[order], valid[order], iou_threshold=iou_threshold, max_outputs=max_outputs)
  return jnp.where(kept, order[slots], 0).astype(jnp.int32), kept


def classwise_nms(
  boxes: Float[Array, 'n 4'],
  scores: Float[Array, 'n c'],
  *,
  iou_threshold: float | Float[Array, ''],
  score_threshold: float,
  max_outputs: int,
  valid: Bool[Array, 'n'] | None = None,
  pre_nms_top_k: int = 1000,
) -> tuple[
  Int[Array, '{max_outputs}'], Int[Array, '{max_outputs}'], Float[Array, '{max_outputs}'], Bool[Array, '{max_outputs}']
]:
  """Suppresses within each class over boxes that all classes share, then returns the best of all classes.

  The best remaining (box, class) pairs are suppressed in rounds. The pairs that a round keeps are final, because only
  better pairs could have dropped them. The pairs that they drop are removed from the table before the next round,
  which runs only if too few pairs are kept and some are left. So the cost depends on the number of outputs and not on
  the number of classes.

  Args:
    scores: a (box, class) pair is a candidate only if its score > score_threshold.
    valid: None means that all boxes are valid; an invalid box is not a candidate in any class.
    max_outputs: slots of the result.
    pre_nms_top_k: candidates of each class before suppression (ties: the lower index first).

  Returns:
    (box_index, label, score, valid), each [max_outputs], in descending score (ties: the lower label first, then the
    lower index); unused slots hold 0, 0, 0 and False.
  """
  num_boxes, num_classes = scores.shape
  # Class-major, so that top_k breaks ties by class, then by box.
  table = jnp.where(scores > score_threshold, scores, -jnp.inf).T
  if valid is not None:
    table = jnp.where(valid[None, :], table, -jnp.inf)
  if pre_nms_top_k < num_boxes:
    _, best = ranking.top_k(table, pre_nms_top_k)
    rows = jnp.arange(num_classes)[:, None]
    table = jnp.where(jnp.zeros(table.shape, bool).at[rows, best].set(True), table, -jnp.inf)
  num_pairs = min(PAIRS, num_boxes * num_classes)
  flat_index = jnp.arange(num_boxes * num_classes, dtype=jnp.int32).reshape(table.shape)

  def take_best(table, outputs):
    """Moves the kept ones of the best pairs to the outputs and removes these pairs from the table."""
    pair_scores, pairs = ranking.top_k(table.reshape(-1), num_pairs)
    labels, indices = pairs // num_boxes, pairs % num_boxes
    count = jnp.sum(outputs[3], dtype=jnp.int32)
    kept = _survivors(boxes[indices], pair_scores > -jnp.inf, labels, iou_threshold, max_outputs - count)
    slots, found = sampling.first_true(kept, max_outputs)
    target = jnp.where(found, count + jnp.arange(max_outputs), max_outputs)
    news = (indices[slots], labels[slots], pair_scores[slots], found)
    outputs = tuple(old.at[target].set(new, mode='drop') for old, new in zip(outputs, news, strict=True))
    # The last pair, found without a slice: XLA:CPU turns a sliced top_k into a full sort, which is 100 times slower.
    last_score = jnp.min(pair_scores)
    last_pair = jnp.max(jnp.where(pair_scores == last_score, pairs, -1))
    worse = (table < last_score) | ((table == last_score) & (flat_index > last_pair))
    return jnp.where(worse, table, -jnp.inf), outputs

  def unfinished(state):
    table, outputs = state
    return ~jnp.all(outputs[3]) & jnp.any(table > -jnp.inf)

  def another_round(state):
    table, outputs = state
    indices, labels, _, found = outputs
    overlaps = (box_ops.iou(boxes[indices], boxes) >= iou_threshold) & found[:, None]
    # Whole numbers, since onnxruntime has no scattered maximum of booleans (`portable`).
    dropped = jnp.zeros(table.shape, jnp.int32).at[labels].max(overlaps.astype(jnp.int32))
    return take_best(jnp.where(dropped > 0, -jnp.inf, table), outputs)

  integers = jnp.zeros((max_outputs,), jnp.int32)
  empty = (integers, integers, jnp.zeros((max_outputs,), scores.dtype), jnp.zeros((max_outputs,), bool))
  return jax.lax.while_loop(unfinished, another_round, take_best(table, empty))[1]
