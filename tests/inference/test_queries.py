"""Names, example pictures and vocabularies as classes: which rows they become, and what is refused in one line."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vild_jax
from tests.helpers import small_teacher, tiny
from tests.helpers.plain_crops import plain_embeddings, plain_pixels
from vild_jax import vocabulary
from vild_jax.inference import bundle, examples, queries
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import crops, text
from vild_jax.train import bundle_files

PICTURE = np.random.default_rng(0).integers(0, 256, (41, 70, 3), dtype=np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (30, 20, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def teacher():
  return small_teacher.make(sigmoid=True)  # of dimension 16, as the detector


@pytest.fixture(scope='module')
def made(tmp_path_factory, teacher):
  """A teacher directory, and bundles with and without its image tower; tests leave them as they are."""
  folder = tmp_path_factory.mktemp('made')
  teacher_checkpoint.save_teacher(folder / 'teacher', teacher)
  rows = np.array(tiny.vocabulary().embeddings[:3])
  words = vocabulary.VocabularyFile(
    rows, ('red_mug', 'ant', 'tree'), np.array([True, False, True]), teacher.text_identity, 'single'
  )
  vocabulary.save(folder / 'v.npz', words)
  config = tiny.config()
  for name, towers in (
    ('seeing', {'teacher': folder / 'teacher', 'image_tower': folder / 'teacher'}),
    ('blind', {'teacher': folder / 'teacher'}),
  ):
    bundle.export_bundle(
      folder / name,
      config,
      tiny.variables(config),
      folder / 'v.npz',
      vocabulary_teacher=teacher.text_identity,
      **towers,
    )
  return folder


@pytest.fixture(scope='module')
def detector(made):
  return vild_jax.load(made / 'seeing')


def by_hand(teacher, *shown):
  """The normalised mean over (picture, box)."""
  rows = [plain_embeddings(teacher, plain_pixels(picture, [box]))[0] for picture, box in shown]
  return np.mean(rows, axis=0) / np.linalg.norm(np.mean(rows, axis=0))


def whole(picture):
  return picture, (0, 0, *picture.shape[:2])


def test_words_and_examples_share_a_vocabulary(made, teacher, detector):
  tree = vild_jax.Example(' tree ', [PICTURE, OTHER])  # a base class by its name
  names, found = detector._queries.resolve(['red mug', tree, 'toy', vild_jax.Example('mine', OTHER)])
  assert names == ('red mug', 'tree', 'toy', 'mine')
  assert found.valid.tolist() == [True] * 4 + [False] * 12 and not found.embeddings[4:].any()
  assert found.is_base.tolist() == [True] + [False] * 15
  np.testing.assert_array_equal(found.embeddings[0], vocabulary.load(made / 'v.npz').embeddings[0])
  expected = text.TextTower(teacher).embed(['toy'], ('a photo of a {}',))[0]
  np.testing.assert_allclose(found.embeddings[2], expected, atol=1e-6)
  for row, shown in ((1, [whole(PICTURE), whole(OTHER)]), (3, [whole(OTHER)])):
    np.testing.assert_allclose(found.embeddings[row], by_hand(teacher, *shown), atol=2e-3)  # crops: to a level of 255
    assert np.linalg.norm(found.embeddings[row]) == pytest.approx(1)


def test_a_box_is_seen_with_its_surroundings(teacher, detector):
  boxes = [[3, 4, 20, 40.5], [10, 5, 28, 15]]
  found = detector.classes([vild_jax.Example('mine', [PICTURE, OTHER], boxes)]).embeddings[0]
  np.testing.assert_allclose(found, by_hand(teacher, (PICTURE, boxes[0]), (OTHER, boxes[1])), atol=2e-3)
  one = detector.classes([vild_jax.Example('mine', PICTURE, boxes[0])]).embeddings[0]
  np.testing.assert_allclose(one, by_hand(teacher, (PICTURE, boxes[0])), atol=2e-3)


def test_every_form_of_a_picture_and_of_the_classes(tmp_path, detector):
  turned = Image.Exif()
  turned[0x0112] = 6  # stored on its side: viewers turn it by 90 degrees to the right
  Image.fromarray(np.rot90(PICTURE).copy()).save(tmp_path / 'a.png', exif=turned)
  for shown in (PICTURE, Image.fromarray(PICTURE), tmp_path / 'a.png', str(tmp_path / 'a.png')):
    found = detector._queries.resolve({'mine': shown, 'ant': None, 'ours': [shown, OTHER]})
    expected = detector._queries.resolve(
      [vild_jax.Example('mine', PICTURE), 'ant', vild_jax.Example('ours', [PICTURE, OTHER])]
    )
    assert found[0] == expected[0] == ('mine', 'ant', 'ours')
    jax.tree.map(np.testing.assert_array_equal, found[1], expected[1])
  alone = detector.classes(vild_jax.Example('mine', PICTURE)).embeddings[0]
  np.testing.assert_array_equal(alone, expected[1].embeddings[0])


def test_a_picture_is_embedded_once(detector, monkeypatch):
  picture, seen = OTHER[:-1], []
  embed = crops.CropTower.embed
  monkeypatch.setattr(crops.CropTower, 'embed', lambda *args: (seen.append(args), embed(*args))[1])
  for _ in range(2):
    detector.classes({'mine': picture})
  assert len(seen) == 1
  detector.classes([vild_jax.Example('mine', picture, [0, 0, 9, 9])])
  assert len(seen) == 2
  whole = detector.classes([vild_jax.Example('mine', picture, [10, 5, 20, 15])])
  cut = detector.classes([vild_jax.Example('mine', picture[7:23, 2:18], [3, 3, 13, 13])])  # all that is seen of it
  assert len(seen) == 3 and (whole.embeddings == cut.embeddings).all()
  detector.classes([vild_jax.Example('mine', picture[7:23, 2:18], [3, 3, 13, 12])])
  assert len(seen) == 4


def test_what_is_remembered_is_bounded(made, monkeypatch):
  """The oldest goes first, not a name of the vocabulary, and not before it is used."""
  monkeypatch.setattr(queries, '_REMEMBERED', 2)
  monkeypatch.setattr(examples, '_REMEMBERED', 2)
  detector = vild_jax.load(made / 'seeing')
  asked = ['one', 'two', 'three', 'ant', *(vild_jax.Example(f'{n}', PICTURE[n:]) for n in range(3))]
  first = detector.classes(asked).embeddings
  assert list(detector._queries._embedded) == ['two', 'three']
  assert len(detector._queries._examples._embedded) == 2
  np.testing.assert_allclose(detector.classes(asked).embeddings, first, atol=1e-6)


def test_the_image_tower_comes_with_the_bundle_or_with_the_teacher(made, detector):
  expected = detector.classes({'mine': PICTURE}).embeddings
  with pytest.raises(ValueError, match=r"^'mine' is asked for by pictures, .*--image-tower`, or load\(.*teacher=DIR\)"):
    vild_jax.load(made / 'blind').classes(['ant', vild_jax.Example('mine', PICTURE)])
  text_alone = made / 'blind' / 'text_tower'
  for name, teacher in (('blind', made / 'teacher'), ('seeing', text_alone)):
    found = vild_jax.load(made / name, teacher=teacher).classes({'mine': PICTURE}).embeddings
    np.testing.assert_array_equal(found, expected)


def test_another_image_tower_is_refused(made, tmp_path, teacher):
  other = small_teacher.make(sigmoid=True)
  other.params['image']['norm_out']['bias'] = other.params['image']['norm_out']['bias'] + 1
  teacher_checkpoint.save_teacher(tmp_path / 'other', other)
  loaded = vild_jax.load(made / 'seeing', teacher=tmp_path / 'other')  # its text tower is that of the vocabulary
  with pytest.raises(
    ValueError, match=f"has the image tower '{other.image_identity}'; expected '{teacher.image_identity}'"
  ):
    loaded.classes({'mine': PICTURE})
  changed = shutil.copytree(made / 'seeing', tmp_path / 'changed')
  teacher_checkpoint.save_image_tower(changed / 'image_tower', other)
  with pytest.raises(ValueError, match=r'image_tower/.* is damaged'):
    vild_jax.load(changed)
  about = bundle_files.read_about(changed)
  bundle_files.seal(changed, {key: value for key, value in about.items() if key not in ('files', 'sha256')})
  with pytest.raises(ValueError, match='has the image tower'):
    vild_jax.load(changed).classes({'mine': PICTURE})


@pytest.mark.parametrize(
  'ask, message',
  [
    (lambda: [vild_jax.Example('', PICTURE)], 'the name of an example is '),
    (lambda: [vild_jax.Example('a', [])], "the example 'a' has no picture"),
    (lambda: [vild_jax.Example('a', [PICTURE] * 2, [[0, 0, 9, 9]])], r"'a' has boxes of shape \[1, 4\]; expected \[2,"),
    (lambda: [vild_jax.Example('a', PICTURE, [9, 9, 0, 0])], "example 'a', picture 1: box 0 is"),
    (
      lambda: [vild_jax.Example('a', PICTURE, [41, 0, 60, 9])],
      r"'a', picture 1: the box .* outside; .* 41 x 70 pixels",
    ),
    (lambda: [vild_jax.Example('a', PICTURE, [3, -9, 9, 0])], "example 'a', picture 1: the box"),
    (lambda: {'a': [PICTURE, PICTURE[..., 0]]}, r"example 'a', picture 2: the image is uint8 \[41, 70\]"),
    (lambda: {'a': 'none.png'}, "example 'a', picture 1: .*none.png"),
    (lambda: ['ant', PICTURE], r'classes\[1\] is a ndarray; expected a name or Example'),
    (lambda: [], r'classes is \[\]; expected one or more'),
    (lambda: {}, r'classes is \[\]; expected one or more'),
    (lambda: ['ant', ' '], 'expected one or more class names'),
  ],
)
def test_what_is_refused(detector, ask, message):
  with pytest.raises(ValueError, match=message):
    detector.classes(ask())


def test_attributes_are_embedded_and_padded_as_classes_are(teacher, detector):
  names, found = detector._queries.attributes([' red ', 'ant', vild_jax.Example('like this', PICTURE)])
  assert names == ('red', 'ant', 'like this') and found.embeddings.shape == (16, 16)
  assert found.valid.tolist() == [True] * 3 + [False] * 13 and not found.embeddings[3:].any()
  np.testing.assert_array_equal(found.embeddings[1], detector.vocabulary.embeddings[1])
  expected = text.TextTower(teacher).embed(['red'], ('a photo of a {}',))[0]
  np.testing.assert_allclose(found.embeddings[0], expected, atol=1e-6)
  np.testing.assert_allclose(found.embeddings[2], by_hand(teacher, whole(PICTURE)), atol=2e-3)


@pytest.mark.parametrize(
  'ask, message',
  [
    ([], r'attributes is \[\]; expected one or more attribute names'),
    ('red', r"attributes is \['red'\]; expected two or more that differ"),
    (['red', 'blue', 'red '], r"attributes is \['red', 'blue', 'red'\]; expected two or more that differ"),
    (['red', 3], r'attributes\[1\] is a int; expected a name'),
  ],
)
def test_attributes_that_are_refused(detector, ask, message):
  with pytest.raises(ValueError, match=message):
    detector._queries.attributes(ask)


def test_the_background_row_of_the_vocabulary_or_of_the_training(detector):
  of = lambda row: dataclasses.replace(detector.vocabulary, background=row)
  one, other = np.eye(16, dtype=np.float32)[:2]
  plain, fixed = (queries.Queries(detector.config, of(row)) for row in (None, one))
  assert plain.resolve(['ant'])[1].background is None and plain.resolve(of(None))[1].background is None
  for expected, resolved in (
    (one, fixed.resolve(['ant'])),
    (one, fixed.resolve(of(None))),
    (one, fixed.resolve()),
    (other, fixed.resolve(of(other))),
    (other, plain.resolve(of(other))),
  ):
    np.testing.assert_array_equal(resolved[1].background, expected)


def test_prompts_that_a_vocabulary_records_are_never_read_as_a_file(made, tmp_path):
  (tmp_path / 'secret').write_text('hunter2 {}:0')
  planted = dataclasses.replace(vocabulary.load(made / 'v.npz'), prompts=str(tmp_path / 'secret'))
  asked = queries.Queries(tiny.config(), planted, text.load_text(made / 'teacher'))
  with pytest.raises(ValueError, match=r'the vocabulary records the prompts .*secret.*; expected vild') as error:
    asked.resolve(['toy elephant'])
  assert 'hunter2' not in str(error.value)


def test_names_are_kept_on_the_disk(made, tmp_path, monkeypatch):
  monkeypatch.setenv('VILD_JAX_CACHE', str(tmp_path))
  first = vild_jax.load(made / 'seeing').classes(['toy elephant', 'Toy', 'ant'])
  monkeypatch.setattr(text.TextTower, 'embed_in_parts', None)
  again = vild_jax.load(made / 'seeing').classes(['toy elephant', 'Toy', 'ant'])
  np.testing.assert_array_equal(first.embeddings, again.embeddings)
