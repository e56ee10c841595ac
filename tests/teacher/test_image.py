from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers import small_teacher
from vild_jax.nn import clip
from vild_jax.teacher import image, prompts, text, zero_shot

# As openai/clip-vit-base-patch32 and google/siglip-base-patch16-224 ship them.
CLIP = {
  'crop_size': 224,
  'do_center_crop': True,
  'do_normalize': True,
  'do_resize': True,
  'size': 224,
  'resample': 3,
  'feature_extractor_type': 'CLIPFeatureExtractor',
  'image_mean': [0.48145466, 0.4578275, 0.40821073],
  'image_std': [0.26862954, 0.26130258, 0.27577711],
}
SIGLIP = {
  'do_normalize': True,
  'do_rescale': True,
  'do_resize': True,
  'image_mean': [0.5] * 3,
  'image_std': [0.5] * 3,
  'image_processor_type': 'SiglipImageProcessor',
  'resample': 3,
  'rescale_factor': 0.00392156862745098,
  'size': {'height': 224, 'width': 224},
}
NEWER = {
  **CLIP,
  'crop_size': {'height': 224, 'width': 224},
  'size': {'shortest_edge': 224},
  'do_rescale': True,
  'rescale_factor': 0.00392156862745098,
  'image_processor_type': 'CLIPImageProcessorFast',
}


