"""What is kept of a picture: the refined boxes and cosines of the regions, in a folder that is checked when read."""

from __future__ import annotations

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_logits
from vild_jax import detector
from vild_jax.config import override
from vild_jax.data.schema import DataError
from vild_jax.inference import calibration, logits
from vild_jax.inference.logits import Logits
from vild_jax.vocabulary import VocabularyFile


@pytest.fixture
def copy(kept_logits, tmp_path):
  shutil.copytree(kept_logits.folder, tmp_path / 'copy')
  return tmp_path / 'copy'


def test_a_picture_keeps_the_regions_that_can_be_detected(kept_logits):
  opened, of = Logits.open(kept_logits.folder), kept_logits.intermediates
  for row, image_id in enumerate(small_logits.IMAGES):
    refined = detector.refine(
      *map(jnp.asarray, (of['proposals'].boxes[row], of['box_deltas'][row], small_logits.SIZES[row]))
    )
    rows = of['proposals'].valid[row] & (np.prod(np.asarray(refined[:, 2:] - refined[:, :2]), axis=1) > 0)
    picture = opened.picture(image_id)
    assert 0 < rows.sum() == len(picture['boxes'])
    np.testing.assert_allclose(picture['boxes'], refined[rows], atol=1e-4)
    np.testing.assert_allclose(picture['objectness'], of['proposals'].scores[row][rows], rtol=1e-5)
    cosines = small_logits.CONFIG.model.temperature * of['text_logits'][row][rows]
    kept = [*range(small_logits.CLASSES), -1]  # without the padding
    np.testing.assert_allclose(picture['text'] / logits.STEPS, cosines[:, kept], atol=0.51 / logits.STEPS)
    cosines = small_logits.CONFIG.model.temperature * of['image_logits'][row][rows]
    np.testing.assert_allclose(picture['image'] / logits.STEPS, cosines[:, kept[:-1]], atol=0.51 / logits.STEPS)


def test_the_folder_says_what_the_logits_are_of(kept_logits):
  opened = Logits.open(kept_logits.folder)
  assert opened.names == small_logits.NAMES and opened.is_base.tolist() == [False, True, True, True, False]
  assert opened.config == small_logits.CONFIG and opened.truth.image_ids.tolist() == list(small_logits.IMAGES)
  assert not any('segmentation' in a for a in opened.truth.annotations) and opened.truth.annotations


def test_a_model_with_one_head_keeps_one(kept_logits, tmp_path):
  config = override(small_logits.CONFIG, ['model.image_head=false'])
  small_logits.begin(tmp_path, kept_logits.detections, config=config)
  small_logits.write_pictures(tmp_path, kept_logits.kept.replace(image=None))
  found = Logits.open(tmp_path).picture(small_logits.IMAGES[0])
  assert set(found) == {'boxes', 'objectness', 'scale', 'original_size', 'text'}


def test_a_picture_without_regions(kept_logits, tmp_path):
  small_logits.begin(tmp_path, kept_logits.detections)
  nothing = kept_logits.kept.replace(valid=np.zeros_like(kept_logits.kept.valid))
  small_logits.write_pictures(tmp_path, nothing)
  opened = Logits.open(tmp_path)
  assert opened.picture(small_logits.IMAGES[0])['text'].shape == (0, small_logits.CLASSES + 1)
  assert len(calibration.detections(opened, calibration.settings_of(opened))) == 0


def test_the_same_evaluation_goes_on_and_another_is_refused(kept_logits, copy):
  before = (copy / 'logits.json').read_bytes()
  small_logits.begin(copy, kept_logits.detections)
  assert (copy / 'logits.json').read_bytes() == before
  with pytest.raises(DataError, match=r'holds the logits of another evaluation; expected the same one, or another --s'):
    small_logits.begin(copy, kept_logits.detections, job={'weights': 'others'})


def test_a_folder_of_something_else_is_refused_and_stays(tmp_path):
  words = VocabularyFile(np.eye(2, 16, dtype=np.float32), ('a', 'b'), np.array([True, False]), 'a teacher', 'vild')
  truth = {'images': [], 'categories': [], 'annotations': []}
  begin = lambda folder: logits.begin(folder, small_logits.CONFIG, words, words.is_base, np.arange(2), truth, {})
  (tmp_path / 'annotations.json').write_text('of the user')
  with pytest.raises(DataError, match=r'holds annotations.json and no logits.json; expected a new or empty folder'):
    begin(tmp_path)
  assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [('annotations.json', 'of the user')]
  begin(tmp_path / 'new')
  written = {path.name: path.read_bytes() for path in (tmp_path / 'new').iterdir()}
  for name in ('annotations.json', 'config.json'):  # as a kill leaves it
    (tmp_path / 'new' / name).unlink()
  begin(tmp_path / 'new')
  assert {path.name: path.read_bytes() for path in (tmp_path / 'new').iterdir()} == written


def test_what_is_missing_or_damaged_is_one_line(copy):
  with pytest.raises(DataError, match=r'holds no logits; expected a folder of `vild-jax evaluate --save-logits`'):
    Logits.open(copy.parent)
  picture = copy / 'pictures' / f'{small_logits.IMAGES[1]}.npz'
  content = picture.read_bytes()
  picture.write_bytes(content[:100])
  with pytest.raises(DataError, match=rf'{picture.name} cannot be read .*: delete it and evaluate again'):
    Logits.open(copy).picture(small_logits.IMAGES[1])
  arrays = dict(np.load(copy / 'pictures' / f'{small_logits.IMAGES[0]}.npz'))
  np.savez(picture, **(arrays | {'text': arrays['text'][:, 1:]}))
  with pytest.raises(DataError, match=r'has arrays of other shapes than .*logits.json; expected one evaluation'):
    Logits.open(copy).picture(small_logits.IMAGES[1])
  np.savez(picture, **(arrays | {'boxes': arrays['boxes'][:, :3]}))
  with pytest.raises(DataError, match=r'has arrays of other shapes than .*logits.json; expected one evaluation'):
    Logits.open(copy).picture(small_logits.IMAGES[1])
  config = (copy / 'config.json').read_text()
  for content, problem in (('{', 'is not JSON'), (None, 'is not a file')):
    (copy / 'config.json').unlink() if content is None else (copy / 'config.json').write_text(content)
    with pytest.raises(DataError, match=rf'config.json is damaged \(.*{problem}.*\); expected a folder of `vild-jax'):
      Logits.open(copy)
  (copy / 'config.json').write_text(config)
  picture.unlink()
  with pytest.raises(DataError, match=r'lacks 1 of 2 pictures, 9007199254740993 for one; expected an evaluation that'):
    Logits.open(copy)
  tree = json.loads((copy / 'logits.json').read_text())
  (copy / 'logits.json').write_text(json.dumps(tree | {'is_base': [True]}))
  with pytest.raises(DataError, match=r'logits.json is damaged \(lists of different lengths\); expected a folder of'):
    Logits.open(copy)
