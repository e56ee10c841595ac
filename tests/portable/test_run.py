"""The runner of portable models beside our own code for the same things, and its answers to what it cannot use."""

from __future__ import annotations

import hashlib
import json
import sys
import types

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from tests.helpers import portable_model
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.data import pictures, rle, transforms
from vild_jax.eval import paste
from vild_jax.portable import run

RNG = np.random.default_rng(0)


@pytest.fixture
def picture(tmp_path):
  """A path, and its pixels."""
  pixels = RNG.integers(0, 255, (40, 72, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'picture.png')
  return tmp_path / 'picture.png', pixels


# --- pictures and masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [(40, 72), (64, 64), (200, 31), (1, 7), (333, 500)])
def test_a_picture_is_placed_as_for_the_live_detector(size):
  image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
  expected = transforms.resize_and_pad(image, 64)
  square, content, scale = run.preprocess(image, 64, transforms.RGB_MEAN, transforms.RGB_STD)
  np.testing.assert_allclose(square, expected.image, atol=3e-6)
  np.testing.assert_array_equal(content, expected.size)
  np.testing.assert_array_equal(scale, expected.scale)
  assert square.dtype == np.float32


@pytest.mark.parametrize('box', [[3, 4, 30, 50], [-9.5, -3.2, 12.7, 80], [5, 5, 5, 5], [20.4, 11.6, 21.1, 60]])
def test_a_mask_is_pasted_as_by_the_live_detector(box):
  logits = np.add.outer(np.linspace(-4, 4, 28), np.linspace(-3, 3.1, 28)).astype(np.float32)
  box = np.float32(box)
  (expected,) = paste.paste_masks(1 / (1 + np.exp(-logits))[None], box[None], 40, 72)
  found = run.paste(logits, box, 40, 72)
  assert found.shape == (40, 72) and np.count_nonzero(found != expected) <= 1
  assert found.any() == expected.any()


def test_run_lengths_are_those_of_coco():
  for mask in (RNG.random((5, 7)) > 0.5, np.ones((3, 2), bool), np.zeros((3, 2), bool)):
    told = run.run_lengths(mask)
    assert told['size'] == list(mask.shape) and sum(told['counts']) == mask.size
    np.testing.assert_array_equal(rle.decode_mask(told, *mask.shape), mask)


def test_pictures_are_turned_as_viewers_show_them_and_others_refused(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  path = tmp_path / 'turned.png'
  Image.fromarray(RNG.integers(0, 255, (4, 6, 3), dtype=np.uint8)).save(path, exif=exif)
  np.testing.assert_array_equal(run.open_picture(path), pictures.decode(path, upright=True))
  (tmp_path / 'no.png').write_text('no picture')
  with pytest.raises(ValueError, match=r'no\.png cannot be read as a picture .*; expected one of JPEG'):
    run.open_picture(tmp_path / 'no.png')


def test_an_eps_under_another_name_starts_no_ghostscript(tmp_path, monkeypatch):
  started = []
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: started.append(1))
  Image.new('RGB', (9, 9)).save(tmp_path / 'a.jpg', 'EPS')
  with pytest.raises(ValueError, match=r'a\.jpg cannot be read as a picture'):
    run.open_picture(tmp_path / 'a.jpg')
  assert not started


def test_of_deep_grey_the_upper_bits_count_and_unknown_ranges_are_refused(tmp_path):
  grey = RNG.integers(0, 2**16, (4, 6), dtype=np.uint16)
  for name in ('deep.png', 'deep.tif'):
    Image.fromarray(grey).save(tmp_path / name)
    found = run.open_picture(tmp_path / name)
    np.testing.assert_array_equal(found, np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(found, pictures.decode(tmp_path / name))
  Image.fromarray(grey.astype(np.float32)).save(tmp_path / 'float.tif')
  with pytest.raises(ValueError, match='32-bit grey'):
    run.open_picture(tmp_path / 'float.tif')


# --- suppression ------------------------------------------------------------------------------------------------------


def plainly(boxes, valid, scores, threshold, most, top):
  """Greedy suppression of each class by itself, then the best of all: (score, label, region), best first."""
  found = []
  for label in range(scores.shape[1]):
    order = sorted((r for r in range(len(boxes)) if valid[r] and scores[r, label] > 0), key=lambda r: -scores[r, label])
    kept = []
    for region in order[:top]:
      a = boxes[region]
      for other in kept:
        b = boxes[other]
        sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
        union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - sides.prod()
        if sides.prod() / union >= threshold:
          break
      else:
        kept.append(region)
    found += [(-scores[region, label], label, region) for region in kept]
  return sorted(found)[:most]


@pytest.mark.parametrize(('most', 'top'), [(12, 1000), (1000, 1000), (30, 5)])
def test_suppression_is_greedy_within_each_class(most, top):
  corner = RNG.uniform(0, 20, (30, 2))
  boxes = np.concatenate([corner, corner + RNG.uniform(5, 20, (30, 2))], axis=1).astype(np.float32)
  scores, valid = RNG.random((30, 3)).astype(np.float32), RNG.random(30) > 0.2
  scores[RNG.random(scores.shape) < 0.2] = 0
  settings = {'iou_threshold': 0.4, 'score_threshold': 0.0, 'max_detections': most, 'candidates_per_class': top}
  regions, labels, best = run.suppress(boxes, valid, scores, settings)
  expected = plainly(boxes, valid, scores, 0.4, most, top)
  assert 0 < len(expected) <= most
  assert [(-s, c, r) for s, c, r in zip(best, labels, regions, strict=True)] == expected


def test_nothing_is_chosen_of_nothing():
  settings = {'iou_threshold': 0.4, 'score_threshold': 0.0, 'max_detections': 5, 'candidates_per_class': 1000}
  found = run.suppress(np.zeros((4, 4), np.float32), np.zeros(4, bool), np.ones((4, 2), np.float32), settings)
  assert [len(x) for x in found] == [0, 0, 0]


# --- the model --------------------------------------------------------------------------------------------------------


class Fake:
  """A program that gives two detections for every picture and remembers what it was given."""

  def __init__(self):
    self.given = []

  def __call__(self, *inputs):
    self.given.append(inputs)
    one = lambda *rows: np.repeat(np.array(rows)[None], len(inputs[0]), 0)
    boxes = one([0, 0, 10, 20], [5, 5, 20, 60], [0, 0, 0, 0]).astype(np.float32)
    masks = np.full((len(inputs[0]), 3, 28, 28), 9, np.float32)
    return boxes, one(True, True, False), one(0.75, 0.25, 0.0).astype(np.float32), one(1, 0, 0), masks


@pytest.fixture
def model(tmp_path, monkeypatch):
  """The folder of a model, and the program that runs in its place."""
  fake = Fake()
  monkeypatch.setitem(run.RUNTIMES, 'stablehlo', (lambda path, program: fake, 'jax'))
  return portable_model.write(tmp_path / 'model'), fake


def test_detections_come_in_the_pixels_of_each_picture(model, picture):
  folder, fake = model
  detector = run.Detector(folder)
  large = np.zeros((80, 128, 3), np.uint8)
  small, found = detector.detect([picture[1], large], ['Fire Hydrant', 'zebra'], min_score=0.5, batch_size=3)
  assert [x.shape for x in fake.given[0]] == [(3, 64, 64, 3), (3, 2), (35, 16), (35,), (35,)]
  np.testing.assert_array_equal(fake.given[0][1], [[36, 64], [40, 64], [0, 0]])
  assert found.scores.tolist() == [0.75] and found.names == ('Fire Hydrant', 'zebra') and found.size == (80, 128)
  np.testing.assert_allclose(found.boxes, [[0, 0, 20, 40]])
  np.testing.assert_allclose(small.boxes, [[0, 0, 10 * 40 / 36, 20 * 72 / 64]], rtol=1e-6)
  assert found.mask(0)[2:18, 2:38].all() and not found.mask(0)[25:].any()


def test_onnx_gets_one_picture_after_the_other_and_all_classes(monkeypatch):
  asked = []

  class Session:
    def __init__(self, path, providers):
      pass

    def run(self, names, feed):
      asked.append((names, {name: x.shape for name, x in feed.items()}))
      return [feed['image'] + feed['rows'].sum()]

  runtime = types.SimpleNamespace(
    InferenceSession=Session, set_default_logger_severity=int, get_available_providers=list
  )
  monkeypatch.setitem(sys.modules, 'onnxruntime', runtime)
  of = {'inputs': {'image': {'shape': [1, 2]}, 'rows': {'shape': [16, 2]}}, 'outputs': {'out': {}}}
  (found,) = run.RUNTIMES['onnx'][0]('path', of)(np.float32([[1, 2], [3, 4], [5, 6]]), np.ones((16, 2)))
  assert found.tolist() == [[33, 34], [35, 36], [37, 38]]
  assert asked == [(['out'], {'image': (1, 2), 'rows': (16, 2)})] * 3


def test_words_are_those_of_the_live_detector(model):
  detector = run.Detector(model[0])
  trained = vocabulary_lib.load(model[0] / 'vocabulary.npz')
  names, (rows, is_base, valid) = detector.words(['zebra', 'Fire  hydrant', 'ant'])
  assert names == ('zebra', 'Fire  hydrant', 'ant') and valid.sum() == 3 and len(valid) == 35 and valid[:3].all()
  np.testing.assert_array_equal(rows[:3], trained.embeddings[[5, 1, 0]])
  assert not rows[3:].any()
  assert is_base[:3].tolist() == vocabulary_lib.is_base(names, trained).tolist() == [False, True, True]
  for name in ('A_b/c.', ' x  Y..', 'cup (mug)'):
    assert run.clean_name(name) == vocabulary_lib.clean_name(name)


def test_another_spelling_of_two_names_is_that_of_neither(model):
  detector = run.Detector(model[0])
  rows = np.eye(3, 16, dtype=np.float32)
  names = ('Red mug', 'red_mug', 'ant')
  detector.vocabulary = run.Vocabulary(rows, names, np.ones(3, bool), portable_model.TEACHER)
  np.testing.assert_array_equal(detector.words(['Red mug', 'red_mug', 'Ant'])[1][0][:3], rows)
  with pytest.raises(ValueError, match="'red mug' is not in"):
    detector.words(['red mug'])


def test_no_more_than_a_batch_of_pictures_is_opened_at_a_time(model):
  opened = []

  def pictures():
    for number in range(5):
      opened.append(number)
      yield np.zeros((8, 8, 3), np.uint8)

  founds = run.Detector(model[0]).detect(pictures(), batch_size=2)
  assert next(founds).size == (8, 8) and opened == [0, 1]
  assert len(list(founds)) == 4 and len(opened) == 5


def test_what_does_not_fit_is_refused_in_one_line(model, tmp_path):
  detector = run.Detector(model[0])
  with pytest.raises(ValueError, match=r"'axe' is not in vocabulary\.npz; expected a name of"):
    detector.words(['ant', 'axe'])
  with pytest.raises(ValueError, match='there are no classes; expected one or more names'):
    detector.words([])
  other = run.read_vocabulary(portable_model.vocabulary(tmp_path / 'other.npz', teacher='other:1'))
  with pytest.raises(ValueError, match=r"of teacher 'other:1'; expected 'tiny:0123456789abcdef'"):
    detector.words(other)
  wide = run.Vocabulary(np.ones((1, 8), np.float32), ('ant',), np.ones(1, bool), portable_model.TEACHER)
  with pytest.raises(ValueError, match='embeddings of dimension 8; expected 16, that of the model'):
    detector.words(wide)
  for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
    with pytest.raises(ValueError, match=r'a picture is .*; expected uint8 \[H, W, 3\] RGB'):
      next(detector.detect([wrong]))
  np.savez(tmp_path / 'flags.npz', embeddings=np.ones((1, 16)), names=['ant'], is_base=True, teacher='x')
  with pytest.raises(ValueError, match=r'flags\.npz has names \(1,\) .*; expected a finite row for each'):
    run.read_vocabulary(tmp_path / 'flags.npz')
  (tmp_path / 'bad.npz').write_bytes(b'bad')
  with pytest.raises(ValueError, match=r'bad\.npz is not a vocabulary .*; expected one of `vild-jax embed-text`'):
    run.read_vocabulary(tmp_path / 'bad.npz')
  np.savez(tmp_path / 'objects.npz', embeddings=np.array([None]))
  with pytest.raises(ValueError, match=r'is not a vocabulary .*allow_pickle'):
    run.read_vocabulary(tmp_path / 'objects.npz')


def test_a_folder_that_is_no_model_or_damaged_or_without_runtime_is_refused(model, monkeypatch, tmp_path):
  with pytest.raises(ValueError, match=r'model\.json cannot be read .*; expected a folder of `vild-jax export`'):
    run.Detector(tmp_path)
  content = (model[0] / 'names.txt').read_bytes()
  (model[0] / 'names.txt').write_bytes(b'X' + content[1:])
  with pytest.raises(ValueError, match=r'names\.txt is damaged: it does not have the checksum that model\.json lists'):
    run.Detector(model[0])
  (model[0] / 'names.txt').unlink()
  with pytest.raises(ValueError, match=r'names\.txt is missing or has another size than model\.json lists'):
    run.Detector(model[0])
  (model[0] / 'names.txt').write_bytes(content)
  about = (model[0] / 'model.json').read_bytes()
  (model[0] / 'model.json').write_bytes(about.replace(b'0.485', b'0.585'))
  with pytest.raises(ValueError, match=r'model\.json is damaged: it does not have the checksum that it states'):
    run.Detector(model[0])
  for old, wrong in ((b'"file": "model.stablehlo"', b'"file": "unlisted"'), (b'"names.txt"', b'"../names.txt"')):
    unsealed = json.dumps(json.loads(about.replace(old, wrong)) | {'sha256': '0' * 64}).encode()
    own = hashlib.sha256(unsealed).hexdigest().encode()
    (model[0] / 'model.json').write_bytes(unsealed.replace(b'0' * 64, own))
    with pytest.raises(
      ValueError, match=r"has the file '(unlisted|\.\.)'; expected those that it lists, in its folder"
    ):
      run.Detector(model[0])
  (model[0] / 'model.json').write_bytes(about)

  def absent(path, program):
    raise ImportError("No module named 'runtime'")

  monkeypatch.setitem(run.RUNTIMES, 'stablehlo', (absent, 'runtime'))
  with pytest.raises(ValueError, match=r"No module named 'runtime'; expected .*: pip install runtime"):
    run.Detector(model[0])

  def too_old(path, program):
    raise RuntimeError('Unknown\nversion')

  monkeypatch.setitem(run.RUNTIMES, 'stablehlo', (too_old, 'runtime>=2'))
  with pytest.raises(ValueError, match=r'^Unknown version; expected what runs this model: pip install runtime>=2$'):
    run.Detector(model[0])


def test_the_command_prints_json_and_draws(model, picture, tmp_path, capsys):
  words = [str(picture[0]), '--model', str(model[0]), '--min-score', '0.2', '--out', str(tmp_path / 'drawn')]
  assert run.main(words) == 0
  (told,) = json.loads(capsys.readouterr().out)
  assert told['size'] == [40, 72] and [x['name'] for x in told['detections']] == ['fire_hydrant', 'ant']
  assert told['detections'][0]['score'] == 0.75 and told['detections'][0]['mask']['size'] == [40, 72]
  drawn = np.asarray(Image.open(tmp_path / 'drawn' / '1_picture.png'))
  assert drawn.shape == picture[1].shape and (drawn != picture[1]).any()
  for classes, said in (
    ('axe', "'axe' is not in vocabulary.npz"),
    ('', 'there are no classes'),
    (' ,', 'there are no'),
  ):
    assert run.main([*words, '--classes', classes]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f'run.py: {said}') and err.count('\n') == 1
  assert run.main([words[0], str(tmp_path / 'none.png'), *words[1:]]) == 2
  out, err = capsys.readouterr()
  assert json.loads(out) == [told] and 'none.png cannot be read as a picture' in err
