from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from vild_jax.demo import teacher as toy_teacher
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import prompts, text, zero_shot
from vild_jax.teacher.tokenizer import Tokenizer

pytestmark = pytest.mark.slow  # trains a teacher; the test of the demo trains one for two steps

_STEPS = 60
NAMES = ('red_stripe', 'blue stripe', 'red blot', 'blue blot')


def pictures(count, seed):
  """Red or blue, in stripes or in one half of the picture: uint8 [N, 64, 64, 3] and the index of the name."""
  rng = np.random.default_rng(seed)
  index = rng.integers(4, size=count).astype(np.int32)
  images = rng.integers(90, 130, (count, 64, 64, 3)).astype(np.uint8)
  for image, i in zip(images, index, strict=True):
    where = np.s_[::4] if i < 2 else np.s_[:32]
    image[where, :, 0 if i % 2 == 0 else 2] = 250
  return images, index


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('teacher')
  with pytest.MonkeyPatch.context() as patch:
    # The rates of the demo are for many more steps: in so few a rounding decides whether they lead anywhere.
    lower = [(share, divisor, 0.4 * rate) for share, divisor, rate in toy_teacher._PHASES]
    patch.setattr(toy_teacher, '_PHASES', lower)
    toy_teacher.train(lambda: pictures(512, 0), NAMES, folder / 'a', seed=3, steps=_STEPS)
  return folder


def test_it_names_pictures_that_it_never_saw(trained):
  teacher = teacher_checkpoint.load_teacher(trained / 'a')
  images, index = pictures(256, 1)
  templates = prompts.load_templates('vild')
  assert zero_shot.is_right(teacher, images, index, NAMES, templates).mean() > 0.95
  assert zero_shot.is_right(teacher, images, index, NAMES[::-1], templates).mean() < 0.3


def test_equal_seeds_give_equal_teachers(trained):
  one, same, other = (
    toy_teacher.train(lambda: pictures(512, 0), NAMES, trained / name, seed=seed, steps=5)
    for name, seed in (('b', 3), ('c', 3), ('d', 4))
  )
  assert (trained / 'b/model.safetensors').read_bytes() == (trained / 'c/model.safetensors').read_bytes()
  assert one.text_identity == same.text_identity != other.text_identity


def test_its_text_tower_alone_makes_the_same_vocabulary(trained):
  teacher_checkpoint.save_text_tower(trained / 'text_tower', teacher_checkpoint.load_teacher(trained / 'a'))
  flags = np.array([True, True, True, False])
  whole, alone = (text.load_text(trained / name).vocabulary(NAMES, flags, 'vild') for name in ('a', 'text_tower'))
  assert whole.teacher == alone.teacher and whole.prompts == 'vild' and whole.names == NAMES
  np.testing.assert_array_equal(whole.embeddings, alone.embeddings)


def test_class_embeddings_are_normalised_means_of_normalised_prompts(trained):
  tower = text.load_text(trained / 'a')
  templates = prompts.load_templates('imagenet')
  found = tower.embed(NAMES, templates)
  rows = tower.embed_texts(prompts.fill(NAMES[1], templates))
  np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
  expected = rows.astype(np.float64).mean(0)
  np.testing.assert_allclose(found[1], expected / np.linalg.norm(expected), atol=1e-5)
  # Batches, their order and the padding leave no trace: one text alone has the same embedding.
  np.testing.assert_allclose(tower.embed_texts([templates[0].format('blue stripe')])[0], rows[0], atol=1e-5)
  with pytest.raises(ValueError, match='list of classes is empty'):
    tower.embed([], templates)


def test_words_outside_its_vocabulary_are_unknown_not_an_error(trained):
  tower = text.load_text(trained / 'a')
  rows = tower.embed(['zebra', 'xylophone', 'red stripe'], ('a photo of a {}',))
  np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
  assert np.abs(rows[0] - rows[2]).max() > 1e-3


def test_word_tokenizer():
  tokenizer = Tokenizer(toy_teacher.word_tokenizer(['A photo of a red mug.', 'one mug']), 10)
  words = ['.', 'a', 'mug', 'of', 'one', 'photo', 'red']
  ids = {word: i + 2 for i, word in enumerate(words)}
  assert tokenizer(['a RED  mug, one.'])[0].tolist() == [
    9,
    ids['a'],
    ids['red'],
    ids['mug'],
    1,
    ids['one'],
    ids['.'],
    10,
    0,
    0,
  ]


def test_contrastive_loss_equals_a_sum_in_numpy():
  rng = np.random.default_rng(0)
  images, texts = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 3), (4, 3)))
  labels = np.array([0, 2, 2, 1, 2])  # class 3 has no picture
  logits = 7.0 * images.astype(np.float64) @ texts.T
  to_text = np.mean([np.log(np.exp(row).sum()) - row[i] for row, i in zip(logits, labels, strict=True)])
  to_image = np.mean([np.log(np.exp(logits[:, c]).sum()) - logits[labels == c, c].mean() for c in (0, 1, 2)])
  loss = toy_teacher.contrastive_loss(jnp.asarray(images), jnp.asarray(texts), jnp.float32(7.0), jnp.asarray(labels))
  np.testing.assert_allclose(loss, (to_text + to_image) / 2, rtol=1e-5)


@pytest.mark.parametrize('factor', [1, 2, 4])
def test_shrunk_pictures_are_means_of_cells(factor):
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
  size = 8 // factor
  expected = images.reshape(3, size, factor, size, factor, 3).astype(np.float64).mean((2, 4))
  np.testing.assert_allclose(toy_teacher._shrunk(jnp.asarray(images), size), expected, rtol=1e-6)


def test_too_few_pictures_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(toy_teacher, '_compiled', lambda *_: None)  # it would go on after the test
  with pytest.raises(ValueError, match='5 pictures and 5 labels; expected'):
    toy_teacher.train(lambda: pictures(5, 0), NAMES, tmp_path / 'x')
  assert not (tmp_path / 'x').exists()
