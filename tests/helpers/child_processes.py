"""Real commands in real processes of their own, alone or two together, on a few CPU devices each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Commands in one process, one after the other, up to the first that fails.
_PROGRAM = """
import importlib, json, sys
main = importlib.import_module(sys.argv[1]).main
for words in json.loads(sys.argv[2]):
  if code := main(words):
    sys.exit(code)
"""
_PATIENCE = 1200  # seconds until a process must have come to where it is awaited


class Children:
  """Child processes with the compilation cache and the compiler's options of this process."""

  def __init__(self, logs: Path):
    self._logs = logs

  @contextlib.contextmanager
  def run(
    self, *commands: list[object], devices: int, count: int = 1, heartbeat: int = 30, of: str = 'vild_jax.cli'
  ) -> Iterator[list[subprocess.Popen]]:
    """`count` processes that run the commands together; what is left of them at the end of the block is killed.

    `of` is the module whose `main` takes the words of a command.
    """
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = free.getsockname()[1]
    environment = {
      **os.environ,  # the run's compilation cache among them
      'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}',
    }
    started = []
    try:
      for index in range(count):
        words = [[str(word) for word in command] for command in commands]
        if count > 1:
          words = [
            [
              *command,
              '--coordinator-address',
              f'localhost:{port}',
              '--num-processes',
              str(count),
              '--process-id',
              str(index),
              '--heartbeat-seconds',
              str(heartbeat),
            ]
            for command in words
          ]
        with self.log(index).open('wb') as log:
          command = [sys.executable, '-c', _PROGRAM, of, json.dumps(words)]
          started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
      yield started
    finally:
      for process in started:
        if process.poll() is None:
          process.send_signal(signal.SIGKILL)
        process.wait()

  def finish(self, *commands: list[object], **options: object) -> list[int]:
    """Runs the commands to their end; the exit codes."""
    with self.run(*commands, **options) as started:
      return [self.code(process) for process in started]

  def code(self, process: subprocess.Popen) -> int:
    """The exit code of a process that must end."""
    return process.wait(_PATIENCE)

  def wait(self, started: list[subprocess.Popen], until: Callable[[], bool]) -> None:
    """Returns when `until` is true; all must run until then."""
    deadline = time.monotonic() + _PATIENCE
    while not until():
      assert all(process.poll() is None for process in started) and time.monotonic() < deadline, self.said()
      time.sleep(0.005)

  def log(self, index: int) -> Path:
    return self._logs / f'{index}.log'

  def said(self) -> str:
    """What the processes of the last run have printed."""
    return '\n'.join(f'--- process {log.stem}\n{log.read_text()}' for log in sorted(self._logs.glob('*.log')))
