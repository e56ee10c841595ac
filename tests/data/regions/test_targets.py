"""Regions to distil: moved with the picture, valid where they are seen, drawn by (seed, step, image) alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.helpers.examples import CATEGORIES, IS_BASE, NAMES, TINY, example, examples, objects, same, take
from tests.helpers.joined import ALL, config, equal, planted, regions
from vild_jax.data import batch, transforms
from vild_jax.data.regions import targets as region_targets
from vild_jax.data.schema import DataError

STILL = dataclasses.replace(TINY, scale_range=(1.0, 1.0), flip=False)


@pytest.fixture
def labels() -> batch.LabelMap:
  return batch.label_map(CATEGORIES, NAMES, IS_BASE)


def targets(boxes, *, settings=ALL, flip=False, scale=1.0, offset=(0.0, 0.0), size=(64, 64), seed=0):
  """What training gets of regions of a picture that is resized into a square of 64."""
  resized = transforms.resize_and_pad(np.zeros((*size, 3), np.uint8), 64, scale=scale, offset_draw=offset)
  draw = region_targets.RegionDraw(regions(boxes), settings, np.random.default_rng(seed))
  return region_targets.region_targets(draw, size[1], flip, resized)


def drawn(found) -> list[int]:
  return (found['embeddings'][found['valid'], 0] - 1).astype(int).tolist()


# --- one picture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('seed', range(12))
def test_regions_move_with_the_pixels(labels, seed):
  """docs/departures.md, 1: the reference mirrors half of the pictures without the regions."""
  height, width = 60, 90
  image = np.zeros((height, width, 3), np.uint8)
  box = (8, 10, 36, 40)  # off the middle: mirrored wrongly it would lie on black
  image[8:36, 10:40] = 255
  data = dataclasses.replace(TINY, image_size=128, scale_range=(0.8, 1.6))
  draw = region_targets.RegionDraw(regions([box]), dataclasses.replace(ALL, min_visible=0.0), np.random.default_rng(0))
  item = batch.train_example(example(image, objects()), labels, data, np.random.default_rng(seed), draw)
  white = item['image'][:, :, 0] * transforms.STD[0] + transforms.MEAN[0] > 0.5
  white[int(item['image_size'][0]) :] = white[:, int(item['image_size'][1]) :] = False  # padding is no black
  rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
  found = item['regions']
  assert found['valid'].tolist() == [True] + [False] * 7
  expected = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
  np.testing.assert_allclose(found['boxes'][0], expected, atol=2.5)  # within a pixel of the source
  np.testing.assert_array_equal(found['embeddings'][0], [1, 1, 1])


def test_embeddings_are_sent_as_they_are_stored_with_pictures_in_uint8(labels):
  item = example(np.zeros((64, 64, 3), np.uint8), objects())
  of = lambda transfer: batch.train_example(
    item,
    labels,
    dataclasses.replace(STILL, transfer=transfer),
    np.random.default_rng(0),
    region_targets.RegionDraw(regions([(0, 0, 30, 20), (5, 5, 60, 60)]), ALL, np.random.default_rng(0)),
  )['regions']
  plain, small = of('float32'), of('uint8')
  assert (plain['embeddings'].dtype, small['embeddings'].dtype) == (np.float32, np.float16)
  small['embeddings'] = small['embeddings'].astype(np.float32)
  assert plain['valid'].sum() == 2 and same(plain, small)


def test_both_directions_are_drawn(labels):
  item = example(np.zeros((64, 64, 3), np.uint8), objects())
  lefts = set()
  for seed in range(20):
    draw = region_targets.RegionDraw(regions([(0, 0, 30, 20)]), ALL, np.random.default_rng(0))
    found = batch.train_example(item, labels, dataclasses.replace(STILL, flip=True), np.random.default_rng(seed), draw)
    lefts.add(float(found['regions']['boxes'][0, 1]))
  assert lefts == {0.0, 44.0}


def test_regions_that_the_crop_cuts_are_judged_by_what_is_left():
  """docs/departures.md, 2: the reference keeps collapsed boxes on the border as valid."""
  # Scale 2 on a picture of 64: the square shows rows and columns 16 to 48 of the picture.
  boxes = [
    (20, 20, 40, 40),  # 0: inside
    (0, 0, 10, 10),  # 1: outside; clipped to a point on the border
    (20, 20, 30, 60),  # 2: cut to 28 of 40 columns: 70 %
    (20, 20, 30, 80),  # 3: 28 of 60: 47 %
    (50, 20, 60, 30),  # 4: beyond the bottom; clipped to a line
    (16.5, 20, 17.4, 30),  # 5: 1.8 pixels high
    (16.5, 20, 17.6, 30),  # 6: 2.2 pixels high
    (12, 12, 28, 28),
  ]  # 7: a quarter of the area lies outside in each direction: 12 · 12 of 16 · 16
  found = targets(boxes, scale=2.0, offset=(0.5, 0.5))
  assert drawn(found) == [0, 2, 6, 7]
  expected = [(8, 8, 48, 48), (8, 8, 28, 63), (1, 8, 3.2, 28), (0, 0, 24, 24)]
  np.testing.assert_allclose(found['boxes'][:4], expected, atol=1e-4)
  assert not found['boxes'][4:].any() and not found['embeddings'][4:].any() and not found['valid'][4:].any()
  assert drawn(targets(boxes, settings=dataclasses.replace(ALL, min_visible=0.4), scale=2.0, offset=(0.5, 0.5))) == [
    0,
    2,
    3,
    6,
    7,
  ]
  assert drawn(targets(boxes, settings=dataclasses.replace(ALL, min_visible=1.0), scale=2.0, offset=(0.5, 0.5))) == [
    0,
    6,
  ]


@pytest.mark.parametrize('seed', range(5))
def test_validity_agrees_with_counted_pixels(seed):
  """On whole pixels the visible fraction is a count of pixels."""
  rng = np.random.default_rng(seed)
  corners, offset = np.sort(rng.integers(0, 65, (40, 2, 2)), axis=1), tuple(rng.random(2))
  settings = dataclasses.replace(ALL, regions_per_image=40)
  found = targets(corners.reshape(40, 4), settings=settings, scale=2.0, offset=offset)
  top, left = (int(64 * v) for v in offset)
  expected = []
  for index, ((y1, x1), (y2, x2)) in enumerate(2 * corners):
    shown = np.zeros((128, 128), bool)
    shown[y1:y2, x1:x2] = True
    seen = shown[top : top + 63, left : left + 63]  # boxes are clipped to S - 1
    if seen.any(1).sum() >= 2 and seen.any(0).sum() >= 2 and seen.sum() >= 0.5 * shown.sum():
      expected.append(index)
  assert drawn(found) == expected and expected


@pytest.mark.parametrize(('scale', 'flip'), [(0.5, False), (2.0, True)])
def test_no_region_is_an_empty_target(scale, flip):
  found = targets(np.zeros((0, 4)), scale=scale, flip=flip)
  assert found['embeddings'].shape == (8, 3) and not found['valid'].any()


def test_of_too_many_regions_each_is_drawn_as_often():
  boxes = [(2 * i, 2 * i, 2 * i + 10, 2 * i + 10) for i in range(20)] + [(0, 0, 1, 1)]  # the last one is never valid
  counts = np.zeros(21)
  for seed in range(600):
    chosen = drawn(targets(boxes, seed=seed))
    assert len(chosen) == 8 and chosen == sorted(chosen)
    counts[chosen] += 1
  assert counts[20] == 0
  np.testing.assert_allclose(counts[:20] / 600, 0.4, atol=0.08)  # four deviations


def test_types_are_those_of_region_targets():
  found = targets([(0, 0, 20, 20)])
  assert {k: (v.dtype, v.shape) for k, v in found.items()} == {
    'boxes': (np.float32, (8, 4)),
    'embeddings': (np.float32, (8, 3)),
    'valid': (bool, (8,)),
  }


# --- streams --------------------------------------------------------------------------------------------------------


def test_everything_else_is_as_without_regions(labels):
  """Bit for bit, so that ViLD-text and ViLD see the same pictures."""
  plain = take(batch.train_batches(examples(5), labels, config()), 3)
  joined = take(batch.train_batches(examples(5), labels, config(), regions=planted()), 3)
  assert 'regions' not in plain[0]
  for a, b in zip(plain, joined, strict=True):
    assert same(a, {k: v for k, v in b.items() if k != 'regions'})
  assert joined[0]['regions']['boxes'].shape == (4, 8, 4) and joined[0]['regions']['valid'].any()


def test_draws_depend_on_seed_step_and_image_alone(labels):
  """Resume and the number of processes change nothing; docs/departures.md, 9: the reference's seeds are fixed."""
  stream = lambda **where: batch.train_batches(examples(5), labels, config(), regions=planted(), **where)
  whole = take(stream(), 6)
  assert all(map(equal, take(stream(start_step=4), 2), whole[4:]))
  parts = [take(stream(start_step=2, process_index=p, process_count=2), 2) for p in range(2)]
  for step, expected in enumerate(whole[2:4]):
    for key, values in expected['regions'].items():
      np.testing.assert_array_equal(np.concatenate([p[step]['regions'][key] for p in parts]), values)
  other = take(batch.train_batches(examples(5), labels, dataclasses.replace(config(), seed=8), regions=planted()), 1)
  assert not equal(other[0], whole[0])


