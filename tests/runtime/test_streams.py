"""Standard output and error that are closed, broken or full end no work, and only a full disk is an error."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from vild_jax.runtime import streams
lost = streams.keep()
file = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
assert file > 2, file  # else what is written to a stream goes into it
for i in range(3000):
  print('a line to read \\ud800', i)
  print('a warning', file=sys.stderr)
os.write(file, b'done')
raise SystemExit(7 if lost() else 0)
"""


@pytest.mark.parametrize(
  ('shell', 'code'),
  [
    ('{}', 0),
    ('{} | head -1; exit ${{PIPESTATUS[0]}}', 0),
    ('{} 2>&-', 0),
    ('{} >&- 2>&- <&-', 0),
    ('{} 2> /dev/full', 0),
    ('{} > /dev/full', 7),
  ],
)
def test_work_goes_on(tmp_path, shell, code):
  if 'full' in shell and not os.path.exists('/dev/full'):
    pytest.skip('no /dev/full here')
  (tmp_path / 'p.py').write_text(PROGRAM)
  command = shell.format(f'"{sys.executable}" "{tmp_path}/p.py" "{tmp_path}/out"')
  done = subprocess.run(['bash', '-c', command], capture_output=True, text=True, check=False)
  assert done.returncode == code, done.stderr[-500:]
  assert 'Traceback' not in done.stderr and (tmp_path / 'out').read_text() == 'done'


def test_a_terminal_that_is_closed_is_no_error():
  program = """
import sys
from vild_jax.runtime import streams
lost = streams.keep()
print('ready', file=sys.stderr)
input()
print('a line that nobody sees')
raise SystemExit(7 if lost() else 0)
"""
  ours, theirs = pty.openpty()
  words = [sys.executable, '-c', program]
  pipes = {'stdin': subprocess.PIPE, 'stdout': theirs, 'stderr': subprocess.PIPE, 'text': True}
  with subprocess.Popen(words, **pipes) as process:
    os.close(theirs)
    assert process.stderr.readline() == 'ready\n'
    os.close(ours)
    process.communicate('\n')
  assert process.returncode == 0


def test_unbuffered_output_stays_so():
  program = """
import sys
from vild_jax.runtime import streams
streams.keep()
print('now')
sys.stdin.readline()  # `input` would flush
"""
  words = [sys.executable, '-u', '-c', program]
  with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
    assert select.select([process.stdout], [], [], 60)[0], 'nothing came while the program waits'
    process.communicate('\n')
