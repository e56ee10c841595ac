"""From the outputs of the region proposal network to proposals (METHOD.md, section 2 "Proposals")."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from vild_jax import structs
from vild_jax.core import boxes as box_ops
from vild_jax.core import nms
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
  """Decodes, clips and thins out the best anchors of each level, then takes the best of all levels.

  A box that clipping collapses onto the corner (0, 0), with no coordinate above 0, is none. Ties go to the lower level,
  then to the lower anchor. No gradient flows through proposals.

  Args:
    logits, deltas, anchors: {level: one row an anchor}.
    image_size: (height, width) that boxes are clipped to.

  Returns:
    max_proposals slots in descending score; unused slots are zero and not valid.
  """
  # The second stage learns on proposals as they are; a gradient through them would train the RPN by its losses.
  logits, deltas = jax.lax.stop_gradient((logits, deltas))
  level_boxes, level_scores = [], []
  for level in sorted(logits):
    num = logits[level].shape[0]
    scores, best = jax.lax.top_k(jax.nn.sigmoid(at_least_float32(logits[level])), min(pre_nms_top_k, num))
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
  scores, best = jax.lax.top_k(jnp.pad(scores, (0, missing), constant_values=-1.0), max_proposals)
  valid = scores >= 0.0
  return structs.Proposals(
    boxes=jnp.where(valid[:, None], boxes[best], 0.0), scores=jnp.where(valid, scores, 0.0), valid=valid
  )
