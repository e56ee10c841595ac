"""Who is one of several processes is found in what each environment sets; what does not fit together is one line."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from vild_jax import cli
from vild_jax.commands import evaluate, train
from vild_jax.runtime import processes

NOTHING = {'coordinator_address': None, 'num_processes': None, 'process_id': None}
# What srun sets in a step of two nodes with four tasks, two each; sbatch's own script has no SLURM_STEP_* of it.
STEP = {
  'SLURM_JOB_ID': '77',
  'SLURM_STEP_NODELIST': 'n[1-2]',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '3',
  'SLURM_LOCALID': '1',
  'SLURM_STEP_NUM_TASKS': '4',
  'SLURM_STEP_TASKS_PER_NODE': '2(x2)',
}
SCRIPT = {key: value for key, value in STEP.items() if 'STEP' not in key}
JAX_SETS = {'JAX_COORDINATOR_ADDRESS': 'n1:99', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '1'}
POD = {'KUBERNETES_SERVICE_HOST': '10.0.0.1', 'JOB_COMPLETION_INDEX': '1'}
EXPLICIT = {
  'coordinator_address': 'n1:99',
  'num_processes': 2,
  'process_id': 1,
  'cluster_detection_method': 'deactivate',
}


@pytest.mark.parametrize(
  ('given', 'environment', 'expected'),
  [
    ({}, {}, None),
    ({}, {'HOSTNAME': 'laptop', 'PATH': '/bin'}, None),
    ({'coordinator_address': 'n1:99', 'num_processes': 2, 'process_id': 1}, {}, EXPLICIT),
    ({}, JAX_SETS, EXPLICIT),
    ({'process_id': 0}, JAX_SETS, EXPLICIT | {'process_id': 0}),
    ({'num_processes': 1}, {}, None),
    ({}, {**JAX_SETS, 'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'}, None),
    ({}, {**JAX_SETS, **POD, 'JAX_PROCESS_ID': ''}, EXPLICIT),
    ({}, {**POD, 'JAX_NUM_PROCESSES': '1'}, None),
    ({}, STEP, {'cluster_detection_method': 'slurm'}),
    ({}, {**STEP, 'JAX_COORDINATOR_ADDRESS': 'n1:99'}, {'cluster_detection_method': 'slurm'}),
    ({}, {**STEP, 'SLURM_STEP_TASKS_PER_NODE': '1(x4)'}, {'cluster_detection_method': 'slurm', 'local_device_ids': []}),
    ({}, {**STEP, 'SLURM_STEP_TASKS_PER_NODE': '1,2'}, {'cluster_detection_method': 'slurm'}),
    (
      {},
      {**STEP, 'SLURM_STEP_TASKS_PER_NODE': '1(x4)', 'JAX_LOCAL_DEVICE_IDS': '0'},
      {'cluster_detection_method': 'slurm'},
    ),
    ({}, {**STEP, 'SLURM_STEP_NUM_TASKS': '1'}, None),
    ({}, SCRIPT, None),
  ],
)
def test_what_is_found(given, environment, expected):
  assert processes.found(NOTHING | given, environment) == expected


@pytest.mark.parametrize(
  ('given', 'environment', 'message'),
  [
    ({'num_processes': 2}, {}, '--num-processes is given without --coordinator-address or JAX_COORDINATOR_ADDRESS'),
    ({'coordinator_address': 'n1:99', 'num_processes': 2}, {}, 'without --process-id or JAX_PROCESS_ID'),
    ({}, {**JAX_SETS, 'JAX_NUM_PROCESSES': 'two'}, "JAX_NUM_PROCESSES is 'two'; expected a number"),
    ({'process_id': 2}, JAX_SETS, '--process-id is 2; expected 0 to 1, for 2 processes'),
    ({'process_id': -1}, JAX_SETS, '--process-id is -1; expected 0 to 1'),
    ({'num_processes': 0}, {}, '--num-processes is 0; expected at least 1'),
    ({'coordinator_address': 'n1'}, JAX_SETS, "--coordinator-address is 'n1'; expected HOST:PORT"),
  ],
)
def test_what_does_not_fit_together(given, environment, message):
  with pytest.raises(ValueError, match=message):
    processes.found(NOTHING | given, environment)


@pytest.mark.parametrize(('library', 'expected'), [('libtpu', {}), ('kubernetes', {'cluster_detection_method': 'k8s'})])
def test_libraries_that_find_a_cluster(monkeypatch, library, expected):
  """Of the TPU driver there must be the device too; a pod without Kubernetes' library has to be told."""
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name == library or None)
  monkeypatch.setattr(processes.glob, 'glob', lambda pattern: ['/dev/accel0'] if 'accel' in pattern else [])
  assert processes.found(NOTHING, POD) == expected
  assert processes.found(NOTHING, {'JAX_PLATFORMS': 'cpu'}) is None
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='JOB_COMPLETION_INDEX is 1, so this is a pod of an indexed Job; expected JAX_C'):
    processes.found(NOTHING, POD)


def test_one_process_imports_nothing():
  program = 'import sys; from vild_jax.runtime import processes; print(processes.join(), "jax" in sys.modules)'
  result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  assert (result.stdout, result.stderr) == ('False False\n', '')


