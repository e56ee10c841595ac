"""The commands end to end on a small set: what they write, and that a bundle and a work directory agree."""

from __future__ import annotations

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

import vild_jax
from tests.helpers import settings_read, small_set, tiny
from tests.helpers.small_experiment import run
from vild_jax import detector as detector_lib
from vild_jax import vocabulary
from vild_jax.train import optim

NAMES = ('ant', 'red mug', 'tree')


def test_every_setting_is_read_by_training_evaluation_or_export(small_run):
  with_head = tiny.config('model.image_head=true')  # what only an ensemble reads
  with settings_read.recorded() as read:
    optim.optimizer(tiny.config('optimizer.rule=muon'))  # what only that rule reads
    jax.eval_shape(
      lambda: detector_lib.predict(
        with_head,
        detector_lib.init(with_head, jax.random.key(0)),
        jnp.zeros((64, 64, 3)),
        (64, 64),
        jax.tree.map(jnp.asarray, tiny.vocabulary()),
      )
    )
  unread = settings_read.all_settings() - small_run[1] - read
  assert not unread, f'{", ".join(map(".".join, sorted(unread)))}: settings that do nothing'


def test_the_vocabulary_knows_base_from_the_frequencies(made):
  file = vocabulary.load(made / 'v.npz')
  assert file.names == NAMES and file.is_base.tolist() == [False, True, True]


def test_a_bundle_detects_in_the_pictures_own_pixels(made):
  detector = vild_jax.load(made / 'bundle')
  image = np.asarray(Image.open(made / 'picture.png'))
  found = detector.detect(image, classes=['tree', 'red mug'], min_score=0.0)
  count = len(found.scores)
  assert count > 0 and found.boxes.shape == (count, 4) and found.boxes.dtype == np.float32
  assert found.masks.shape == (count, 40, 72) and found.masks.dtype == bool
  assert found.labels.dtype == np.int32 and set(found.labels) <= {0, 1}
  assert (np.diff(found.scores) <= 0).all() and (found.scores <= 1).all()
  assert (found.boxes >= 0).all() and (found.boxes <= [40, 72, 40, 72]).all()
  assert found.boxes[:, 3].max() > 36  # not the pixels of the 64 px network input
  from_path = detector.detect(made / 'picture.png', classes=['tree', 'red mug'], min_score=0.0)
  np.testing.assert_array_equal(found.boxes, from_path.boxes)


def test_a_bundle_and_its_work_directory_are_the_same_model(made):
  image = np.asarray(Image.open(made / 'picture.png'))
  bundle, workdir = (vild_jax.load(made / name).detect(image, min_score=0.0) for name in ('bundle', 'run'))
  np.testing.assert_array_equal(bundle.scores, workdir.scores)
  np.testing.assert_array_equal(bundle.masks, workdir.masks)


@pytest.mark.slow  # compiles the program of a batch
def test_a_batch_finds_what_single_pictures_do(made):
  detector = vild_jax.load(made / 'bundle')
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (*rng.integers(20, 100, 2), 3), dtype=np.uint8) for _ in range(5)]
  batched = detector.detect(images, min_score=0.0, batch_size=3)
  for image, found in zip(images, batched, strict=True):
    alone = detector.detect(image, min_score=0.0)
    assert len(found) == len(alone) > 0 and found.size == image.shape[:2]
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)
    np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-3)
    np.testing.assert_array_equal(found.labels, alone.labels)
    assert np.mean(found.masks == alone.masks) > 0.999
  boxes = detector.detect(images[0], min_score=0.0, masks=False)
  np.testing.assert_allclose(boxes.boxes, batched[0].boxes, atol=1e-3)
  assert boxes.masks is None


def test_base_and_novel_come_from_the_training_vocabulary(made):
  detector = vild_jax.load(made / 'bundle')
  assert detector.classes(['tree', 'ant', 'red mug']).is_base[:3].tolist() == [True, False, True]


def test_a_bundle_without_text_tower_answers_only_for_stored_names(made):
  detector = vild_jax.load(made / 'bundle')
  with pytest.raises(ValueError, match="'zebra' is not in the stored vocabulary and the bundle has no text tower"):
    detector.detect(made / 'picture.png', classes=['tree', 'zebra'])


def test_evaluate_writes_results_and_metrics(made, tmp_path, capsys):
  out = made / 'evaluation'
  metrics = json.loads((made / 'm.json').read_text())
  assert {'AP', 'AP50', 'APr', 'AP_base', 'AP50_novel'} <= set(metrics['box']) and metrics['seconds_per_image'] > 0
  results = json.loads((out / 'results.json').read_text())
  assert results and {r['category_id'] for r in results} <= {1, 3, 8}
  assert {r['image_id'] for r in results} <= set(small_set.SIZES)
  assert (out / 'per_category.csv').is_file() and (out / 'metrics.json').is_file()
  assert run('evaluate', made / 'config.json', '--checkpoint', made / 'bundle', '--out', tmp_path / 'again') == 0
  assert 'box' in capsys.readouterr().out
  assert json.loads((tmp_path / 'again' / 'results.json').read_text()) == results


