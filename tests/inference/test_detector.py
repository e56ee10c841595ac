"""`Detector.detect` around the network: what it opens, batches, leaves out and compiles. The network is a stand-in."""

from __future__ import annotations

import dataclasses
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers import tiny
from tests.helpers.encoded import encode, oriented
from vild_jax import detector as detector_lib
from vild_jax.data import rle
from vild_jax.data.schema import DataError
from vild_jax.inference import detector as inference
from vild_jax.structs import Detections, Proposals
from vild_jax.vocabulary import VocabularyFile

NAMES = tuple('abcdef')
CONFIG = tiny.config('model.postprocess.max_detections=10')
FOUND = CONFIG.model.postprocess.max_detections


def _stand_in(model, variables, image, image_size, vocabulary, *, min_score):
  """Finds in each picture FOUND boxes, which shrink with their score, more certain in brighter pictures."""
  pixels = jnp.prod(image_size, axis=1)
  light = jax.nn.sigmoid(jnp.sum(image, axis=(1, 2, 3)) / (3 * pixels))
  scores = light[:, None] * jnp.linspace(1.0, 0.1, FOUND)[None, :]
  labels = jnp.arange(FOUND) % jnp.sum(vocabulary.valid)
  valid = (scores >= min_score[labels][None, :]) & (pixels > 0)[:, None]
  corner = jnp.linspace(1.0, 0.5, FOUND)[None, :, None] * image_size[:, None, :]
  masks = jnp.full((*scores.shape, 28, 28), 3.0) if model.masks else None
  boxes = jnp.concatenate([jnp.zeros_like(corner), corner], axis=-1)
  attributes = None
  if vocabulary.attributes is not None:  # the classes have the attributes in turn, for certain
    attributes = jnp.eye(len(vocabulary.attributes.valid))[labels % jnp.sum(vocabulary.attributes.valid)]
    attributes = jnp.broadcast_to(attributes[None], (*scores.shape, attributes.shape[1]))
  found = Detections(boxes, jnp.broadcast_to(labels[None], scores.shape), scores, masks, valid, attributes=attributes)
  return found, {}


def _with(monkeypatch, network) -> inference.Detector:
  monkeypatch.setattr(detector_lib, 'predict_batch', network)
  # A function of its own, since JAX keeps what it has traced for each function.
  program = jax.jit(lambda *given: inference._detections(*given), static_argnums=0)
  monkeypatch.setattr(inference, '_program', lambda: program)
  return inference.Detector(CONFIG, {}, _words(NAMES))


def _words(names: tuple[str, ...]) -> VocabularyFile:
  return VocabularyFile(
    np.eye(16, dtype=np.float32)[np.arange(len(names)) % 16], names, np.ones(len(names), bool), 'made up', 'vild'
  )


@pytest.fixture
def detector(monkeypatch) -> inference.Detector:
  return _with(monkeypatch, _stand_in)


