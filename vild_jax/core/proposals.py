"""Turns the outputs of the region proposal network into proposals (docs/method.md, 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from vild_jax import structs
from vild_jax.core import boxes as box_ops
from vild_jax.core import nms, ranking
from vild_jax.core.precision import at_least_float32


def propose(
  logits: dict[int, Float[Array, '_']],
  deltas: dict[int, Float[Array, '_ 4']],
  anchors: dict[int, Float[Array, '_ 4']],
  image_size: tuple[int | float, int | float] | Shaped[Array, '2'],
  *,
  pre_nms_top_k: int,
  max_per_level: int,
  max_proposals: int,
  nms_threshold: float,
) -> structs.Proposals:
  """Decodes and clips the best anchors of each level, suppresses overlaps, then takes the best of all levels.

  A box without a coordinate above 0 after clipping is dropped: it has collapsed to the corner (0, 0). Ties go to the
  lower level, then to the lower anchor. No gradient flows through proposals.

  Args:
    logits, deltas, anchors: {level: one row for each anchor}.
    image_size: (height, width) in pixels, to which boxes are clipped.
    pre_nms_top_k: anchors of each level before suppression.
    max_per_level: boxes of each level after suppression.
    max_proposals: slots of the result.
    nms_threshold: the IoU from which a better box drops a worse one.

  Returns:
    max_proposals slots in descending score; unused slots are zero and not valid.
  """
  # The second stage takes proposals as constants: a gradient through them would train the RPN by its losses.
  logits, deltas = jax.lax.stop_gradient((logits, deltas))
  level_boxes, level_scores = [], []
  for level in sorted(logits):
    num = logits[level].shape[0]
    scores, best = ranking.top_k(jax.nn.sigmoid(at_least_float32(logits[level])), min(pre_nms_top_k, num))
    boxes = box_ops.decode(at_least_float32(deltas[level][best]), anchors[level][best])
    boxes = box_ops.clip(boxes, image_size)
    kept, valid = nms.sorted_nms(
      boxes,
      jnp.max(boxes, axis=-1) > 0.0,
      iou_threshold=nms_threshold,
      max_outputs=min(max_per_level, scores.shape[0]),
    )
    level_boxes.append(boxes[kept])
    level_scores.append(jnp.where(valid, scores[kept], -1.0))
  boxes, scores = jnp.concatenate(level_boxes), jnp.concatenate(level_scores)
  missing = max(max_proposals - scores.shape[0], 0)
  boxes = jnp.pad(boxes, ((0, missing), (0, 0)))
  scores, best = ranking.top_k(jnp.pad(scores, (0, missing), constant_values=-1.0), max_proposals)
  valid = scores >= 0.0
  return structs.Proposals(
    boxes=jnp.where(valid[:, None], boxes[best], 0.0), scores=jnp.where(valid, scores, 0.0), valid=valid
  )
