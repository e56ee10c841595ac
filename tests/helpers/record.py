"""A file that sums up what tests marked `soak` have done, so that they go on from it, over days."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(path: str | Path | None, name: str) -> dict[str, Any]:
  """What was done so far of one name; {} where there is no file or no such name."""
  return _all(path).get(name, {})


def add(path: str | Path | None, name: str, counts: Mapping[str, Any]) -> None:
  """Adds numbers and lists to those of one name; without a path nothing is kept."""
  if path is None:
    return
  done = _all(path)
  kept = done.get(name, {})
  done[name] = kept | {key: kept[key] + value if key in kept else value for key, value in counts.items()}
  Path(path).write_text(json.dumps(done, indent=1) + '\n')


def _all(path: str | Path | None) -> dict[str, Any]:
  return json.loads(Path(path).read_text()) if path and Path(path).is_file() else {}