def test_evaluate_takes_a_list_of_classes_and_any_protocol(made, tmp_path):
  (tmp_path / 'names.txt').write_text('tree\nant\nred mug\n')
  words = ('evaluate', made / 'config.json', '--checkpoint', made / 'bundle', '--out', tmp_path / 'out')
  for protocol, key in (('coco', 'AP50_novel'), ('voc', 'AP50_11point'), ('lvis-fixed', 'APr')):
    more = ('--classes', tmp_path / 'names.txt', f'--evaluation.protocol={protocol}', '--json', tmp_path / 'm.json')
    assert run(*words, *more) == 0
    assert key in json.loads((tmp_path / 'm.json').read_text())['box']
    assert json.loads((tmp_path / 'out' / 'metrics.json').read_text())['protocol'] == protocol
  assert json.loads((tmp_path / 'out' / 'results.json').read_text()) == json.loads(
    (made / 'evaluation' / 'results.json').read_text()
  )
  assert (tmp_path / 'out' / 'report.html').is_file() and not (tmp_path / 'out' / 'unfinished').exists()


def test_settings_are_searched_on_saved_logits_and_used(made, tmp_path, capsys):
  words = (made / 'config.json', '--checkpoint', made / 'run')
  logits, settings = tmp_path / 'logits', tmp_path / 'settings.json'
  assert run('evaluate', *words, '--out', tmp_path / 'out', '--save-logits', logits, '--json', tmp_path / 'm.json') == 0
  assert (tmp_path / 'out' / 'results.json').read_bytes() == (made / 'evaluation' / 'results.json').read_bytes()
  capsys.readouterr()
  assert run('calibrate', '--logits', logits, '--out', settings) == 0
  printed, found = capsys.readouterr(), json.loads(settings.read_text())
  assert "warning: 'ant' is a rare class" in printed.err and 'box AP held out' in printed.out
  box = json.loads((tmp_path / 'm.json').read_text())['box']
  assert found['before']['base'] == pytest.approx(box['AP_base'], abs=1e-3)  # cosines are rounded
  assert found['before']['settings']['nms_threshold'] == 0.5 and found['held_out'] == ['ant']
  settings.write_text('{"settings": {"model.postprocess.nms_threshold": 0.25, "model.postprocess.temperature": 0.007}}')
  assert run('export', *words, '--settings', settings, '--out', tmp_path / 'bundle') == 0
  post = vild_jax.load(tmp_path / 'bundle').config.model.postprocess
  assert (post.nms_threshold, post.temperature, post.objectness_weight) == (0.25, 0.007, 0.0)


def test_evaluate_says_how_near_the_student_comes_to_the_teacher(made, tmp_path, capsys):
  words = ('evaluate', made / 'config.json', '--checkpoint', made / 'run', '--split', 'train')
  assert run(*words, '--regions', made / 'regions', '--out', tmp_path / 'near', '--json', tmp_path / 'near.json') == 0
  assert 'mean cosine to the teacher: ' in capsys.readouterr().out
  cosine = json.loads((tmp_path / 'near' / 'teacher_cosine.json').read_text())['teacher_cosine']
  assert json.loads((tmp_path / 'near.json').read_text())['teacher_cosine'] == cosine
  assert cosine['regions']['all'] > 0 and -1 <= cosine['all'] <= 1


def test_detect_writes_pictures_and_json(made, tmp_path):
  words = ('detect', made / 'picture.png', '--checkpoint', made / 'bundle', '--classes', 'tree, ant')
  assert run(*words, '--out', tmp_path / 'found', '--min-score', '0') == 0
  assert Image.open(tmp_path / 'found' / 'picture_detections.png').size[0] >= 72
  (found,) = json.loads((tmp_path / 'found' / 'detections.json').read_text())
  assert found['detections'] and set(found['detections'][0]) == {'class', 'score', 'box_yxyx', 'mask'}


def test_training_logs_metrics_and_pictures(made):
  lines = [json.loads(line) for line in (made / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [2] and lines[0]['images_per_second'] > 0
  events = event_accumulator.EventAccumulator(str(made / 'run' / 'tensorboard'))
  events.Reload()
  assert 'loss' in events.Tags()['scalars']
  (picture,) = (name for name in events.Tags()['images'] if name.startswith('predictions/'))
  shown = Image.open(io.BytesIO(events.Images(picture)[0].encoded_image_string))
  assert shown.size[0] > shown.size[1] / 2 and len(np.unique(np.asarray(shown))) > 100  # two noisy pictures, drawn on