@pytest.fixture(scope='module')
def picture():
  """70 pixels wide, 41 high."""
  return np.random.default_rng(0).integers(0, 256, (41, 70, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def teacher():
  return small_teacher.make()


@pytest.mark.parametrize('tree', [CLIP, NEWER], ids=['first files', 'newer files'])
def test_clip_equals_the_published_pixels_to_the_bit(shared, tree):
  folder = shared / 'data/clip'
  found = image.parse_preprocessing(tree, 224)(Image.open(folder / 'franz-kafka.jpg'))
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found.transpose(2, 0, 1)[None], np.load(folder / 'expected_preprocessed_image.npy'))


@pytest.mark.parametrize('resample', [2, 3])
def test_siglip_stretches_to_the_square(picture, resample):
  found = image.parse_preprocessing({**SIGLIP, 'resample': resample}, 224)(picture)
  stretched = Image.fromarray(picture).resize((224, 224), resample)
  np.testing.assert_allclose(found, np.asarray(stretched) / 127.5 - 1, atol=1e-6)


def test_the_short_side_is_the_size_and_the_centre_is_kept(picture):
  tree = {**CLIP, 'size': 16, 'crop_size': 16, 'image_mean': [1e-9] * 3, 'image_std': [1.0] * 3}
  found = image.parse_preprocessing(tree, 16)
  resized = np.asarray(Image.fromarray(picture).resize((27, 16), 3)) / 255  # 16 * 70 / 41 = 27.3
  np.testing.assert_allclose(found(picture), resized[:, 5:21], atol=1e-6)
  tall = np.ascontiguousarray(picture.swapaxes(0, 1))
  np.testing.assert_allclose(found(tall), np.asarray(Image.fromarray(tall).resize((16, 27), 3))[5:21] / 255, atol=1e-6)
  small = image.parse_preprocessing({**tree, 'do_resize': False, 'crop_size': 80}, 80)(picture)
  expected = np.zeros((80, 80, 3))
  expected[20:61, 5:75] = picture / 255
  np.testing.assert_allclose(small, expected, atol=1e-6)


def test_a_silent_file_means_clips_own_steps(picture):
  silent = {key: CLIP[key] for key in ('image_mean', 'image_std')}
  np.testing.assert_array_equal(
    image.parse_preprocessing(silent, 224)(picture), image.parse_preprocessing(CLIP, 224)(picture)
  )


def test_the_colour_model_is_of_no_matter(picture):
  prepare = image.parse_preprocessing(CLIP, 224)
  rgb = Image.fromarray(picture)
  for other in (rgb.convert('RGBA'), picture):
    np.testing.assert_array_equal(prepare(other), prepare(rgb))
  grey = rgb.convert('L')
  np.testing.assert_array_equal(prepare(grey), prepare(np.repeat(np.asarray(grey)[..., None], 3, 2)))


@pytest.mark.parametrize(
  'tree, message',
  [
    ({'image_processor_type': 'ViTImageProcessor'}, "image_processor_type is 'ViTImageProcessor'; expected one of"),
    ({'do_pad': True}, 'do_pad is true; expected only the steps'),
    ({'size': {'longest_edge': 224}}, r'size is {"longest_edge": 224}; expected pixels, at most 4096: a number'),
    ({'size': '224'}, 'size is "224"'),
    ({'size': {'shortest_edge': 0}}, 'size is'),
    ({'crop_size': {'shortest_edge': 224}}, 'crop_size is .*; expected a height and a width'),
    ({'crop_size': 336}, 'crop_size is 336; expected a square of 224, which is what the image tower takes'),
    ({'do_center_crop': False}, 'size is 224; expected a square of 224'),
    ({'resample': 6}, 'resample is 6; expected a code of PIL'),
    ({'resample': 'bicubic'}, 'resample is "bicubic"'),
    ({'rescale_factor': 'x'}, 'rescale_factor is "x"'),
    ({'image_mean': None}, 'image_mean is null; expected three'),
    ({'image_mean': [0.5]}, r'image_mean is \[0.5\]; expected three numbers'),
    ({'image_std': [0.5, 0, 0.5]}, 'image_std is .*; expected three numbers'),
  ],
)
def test_what_is_not_supported_is_one_line(tree, message):
  with pytest.raises(ValueError, match=f'preprocessor_config.json: {message}') as error:
    image.parse_preprocessing({**CLIP, **tree}, 224)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'wrong', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_an_array_that_is_no_picture(wrong):
  with pytest.raises(ValueError, match=r'expected uint8 \[height, width, 3\]'):
    image.parse_preprocessing(CLIP, 224)(wrong)


def test_embeddings_are_those_of_the_bare_tower(teacher, picture):
  pictures = [picture[:, i : i + 30] for i in range(0, 40, 8)]  # 5 pictures in batches of 2
  tower = image.ImageTower(teacher, batch_size=2)
  found = tower.embed_images(pictures)
  pixels = np.stack([image.parse_preprocessing(small_teacher.PREPROCESSOR, 16)(p) for p in pictures])
  expected = np.asarray(clip.ImageTower(teacher.config).apply({'params': teacher.params['image']}, pixels), np.float64)
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert found.shape == (5, tower.embedding_dim) and tower.identity == teacher.image_identity
  # Its neighbours in the batch change nothing; its place in it may change a last bit, as vector units end elsewhere.
  np.testing.assert_array_equal(tower.embed_images([Image.fromarray(pictures[2])])[0], found[2])
  np.testing.assert_allclose(tower.embed_images([Image.fromarray(pictures[3])])[0], found[3], rtol=0, atol=2.0**-22)
  np.testing.assert_array_equal(tower.embed_pixels(pixels), found)
  assert tower.embed_images([]).shape == (0, 8)
  rough = image.ImageTower(teacher, jnp.bfloat16).embed_images(pictures)
  assert rough.dtype == np.float32 and 0 < np.abs(rough - found).max() < 0.05


def test_a_text_tower_alone_has_no_images(teacher):
  with pytest.raises(ValueError, match='is a text tower alone; expected a teacher directory with an image tower'):
    image.ImageTower(dataclasses.replace(teacher, preprocessor=None))


def test_zero_shot_scores(teacher, picture):
  names, templates = ('red mug', 'toy elephant', 'toy'), prompts.load_templates('single')
  scores = zero_shot.classify(teacher, [picture, picture[:, ::-1]], names, templates)
  images = image.ImageTower(teacher).embed_images([picture, picture[:, ::-1]]).astype(np.float64)
  texts = text.TextTower(teacher).embed_texts([f'a photo of a {name}' for name in names]).astype(np.float64)
  np.testing.assert_allclose(scores.cosine, images @ texts.T, atol=1e-6)
  powers = np.exp(images @ texts.T / 0.07)
  np.testing.assert_allclose(scores.probability, powers / powers.sum(1, keepdims=True), rtol=1e-4)
  best = (images @ texts.T).argmax(1)
  assert zero_shot.is_right(teacher, [picture] * 2, [best[0], (best[0] + 1) % 3], names, templates).tolist() == [
    True,
    False,
  ]


def test_the_names_of_a_sigmoid_model_are_scored_each_by_itself(picture):
  scores = zero_shot.classify(small_teacher.make(sigmoid=True), [picture], ('red mug', 'toy'), ('a {}',))
  np.testing.assert_allclose(scores.probability, 1 / (1 + np.exp(10 - scores.cosine / 0.07)), rtol=1e-4)
