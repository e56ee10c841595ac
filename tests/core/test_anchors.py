from __future__ import annotations

import numpy as np
import pytest

from vild_jax.core import anchors

_REFERENCE = {'min_level': 2, 'max_level': 6, 'aspect_ratios': (1.0, 2.0, 0.5), 'num_scales': 1, 'anchor_size': 8.0}


@pytest.mark.parametrize(('name', 'side'), [('anchors_256', 256), ('anchors_1024', 1024)])
def test_anchors_equal_the_reference(golden, name, side):
  g = golden(name)
  levels = anchors.pyramid_anchors((side, side), **_REFERENCE)
  assert sorted(levels) == [2, 3, 4, 5, 6]
  for level, actual in levels.items():
    actual = np.asarray(actual)
    if f'out_level{level}' in g:
      np.testing.assert_allclose(actual, g[f'out_level{level}'], atol=1e-4)
      continue
    assert len(actual) == g[f'out_level{level}_count']
    np.testing.assert_allclose(actual[g[f'in_index_level{level}']], g[f'out_level{level}_at_index'], atol=1e-4)
    np.testing.assert_allclose(actual.sum(0, dtype=np.float64), g[f'out_level{level}_sum_f64'], rtol=1e-6)


def test_scales_and_oblong_pictures():
  levels = anchors.pyramid_anchors(
    (64, 32), min_level=3, max_level=4, aspect_ratios=(2.0,), num_scales=2, anchor_size=4.0
  )
  assert {level: a.shape for level, a in levels.items()} == {3: (8 * 4 * 2, 4), 4: (4 * 2 * 2, 4)}
  a = np.asarray(levels[3])
  height, width = a[:, 2] - a[:, 0], a[:, 3] - a[:, 1]
  np.testing.assert_allclose(width / height, 2.0, rtol=1e-5)
  np.testing.assert_allclose(np.sqrt(width * height)[:2], [32.0, 32.0 * 2**0.5], rtol=1e-5)
  np.testing.assert_allclose((a[2, :2] + a[2, 2:]) / 2, [4.0, 12.0], atol=1e-5)  # x runs before y


def test_a_size_that_cells_do_not_fill_is_an_error():
  with pytest.raises(ValueError, match=r'image_size.*multiples of 64.*100 x 128'):
    anchors.pyramid_anchors((100, 128), **_REFERENCE)