def test_process_0_listens_where_it_is_told(monkeypatch, capsys):
  asked = []
  monkeypatch.setattr('jax.distributed.initialize', lambda **given: asked.append(given['coordinator_bind_address']))
  for bind in (None, '10.0.0.5:99'):
    assert processes.join('n1:99', 2, 0, bind_address=bind, saves_on_sigterm=True)
  with pytest.raises(ValueError, match=r"--coordinator-bind-address is '10\.0\.0\.5'; expected HOST:PORT"):
    processes.join('n1:99', 2, 0, bind_address='10.0.0.5')
  assert asked == [None, '10.0.0.5:99']

  def refuses(**given):
    asked.append(given['coordinator_bind_address'])
    raise ValueError('no further')

  monkeypatch.setattr('jax.distributed.initialize', refuses)
  words = '--coordinator-address n1:99 --num-processes 2 --process-id 0 --coordinator-bind-address 127.0.0.1:98'
  assert cli.main(['train', 'c.py', '--workdir', 'w', *words.split()]) == 2
  assert asked[2:] == ['127.0.0.1:98'] and capsys.readouterr().err.endswith('vild-jax train: no further\n')


def test_a_process_0_that_does_not_answer_is_one_line():
  with socket.socket() as unused:
    unused.bind(('localhost', 0))  # and does not listen
    address = f'localhost:{unused.getsockname()[1]}'
    with pytest.raises(OSError, match=f'process 0 does not answer at {address} for 0.3 s .Connection refused.;'):
      processes._wait_for(address, seconds=0.3)
    unused.listen()
    processes._wait_for(address, seconds=0.3)


def test_the_exit_code_of_a_run_that_was_told_to_end(monkeypatch, capsys):
  def told(args):
    raise processes.Preempted('step 3 is saved')

  monkeypatch.setattr(train, 'run', told)
  assert cli.main(['train', 'c.py', '--workdir', 'w']) == processes.EXIT_PREEMPTED == 75
  assert capsys.readouterr().err == 'vild-jax train: step 3 is saved\n'
  assert cli.main(['train', 'c.py', '--workdir', 'w', '--num-processes', '2']) == 2
  assert 'vild-jax train: --num-processes is given without --coordinator-address' in capsys.readouterr().err


def test_a_signal_before_the_loop_ends_with_the_code_that_launchers_start_again(monkeypatch, capsys):
  def reading(args):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    raise AssertionError('went on')

  before = signal.getsignal(signal.SIGTERM)
  monkeypatch.setattr(train, 'run', reading)
  assert cli.main(['train', 'c.py', '--workdir', 'w']) == processes.EXIT_PREEMPTED
  assert 'told to end (SIGTERM) while no step ran' in capsys.readouterr().err
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_while_the_command_is_imported_ends_with_that_code_too(monkeypatch, capsys):
  def parse(words):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    raise AssertionError('went on')

  monkeypatch.setattr(cli, 'parse', parse)
  assert cli.main(['train', 'c.py', '--workdir', 'w']) == processes.EXIT_PREEMPTED
  assert capsys.readouterr().err.startswith('vild-jax train: told to end (SIGTERM) while no step ran')


@pytest.mark.parametrize(
  ('block', 'name', 'code', 'said'),
  [
    ('ending_when_told()', 'SIGTERM', processes.EXIT_PREEMPTED, 'told to end (SIGTERM) while no step ran'),
    ('noting_interrupts(of_process=True)', 'SIGINT', processes.EXIT_INTERRUPTED, 'interrupted\n'),
  ],
)
def test_a_signal_during_an_import_ends_the_process_at_once(tmp_path, block, name, code, said):
  """An exception there would run through extensions in C++, of which some crash."""
  swallows = f'import os, signal\ntry:\n  os.kill(os.getpid(), signal.{name})\nexcept BaseException:\n  pass\n'
  (tmp_path / 'swallows.py').write_text(swallows)
  program = f'from vild_jax.runtime import processes\nwith processes.{block}:\n  import swallows\nprint("on")'
  path = os.pathsep.join([str(tmp_path), *sys.path])
  done = subprocess.run(
    [sys.executable, '-c', program], env={**os.environ, 'PYTHONPATH': path}, capture_output=True, text=True
  )
  assert (done.returncode, done.stdout) == (code, '')
  assert done.stderr.startswith(f'vild-jax: {said}') and done.stderr.count('\n') == 1


def test_another_command_ends_at_the_signal_as_any_process_does(monkeypatch):
  seen = []
  monkeypatch.setattr(evaluate, 'run', lambda args: seen.append(signal.getsignal(signal.SIGTERM)))
  assert cli.main(['evaluate', 'c.py', '--checkpoint', 'w', '--out', 'o']) == 0
  assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_signal_that_is_swallowed_between_two_blocks_is_remembered():
  with processes.ending_when_told():
    with contextlib.suppress(processes.Preempted):
      os.kill(os.getpid(), signal.SIGTERM)
    with processes.ending_when_told():
      was_told = processes.was_told()  # `train.preemption` asks
  assert was_told