def _pictures(count: int, seed: int = 0) -> list[np.ndarray]:
  """Pictures of different sizes and light."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(5, 150, (count, 2))
  return [np.full((*size, 3), rng.integers(0, 256), np.uint8) for size in sizes]


def _assert_same(found, expected):
  np.testing.assert_allclose(found.boxes, expected.boxes, rtol=1e-5)
  np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
  np.testing.assert_array_equal(found.labels, expected.labels)
  assert (found.size, found.names, found.rles) == (expected.size, expected.names, expected.rles)


def test_several_pictures_are_found_in_as_one_by_one(detector):
  images = _pictures(7)
  assert len({image.shape for image in images}) == 7
  expected = [detector.detect(image) for image in images]
  assert len({float(one.scores[0]) for one in expected}) == 7 and all(len(one.rles) for one in expected)
  for batch_size in (3, 8):
    found = detector.detect(images, batch_size=batch_size)
    for one, alone in zip(found, expected, strict=True):
      _assert_same(one, alone)
  assert [one.size for one in detector.detect(iter(images))] == [image.shape[:2] for image in images]
  assert detector.detect([]) == []
  _assert_same(detector.detect(images[:1])[0], expected[0])


def test_paths_pil_pictures_and_arrays_are_one_picture(detector, tmp_path):
  picture = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
  (tmp_path / 'a.png').write_bytes(encode(picture))
  expected = detector.detect(picture)
  assert expected.size == (40, 70) and expected.masks[0].mean() > 0.9
  grey = Image.fromarray(picture[:, :, 0])
  for given in (tmp_path / 'a.png', str(tmp_path / 'a.png'), Image.fromarray(picture)):
    _assert_same(detector.detect(given), expected)
  for mode in ('1', 'P', 'RGBA', 'CMYK', 'LA', 'YCbCr'):
    assert detector.detect(grey.convert('L').convert('RGB').convert(mode) if mode != 'LA' else grey.convert(mode))
  (tmp_path / 'turned.png').write_bytes(encode(picture, exif=oriented(6)))
  with Image.open(tmp_path / 'turned.png') as opened:
    assert detector.detect(opened).size == detector.detect(tmp_path / 'turned.png').size == (70, 40)


def test_what_is_no_picture_is_called_by_its_place(detector, tmp_path):
  good = np.zeros((8, 8, 3), np.uint8)
  with pytest.raises(ValueError, match=r'^the image is float32 \[8, 8, 3\]; expected uint8 \[H, W, 3\] RGB'):
    detector.detect(good.astype(np.float32))
  for bad, what in ((None, 'NoneType'), (good[None], r'uint8 \[1, 8, 8, 3\]'), (good[:0], r'uint8 \[0, 8, 3\]')):
    with pytest.raises(DataError, match=rf'^images\[3\]: the image is {what}; expected'):
      detector.detect([good, good, good, bad], batch_size=2)
  with pytest.raises(DataError, match=rf'^images\[1\]: {tmp_path}/none.png: cannot be read'):
    detector.detect([good, tmp_path / 'none.png'])
  with pytest.raises(ValueError, match='the image is bytes'):
    detector.detect(b'abc')


def test_scores_for_all_for_some_and_for_each_class(detector):
  (bright,) = [np.full((20, 30, 3), 255, np.uint8)]
  everything = detector.detect(bright, min_score=0.0)
  assert len(everything) == FOUND and everything.labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
  scores, labels = everything.scores, everything.labels
  limits = {0.5: np.full(6, 0.5), (0.99, 0, 0, 0.6, 0, 1.0): np.array([0.99, 0, 0, 0.6, 0, 1.0])}
  limits[(('b', 0.7), ('e', 0.9))] = np.array([0.05, 0.7, 0.05, 0.05, 0.9, 0.05])
  for given, limit in limits.items():
    given = dict(given) if isinstance(given, tuple) and isinstance(given[0], tuple) else given
    keep = scores >= limit[labels]
    found = detector.detect(bright, min_score=given)
    assert 0 < len(found) < FOUND
    np.testing.assert_array_equal(found.scores, scores[keep])
    np.testing.assert_array_equal(found.labels, labels[keep])
    assert len(found.masks) == keep.sum()
  with pytest.raises(ValueError, match=r"min_score has 'zebra'; expected names of the classes asked for"):
    detector.detect(bright, min_score={'zebra': 0.5})
  with pytest.raises(ValueError, match='min_score has 2 numbers; expected one, or one for each of the 6 classes'):
    detector.detect(bright, min_score=[0.1, 0.2])
  with pytest.raises(ValueError, match='min_score is nan; expected finite numbers'):
    detector.detect(bright, min_score=float('nan'))


def test_attributes_come_with_the_detections_that_are_kept(detector):
  bright, dark = (np.full((20, 30, 3), light, np.uint8) for light in (255, 0))
  plain = detector.detect(bright, min_score=0.3)
  assert plain.attributes is None and plain.attribute_names == () and plain.attributes_of(0) == {}
  found, none = detector.detect([bright, dark], min_score=0.3, attributes=['a', 'b', 'c'])
  _assert_same(found, plain)
  assert found.attribute_names == ('a', 'b', 'c') and found.attributes.shape == (len(plain), 3) and len(plain) > 3
  np.testing.assert_array_equal(found.attributes, np.eye(3)[plain.labels % 3])
  assert found.attributes_of(1) == {'a': 0, 'b': 1, 'c': 0}
  assert none.attributes.shape == (len(none), 3) and len(none) < len(found)
  best = detector.detect(bright, min_score=0.3, max_detections=2, attributes=['a', 'b', 'c'])
  np.testing.assert_array_equal(best.attributes, found.attributes[:2])
  with pytest.raises(ValueError, match='expected two or more that differ'):
    detector.detect(bright, attributes=['a'])


def test_a_limit_keeps_the_best(detector):
  picture = _pictures(1)[0]
  everything, best = detector.detect(picture, min_score=0), detector.detect(picture, min_score=0, max_detections=3)
  assert len(best) == len(best.rles) == 3
  np.testing.assert_array_equal(best.scores, everything.scores[:3])
  for wrong in (0, 11):
    with pytest.raises(ValueError, match=rf'max_detections is {wrong}; expected 1 to 10'):
      detector.detect(picture, max_detections=wrong)
  with pytest.raises(ValueError, match='batch_size is 0; expected 1 or more'):
    detector.detect([picture], batch_size=0)


def test_programs_are_compiled_for_each_padded_number_of_classes_batch_and_masks_alone(detector):
  images, compiled = _pictures(50), inference._program()._cache_size
  assert len({image.shape for image in images}) == 50
  for row, count in enumerate((1, 2, 6, 16, 9, 20, 32, 17, 31, 30)):  # ten vocabularies, padded to 16 and 32
    words = _words(tuple(f'{count}-{i}' for i in range(count)))
    of_these = images[5 * row : 5 * row + 5]
    assert len(detector.detect(of_these, words, min_score=0.4, batch_size=4)) == 5
    found = detector.detect(of_these[0], words, min_score=row / 20, max_detections=row + 1)
    assert found.names == words.names
  assert compiled() == 4  # 16 and 32 classes, one picture and four
  assert detector.detect(images[0], masks=False).masks is None
  assert detector.detect(images[:3], masks=False, batch_size=4)[2].rles is None
  assert compiled() == 6
  other = dataclasses.replace(detector.config, name='other', train=dataclasses.replace(detector.config.train, steps=3))
  inference.Detector(other, {}, detector.vocabulary).detect(images[0])
  assert compiled() == 6


def test_thousands_of_classes_go_through_in_smaller_batches(detector, monkeypatch):
  monkeypatch.setattr(inference, '_MOST_PAIRS', 30 * 16 * 2)  # 30 proposals: two pictures with 16 classes each
  seen = []
  program = inference._program()
  monkeypatch.setattr(
    inference, '_program', lambda: lambda *given: (seen.append(given[2].shape[0]), program(*given))[1]
  )
  images = _pictures(5)
  assert [one.size for one in detector.detect(images, batch_size=8)] == [image.shape[:2] for image in images]
  assert seen == [2, 2, 2]
  seen.clear()
  assert len(detector.detect(images, _words(tuple(map(str, range(40)))))) == 5 and seen == [1] * 5


def _many_of_one_class(model, variables, image, image_size, vocabulary, *, min_score):
  """Twelve boxes of class 0 with high scores, of which the fourth is also, with a low one, of class 1."""
  boxes = jnp.broadcast_to(8.0 * jnp.arange(12)[:, None] + jnp.array([0.0, 0.0, 4.0, 4.0])[None], (1, 12, 4)) / 2
  scores = jnp.zeros((1, 12, len(vocabulary.valid))).at[:, :, 0].set(0.6).at[:, 3, 1].set(0.2)
  first = detector_lib.FirstStage({}, {}, {}, Proposals(boxes, jnp.ones((1, 12)), jnp.ones((1, 12), bool)))
  of = dataclasses.replace(model, masks=False)
  deltas = jnp.zeros((1, 12, 4))
  return detector_lib.detect(of, variables, first, deltas, scores, image_size, jax.vmap, min_score), {}


def _best_pairs(model, rois, valid, scores):
  """`detector.choose` for boxes apart: its suppression takes long to compile."""
  best, pairs = jax.lax.top_k(scores.reshape(-1), FOUND)
  box, label = pairs // scores.shape[1], pairs % scores.shape[1]
  return Detections(boxes=rois[box], labels=label, scores=best, masks=None, valid=best > 0)


def test_a_class_below_its_score_takes_no_place_of_another(monkeypatch):
  """There are ten places, which the twelve of class 0 would fill."""
  monkeypatch.setattr(detector_lib, 'choose', _best_pairs)
  detector = _with(monkeypatch, _many_of_one_class)
  picture = np.zeros((64, 64, 3), np.uint8)
  assert detector.detect(picture).labels.tolist() == [0] * 10
  found = detector.detect(picture, min_score={'a': 0.7})
  assert found.labels.tolist() == [1] and found.scores[0] == np.float32(0.2)
  np.testing.assert_allclose(found.boxes, [[12, 12, 14, 14]], atol=1e-4)


def test_masks_in_a_large_picture_take_the_memory_of_their_boxes():
  """A small PNG can hold 13,000 x 13,000 pixels, of which a hundred whole masks would take 15.7 GiB."""
  boxes = np.array([[900, 900, 910, 910]] * 5, np.float32)
  network = Detections(boxes, np.zeros(5, np.int32), np.ones(5), np.ones((5, 28, 28), np.float32), np.ones(5, bool))
  tracemalloc.start()
  try:
    found = inference._in_picture(network, np.full(2, 0.1, np.float32), (13_000, 13_000), NAMES, (), None)
    assert tracemalloc.get_traced_memory()[1] < 10e6
  finally:
    tracemalloc.stop()
  assert found.rles[0]['size'] == [13_000, 13_000] and rle.area(found.rles[0], 13_000, 13_000) > 9_000