def test_every_time_a_picture_comes_other_regions_are_drawn(labels):
  still = config(scale_range=(1.0, 1.0), flip=False)
  batches = take(batch.train_batches(examples(1), labels, still, regions=planted(1)), 2)
  sets = {tuple(slot) for b in batches for slot in b['regions']['embeddings'][:, :, 0].astype(int).tolist()}
  assert len(sets) > 4


def test_a_picture_that_the_store_lacks_is_named(labels):
  class Store(dict):
    def __missing__(self, image_id):
      raise DataError(f'the store has no image {image_id}')

  store = Store(planted())
  del store[102]
  with pytest.raises(DataError, match='the store has no image 102'):
    take(batch.train_batches(examples(5), labels, config(), regions=store), 3)


# --- the store and the data set -------------------------------------------------------------------------------------


class _Store:
  def __init__(self, **changed):
    self.path, self.kind, self.dataset, self.embedding_dim, self.images = 'STORE', 'embeddings', 'a' * 64, 16, 4
    self.__dict__.update(changed)

  def __len__(self):
    return self.images


class _Dataset(list):
  folder, identity = 'DATA', 'a' * 64


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    ({}, None),
    (
      {'kind': 'proposals'},
      'STORE is a store of proposals without embeddings; expected one of `vild-jax embed-regions`',
    ),
    ({'dataset': 'b' * 64}, 'STORE is of a data set with identity bbbbbbbbbbbb, and DATA has aaaaaaaaaaaa; expected'),
    ({'images': 3}, 'STORE holds the regions of 3 pictures; expected 4, all of DATA'),
    ({'embedding_dim': 8}, r'dimension 8; expected 16, model\.region_head\.embedding_dim'),
  ],
)
def test_a_store_of_something_else_is_refused(changed, message):
  check = lambda: region_targets.check_store(_Store(**changed), _Dataset(range(4)), 16)
  if message is None:
    return check()
  with pytest.raises(DataError, match=message):
    check()
