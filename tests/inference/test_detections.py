"""What is found in a picture: masks decoded when they are read, and the forms of other programs."""

from __future__ import annotations

import dataclasses
import json
import sys
import tracemalloc
import types

import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api

from vild_jax.eval import paste
from vild_jax.inference import drawing
from vild_jax.inference.detections import PictureDetections, title

NAMES = ('cup', 'red mug', 'toy')
BOXES = np.array([[1, 2, 10.9, 20.5], [3, 3, 9, 9]], np.float32)


def made(size=(30, 40), *, boxes=BOXES, masks=True) -> PictureDetections:
  count = len(boxes)
  rng = np.random.default_rng(0)
  rles = paste.paste_to_rles(rng.random((count, 28, 28)).astype(np.float32), boxes, *size)
  scores, labels = np.linspace(0.9, 0.5, count, dtype=np.float32), 2 - np.arange(count, dtype=np.int32) % 3
  return PictureDetections(boxes, scores, labels, NAMES, size, tuple(rles) if masks else None)


def test_masks_are_decoded_as_coco_decodes_them():
  found = made()
  expected = np.stack([mask_api.decode(code) for code in found.rles]).astype(bool)
  assert expected.any(axis=(1, 2)).all() and found.masks.dtype == bool and len(found) == 2
  np.testing.assert_array_equal(found.masks, expected)
  np.testing.assert_array_equal(found.mask(1), expected[1])
  assert found.masks is found.masks  # a loop over masks[i] decodes once


def test_only_reading_all_masks_takes_the_memory_of_all():
  boxes = np.array([[100, 100, 900, 900]] * 20, np.float32)
  tracemalloc.start()
  try:
    found = made((1000, 1000), boxes=boxes)
    found.mask(3), found.to_coco(), found.to_dicts()
    assert tracemalloc.get_traced_memory()[1] < 10e6
    assert found.masks.nbytes == 20e6
  finally:
    tracemalloc.stop()


def test_results_of_coco():
  found = made()
  results = found.to_coco(7)
  assert json.loads(json.dumps(results)) == results
  assert [(r['image_id'], r['category_id']) for r in results] == [(7, 3), (7, 2)]
  np.testing.assert_allclose(results[0]['bbox'], [2, 1, 18.5, 9.9], rtol=1e-6)
  assert [r['score'] for r in results] == found.scores.tolist()
  assert [r['segmentation'] for r in results] == list(found.rles)
  assert [r['category_id'] for r in found.to_coco(category_ids=[40, 50, 60])] == [60, 50]
  assert all('segmentation' not in r for r in made(masks=False).to_coco())
  with pytest.raises(ValueError, match='2 category ids; expected one for each of the 3 classes'):
    found.to_coco(category_ids=[1, 2])


def test_the_form_of_transformers():
  found = made().to_dicts()
  assert json.loads(json.dumps(found)) == found
  assert [list(one) for one in found] == [['score', 'label', 'box']] * 2
  assert found[0]['label'] == 'toy' and found[1]['label'] == 'red mug' and found[0]['score'] > found[1]['score']
  assert found[0]['box'] == {'xmin': 2, 'ymin': 1, 'xmax': 20, 'ymax': 10}


def test_the_form_of_supervision(monkeypatch):
  monkeypatch.setitem(sys.modules, 'supervision', types.SimpleNamespace(Detections=types.SimpleNamespace))
  found = made()
  given = found.to_supervision()
  np.testing.assert_allclose(given.xyxy, [[2, 1, 20.5, 10.9], [3, 3, 9, 9]], rtol=1e-6)
  np.testing.assert_array_equal(given.mask, found.masks)
  assert given.confidence is found.scores and given.class_id.tolist() == [2, 1]
  assert given.data['class_name'].tolist() == ['toy', 'red mug']
  assert made(masks=False).to_supervision().mask is None
  monkeypatch.setitem(sys.modules, 'supervision', None)
  with pytest.raises(ValueError, match=r'supervision is not installed; expected .*vild_jax\[supervision\]'):
    found.to_supervision()


def test_the_real_supervision_takes_it():
  supervision = pytest.importorskip('supervision')
  for found in (made(), made(boxes=np.zeros((0, 4), np.float32))):
    given = found.to_supervision()
    assert isinstance(given, supervision.Detections) and len(given) == len(found)


def test_draws_on_the_picture_of_its_size_alone():
  found, picture = made(), np.full((30, 40, 3), 90, np.uint8)
  expected = drawing.draw(picture, BOXES, found.labels, found.scores, found.masks, NAMES, novel=np.array([True] * 3))
  np.testing.assert_array_equal(found.draw(picture, novel=np.array([True] * 3)), expected)
  assert (expected != drawing.draw(picture, BOXES, found.labels, found.scores, None, NAMES)).any()
  assert made(masks=False).draw(picture).shape == expected.shape
  with pytest.raises(ValueError, match=r'\(40, 30\).*expected \(30, 40\)'):
    found.draw(picture.transpose(1, 0, 2))


@pytest.mark.parametrize(
  ('attributes', 'expected'),
  [({}, 'mug'), ({'red': 0.5, 'blue': 0.5}, 'mug'), ({'red': 0.2, 'blue': 0.51, 'big': 0.29}, 'blue mug')],
)
def test_the_title_has_the_attribute_that_is_likelier_than_the_others_together(attributes, expected):
  assert title('mug', attributes) == expected


def test_attributes_are_drawn_before_the_class():
  known = np.array([[0.9, 0.1], [0.5, 0.5]], np.float32)
  found = dataclasses.replace(made(), attribute_names=('big', 'old'), attributes=known)
  assert found.attributes_of(0) == {'big': pytest.approx(0.9), 'old': pytest.approx(0.1)}
  picture = np.full((30, 40, 3), 90, np.uint8)
  expected = drawing.draw(
    picture, BOXES, np.array([2, 1]), found.scores, found.rles, NAMES, titles=('big toy', 'red mug')
  )
  np.testing.assert_array_equal(found.draw(picture), expected)
  assert (made().draw(picture) != expected).any()


def test_nothing_found_and_no_masks():
  nothing = made(boxes=np.zeros((0, 4), np.float32))
  assert nothing.masks.shape == (0, 30, 40) and nothing.to_coco() == nothing.to_dicts() == [] and len(nothing) == 0
  assert not nothing.draw(np.zeros((30, 40, 3), np.uint8)).any()
  without = made(masks=False)
  assert without.masks is None
  with pytest.raises(ValueError, match='no masks; expected a detector that has learnt them, and masks=True'):
    without.mask(0)
