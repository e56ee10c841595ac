"""Non-maximum suppression with static shapes, exact at every threshold (METHOD.md, section 2 "Post-processing").

Greedy suppression is sequential: a box is dropped by a better one only if that one stays. Two ideas keep it exact and
parallel. Inside a block of boxes in descending order, "stays = valid and no earlier box that stays overlaps it" is
iterated to its fixed point, which is the greedy result, since each round settles at least one more box. And blocks are
taken one after the other, each dropping what it overlaps in all later ones, until there are enough survivors.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vild_jax.core import boxes as box_ops
from vild_jax.core import sampling

_BLOCK = 256
# (box, class) pairs looked at in one round of the class-wise suppression; a round usually suffices.
_PAIRS = 1024


def _settle(alive, overlaps):
  """The greedy survivors of one block: `overlaps[i, j]` says that i, if it stays, drops the later j."""

  def unsettled(state):
    return jnp.any(state[0] != state[1])

  def again(state):
    stays, _ = state
    return alive & ~jnp.any(stays[:, None] & overlaps, axis=0), stays

  return jax.lax.while_loop(unsettled, again, again((alive, alive)))[0]


def _pad(x, length):
  return jnp.pad(x, [(0, length - x.shape[0])] + [(0, 0)] * (x.ndim - 1))


def _survivors(boxes, valid, groups, iou_threshold, enough):
  """Marks the greedy survivors of boxes [N, 4] in descending order; only boxes of the same group drop each other.

  Stops after the block in which the `enough`-th survivor was found; the marks of later boxes then mean nothing, and
  are False.
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
  """`nms` of boxes that are in descending order already."""
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
  """Greedy non-maximum suppression: a box that stays drops every worse box with IoU >= iou_threshold.

  Args:
    valid: None means all. Coordinates decide nothing: an all-zero box is a box.

  Returns:
    Indices of the survivors in descending score, ties by the lower index, and which slots are used (an unused slot
    holds index 0 and False).
  """
  valid = jnp.ones(scores.shape, bool) if valid is None else valid
  order = jnp.argsort(jnp.where(valid, scores, -jnp.inf), descending=True, stable=True)
  slots, kept = sorted_nms(boxes[order], valid[order], iou_threshold=iou_threshold, max_outputs=max_outputs)
  return jnp.where(kept, order[slots], 0).astype(jnp.int32), kept


def classwise_nms(
  boxes: Float[Array, 'n 4'],
  scores: Float[Array, 'n c'],
  *,
  iou_threshold: float,
  score_threshold: float,
  max_outputs: int,
  valid: Bool[Array, 'n'] | None = None,
  pre_nms_top_k: int = 1000,
) -> tuple[
  Int[Array, '{max_outputs}'], Int[Array, '{max_outputs}'], Float[Array, '{max_outputs}'], Bool[Array, '{max_outputs}']
]:
  """Suppression within each class over boxes that all classes share, then the best detections of all classes.

  The best remaining (box, class) pairs are suppressed in rounds; each round's survivors are final, because only better
  pairs could have dropped them. What they drop leaves the table before the next round, which happens only if there
  are too few survivors and pairs are left. So the cost follows the number of outputs and not the number of classes.

  Args:
    scores: a candidate needs score > score_threshold.
    valid: None means all; an invalid box is no candidate in any class.
    pre_nms_top_k: candidates of each class before suppression (ties by the lower index).

  Returns:
    (box_index, label, score, valid), each [max_outputs], descending score, ties by lower label, then by lower index;
    unused slots hold 0, 0, 0 and False.
  """
  num_boxes, num_classes = scores.shape
  # Class-major, so that top_k breaks ties by class, then by box.
  table = jnp.where(scores > score_threshold, scores, -jnp.inf).T
  if valid is not None:
    table = jnp.where(valid[None, :], table, -jnp.inf)
  if pre_nms_top_k < num_boxes:
    _, best = jax.lax.top_k(table, pre_nms_top_k)
    rows = jnp.arange(num_classes)[:, None]
    table = jnp.where(jnp.zeros(table.shape, bool).at[rows, best].set(True), table, -jnp.inf)
  num_pairs = min(_PAIRS, num_boxes * num_classes)
  flat_index = jnp.arange(num_boxes * num_classes, dtype=jnp.int32).reshape(table.shape)

  def take_best(table, outputs):
    """Moves the survivors of the best pairs to the outputs; the pairs leave the table."""
    pair_scores, pairs = jax.lax.top_k(table.reshape(-1), num_pairs)
    labels, indices = pairs // num_boxes, pairs % num_boxes
    count = jnp.sum(outputs[3], dtype=jnp.int32)
    kept = _survivors(boxes[indices], pair_scores > -jnp.inf, labels, iou_threshold, max_outputs - count)
    slots, found = sampling.first_true(kept, max_outputs)
    target = jnp.where(found, count + jnp.arange(max_outputs), max_outputs)
    news = (indices[slots], labels[slots], pair_scores[slots], found)
    outputs = tuple(old.at[target].set(new, mode='drop') for old, new in zip(outputs, news, strict=True))
    # The last pair, without a slice: XLA:CPU takes top_k cut once more for a full sort, which is 100 times slower.
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
    dropped = jnp.zeros(table.shape, bool).at[labels].max(overlaps)
    return take_best(jnp.where(dropped, -jnp.inf, table), outputs)

  integers = jnp.zeros((max_outputs,), jnp.int32)
  empty = (integers, integers, jnp.zeros((max_outputs,), scores.dtype), jnp.zeros((max_outputs,), bool))
  return jax.lax.while_loop(unfinished, another_round, take_best(table, empty))[1]
