"""Pictures of detections: what is painted, what is left alone, and input that does not fit."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vild_jax.data import rle
from vild_jax.inference import drawing

NAMES = ['cup', 'red_mug', 'été']


def _scene(size=(480, 640)):
  image = np.full((*size, 3), 90, np.uint8)
  boxes = np.array([[100, 100, 300, 300], [200, 350, 400, 600]], np.float32)
  masks = np.zeros((2, *size), bool)
  masks[0, 150:250, 150:250] = True
  masks[1, 250:350, 400:550] = True
  return image, boxes, np.array([0, 1]), masks


def test_paints_masks_boxes_and_labels_in_the_colour_of_the_class_and_nothing_else():
  image, boxes, labels, masks = _scene()
  before = image.copy()
  picture = drawing.draw(image, boxes, labels, np.array([0.9, 0.4]), masks, NAMES)
  np.testing.assert_array_equal(image, before)
  assert picture.dtype == np.uint8 and picture.shape == image.shape
  for i in range(2):
    color = np.array(drawing.class_color(int(labels[i])))
    _, x1, y2, x2 = boxes[i].astype(int)
    np.testing.assert_array_equal(picture[y2, (x1 + x2) // 2], color)
    inside = picture[masks[i]].astype(float).mean(0)
    np.testing.assert_allclose(inside, 0.62 * 90 + 0.38 * color, atol=6)
  assert (picture[-50:, :80] == 90).all()
  assert (picture[70:100, 100:150] != 90).any()  # the label above the box


def test_novel_classes_are_dashed_and_starred():
  image, boxes, labels, _ = _scene()
  plain = drawing.draw(image, boxes, labels, None, None, NAMES)
  marked = drawing.draw(image, boxes, labels, None, None, NAMES, novel=np.array([False, True, False]))
  color = drawing.class_color(1)
  side = (slice(230, 380), 350)
  assert (plain[side] == color).all() and 0.3 < (marked[side] == color).all(-1).mean() < 0.8
  np.testing.assert_array_equal(plain[100:300, 100:300], marked[100:300, 100:300])


def test_colours_and_weight_can_be_given():
  image, boxes, labels, _ = _scene()
  red, green = (200, 10, 10), (10, 200, 10)
  thin = drawing.draw(image, boxes, labels, None, None, NAMES, colors=[red, green])
  assert (thin[300, 200] == red).all() and (thin[400, 475] == green).all()
  bold = drawing.draw(image, boxes, labels, None, None, NAMES, colors=[red, green], bold=True)
  width = lambda picture: (picture[320:, 475] == green).all(-1).sum()
  assert width(bold) > width(thin) > 0


def test_small_pictures_are_enlarged_and_empty_ones_left_alone():
  image = np.random.default_rng(0).integers(0, 255, (90, 112, 3), np.uint8)
  empty = np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), np.zeros((0, 90, 112), bool)
  assert drawing.enlargement(image) == 4
  assert drawing.draw(image, *empty, NAMES).shape == (360, 448, 3)
  large = np.repeat(np.repeat(image, 5, 0), 5, 1)
  np.testing.assert_array_equal(drawing.draw(large, *empty[:3], None, NAMES), large)


def test_boxes_beyond_the_picture_and_crowds_are_drawn():
  image, *_ = _scene()
  boxes = np.concatenate([[[-50, -50, 900, 900], [470, 630, 479, 639]], np.tile([[200, 200, 210, 210]], (60, 1))])
  picture = drawing.draw(image, boxes, np.arange(62) % 3, np.linspace(1, 0, 62), None, NAMES)
  assert picture.shape == image.shape
  assert (picture[440:, 550:] != 90).any()
  assert (picture[300:420, 20:600] == 90).all()  # sixty labels at one place do not spread over the picture


def test_colours_are_stable_and_tell_neighbours_apart():
  colors = np.array([drawing.class_color(label) for label in range(30)], float)
  distance = np.abs(colors[:, None] - colors[None]).sum(-1) + 1e3 * np.eye(30)
  assert distance.min() > 20
  assert min(distance[i, i + 1] for i in range(29)) > 120


def test_a_pair_holds_both_pictures():
  red, blue = np.zeros((100, 150, 3), np.uint8), np.zeros((100, 80, 3), np.uint8)
  red[..., 0], blue[..., 2] = 255, 255
  pair = drawing.side_by_side(red, blue)
  assert pair.shape[0] > 100 and pair.shape[1] > 230
  assert (pair[-1, 75] == (255, 0, 0)).all() and (pair[-1, -40] == (0, 0, 255)).all()


@pytest.mark.parametrize('name', ['red\nmug', 'red\t mug', ' red\u2028mug', 'red\x00mug\x07', 'red_mug', 'red mug\x85'])
def test_a_name_of_several_lines_is_drawn_in_one(name):
  image, boxes, labels, _ = _scene()
  plain = drawing.draw(image, boxes, labels, None, None, ['cup', 'red mug'])
  np.testing.assert_array_equal(drawing.draw(image, boxes, labels, None, None, ['cup', name]), plain)


def test_an_empty_mask_leaves_the_box_alone():
  image, boxes, labels, masks = _scene()
  masks[1] = False
  both = drawing.draw(image, boxes, labels, None, masks, NAMES)
  assert (both[300, 450] == 90).all() and (both[200, 200] != 90).any() and (both[400, 475] != 90).any()


@pytest.mark.parametrize('size', [(480, 640), (90, 120)])
def test_run_length_codes_are_drawn_as_the_masks_they_hold(size):
  image, boxes, labels, _ = _scene(size)
  rng = np.random.default_rng(0)
  masks = np.zeros((4, *size), bool)
  masks[0, 30:60, 50:90] = rng.random((30, 40)) < 0.8
  masks[1, :, -1:] = masks[2] = True  # at the border, and all of the picture
  boxes, labels, codes = np.tile(boxes, (2, 1)), np.tile(labels, 2), [rle.encode_mask(mask) for mask in masks]
  drawn = drawing.draw(image, boxes, labels, None, codes, NAMES)
  np.testing.assert_array_equal(drawn, drawing.draw(image, boxes, labels, None, masks, NAMES))
  plain = drawing.draw(image, boxes[:0], labels[:0], None, None, NAMES)
  for mask, code in zip(masks[:2], codes, strict=False):
    changed = (drawing.draw(image, np.full((1, 4), 9), [0], None, [code], [' ']) != plain).any(-1)[50:]
    on = cv2.resize(mask.astype(np.float32), plain.shape[1::-1], interpolation=cv2.INTER_LINEAR) > 0.5
    assert changed[on[50:]].all()
    assert not changed[cv2.dilate(on.astype(np.uint8), np.ones((9, 9)))[50:] == 0].any()


def test_lines_do_not_grow_without_end():
  image, *_ = _scene((100, 6000))
  drawn = drawing.draw(image, [[10, 4000, 90, 4800]], [0], None, None, NAMES)
  assert (drawn[50, 3900:4100] == drawing.class_color(0)).all(-1).sum() <= 8


def test_a_name_without_a_font_is_drawn_as_its_number():
  image, boxes, *_ = _scene()
  number = drawing.draw(image, boxes[:1], [1], None, None, ['cup', '#2'])
  np.testing.assert_array_equal(drawing.draw(image, boxes[:1], [1], None, None, ['cup', 'mug \u0378']), number)


def test_a_picture_is_resized_by_its_longer_side():
  assert drawing.resized(np.zeros((40, 100, 3), np.uint8), 50).shape == (20, 50, 3)
  assert drawing.resized(np.zeros((100, 1, 3), np.uint8), 20).shape == (20, 1, 3)


def test_input_that_does_not_fit_is_named():
  image, boxes, labels, _ = _scene()
  with pytest.raises(ValueError, match=r'float64 \[480, 640, 3\]; expected uint8'):
    drawing.draw(image / 255, boxes, labels, None, None, NAMES)
  with pytest.raises(ValueError, match=r'labels \[0, 3\]; expected one below 3'):
    drawing.draw(image, boxes, [0, 3], None, None, NAMES)
  with pytest.raises(ValueError, match='equal heights'):
    drawing.side_by_side(image, image[:10])
