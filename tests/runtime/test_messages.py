"""Messages of errors are one line, and what libraries write past Python is caught."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from vild_jax.runtime import messages


def test_the_first_line_of_an_error_or_its_type():
  assert messages.first_line(ValueError('\n one\ntwo')) == 'one' and messages.first_line(KeyError()) == 'KeyError'


def test_what_threads_raise_is_one_line_and_told_once():
  program = """
import atexit, sys, threading
from vild_jax.runtime import messages
messages.threads_in_one_line('vild-jax train')
def fail():
  raise OSError(28, 'No space left on device')
for _ in range(3):
  thread = threading.Thread(target=fail)
  thread.start()
  thread.join()
atexit.register(fail)
"""
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
  line = 'vild-jax train: in the background: OSError: [Errno 28] No space left on device'
  assert done.stderr.splitlines() == [line]


def test_what_is_written_past_python_is_caught_and_then_no_longer(capfd):
  with messages.stderr_of_libraries() as said:
    os.write(2, b'from C\n')
    print('from Python', file=sys.__stderr__, flush=True)
  os.write(2, b'after\n')
  assert said[0] == 'from C\nfrom Python\n' and capfd.readouterr().err == 'after\n'


def test_threads_that_catch_at_once_leave_stderr_as_it_was():
  before, inside = os.fstat(2), threading.Event()

  def catch():
    with messages.stderr_of_libraries():
      inside.set()
      time.sleep(0.2)  # meanwhile the other begins

  threads = [threading.Thread(target=catch) for _ in range(2)]
  for thread in threads:
    thread.start()
    assert inside.wait(60)
  for thread in threads:
    thread.join()
  assert os.path.samestat(os.fstat(2), before)
