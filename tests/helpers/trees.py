"""What a folder holds, to compare with another run: bytes, but for what no two runs have in common (`TIMES`)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

Tree = dict[str, Any]


def without(keys: str) -> Callable[[bytes], Any]:
  """A reader of JSON, or of JSON a line, that leaves out keys of a pattern, however deep they lie."""

  def plain(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: plain(inner) for key, inner in value.items() if not re.fullmatch(keys, key)}
    return [plain(inner) for inner in value] if isinstance(value, list) else value

  def read(content: bytes) -> Any:
    try:
      return plain(json.loads(content))
    except ValueError:
      return [plain(json.loads(line)) for line in content.splitlines()]

  return read


def is_there(content: bytes) -> str:
  return 'there' if content else 'empty'


# {pattern of names: what of the content counts}; the first that matches. All others count byte by byte.
TIMES: Mapping[str, Callable[[bytes], Any]] = {
  r'(.*/)?metrics\.json': without('seconds_per_image'),
  r'(.*/)?metrics\.jsonl': without('.*_seconds?'),
  r'(.*/)?(stages|report)\.json': without('seconds(_per_image)?'),  # of the demo
  r'(.*/)?(goodput|_CHECKPOINT_METADATA|descriptor/.*)(\.json)?': is_there,  # seconds, times
  r'(.*/)?(report|summary)\.html': is_there,  # seconds, the name of the machine
  r'(.*/)?bundle\.json': without('files|sha256'),  # Orbax's files have other names each time
}
_ORBAX = 'manifest.ocdbt'
_EVENTS = re.compile(r'events\.out\.tfevents\..*')  # of TensorBoard: a file a process, named by time and machine


def read(folder: Path, *, hidden: bool = True) -> Tree:
  """{name below the folder: what is compared}; a folder of Orbax counts as its arrays.

  Without `hidden` nothing below a hidden name, or a temporary one of Orbax, is looked at.
  """
  found: Tree = {}

  def look(where: str, below: str) -> None:
    for entry in sorted(os.scandir(where), key=lambda entry: entry.name):
      name = f'{below}{entry.name}'
      if not hidden and (entry.name.startswith('.') or 'orbax-checkpoint-tmp' in entry.name):
        continue
      if not entry.is_dir(follow_symlinks=False):
        if not _EVENTS.fullmatch(entry.name):
          found[name] = _content(name, Path(entry.path).read_bytes())
      elif os.path.exists(f'{entry.path}/{_ORBAX}'):
        found[f'{name}/'] = arrays(Path(entry.path))
      elif any(os.scandir(entry.path)):
        look(entry.path, f'{name}/')
      else:
        found[f'{name}/'] = 'an empty folder'

  look(str(folder), '')
  return found


def arrays(folder: Path) -> Tree:
  """{name: bytes} of what Orbax has stored in a folder; of one that cannot be read, why."""
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      about = checkpointer.metadata(folder).item_metadata.tree
      how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), about)
      leaves = jax.tree_util.tree_leaves_with_path(checkpointer.restore(folder, restore_args=how))
  except Exception as error:  # of many types
    return {'unreadable': repr(error)}
  return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def differences(expected: Tree, found: Tree) -> list[str]:
  """A line for each name that one alone has, or both with other content."""
  missing = [f'{name} is missing' for name in expected.keys() - found.keys()]
  more = [f'{name} is left over' for name in found.keys() - expected.keys()]
  other = [
    f'{name} differs{_where(expected[name], found[name])}'
    for name in expected.keys() & found.keys()
    if expected[name] != found[name]
  ]
  return sorted(missing + more + other)


def _content(name: str, content: bytes) -> Any:
  count = next((count for pattern, count in TIMES.items() if re.fullmatch(pattern, name)), None)
  return content if count is None else count(content)


def _where(a: Any, b: Any) -> str:
  if isinstance(a, dict) and isinstance(b, dict):
    return f' in {[key for key in a.keys() | b.keys() if a.get(key) != b.get(key)][:4]}'
  return f': {len(a)} and {len(b)} bytes' if isinstance(a, bytes) and isinstance(b, bytes) else ''
