"""Regions against the same recipe written out with PIL: one crop, one resize, one picture at a time."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers import small_teacher
from tests.helpers.plain_crops import plain_embeddings, plain_pixels
from vild_jax.teacher import crops

BOXES = np.array(
  [
    [3, 4, 40, 50.5],
    [10.25, 20.5, 30.75, 24],
    [0, 0, 41, 70],  # inside, wide, the whole picture
    [-5, -9, 12, 20],
    [30, 55, 60, 99],  # across the border
    [17, 33, 17.4, 33.2],
    [8, 8, 8, 8],
    [5, 2, 6, 68],  # tiny, empty, a line
    [100, 100, 120, 130],
    [-20, -20, -10, -5],
    [41, 0, 41, 70],  # beyond
  ],
  np.float32,
)
STRETCHED = {
  **small_teacher.PREPROCESSOR,
  'image_processor_type': 'SiglipImageProcessor',
  'size': {'height': 16, 'width': 16},
  'do_center_crop': False,
}
PATHS = pytest.mark.parametrize('on_device', [False, True], ids=['host', 'device'])


@pytest.fixture(scope='module')
def picture():
  """70 pixels wide, 41 high."""
  return np.random.default_rng(0).integers(0, 256, (41, 70, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def teacher():
  return small_teacher.make()


def test_windows_by_hand():
  found = crops.crop_bounds(BOXES[[0, 3, 6, 8]], 41, 70)
  assert found[0].tolist() == [[3, 4, 40, 51], [0, 0, 12, 20], [8, 8, 9, 9], [40, 69, 41, 70]]
  # 37 and 46.5 high and wide: 9.25 and 11.625 more on each side; 17 and 29 for the second.
  assert found[1].tolist() == [[0, 0, 41, 63], [0, 0, 17, 28], [8, 8, 9, 9], [40, 69, 41, 70]]


@PATHS
@pytest.mark.parametrize('change', [{}, STRETCHED, {**STRETCHED, 'resample': 2}], ids=['CLIP', 'SigLIP', 'bilinear'])
def test_pixels_are_pils_to_one_level(teacher, picture, change, on_device):
  preprocessor = {**small_teacher.PREPROCESSOR, **change}
  tower = crops.CropTower(dataclasses.replace(teacher, preprocessor=preprocessor), on_device=on_device)
  found = tower.pixels(picture, BOXES)
  expected = plain_pixels(picture, BOXES, resample=preprocessor['resample'], stretch=bool(change))
  assert found.shape == expected.shape == (22, 16, 16, 3)
  difference = np.abs(found.astype(int) - expected)
  assert difference.max() <= 1 and (difference > 0).mean() < 0.01


@PATHS
def test_embeddings_are_the_normalized_sum_of_both_crops(teacher, picture, on_device):
  expected = plain_embeddings(teacher, plain_pixels(picture, BOXES))
  tower = crops.CropTower(teacher, batch_size=8, on_device=on_device)  # 22 crops: the last batch is not full
  found = tower.embed(picture, BOXES)
  assert found.dtype == np.float32 and found.shape == (len(BOXES), tower.embedding_dim)
  np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
  assert np.abs((expected * found).sum(axis=1) - 1).max() < 1e-4
  # Its neighbours in the batch change nothing; its place in it may change a last bit, as vector units end elsewhere.
  np.testing.assert_array_equal(tower.embed(picture, BOXES[:3]), found[:3])
  np.testing.assert_allclose(tower.embed(picture, BOXES[2:5]), found[2:5], rtol=0, atol=2.0**-22)
  assert np.abs(expected[1:] - expected[0]).max(axis=1).min() > 1e-2, 'the crops must differ for this to say anything'
  assert tower.embed(picture, np.zeros((0, 4), np.float32)).shape == (0, 8)
  assert tower.embed(picture[:, 50:][::-1].copy(), BOXES[:1]).shape == (1, 8)


def test_a_batch_takes_crops_of_several_pictures_of_one_group():
  found = list(crops.schedule([[('a', 5), ('none', 0), ('b', 9)], [], [('c', 1)], [('d', 4)]], 4))
  assert [[(key, list(part)) for key, part in batch] for batch in found] == [
    [('a', [0, 1, 2, 3])],
    [('a', [4]), ('b', [0, 1, 2])],
    [('b', [3, 4, 5, 6])],
    [('b', [7, 8])],  # not full: the group ends
    [('c', [0])],
    [('d', [0, 1, 2, 3])],
  ]


def empty_slots(regions: list[list[int]]) -> int:
  """Slots without a crop that 8 devices compute in batches of 100, if each group of pictures is awaited."""
  batches = (len(list(crops.schedule([[(None, 2 * n) for n in group]], 100))) for group in regions)
  return sum(-(-count // 8) for count in batches) * 8 * 100 - 2 * sum(map(sum, regions))


def test_no_device_waits_for_the_end_of_a_picture():
  """Each picture alone, as it was, and the pictures of a shard together."""
  mixed = np.random.default_rng(0).integers(20, 1001, 20).tolist()
  assert sum(mixed) == 10928
  for regions, alone, together in ([300] * 20, 4000, 0), (mixed, 9344, 544), ([8] * 64, 50176, 576):
    assert (empty_slots([[n] for n in regions]), empty_slots([regions])) == (alone, together)


@PATHS
def test_neither_devices_nor_other_groups_change_a_bit(teacher, picture, on_device):
  """Batches of several pictures, of one device and of eight, and a group alone, as after an interruption."""
  towers = [
    crops.CropTower(teacher, batch_size=8, on_device=on_device, devices=jax.devices()[:count]) for count in (1, 8)
  ]
  one, eight = (
    lambda groups, t=t: dict(t.embed_many([[(n, t.plan(*p)) for n, p in g] for g in groups])) for t in towers
  )
  other = picture[::-1, :50].copy()
  first = [('a', (picture, BOXES)), ('none', (picture, BOXES[:0])), ('b', (other, BOXES[:7]))]
  second = [('c', (other, BOXES[2:5])), ('d', (picture, BOXES[:6]))]
  expected, found = one([first, second]), eight([first, second])
  assert list(found) == ['a', 'none', 'b', 'c', 'd'] == list(expected)
  for key, (image, boxes) in first + second:
    np.testing.assert_array_equal(found[key], expected[key])
    rows = plain_embeddings(teacher, plain_pixels(image, boxes)) if len(boxes) else np.zeros((0, 8))
    np.testing.assert_allclose(found[key], rows, atol=5e-3)
  for key, rows in eight([second]).items():
    np.testing.assert_array_equal(rows, expected[key])


def test_pictures_before_an_error_are_yielded(teacher, picture):
  tower = crops.CropTower(teacher, batch_size=8)

  def pictures():
    yield 'a', tower.plan(picture, BOXES[:3])
    raise KeyError('b')

  found = tower.embed_many([pictures()])
  assert next(found)[0] == 'a'
  with pytest.raises(KeyError):
    next(found)


def test_resizes_in_bfloat16_differ_by_a_level_in_few_places(teacher):
  picture = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
  boxes = np.concatenate([BOXES, BOXES * 4], dtype=np.float32)
  exact, rough = (
    crops.CropTower(teacher, dtype, on_device=True).pixels(picture, boxes).astype(int)
    for dtype in (jnp.float32, jnp.bfloat16)
  )
  difference = np.abs(exact - rough)
  assert difference.max() <= 2 and 0 < (difference > 0).mean() < 0.05  # 0.2 if the sums were not divided


def test_photographs_agree_with_pil(shared, teacher):
  files = sorted((shared / 'data/coco_photos').rglob('*.jpg'))[::20]
  if not files:
    pytest.skip('no photographs in ../shared/data/coco_photos')
  rng, tower = np.random.default_rng(0), crops.CropTower(teacher)
  for file in files:
    picture = np.asarray(Image.open(file).convert('RGB'))
    corners = rng.uniform(0, 1, (12, 2, 2)) * picture.shape[:2]
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    assert np.abs(tower.pixels(picture, boxes).astype(int) - plain_pixels(picture, boxes)).max() <= 1
    expected = plain_embeddings(teacher, plain_pixels(picture, boxes, in_one=True))
    cosine = (expected * tower.embed(picture, boxes)).sum(axis=1)
    assert cosine.min() >= 0.999


def test_a_resize_that_is_not_known_is_pils_own(teacher, picture):
  preprocessor = {**STRETCHED, 'resample': 1}
  tower = crops.CropTower(dataclasses.replace(teacher, preprocessor=preprocessor), batch_size=8)
  expected = plain_embeddings(teacher, plain_pixels(picture, BOXES, resample=1, stretch=True, in_one=True))
  assert np.abs((expected * tower.embed(picture, BOXES)).sum(axis=1) - 1).max() < 1e-5


def test_what_a_store_keeps_of_it(teacher, picture):
  tower = crops.CropTower(teacher, jnp.bfloat16)
  assert tower.identity == teacher.image_identity
  recipe = json.loads(json.dumps(tower.recipe))
  assert recipe == tower.recipe
  assert (recipe['scales'], recipe['dtype']) == ([1.0, 1.5], 'bfloat16')
  assert recipe['preprocessing'] == small_teacher.PREPROCESSOR
  rough = tower.embed(picture, BOXES)
  assert rough.dtype == np.float32
  assert 0 < np.abs(rough - crops.CropTower(teacher).embed(picture, BOXES)).max() < 0.05


@pytest.mark.parametrize(
  'boxes, found',
  [
    ([[0, 0, 1, np.nan]], 'box 0 is .*nan'),
    ([[0, 0, 2, 2], [5, 0, 4, 2]], r'box 1 is \[5.0, 0.0, 4.0, 2.0\]; expected y1 <= y2 and x1 <= x2'),
  ],
)
def test_boxes_that_are_none(boxes, found):
  with pytest.raises(ValueError, match=found):
    crops.crop_bounds(np.array(boxes), 41, 70)


def test_what_cannot_be_embedded(teacher, picture):
  with pytest.raises(ValueError, match='text tower alone'):
    crops.CropTower(dataclasses.replace(teacher, preprocessor=None))
  with pytest.raises(ValueError, match=r'float64 \(41, 70, 3\); expected uint8'):
    crops.CropTower(teacher).embed(picture / 255, BOXES)


def test_no_boxes_have_no_pixels(teacher, picture):
  assert crops.CropTower(teacher).pixels(picture, np.zeros((0, 4))).shape == (0, 16, 16, 3)
