"""The words of the command line: help with an example for each command, and one line for words that do not fit."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.small_experiment import run


def test_help_names_every_command_and_each_has_an_example(capsys):
  commands = ('demo', 'prepare', 'embed-text', 'train', 'evaluate', 'detect', 'export')
  with pytest.raises(SystemExit):
    run('--help')
  text = capsys.readouterr().out
  assert all(command in text for command in commands)
  for command in commands:
    with pytest.raises(SystemExit):
      run(command, '--help')
    assert f'example: vild-jax {command}' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (('train', 'c.py', '--workdir', 'w', '--train.steps', '3'), 'expected --train.steps=VALUE'),
    (('train', 'c.py'), '--workdir'),
    (('evaluate', 'c.py', '--checkpoint', 'c', '--out', 'o', '--json', '/nowhere/m.json'), 'a folder that exists'),
  ],
)
def test_words_that_do_not_fit_are_one_line(capsys, words, message):
  with pytest.raises(SystemExit) as stopped:
    run(*words)
  error = capsys.readouterr().err.strip()
  assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_an_unknown_argument_is_refused():
  words = ['detect', 'x.jpg', '--checkpoint', 'c', '--classes', 'a', '--out', 'o', '--frobnicate=1']
  command = [sys.executable, '-m', 'vild_jax', *words]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and '--frobnicate=1' in done.stderr
