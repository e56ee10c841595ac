from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.core import roi_align, roi_align_tiles

_SIZES = ((70, 40), (33, 64), (40, 5))  # 6, 4 and 2 tiles
_BATCH, _REGIONS, _BINS, _CHANNELS = 2, 8, 3, 5  # 8 and 16 regions: one more needs another bit


@pytest.fixture(autouse=True)
def _interpreted(as_on):
  as_on('tpu')


def _inputs(dtype, seed=0):
  """Random regions: their bins rise along both axes, weights are any numbers, pixels 1 of a bin follow pixels 0."""
  rng = np.random.default_rng(seed)
  number = _BATCH * _REGIONS
  level = np.tile([0, 0, 1, 1, 2, 0, 2, 1], _BATCH)

  def bins(axis):
    limits = np.array([size[axis] for size in _SIZES])[level][:, None]
    first = np.sort(rng.integers(0, limits, (number, _BINS)), axis=1)
    first[0], first[1] = 0, limits[1] - 1  # all bins on one pixel, at both edges
    weights = rng.normal(size=(2, number, _BINS)).astype(np.float32)
    return roi_align_tiles.Bins(first, np.minimum(first + 1, limits - 1), *weights)

  gradient = jnp.asarray(rng.normal(size=(_BATCH, _REGIONS, _BINS, _BINS, _CHANNELS)), dtype)
  return gradient, level, bins(0), bins(1)


def _oracle(gradient, level, rows, columns):
  """The sums in float64, and the sums of the terms' sizes, which the error is measured by."""
  of_bins = np.asarray(gradient, np.float64).reshape(-1, _BINS, _BINS, _CHANNELS)
  sums = [np.zeros((2, _BATCH, *size, _CHANNELS)) for size in _SIZES]
  for n, i, j in np.ndindex(of_bins.shape[:3]):
    for y, y_weight in ((rows.first, rows.first_weight), (rows.second, rows.second_weight)):
      for x, x_weight in ((columns.first, columns.first_weight), (columns.second, columns.second_weight)):
        term = np.float64(y_weight[n, i]) * np.float64(x_weight[n, j]) * of_bins[n, i, j]
        sums[level[n]][:, n // _REGIONS, y[n, i], x[n, j]] += [term, np.abs(term)]
  return sums


def _add(gradient, level, rows, columns):
  arrays = jax.tree.map(jnp.asarray, (level, rows, columns))
  return jax.jit(lambda *inputs: roi_align_tiles.add_regions(*inputs, _SIZES))(gradient, *arrays)


@pytest.mark.parametrize(('dtype', 'weights', 'sums'), [('float32', 2**-22, 0), ('bfloat16', 2**-16, 2**-8)])
def test_sums_equal_an_oracle(dtype, weights, sums):
  inputs = _inputs(dtype)
  for actual, (expected, size) in zip(_add(*inputs), _oracle(*inputs), strict=True):
    assert actual.dtype == dtype
    assert size.max() > 0
    error = np.abs(np.asarray(actual, np.float64) - expected)
    assert (error <= weights * size + sums * np.abs(expected)).all()


def test_images_that_do_not_fit_into_one_call_take_several(monkeypatch):
  inputs = _inputs('float32')
  together = _add(*inputs)
  monkeypatch.setattr(roi_align_tiles, '_MOST_VISITS', 1)
  calls = []
  of_group = roi_align_tiles._add_group
  monkeypatch.setattr(roi_align_tiles, '_add_group', lambda *args: calls.append(len(args[0])) or of_group(*args))
  for one, other in zip(together, _add(*inputs), strict=True):
    np.testing.assert_array_equal(one, other)
  assert calls == [1] * _BATCH


def test_no_regions_have_no_gradient():
  gradient, level, rows, columns = _inputs('bfloat16')
  none = jax.tree.map(lambda x: x[:0], (level, rows, columns))
  for found, size in zip(_add(gradient[:, :0], *none), _SIZES, strict=True):
    assert found.shape == (_BATCH, *size, _CHANNELS) and found.dtype == jnp.bfloat16
    assert not np.asarray(found, np.float32).any()


def test_no_region_touches_more_tiles_than_the_list_has_room_for():
  """Long regions, as large as their level allows: 256 x 3 pixels of the finest level touch 16 tiles."""
  sizes = [(256 >> k, 256 >> k) for k in range(5)]
  features = {level: jnp.zeros((1, *size, 1)) for level, size in zip(range(2, 7), sizes, strict=True)}
  long, side = np.meshgrid(np.geomspace(1, 1024, 60), np.linspace(0.0, 1.0, 30))
  short = np.minimum(0.999 * 112**2 / long, 1024)
  start = np.stack([side * (1024 - short), side[::-1] * (1024 - long)], -1).reshape(-1, 2)
  shape = np.stack([short, long], -1).reshape(-1, 2)
  boxes = np.concatenate([start, start + shape], 1)
  boxes = jnp.asarray(np.concatenate([boxes, boxes[:, [1, 0, 3, 2]], [[0, 0, 1024, 1024]]]), jnp.float32)
  *_, (ys, xs, _, _) = roi_align._regions(features, boxes, 14)
  tiles = lambda at: (np.asarray(at).max((0, 2)) // 32) - (np.asarray(at).min((0, 2)) // 32) + 1
  touched = tiles(ys) * tiles(xs)
  grids = [roi_align_tiles._tiles(size) for size in sizes]
  assert touched.max() == roi_align_tiles._most_tiles(grids) == 16
  assert roi_align_tiles._most_tiles(grids[:1]) == 64  # the last level has regions of any size
  assert 816 * 16 + 86 < roi_align_tiles._MOST_VISITS <= 2**17  # 1024 px: a list of at most half a TPU's 1 MiB


@pytest.mark.parametrize('wrong', [-(2**31), 2**31 - 1])
def test_no_place_outside_the_pyramid_is_visited(wrong):
  """Boxes that are not numbers become any integers; what they write must stay inside."""
  _, level, rows, columns = _inputs('float32')
  broken = lambda bins: bins._replace(first=jnp.full_like(bins.first, wrong), second=jnp.full_like(bins.second, wrong))
  grids, bits = [roi_align_tiles._tiles(size) for size in _SIZES], 5
  visits, number = roi_align_tiles._visits(
    jnp.asarray(level), *(broken(jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), b)) for b in (rows, columns)),
    grids, _BATCH, bits,
  )  # fmt: skip
  tiles = np.asarray(visits)[: int(number)] >> bits
  assert tiles.min() == 0 and tiles.max() == _BATCH * 12 - 1
  assert len(np.unique(tiles)) == _BATCH * 12


def test_a_product_of_float32_is_exact_on_a_tpu():
  gradient, level, rows, columns = _inputs('float32')
  arrays = jax.tree.map(jnp.asarray, (level, rows, columns))
  traced = jax.make_jaxpr(lambda *inputs: roi_align_tiles.add_regions(*inputs, _SIZES))(gradient, *arrays)
  assert 'HIGHEST' in str(traced)
