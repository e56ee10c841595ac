"""Settings that are tried on kept logits give what the detector gives with them; the search finds the best ones."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.helpers import small_logits
from vild_jax import detector
from vild_jax.config import override
from vild_jax.data.schema import DataError
from vild_jax.eval import coco
from vild_jax.eval.truth import Split
from vild_jax.inference import calibration
from vild_jax.inference.calibration import Trial
from vild_jax.inference.logits import Logits

START = {
  'temperature': 0.1,
  'base_weight': 2 / 3,
  'novel_weight': 2 / 3,
  'objectness_weight': 0.0,
  'nms_threshold': 0.5,
}


@pytest.fixture(scope='module')
def opened(kept_logits):
  return Logits.open(kept_logits.folder)


OTHER = {
  'temperature': 0.03,
  'base_weight': 0.9,
  'novel_weight': 0.3,
  'objectness_weight': 0.7,
  'nms_threshold': 0.3,
}


@pytest.mark.parametrize('changed', [{}, OTHER], ids=['as evaluated', 'others'])
def test_detections_are_those_of_the_detector_with_the_same_settings(kept_logits, opened, changed):
  of = kept_logits.detections
  if changed:
    config = override(small_logits.CONFIG, [f'model.postprocess.{key}={value}' for key, value in changed.items()])
    program = jax.jit(lambda *arguments: detector.predict_batch(config.model, *arguments)[0])
    of = jax.device_get(program(*kept_logits.arguments))
  found = calibration.detections(opened, START | changed)
  for row in range(len(small_logits.IMAGES)):
    mine, theirs = found.image == row, of.valid[row] & (of.labels[row] != 3)  # the dog is not scored
    assert mine.sum() == theirs.sum() > 0
    # The cosines are rounded, so that near ties may change places: each is looked for by its class and box.
    labels = np.array([10, 20, 30, 0, 50])[of.labels[row][theirs]]
    boxes = of.boxes[row][theirs] / small_logits.SCALE[0]
    for label, box, score in zip(labels, boxes, of.scores[row][theirs], strict=True):
      same = mine & (opened.truth.category_ids[found.category] == label)
      xywh = np.array([box[1], box[0], box[3] - box[1], box[2] - box[0]])
      near = same & (np.abs(found.boxes - xywh).max(axis=1) < 1e-2)
      assert near.sum() == 1
      np.testing.assert_allclose(found.score[near], score, rtol=5e-3)


def test_every_setting_changes_something(opened):
  start = calibration.detections(opened, START)
  for key, value in OTHER.items():
    found = calibration.detections(opened, START | {key: value})
    assert len(found) != len(start) or not np.allclose(found.score, start.score, rtol=1e-3), key


def test_settings_of_an_evaluation_stand_for_null_too(opened):
  assert calibration.settings_of(opened) == START
  config = override(small_logits.CONFIG, ['model.postprocess.temperature=0.2', 'model.postprocess.novel_weight=0.1'])
  assert calibration.settings_of(dataclasses.replace(opened, config=config)) == START | {
    'temperature': 0.2,
    'novel_weight': 0.1,
  }


def test_what_is_held_out(opened):
  assert calibration.held_out(opened) == calibration.held_out(opened, ['eel', 'ant']) == Split({20, 30}, {10, 50})
  assert calibration.held_out(opened, ['eel']) == Split({20, 30}, {50})
  for name, problem in (('cat', 'a base class of the training'), ('gnu', 'not in the vocabulary')):
    with pytest.raises(DataError, match=f"'{name}' is {problem}; expected classes that were held out"):
      calibration.held_out(opened, [name])
  with pytest.raises(DataError, match=r'has 4 base classes and 0 others with annotations; expected both: train with'):
    calibration.held_out(
      dataclasses.replace(opened, is_base=np.ones(5, bool), category_of_row=np.array([10, 20, 30, 50, 50]))
    )


def test_without_frequencies_the_held_out_classes_must_be_named(opened):
  """Nothing says then which of the others are the novel classes of the benchmark."""
  categories = [{k: v for k, v in c.items() if k != 'frequency'} for c in opened.truth.categories]
  plain = dataclasses.replace(opened, truth=dataclasses.replace(opened.truth, categories=categories))
  with pytest.raises(DataError, match=r'categories without frequencies .*; expected --held-out, the base classes that'):
    calibration.held_out(plain)
  assert calibration.held_out(plain, ['eel']) == Split({20, 30}, {50})


def test_the_rare_classes_of_a_benchmark_are_not_chosen_on(opened):
  def with_frequencies(*of):
    categories = [{**c, 'frequency': f} for c, f in zip(opened.truth.categories, of, strict=True)]
    return dataclasses.replace(
      opened,
      truth=dataclasses.replace(opened.truth, categories=categories),
      is_base=np.array([True, True, False, True, False]),
    )

  assert calibration.held_out(with_frequencies('f', 'c', 'c', 'r')).novel == {30}
  assert calibration.held_out(with_frequencies('f', 'c', 'r', 'r')).novel == {30, 50}  # there are no others


def test_a_trial_is_scored_by_the_protocol_on_base_and_held_out_classes(opened):
  split, of = calibration.held_out(opened, ['eel']), calibration.detections(opened, START)
  found = calibration.try_settings(opened, split, START)
  ids = [opened.truth.image_ids[of.image].tolist(), opened.truth.category_ids[of.category].tolist()]
  results = [
    {'image_id': i, 'category_id': k, 'bbox': box, 'score': score}
    for i, k, box, score in zip(*ids, of.boxes.tolist(), of.score.tolist(), strict=True)
    if k != 10  # neither base nor held out
  ]
  truth = json.loads((opened.folder / 'annotations.json').read_text())
  for key in ('categories', 'annotations'):
    truth[key] = [entry for entry in truth[key] if entry.get('category_id', entry['id']) != 10]
  expected = coco.evaluate(truth, results, base_category_ids=[20, 30])['box']
  assert 0 < found.base == pytest.approx(expected['AP_base'], abs=1e-9)
  assert 0 < found.novel == pytest.approx(expected['AP_novel'], abs=1e-9)
  assert Trial({}, 0.2, 0.6).mean == pytest.approx(0.3) and Trial({}, 0.0, 0.0).mean == 0


@pytest.mark.parametrize('heads', [1, 2])
def test_the_search_finds_the_best_settings(opened, monkeypatch, heads):
  best = {'temperature': 0.4, 'base_weight': 0.8, 'novel_weight': 0.5, 'objectness_weight': 0.25, 'nms_threshold': 0.6}
  if heads == 1:
    opened = dataclasses.replace(opened, config=override(small_logits.CONFIG, ['model.image_head=false']))
    best |= {key: START[key] for key in ('base_weight', 'novel_weight')}
  tried = []

  def trial(_, __, settings):
    tried.append(tuple(settings.values()))
    far = sum(abs(np.log2((settings[key] + 1) / (best[key] + 1))) for key in best)
    return Trial(settings, 0.5 - 0.1 * far, 0.3 - 0.1 * far)

  monkeypatch.setattr(calibration, 'try_settings', trial)
  first, after, trials = calibration.search(opened, calibration.held_out(opened))
  assert first.settings == START and after.settings == pytest.approx(best)
  assert len(trials) == len(tried) == len(set(tried)) and after.mean == max(trial.mean for trial in trials)


def test_settings_are_kept_where_others_gain_nothing(opened, monkeypatch):
  monkeypatch.setattr(calibration, 'try_settings', lambda _, __, settings: Trial(settings, 0.4, 0.2))
  first, after, trials = calibration.search(opened, calibration.held_out(opened))
  assert after is first and len(trials) > 10
