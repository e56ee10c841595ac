"""The words of the command line: help with an example for each command, and one line for words that do not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.small_experiment import run
from vild_jax import cli
from vild_jax import config as config_lib
from vild_jax.commands import arguments


def test_help_names_every_command_and_each_has_an_example(capsys):
  commands = tuple(cli.COMMANDS)
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
    (
      ('evaluate', 'c.py', '--checkpoint', 'gs://bucket/run', '--out', 'o', '--json', 'gs://bucket/m.json'),
      'gs://bucket/m.json is an address, and nothing is read',
    ),
    (('train', 'c.py', '--workdir', 'gs://b/run'), 'gs://b/run is not an address in a bucket'),
    (('evaluate', 'c.py', '--checkpoint', 'c', '--out', 's3://b/o'), 's3://b/o is an address'),
    (('train', 'c.py', '--workdir', 'w', '--teacher=gs://bucket/clip'), 'gs://bucket/clip is an address'),
    (
      ('detect', 'http://x.org/a.jpg', '--checkpoint', 'c', '--classes', 'a', '--out', 'o'),
      'x.org/a.jpg is an address',
    ),
    (('evaluate', 'c.py', '--checkpoint', 'c', '--out', 'o', '--json', '/nowhere/m.json'), 'a folder that exists'),
  ],
)
def test_words_that_do_not_fit_are_one_line(capsys, words, message):
  with pytest.raises(SystemExit) as stopped:
    run(*words)
  error = capsys.readouterr().err.strip()
  assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize('command', ['evaluate', 'export'])
def test_settings_of_calibrate_come_before_the_overrides_of_the_command_line(tmp_path, command):
  (tmp_path / 'c.json').write_text(config_lib.to_text(config_lib.Config()))
  settings = {'model.postprocess.nms_threshold': 0.3, 'model.postprocess.temperature': 0.02}
  (tmp_path / 's.json').write_text(json.dumps({'settings': settings}))
  words = [command, tmp_path / 'c.json', '--checkpoint', 'c', '--out', 'o', '--settings', tmp_path / 's.json']
  args = cli.parse(list(map(str, [*words, '--model.postprocess.nms_threshold=0.6'])))
  post = arguments.load_config(args).model.postprocess
  assert (post.nms_threshold, post.temperature) == (0.6, 0.02)


def test_a_name_on_the_hub_is_no_address():
  assert (
    cli.parse(['export', 'c.json', '--checkpoint', 'hf://owner/name', '--out', 'o']).checkpoint == 'hf://owner/name'
  )


@pytest.mark.parametrize(
  'words',
  [
    ('embed-text', '--from-npy', 'f', '--classes', 'c', '--teacher-id', 'x', '--out', './f'),
    ('score', '--annotations', 'a', '--results', 'f', '--protocol', 'coco', '--json', 'f'),
    ('check', 'a', 'f', '--json', 'f'),
  ],
)
def test_a_file_that_is_read_is_not_written(tmp_path, monkeypatch, capsys, words):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'f').write_text('of the user')
  with pytest.raises(SystemExit):
    cli.parse(words)
  message = capsys.readouterr().err
  assert 'which the command reads too (' in message and message.count('\n') == 1
  cli.parse([*words[:-1], 'other'])
  (tmp_path / 'link').symlink_to('f')
  cli.parse([*words[:-1], 'link'])  # which would be replaced, and not followed


def test_an_unknown_argument_is_refused():
  words = ['detect', 'x.jpg', '--checkpoint', 'c', '--classes', 'a', '--out', 'o', '--frobnicate=1']
  command = [sys.executable, '-m', 'vild_jax', *words]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 2 and '--frobnicate=1' in done.stderr


def test_a_full_disk_is_one_line_however_many_threads_and_tasks_of_libraries_fail():
  """As Orbax fails: each tensor is a task of asyncio, each part of a checkpoint a thread, and each logs its error."""
  program = """
import asyncio, sys, threading
import absl.logging
from vild_jax import cli
from vild_jax.commands import score

async def fail():
  raise OSError(28, 'No space left on device')

async def save():
  tasks = [asyncio.ensure_future(fail()) for _ in range(50)]
  await asyncio.sleep(0)

def write():
  raise OSError(28, 'No space left on device')

def run(args):
  absl.logging.error('a thread failed')
  asyncio.run(save())
  threads = [threading.Thread(target=write) for _ in range(20)]
  for thread in threads:
    thread.start()
    thread.join()
  raise OSError(28, 'No space left on device', 'w/checkpoints')

