"""What calibration writes: settings that are those of the best trial when they are read again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.helpers import small_logits
from vild_jax import config as config_lib
from vild_jax.data.schema import DataError
from vild_jax.eval import truth
from vild_jax.inference import calibration
from vild_jax.inference.calibration import Trial
from vild_jax.inference.logits import Logits
from vild_jax.workflows import calibrating

BEFORE = Trial(
  {'temperature': 0.1, 'base_weight': 0.6, 'novel_weight': 0.6, 'objectness_weight': 0.0, 'nms_threshold': 0.5},
  0.4,
  0.2,
)
AFTER = Trial({**BEFORE.settings, 'base_weight': 0.9}, 0.5, 0.3)  # the other weight stands for null in the evaluation


@pytest.fixture
def kept(monkeypatch, tmp_path):
  """A folder whose evaluation had the settings of BEFORE; the search finds AFTER."""
  categories = [
    {'id': k, 'name': n, 'frequency': f} for k, n, f in ((10, 'ant', 'r'), (20, 'bee', 'f'), (50, 'eel', 'c'))
  ]
  of = truth.read({'images': [], 'categories': categories, 'annotations': []})
  names = ('ant', 'bee', 'eel')
  logits = Logits(tmp_path, small_logits.CONFIG, of, names, np.array([False, True, False]), np.array([10, 20, 50]))
  monkeypatch.setattr(Logits, 'open', lambda folder: logits)
  monkeypatch.setattr(calibration, 'search', lambda *_: (BEFORE, AFTER, [BEFORE, AFTER]))
  return tmp_path


def test_the_file_gives_the_settings_of_the_best_trial(kept, capsys):
  found = calibrating.calibrate(kept, kept / 's.json')
  assert found == json.loads((kept / 's.json').read_text())
  post = config_lib.override(small_logits.CONFIG, config_lib.calibrated(kept / 's.json')).model.postprocess
  assert {name: getattr(post, name) for name in AFTER.settings} == AFTER.settings
  assert found['held_out'] == ['eel'] and (found['before']['base'], found['after']['held_out']) == (0.4, 0.3)
  assert capsys.readouterr().err == '1 base classes; 1 count as held out: eel\n'
  assert 'base_weight             0.6 -> 0.9' in calibrating.text(found)
  assert 'box AP held out        20.0 -> 30.0' in calibrating.text(found)


def test_a_choice_by_rare_classes_is_warned_of(kept, capsys):
  calibrating.calibrate(kept, kept / 's.json', held_out='ant')
  assert "warning: 'ant' is a rare class; AP of rare classes is no zero-shot result" in capsys.readouterr().err


@pytest.mark.parametrize(
  ('given', 'named'), [(',', "--held-out is ','"), ('eel,eel', "--held-out has 'eel' more than once")]
)
def test_wrong_names_name_the_option(kept, given, named):
  with pytest.raises(DataError, match=named):
    calibrating.calibrate(kept, kept / 's.json', held_out=given)
  assert not (kept / 's.json').exists()
