"""Stages run once, survive a second process, and say how many there are and how long is left."""

import json

import pytest

from vild_jax.workflows import stages

EXPECTED = {'draw': 10.0, 'train': 100.0, 'evaluate': 40.0, 'look': 10.0}


@pytest.fixture
def opened(tmp_path):
  return stages.Stages(tmp_path, 3, 'settings', EXPECTED)


def test_a_stage_runs_once_and_its_result_is_kept(opened, tmp_path):
  assert opened.run('draw', 'Drew.', lambda: {'pictures': 7}) == {'pictures': 7}
  again = stages.Stages(tmp_path, 3, 'settings', EXPECTED)
  assert again.run('draw', 'Drew.', lambda: pytest.fail('ran twice')) == {'pictures': 7}
  assert [stage.name for stage in again.done] == ['draw']


def test_a_measured_stage_runs_again(opened, tmp_path):
  assert opened.measure('look', 'Looked.', lambda: 1) == 1
  assert stages.Stages(tmp_path, 3, 'settings', EXPECTED).measure('look', 'Looked.', lambda: 2) == 2


def test_a_failed_stage_is_not_kept(opened, tmp_path):
  with pytest.raises(RuntimeError):
    opened.run('draw', 'Drew.', lambda: (_ for _ in ()).throw(RuntimeError))
  assert not (tmp_path / 'stages.json').exists()


def test_the_line_says_which_stage_and_how_long(opened, capsys):
  opened.run('draw', 'Drew.', lambda: None)
  assert capsys.readouterr().err == '[1/4] draw: about 3 min left\n'


@pytest.mark.parametrize(('seconds', 'left'), [(10.0, 'about 2 min'), (30.0, 'about 8 min'), (1.0, 'about 20 s')])
def test_the_time_left_follows_the_pace_of_this_machine(tmp_path, seconds, left):
  """150 s are expected after `draw`, which is expected to take 10 s."""
  done = {'draw': {'result': None, 'seconds': seconds}}
  (tmp_path / 'stages.json').write_text(json.dumps({'seed': 3, 'settings': 'settings', 'stages': done}))
  opened = stages.Stages(tmp_path, 3, 'settings', EXPECTED)
  opened.run('draw', 'Drew.', lambda: None)
  assert opened.line('train') == f'[2/4] train: {left} left'


def test_what_an_earlier_run_has_done_is_not_counted_as_left(tmp_path):
  done = {'train': {'result': None, 'seconds': 100.0}}
  (tmp_path / 'stages.json').write_text(json.dumps({'seed': 3, 'settings': 'settings', 'stages': done}))
  assert stages.Stages(tmp_path, 3, 'settings', EXPECTED).line('draw') == '[1/4] draw: about 60 s left'


@pytest.mark.parametrize(('seed', 'settings', 'found'), [(4, 'settings', 'seed 3'), (3, 'others', 'other settings')])
def test_another_run_needs_another_folder(opened, tmp_path, seed, settings, found):
  opened.run('draw', 'Drew.', lambda: None)
  with pytest.raises(ValueError, match=found):
    stages.Stages(tmp_path, seed, settings, EXPECTED)
