"""Pictures, boxes and masks on their way to the square: against the reference's goldens and a naive oracle."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vild_jax.data import transforms


def naive_square(image: np.ndarray, rescaled: tuple[int, int], offset: tuple[int, int], side: int) -> np.ndarray:
  """Legacy bilinear in float64, pixel by pixel: the whole picture first, then crop and pad."""
  normal = (image / 255.0 - transforms.MEAN.astype(np.float64)) / transforms.STD.astype(np.float64)
  height, width = image.shape[:2]
  big = np.zeros((*rescaled, 3))
  for i in range(rescaled[0]):
    for j in range(rescaled[1]):
      y, x = i * height / rescaled[0], j * width / rescaled[1]
      y0, x0 = int(y), int(x)
      y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
      fy, fx = y - y0, x - x0
      big[i, j] = (normal[y0, x0] * (1 - fx) + normal[y0, x1] * fx) * (1 - fy) + (
        normal[y1, x0] * (1 - fx) + normal[y1, x1] * fx
      ) * fy
  part = big[offset[0] : offset[0] + side, offset[1] : offset[1] + side]
  square = np.zeros((side, side, 3))
  square[: part.shape[0], : part.shape[1]] = part
  return square


@pytest.fixture
def picture() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)


# --- goldens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'side', 'scale', 'draw'),
  [
    ('down_48', 48, 1.0, (0.0, 0.0)),
    ('up_128', 128, 1.0, (0.9, 0.9)),
    ('jit0.5_128', 128, 0.5, (0.3, 0.7)),
    ('jit1.7_64', 64, 1.7, (4.5 / 9, 4.5 / 45)),
  ],
)
def test_input_resize_golden(golden, name, side, scale, draw):
  arrays = golden('input_resize')
  resized = transforms.resize_and_pad(arrays['in_image_u8'], side, scale=scale, offset_draw=draw)
  # The golden pads on to a multiple of 64; there is nothing but zeros beyond our square.
  np.testing.assert_allclose(resized.image, arrays[f'out_{name}_image'][:side, :side], atol=1e-5)
  info = arrays[f'out_{name}_info']
  np.testing.assert_allclose(resized.scale, info[2], rtol=1e-6)
  np.testing.assert_array_equal(resized.offset, info[3])
  boxes = transforms.to_square(arrays['in_boxes'], resized)
  np.testing.assert_allclose(boxes, arrays[f'out_{name}_boxes'], atol=1e-5)


def test_normalize_golden(golden):
  arrays = golden('input_resize')
  np.testing.assert_allclose(transforms.normalize(arrays['in_image_u8']), arrays['out_normalized'], atol=2e-6)


def test_what_is_displayed_was_normalized():
  image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
  np.testing.assert_array_equal(transforms.displayed(transforms.normalize(image)), image)
  assert transforms.displayed(np.zeros((1, 1, 3), np.float32)).ravel().tolist() == [124, 116, 104]


@pytest.mark.parametrize(('name', 'scale'), [('parser_train', 1.0), ('parser_train_scale1.6', 1.6)])
def test_parser_golden(golden, name, scale):
  arrays = golden(name)
  offset = arrays['out_image_info'][3]
  draw = ((offset[0] + 0.5) / 9, (offset[1] + 0.5) / 77)  # the crop the golden drew, of an excess of 9 and 77 pixels
  resized = transforms.resize_and_pad(arrays['in_image_u8'], 128, scale=scale, offset_draw=draw)
  np.testing.assert_allclose(resized.image, arrays['out_image'], atol=1e-5)
  keep = arrays['in_is_crowd'] == 0
  height, width = arrays['in_image_u8'].shape[:2]
  boxes = transforms.to_square(arrays['in_boxes_norm'][keep] * np.float32([height, width, height, width]), resized)
  visible = transforms.is_visible(boxes)
  boxes, masks = boxes[visible], arrays['in_masks'][keep][visible]
  np.testing.assert_allclose(boxes, arrays['out_gt_boxes'][:3], atol=1e-5)
  np.testing.assert_array_equal(arrays['in_classes'][keep][visible], arrays['out_gt_classes'][:3])
  crops = [transforms.crop_mask(m, b) for m, b in zip(masks, transforms.from_square(boxes, resized), strict=True)]
  # The reference computes sample positions near 80 and 120 in float32: 1e-5 of a pixel is its own rounding.
  np.testing.assert_allclose(np.stack(crops), arrays['out_gt_masks'][:3], atol=3e-5)


# --- geometry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('scale', 'draw', 'rescaled', 'offset'),
  [
    (1.0, (0.5, 0.5), (45, 64), (0, 0)),
    (0.1, (0.5, 0.5), (4, 6), (0, 0)),  # round(.1 * 64) = 6, round(37 * 6 / 53) = 4
    (1.3, (0.0, 0.999), (58, 83), (0, 18)),
    (2.0, (0.6, 0.25), (89, 128), (15, 16)),
  ],
)
def test_jitter_against_naive_oracle(picture, scale, draw, rescaled, offset):
  resized = transforms.resize_and_pad(picture, 64, scale=scale, offset_draw=draw)
  np.testing.assert_array_equal(resized.offset, offset)
  np.testing.assert_allclose(resized.scale, np.array(rescaled) / picture.shape[:2], rtol=1e-6)
  np.testing.assert_array_equal(resized.size, np.minimum(rescaled, 64))
  np.testing.assert_allclose(resized.image, naive_square(picture, rescaled, offset, 64), atol=2e-5)


@pytest.mark.parametrize(
  ('scale', 'draw'), [(0.1, (0.5, 0.5)), (1.0, (0.0, 0.0)), (1.3, (0.0, 0.999)), (2.0, (0.6, 0.25))]
)
def test_a_picture_in_uint8_is_the_other_one_rounded(picture, scale, draw):
  place = {'scale': scale, 'offset_draw': draw}
  found = transforms.resize_and_pad(picture, 64, **place, normalized=False)
  other = transforms.resize_and_pad(picture, 64, **place)
  for field in ('size', 'scale', 'offset'):
    np.testing.assert_array_equal(getattr(found, field), getattr(other, field))
  height, width = found.size.astype(int)
  rescaled = np.round(found.scale * picture.shape[:2]).astype(int)
  naive = 255 * (naive_square(picture, rescaled, found.offset.astype(int), 64) * transforms.STD + transforms.MEAN)
  exact = int(cv2.__version__.partition('.')[0]) >= 5  # OpenCV 4 samples at multiples of 1/32 of a pixel
  np.testing.assert_allclose(found.image[:height, :width], naive[:height, :width], atol=0.51 if exact else 8.5)
  assert found.image.dtype == np.uint8 and not found.image[height:].any() and not found.image[:, width:].any()
  shown = transforms.displayed(found.image, found.size)
  np.testing.assert_array_equal(shown[:height, :width], found.image[:height, :width])
  np.testing.assert_array_equal(shown[height:], transforms.displayed(other.image)[height:])
  np.testing.assert_array_equal(shown[:, width:], transforms.displayed(other.image)[:, width:])


def test_a_mirrored_picture(picture):
  np.testing.assert_array_equal(transforms.flip_image(picture), picture[:, ::-1])


@pytest.mark.parametrize('shape', [(1, 1), (1, 400), (400, 1), (3, 64)])
def test_extreme_shapes_keep_at_least_one_pixel(shape):
  resized = transforms.resize_and_pad(np.full((*shape, 3), 255, np.uint8), 64, scale=0.1)
  assert (resized.size >= 1).all()
  assert np.isfinite(resized.image).all()
  assert resized.image[0, 0, 0] == pytest.approx((1 - 0.485) / 0.229, abs=1e-5)


def test_boxes_go_to_the_square_and_back(picture):
  resized = transforms.resize_and_pad(picture, 64, scale=1.3, offset_draw=(0.0, 0.999))
  inside = np.float32([[5, 20, 30, 40]])
  square = transforms.to_square(inside, resized)
  np.testing.assert_allclose(square, [[5 * 58 / 37, 20 * 83 / 53 - 18, 30 * 58 / 37, 40 * 83 / 53 - 18]], rtol=1e-5)
  np.testing.assert_allclose(transforms.from_square(square, resized), inside, atol=1e-4)


def test_boxes_out_of_the_crop_are_not_visible(picture):
  resized = transforms.resize_and_pad(picture, 64, scale=2.0, offset_draw=(0.0, 0.999))  # cuts the left half off
  boxes = transforms.to_square(np.float32([[0, 0, 20, 20], [0, 20, 20, 40], [5, 30, 5, 50]]), resized)
  np.testing.assert_array_equal(transforms.is_visible(boxes), [False, True, False])
  assert boxes[1, 1] == 0
  assert transforms.is_visible(np.zeros((0, 4), np.float32)).shape == (0,)


def test_flip_boxes_twice_is_the_identity():
  boxes = np.float32([[1, 2, 3, 10], [0, 0, 5, 53]])
  flipped = transforms.flip_boxes(boxes, 53)
  np.testing.assert_array_equal(flipped, [[1, 43, 3, 51], [0, 0, 5, 53]])
  np.testing.assert_array_equal(transforms.flip_boxes(flipped, 53), boxes)


def test_crop_mask_against_naive_oracle():
  rng = np.random.default_rng(1)
  mask = rng.integers(0, 2, (30, 47), np.uint8)
  box = np.float32([3.3, 0.0, 29.9, 47.0])
  crop = transforms.crop_mask(mask, box, 9)
  for i in range(9):
    for j in range(9):
      y = (box[0] + (box[2] - box[0]) * i / 8) * 29 / 30
      x = (box[1] + (box[3] - box[1]) * j / 8) * 46 / 47
      expected = sum(mask[r, c] * max(0, 1 - abs(y - r)) * max(0, 1 - abs(x - c)) for r in range(30) for c in range(47))
      assert crop[i, j] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize('box', [(3.3, 0.0, 29.9, 47.0), (5, 5, 6, 6), (-2, 40, 31, 50)])
def test_bits_of_a_mask_are_the_pixels_beside_its_samples(box):
  mask = np.random.default_rng(1).random((30, 47)) < 0.5
  box = np.float32(box)
  bits, weights = transforms.mask_bits(mask, box)
  assert bits.shape == transforms.MASK_BITS and bits.dtype == np.uint8 and weights.dtype == np.float32
  y, x = (np.clip(np.linspace(box[i], box[i + 2], 112) * (n - 1) / n, 0, n - 1) for i, n in enumerate(mask.shape))
  pixels = np.unpackbits(bits, axis=0).reshape(2, 112, 2, 112)
  for i, j in np.random.default_rng(0).integers(0, 112, (40, 2)):
    for after, axis, position in ((pixels[:, i, 0, j], 0, y[i]), (pixels[0, i, :, j], 1, x[j])):
      other = int(x[j]) if axis == 0 else int(y[i])
      near = np.minimum([int(position), int(position) + 1], mask.shape[axis] - 1)
      np.testing.assert_array_equal(after, mask[near, other] if axis == 0 else mask[other, near])
  np.testing.assert_allclose(weights, [y % 1, x % 1], atol=1e-5)
  np.testing.assert_array_equal(transforms.soft_mask(bits, weights), transforms.crop_mask(mask, box))


def test_draws_depend_on_the_generator_alone():
  first, again = (transforms.draw_augmentation(np.random.default_rng(5), (0.1, 2.0), True) for _ in range(2))
  assert first == again
  plain = transforms.draw_augmentation(np.random.default_rng(5), (0.1, 2.0), False)
  assert not plain.flip and plain.scale == first.scale and plain.offset_draw == first.offset_draw
  draws = [transforms.draw_augmentation(np.random.default_rng(i), (0.5, 1.5), True) for i in range(400)]
  scales = [d.scale for d in draws]
  assert 0.5 <= min(scales) < 0.55 and 1.45 < max(scales) < 1.5
  assert 150 < sum(d.flip for d in draws) < 250
