"""Standard output and error that are closed, broken or full end no work, and only a full disk is an error."""

from __future__ import annotations

import os
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
