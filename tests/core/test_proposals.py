from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.core import anchors, proposals

_LEVELS = range(2, 7)


def _anchors(side):
  return anchors.pyramid_anchors(
    (side, side), min_level=2, max_level=6, aspect_ratios=(1.0, 2.0, 0.5), num_scales=1, anchor_size=8.0
  )


def _rows(g, name, *shape):
  return {level: jnp.asarray(g[f'in_{name}_{level}']).reshape(len(g['in_image_shape']), *shape) for level in _LEVELS}


@pytest.mark.parametrize(
  ('name', 'pre', 'post'),
  [('propose_rois', 200, 150), ('propose_rois', 2000, 1000), ('propose_rois_short', 2000, 1000)],
)
def test_proposals_equal_the_reference(golden, name, pre, post):
  g = golden(name)
  cells = _anchors(int(g['in_size']))
  propose = lambda logits, deltas, image_size: proposals.propose(
    logits, deltas, cells, image_size, pre_nms_top_k=pre, max_per_level=post, max_proposals=post, nms_threshold=0.7
  )
  found = jax.jit(jax.vmap(propose))(_rows(g, 'score', -1), _rows(g, 'box', -1, 4), jnp.asarray(g['in_image_shape']))
  expected_scores = g[f'out_scores_{post}']
  np.testing.assert_array_equal(found.valid, expected_scores > -1)
  np.testing.assert_allclose(jnp.where(found.valid, found.scores, -1.0), expected_scores, atol=1e-6)
  np.testing.assert_allclose(found.boxes, g[f'out_rois_{post}'], atol=1e-4)


def test_fewer_anchors_than_slots_and_boxes_clipped_away_leave_empty_slots():
  cells = {3: jnp.asarray([[0, 0, 8, 8], [-30, -30, -20, -20], [40, 40, 50, 60]], jnp.float32)}
  found = proposals.propose(
    {3: jnp.asarray([0.0, 9.0, -4.0])}, {3: jnp.zeros((3, 4))}, cells, (45, 64),
    pre_nms_top_k=10, max_per_level=10, max_proposals=5, nms_threshold=0.7,
  )  # fmt: skip
  np.testing.assert_array_equal(found.valid, [True, True, False, False, False])
  np.testing.assert_allclose(found.boxes[:3], [[0, 0, 8, 8], [40, 40, 44, 60], [0, 0, 0, 0]])
  np.testing.assert_allclose(found.scores, [0.5, 1 / (1 + np.exp(4.0)), 0, 0, 0], rtol=1e-5)
