"""Joins the processes of one run, given on the command line or found in the environment, before anything else.

A single process joins nothing and does not import JAX. This module only decides whether there is an environment with
several processes; JAX reads the details from it.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import re
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Iterator, Mapping
from typing import Any

# The exit code of a run that got SIGTERM and saved its state; the launcher starts it again (EX_TEMPFAIL of sysexits).
EXIT_PREEMPTED = 75
EXIT_INTERRUPTED = 130  # Ctrl-C
HEARTBEAT_SECONDS = 100  # a process that does not answer for so long counts as dead, and the others end
_JOIN_SECONDS = 300  # time for all processes to join
_SHUTDOWN_SECONDS = 86_400  # the first to finish waits so long for the last; the heartbeat detects dead processes
_WORDS = {
  'coordinator_address': ('--coordinator-address', 'JAX_COORDINATOR_ADDRESS'),
  'num_processes': ('--num-processes', 'JAX_NUM_PROCESSES'),
  'process_id': ('--process-id', 'JAX_PROCESS_ID'),
}
_SLURM = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID')  # set in a step


class Preempted(BaseException):
  """Says that training got SIGTERM and what it had is saved; started again, it goes on from there.

  Like KeyboardInterrupt it is no Exception: what turns the errors of a library or a file into others must not take it
  for one of them.
  """


_NO_STEP = 'told to end (SIGTERM) while no step ran; the same command goes on from the newest checkpoint'


class _Told:
  """Handles SIGTERM by raising Preempted, and remembers that it came.

  What runs may swallow the exception or make another of it. During an import it ends the process instead: an exception
  in the middle of an extension's import makes some of them crash, and others wait for ever.
  """

  came = False

  def __call__(self, number: int, frame: types.FrameType | None) -> None:
    del number
    self.came = True
    if _imports(frame):
      _exit(_NO_STEP, EXIT_PREEMPTED)
    raise Preempted(_NO_STEP)


def _exit(message: str, code: int) -> None:
  with contextlib.suppress(OSError, ValueError):  # closed
    print(f'vild-jax: {message}', file=sys.stderr, flush=True)
  os._exit(code)


def _imports(frame: types.FrameType | None) -> bool:
  """Whether a module is being imported where `frame` runs."""
  while frame:
    if frame.f_globals.get('__name__') == 'importlib._bootstrap':
      return True
    frame = frame.f_back
  return False


def was_told() -> bool:
  """Says whether SIGTERM has come in a block of `ending_when_told`, also if nobody heard of it."""
  return getattr(signal.getsignal(signal.SIGTERM), 'came', False)


@contextlib.contextmanager
def ending_when_told() -> Iterator[None]:
  """Lets SIGTERM raise Preempted in the block, so that the process ends with a code that launchers start again.

  `train.preemption` takes over while the loop runs, and JAX when several processes are joined. Python handles a signal
  when it runs: one that comes while JAX compiles is handled afterwards. In a thread other than the main one nothing
  changes.
  """
  # Python delivers signals to the main thread alone.
  if threading.current_thread() is not threading.main_thread() or _joined():
    yield
    return

  told = _Told()
  told.came = was_told()  # in a block around this one, where something swallowed it
  before = signal.signal(signal.SIGTERM, told)
  try:
    yield
  except Exception as error:
    if told.came:
      raise Preempted(_NO_STEP) from error
    raise
  finally:
    if not _joined():  # JAX has a handler of its own now, which Python does not know
      signal.signal(signal.SIGTERM, before)


class _Interrupted:
  """Handles Ctrl-C (SIGINT) as Python does, and remembers that it came: an import may make another error of it.

  Where the process is the command's own, Ctrl-C during an import ends it, as SIGTERM does (`_Told`).
  """

  came = False

  def __init__(self, of_process: bool):
    self._of_process = of_process

  def __call__(self, number: int, frame: types.FrameType | None) -> None:
    del number
    self.came = True
    if self._of_process and _imports(frame):
      _exit('interrupted', EXIT_INTERRUPTED)
    raise KeyboardInterrupt


def was_interrupted() -> bool:
  """Says whether Ctrl-C has come in a block of `noting_interrupts`."""
  return getattr(signal.getsignal(signal.SIGINT), 'came', False)


@contextlib.contextmanager
def noting_interrupts(of_process: bool) -> Iterator[None]:
  """Remembers in the block that Ctrl-C came (`was_interrupted`); nothing changes where Python does not handle it.

  `of_process` says that the process does nothing else: then Ctrl-C may end it at once.
  """
  in_main = threading.current_thread() is threading.main_thread()
  if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
    yield
    return
  signal.signal(signal.SIGINT, _Interrupted(of_process))
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _joined() -> bool:
  return 'jax' in sys.modules and sys.modules['jax'].distributed.is_initialized()


def join(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  bind_address: str | None = None,
  heartbeat_seconds: int = HEARTBEAT_SECONDS,
  saves_on_sigterm: bool = False,
) -> bool:
  """Sets up `jax.distributed` if this is one of several processes; must run before JAX computes anything.

  Args:
    coordinator_address, num_processes, process_id: HOST:PORT of process 0, the number of processes, and the number of
      this one; by default they are read from the environment, see `found`.
    bind_address: HOST:PORT on which process 0 listens; by default JAX_COORDINATOR_BIND_ADDRESS, or else all interfaces
      of its machine. The protocol has neither encryption nor passwords.
    heartbeat_seconds: a process that does not answer for so long counts as dead, and the others end.
    saves_on_sigterm: True: SIGTERM to any process reaches all of them, and `train.preemption` saves. False: SIGTERM
      ends the process.

  Returns:
    True if this is one of several processes, which are joined now.

  Raises:
    ValueError: the arguments or the variables of the environment do not fit together.
    OSError: process 0 does not answer.
  """
  if _joined():
    return True  # an earlier command or the caller has set it up
  given = {'coordinator_address': coordinator_address, 'num_processes': num_processes, 'process_id': process_id}
  arguments = found(given, os.environ)
  if arguments is None:
    return False
  if heartbeat_seconds < 1:
    raise ValueError(f'--heartbeat-seconds is {heartbeat_seconds}; expected at least 1')
  if bind_address is not None and not re.fullmatch(r'.+:\d+', bind_address):
    raise ValueError(f'--coordinator-bind-address is {bind_address!r}; expected HOST:PORT')
  address = arguments.get('coordinator_address')
  if address:
    print(f'process {arguments["process_id"]} of {arguments["num_processes"]}, process 0 at {address}', file=sys.stderr)
    if arguments['process_id']:
      _wait_for(address)  # without it JAX would end the process with a long C++ message
  import jax

  try:
    jax.distributed.initialize(
      **arguments,
      coordinator_bind_address=bind_address,
      heartbeat_timeout_seconds=heartbeat_seconds,
      initialization_timeout=_JOIN_SECONDS,
      shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )
  except ValueError as error:
    if arguments or 'coordinator_address' not in str(error):
      raise
    return False  # TPU drivers are installed, but there is no TPU cluster
  if not saves_on_sigterm:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has installed its own handler
  return True


def found(given: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any] | None:
  """Returns the arguments for `jax.distributed.initialize`, or None for a single process.

  The first of these that applies counts:
    1. Options of the command line, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (in an indexed Job
       or JobSet of Kubernetes, JOB_COMPLETION_INDEX may replace the last one).
    2. A SLURM step with several tasks.
    3. A TPU.
    4. An indexed Job of Kubernetes.

  Args:
    given: the values of the command line, None if not given.
    environment: the variables of the environment.

  Raises ValueError if they do not fit together.
  """
  told = {key: value for key in _WORDS if (value := _told(key, given, environment)) is not None}
  index = environment.get('JOB_COMPLETION_INDEX')
  if 'coordinator_address' in told and 'process_id' not in told and index is not None:
    told['process_id'] = _number('JOB_COMPLETION_INDEX', index)
  in_slurm = all(key in environment for key in _SLURM)
  if told and not (in_slurm and given.get('coordinator_address') is None and set(told) == {'coordinator_address'}):
    return _checked(told)
  if in_slurm:
    tasks = _number('SLURM_NTASKS', environment.get('SLURM_STEP_NUM_TASKS', environment['SLURM_NTASKS']))
    if tasks == 1:
      return None
    arguments: dict[str, Any] = {'cluster_detection_method': 'slurm'}  # JAX reads JAX_COORDINATOR_ADDRESS itself
    one_each = re.fullmatch(r'(1(\(x\d+\))?,?)+', environment.get('SLURM_STEP_TASKS_PER_NODE', ''))
    if one_each and 'JAX_LOCAL_DEVICE_IDS' not in environment:
      arguments[
        'local_device_ids'
      ] = []  # use all devices of the node; JAX would use only the one with the task's local number
    return arguments
  if _may_hold_tpus(environment):
    return {}  # JAX asks the machine or the metadata server of the cloud
  if 'KUBERNETES_SERVICE_HOST' in environment and index is not None:
    if importlib.util.find_spec('kubernetes') is None:
      raise ValueError(
        f'JOB_COMPLETION_INDEX is {index}, so this is a pod of an indexed Job; expected '
        'JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES beside it (1 if it works alone), or the package '
        'kubernetes to find them'
      )
    return {'cluster_detection_method': 'k8s'}
  return None


def _told(key: str, given: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
  variable = _WORDS[key][1]
  if given.get(key) is not None:
    return given[key]
  value = environment.get(variable) or None
  return value if value is None or key == 'coordinator_address' else _number(variable, value)


def _number(name: str, value: str) -> int:
  if not re.fullmatch(r'\d+', value):
    raise ValueError(f'{name} is {value!r}; expected a number')
  return int(value)


def _checked(told: dict[str, Any]) -> dict[str, Any] | None:
  count, index = told.get('num_processes'), told.get('process_id')
  if count is not None and count < 1:
    raise ValueError(f'{_WORDS["num_processes"][0]} is {count}; expected at least 1')
  if count == 1 and not index:
    return None
  if missing := [' or '.join(words) for key, words in _WORDS.items() if key not in told]:
    raise ValueError(f'{_WORDS[next(iter(told))][0]} is given without {missing[0]}; expected all three, or none')
  if not 0 <= index < count:
    raise ValueError(f'{_WORDS["process_id"][0]} is {index}; expected 0 to {count - 1}, for {count} processes')
  if not re.fullmatch(r'.+:\d+', told['coordinator_address']):
    raise ValueError(f'{_WORDS["coordinator_address"][0]} is {told["coordinator_address"]!r}; expected HOST:PORT')
  return told | {'cluster_detection_method': 'deactivate'}


def _may_hold_tpus(environment: Mapping[str, str]) -> bool:
  """Returns True if there are signs of a TPU; otherwise JAX is not asked, as it could wait for a missing server."""
  platforms = environment.get('JAX_PLATFORMS', '')
  if platforms and 'tpu' not in platforms.split(','):
    return False
  return importlib.util.find_spec('libtpu') is not None and bool(
    glob.glob('/dev/accel*') or glob.glob('/dev/vfio/[0-9]*')
  )


def _wait_for(address: str, seconds: float = _JOIN_SECONDS) -> None:
  """Waits until process 0 accepts connections at `address`; raises OSError if it does not within `seconds`."""
  host, _, port = address.rpartition(':')
  end, problem = time.monotonic() + seconds, ''
  while True:
    try:
      socket.create_connection((host.strip('[]'), int(port)), timeout=5).close()
      return
    except OSError as error:
      problem = error.strerror or str(error)
    if time.monotonic() > end:
      raise OSError(
        f'process 0 does not answer at {address} for {seconds:g} s ({problem}); expected it to be started '
        'with the same address'
      )
    time.sleep(0.2)
