"""The heads of a ViLD-ensemble, each alone: from one forward pass, and equal to models that have no other head."""

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax import detector
from vild_jax.config import override
from vild_jax.inference import heads
from vild_jax.structs import Attributes, Vocabulary
from vild_jax.train import sharding

CONFIG = tiny.config('model.image_head=true', 'model.temperature=0.1', 'mesh.data=1')


@pytest.fixture(scope='module')
def found():
  """(variables, images, sizes, vocabulary, what `make_step` finds in them)."""
  variables = tiny.variables(CONFIG, deltas=0.01)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
  sizes = np.array([[64, 64], [64, 40]], np.float32)
  vocabulary = Vocabulary(
    rng.normal(size=(tiny.CLASSES, 16)).astype(np.float32),
    np.arange(tiny.CLASSES) < tiny.BASE,
    np.arange(tiny.CLASSES) < tiny.CLASSES - 1,  # the last row is padding
  )
  step = heads.make_step(CONFIG, sharding.make_mesh(CONFIG.mesh))
  return variables, images, sizes, vocabulary, jax.device_get(step(variables, images, sizes, vocabulary))


def predict(config, variables, images, sizes, vocabulary):
  program = jax.jit(lambda *args: detector.predict_batch(config.model, *args))
  return jax.device_get(program(variables, images, sizes, vocabulary))


def test_the_ensemble_is_that_of_predict(found):
  *arguments, vocabulary, (ensemble, _, _) = found
  # With the classes as attributes, which the image head knows, their cosines are known.
  asked = vocabulary.replace(attributes=Attributes(vocabulary.embeddings, vocabulary.valid))
  expected, intermediates = predict(CONFIG, *arguments, asked)
  assert ensemble.valid.any()
  for of, logits in zip(range(2), np.asarray(intermediates['image_logits'], np.float64), strict=True):
    power = np.exp(logits[expected.regions[of]])
    np.testing.assert_allclose(expected.attributes[of], power / power.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-6)
  expected = expected.replace(attributes=None)
  jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4), ensemble, expected)


def test_the_text_head_is_a_model_without_image_head(found):
  *arguments, (_, text, _) = found
  expected, _ = predict(override(CONFIG, ['model.image_head=false']), *arguments)
  assert text.valid.any()
  jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4), text, expected)


def test_the_image_head_scores_by_the_softmax_of_its_own_logits(found):
  *arguments, (_, _, image) = found
  _, intermediates = predict(CONFIG, *arguments)
  logits = np.asarray(intermediates['image_logits'], np.float64)
  scores = np.exp(logits - logits.max(-1, keepdims=True))
  scores /= scores.sum(-1, keepdims=True)
  for row in range(len(logits)):
    valid = image.valid[row]
    assert valid.any() and set(image.labels[row][valid]) <= set(range(tiny.CLASSES - 1))
    all_scores = scores[row][intermediates['proposals'].valid[row]]
    np.testing.assert_allclose(image.scores[row][0], all_scores.max(), rtol=1e-4)
    for label, score in zip(image.labels[row][valid], image.scores[row][valid], strict=True):
      assert np.abs(all_scores[:, label] - score).min() < 1e-5


def test_the_heads_differ(found):
  ensemble, text, image = found[-1]
  assert not np.array_equal(text.scores, image.scores) and not np.array_equal(ensemble.scores, text.scores)


def test_a_model_with_one_head_is_refused():
  config = override(CONFIG, ['model.image_head=false'])
  with pytest.raises(ValueError, match=r'--scores heads compares two heads; expected a config with model.image_head'):
    heads.make_step(config, sharding.make_mesh(config.mesh))
