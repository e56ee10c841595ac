"""Every golden file of the reference is compared with something."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def test_every_golden_is_named_by_a_test(shared):
  text = '\n'.join(path.read_text(encoding='utf-8') for path in sorted(TESTS.rglob('test_*.py')))
  quoted = set(re.findall(r"'([\w.]+?)(?:\.npz|\.json)?'", text))
  # The two index files say what is in the others.
  files = [
    path.stem
    for folder in ('unit', 'model')
    for path in sorted((shared / 'golden' / folder).iterdir())
    if path.name != 'index.json'
  ]
  missing = sorted(set(files) - quoted)
  assert len(files) > 40 and not missing, f'no test names {", ".join(missing)}'
