"""A picture that was looked at once gives for any words what `Detector.detect` gives."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax.inference import looked_at
from vild_jax.inference.detector import Detector
from vild_jax.vocabulary import VocabularyFile

NAMES = tuple('abcdef')


def picture(seed: int, height: int, width: int) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def words(seed: int, names: tuple[str, ...]) -> VocabularyFile:
  rows = np.random.default_rng(seed).normal(size=(len(names), 16)).astype(np.float32)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  return VocabularyFile(rows, names, np.arange(len(names)) < 4, 'a teacher', 'vild')


@pytest.fixture(scope='module')
def detector():
  config = tiny.config('model.image_head=true', 'model.temperature=0.1')  # 0.01 turns rounding into 1e-5
  return Detector(config, tiny.variables(config, deltas=0.1), words(0, NAMES))


def same(found, expected) -> None:
  assert len(expected) and found.names == expected.names and found.size == expected.size
  np.testing.assert_array_equal(found.labels, expected.labels)
  np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
  np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
  if expected.attributes is not None:
    np.testing.assert_allclose(found.attributes, expected.attributes, atol=1e-5)


@pytest.mark.slow
def test_other_words_need_no_network(detector, monkeypatch):
  """Two vocabularies, two sizes, a batch that is filled up; masks, attributes and all that leaves detections out."""
  pictures = [picture(1, 50, 64), picture(2, 90, 30), picture(3, 64, 64)]
  looked = detector.look([detector.prepare(one) for one in pictures])
  assert [one.size for one in looked] == [(50, 64), (90, 30), (64, 64)] and looked[0].nbytes > 16 * 64 * 4
  monkeypatch.setattr(looked_at, 'look', None)
  for one, seen in zip(pictures, looked, strict=True):
    for classes in (None, words(7, ('x', 'y'))):
      expected = detector.detect(one, classes, min_score=0.01)
      found = detector.find(seen, classes, min_score=0.01)
      same(found, expected)
      differing = found.masks != expected.masks
      assert found.masks.any() and differing.mean() < 1e-3  # a pixel whose probability is a half may go either way
  expected = detector.detect(pictures[0], min_score={'a': 0.9}, max_detections=2, attributes=['a', 'b', 'c'])
  found = detector.find(looked[0], min_score={'a': 0.9}, max_detections=2, attributes=['a', 'b', 'c'])
  same(found, expected)
  assert len(found) == 2 and found.attributes.shape == (2, 3)
  boxes = detector.find(looked[0], min_score=0.01, masks=False)
  assert boxes.rles is None
  same(boxes, detector.detect(pictures[0], min_score=0.01))


def test_no_picture_is_no_work(detector):
  assert detector.look([]) == []


def test_wrong_arguments_are_refused_as_by_detect(detector):
  with pytest.raises(ValueError, match='max_detections is 11'):
    detector.find(None, max_detections=11)
  with pytest.raises(ValueError, match="'z' is not in the stored vocabulary"):
    detector.find(None, ['z'])
  with pytest.raises(ValueError, match='the image is float64'):
    detector.prepare(np.zeros((2, 2, 3)))


def test_what_can_be_asked_for_is_said(detector):
  assert not detector.takes_names and not detector.takes_examples
