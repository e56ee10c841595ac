"""Every second of a run belongs to one part: the parts add up to the clock, over restarts too."""

from __future__ import annotations

import json
import os
import time

import pytest

from vild_jax.train import timing


class Fake:
  """Seconds that pass when told to."""

  def __init__(self, start=1000.0):
    self.at = start

  def __call__(self):
    return self.at

  def passes(self, seconds):
    self.at += seconds


def test_parts_add_up_to_the_clock_nested_ones_too():
  fake = Fake()
  clock = timing.Clock(age=3, now=fake)
  fake.passes(2)
  clock.switch(timing.STEP)
  fake.passes(5)
  with clock.part(timing.SAVE):
    fake.passes(1)
    with clock.part(timing.LOG):
      fake.passes(0.25)
    fake.passes(0.5)
  with pytest.raises(KeyError), clock.part(timing.DATA):
    fake.passes(4)
    raise KeyError
  fake.passes(7)
  expected = {'import': 3, 'open': 2, 'step': 12, 'save': 1.5, 'log': 0.25, 'data': 4}
  assert clock.seconds() == expected and sum(expected.values()) == 3 + fake.at - 1000
  assert clock.seconds() == expected  # asking takes nothing away


def test_a_start_is_described_by_part():
  fake = Fake()
  clock = timing.Clock(age=6.04, now=fake)
  fake.passes(1)
  with clock.part(timing.COMPILE):
    fake.passes(30)
  assert clock.start_up() == 'first step after 37.0 s: import 6.0, open 1.0, compile 30.0'


def test_the_age_of_this_process_counts():
  now = timing.Clock.of_process().seconds()['import']
  ran = time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID) / (os.cpu_count() or 1)
  assert now >= ran > 0


def trained(folder, fake, *, resumed=None):
  """A process at work: 10 s to start, then steps of 2 s of which each waits 1 s; saves at 2, is killed after 3."""
  clock = timing.Clock(now=fake)
  fake.passes(10)
  run = timing.Goodput(folder, clock, resumed, fake)
  clock.switch(timing.STEP)
  for step in range((resumed or 0) + 1, (resumed or 0) + 4):
    with clock.part(timing.DATA):
      fake.passes(1)
    fake.passes(2)
    if step % 2 == 0:
      with clock.part(timing.SAVE):
        fake.passes(0.5)
    run.write(step, saved=step % 2 == 0)
  return run


def test_a_run_of_several_processes_adds_up_to_the_wall_clock_with_what_was_lost(tmp_path):
  fake = Fake()
  trained(tmp_path, fake)  # 10 + 3 * 3 + 0.5, of which step 3 is lost
  fake.passes(100)
  run = trained(tmp_path, fake, resumed=2)  # steps 3, 4, 5; it saves at 4
  seconds = run.seconds()
  assert sum(seconds.values()) == pytest.approx(fake.at - 1000)
  assert seconds == {'open': 20, 'data': 5, 'step': 10, 'save': 1, 'lost': 3, 'down': 100}
  content = json.loads((tmp_path / timing.GOODPUT_FILE).read_text())
  assert content['starts'] == 2 and content['step'] == 5 and [*content['saves']] == ['2', '4']
  assert content['goodput'] == pytest.approx(10 / 139, abs=1e-4)
  assert str(run).startswith(
    '7.2 % of 139 s in 2 starts were training steps; open 14.4 %, data 3.6 %, save 0.7 %, lost'
  )


def test_a_clock_that_is_set_back_is_no_time_between_two_processes(tmp_path):
  fake = Fake()
  trained(tmp_path, fake)
  fake.passes(-1000)
  assert timing.Goodput(tmp_path, timing.Clock(now=fake), 2, fake).seconds()[timing.DOWN] == 0


def test_what_was_done_before_the_first_checkpoint_is_lost_too(tmp_path):
  fake = Fake()
  trained(tmp_path, fake)
  fake.passes(7)
  seconds = trained(tmp_path, fake, resumed=None).seconds()
  assert (seconds['lost'], seconds['down'], seconds['step']) == (10 + 9 + 0.5, 7, 6)
  assert sum(seconds.values()) == pytest.approx(fake.at - 1000)


def test_a_second_kill_without_a_checkpoint_loses_all_since_the_one_before(tmp_path):
  fake = Fake()
  trained(tmp_path, fake)  # saves at 2
  for _ in range(2):
    clock = timing.Clock(now=fake)
    run = timing.Goodput(tmp_path, clock, 2, fake)
    clock.switch(timing.STEP)
    fake.passes(100)
    run.write(50)
  seconds = run.seconds()
  assert (seconds['lost'], seconds['step']) == (3 + 100, 4 + 100) and run._starts == 3
  assert sum(seconds.values()) == pytest.approx(fake.at - 1000)


def test_a_process_killed_while_it_saves_goes_on_from_the_checkpoint_before(tmp_path):
  fake = Fake()
  clock = timing.Clock(now=fake)
  run = timing.Goodput(tmp_path, clock, None, fake)
  clock.switch(timing.STEP)
  for step in (2, 4):
    fake.passes(10)
    run.write(step, saved=True)
  assert timing.Goodput(tmp_path, timing.Clock(now=fake), 2, fake).seconds()['lost'] == 10
  assert timing.Goodput(tmp_path, timing.Clock(now=fake), 4, fake).seconds()['lost'] == 0
  assert timing.Goodput(tmp_path, timing.Clock(now=fake), 3, fake).seconds()['lost'] == 0  # not known


@pytest.mark.parametrize('text', ['', '[]', '{"seconds": {"step": "x"}}', '{"seconds": [], "saves": 1}', '[' * 100_000])
def test_a_damaged_file_does_not_stop_a_resume(tmp_path, capsys, text):
  (tmp_path / timing.GOODPUT_FILE).write_text(text)
  run = timing.Goodput(tmp_path, timing.Clock(now=Fake()), 7, Fake())
  assert sum(run.seconds().values()) == 0
  (line,) = capsys.readouterr().err.splitlines()
  assert 'goodput.json cannot be read' in line
  run.write(8)
  assert json.loads((tmp_path / timing.GOODPUT_FILE).read_text())['step'] == 8


def test_a_share_of_nothing_is_zero():
  assert timing.share({}, timing.STEP) == 0