score.run = run
sys.argv[1:] = ['score', '--annotations', 'a', '--results', 'b', '--protocol', 'lvis']
sys.exit(cli.main())
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False)
  lines = ['in the background: OSError: [Errno 28] No space left on device', 'w/checkpoints: No space left on device']
  assert (done.returncode, done.stderr) == (2, ''.join(f'vild-jax score: {line}\n' for line in lines))


@pytest.mark.parametrize(
  ('shell', 'code', 'error'),
  [
    ('{} | head -1; exit ${{PIPESTATUS[0]}}', 0, ''),
    ('{} 2>&-', 0, ''),
    ('{} > /dev/full', 2, 'vild-jax score: standard output: No space left on device\n'),
  ],
)
def test_a_command_whose_output_nobody_takes_does_its_work(tmp_path, shell, code, error):
  if 'full' in shell and not os.path.exists('/dev/full'):
    pytest.skip('no /dev/full here')
  (tmp_path / 'p.py').write_text("""
import sys
from pathlib import Path
from vild_jax import cli
from vild_jax.commands import score

def run(args):
  for number in range(10_000):
    print('a line', number)
    print('.', end='', file=sys.stderr)
  Path(args.annotations).write_text('done')

score.run = run
sys.exit(cli.main())
""")
  words = f'"{sys.executable}" "{tmp_path}/p.py" score --annotations "{tmp_path}/out" --results b --protocol lvis'
  done = subprocess.run(['bash', '-c', shell.format(words)], capture_output=True, text=True, check=False)
  assert (done.returncode, done.stderr.strip('.')) == (code, error)
  assert (tmp_path / 'out').read_text() == 'done'


@pytest.mark.parametrize('end', ['KeyboardInterrupt', 'OSError(28, "No space left on device")'])
def test_a_command_that_fails_waits_for_no_thread_of_a_library(end):
  """Python's own end waits for some threads and makes those crash that are at work in C++."""
  program = f"""
import atexit, sys, threading
from vild_jax import cli
from vild_jax.commands import score

class Late:
  def __del__(self):
    print('too late')

def run(args):
  threading.Thread(target=threading.Event().wait).start()
  raise {end}

late = Late()
atexit.register(print, 'cleaned')
score.run = run
sys.argv[1:] = ['score', '--annotations', 'a', '--results', 'b', '--protocol', 'lvis']
sys.exit(cli.main())
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False, timeout=120)
  assert (done.returncode, done.stdout) == (130 if end == 'KeyboardInterrupt' else 2, 'cleaned\n')


@pytest.mark.parametrize(
  ('raised', 'code', 'line'),
  [
    (MemoryError(), 2, 'not enough memory (MemoryError); expected smaller inputs or batches, or a larger machine'),
    (KeyError('x'), 1, "KeyError: 'x' (--debug shows the traceback)"),
    (type('PanicException', (BaseException,), {'__module__': 'pyo3_runtime'})('no'), 1, 'PanicException: no (--debug'),
  ],
)
def test_whatever_a_command_raises_is_one_line(monkeypatch, capsys, raised, code, line):
  def run(args):
    raise raised

  monkeypatch.setattr('vild_jax.commands.score.run', run)
  assert cli.main(['score', '--annotations', 'a', '--results', 'b', '--protocol', 'lvis']) == code
  error = capsys.readouterr().err.strip()
  assert error.startswith(f'vild-jax score: {line}') and len(error.splitlines()) == 1


@pytest.mark.parametrize('end', [SystemExit(3), GeneratorExit()])
def test_what_ends_a_program_is_no_error_of_a_command(monkeypatch, end):
  def run(args):
    raise end

  monkeypatch.setattr('vild_jax.commands.score.run', run)
  with pytest.raises(type(end)):
    cli.main(['score', '--annotations', 'a', '--results', 'b', '--protocol', 'lvis'])


def _interrupt():
  os.kill(os.getpid(), signal.SIGINT)
  time.sleep(5)


def _interrupt_an_import():
  try:
    _interrupt()
  except KeyboardInterrupt:
    raise ImportError('Encountered an error while initializing the extension.') from None


@pytest.mark.parametrize(
  ('where', 'come'), [('run', _interrupt), ('run', _interrupt_an_import), ('add_arguments', _interrupt)]
)
def test_ctrl_c_is_one_line_also_while_a_command_is_imported(monkeypatch, capsys, where, come):
  monkeypatch.setattr(f'vild_jax.commands.score.{where}', lambda _: come())
  assert cli.main(['score', '--annotations', 'a', '--results', 'b', '--protocol', 'lvis']) == 130
  assert capsys.readouterr().err == 'vild-jax: interrupted\n'
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
