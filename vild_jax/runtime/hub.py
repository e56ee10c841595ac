"""Fetches folders from the Hugging Face hub, which are named `hf://owner/name` or `hf://owner/name@revision`.

Nothing else is looked for there: any other name is a path of this machine.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from vild_jax.runtime import messages

FORM = 'hf://owner/name or hf://owner/name@revision'
_NAME = re.compile(r'hf://(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?')
# What could run code when another program reads it is not even fetched.
_NEVER = ('*.bin', '*.ckpt', '*.pickle', '*.pkl', '*.pt', '*.pth', '*.py')


def is_name(place: str | Path) -> bool:
  """Says whether `place` names something on the hub; it may be malformed, which `folder` reports."""
  return str(place).startswith('hf:')


def repository(place: str) -> str:
  """Returns `owner/name` of a name on the hub. Raises ValueError if it is malformed."""
  return _parsed(place)['repository']


@functools.lru_cache  # so that a name means the same in a whole process, and is asked for once
def folder(place: str, wanted: tuple[str, ...]) -> Path:
  """Returns the folder of this machine to which a repository of the hub is fetched, unless it is there already.

  Args:
    place: its name, `hf://owner/name` or `hf://owner/name@revision`; without a revision the newest.
    wanted: patterns of the files to fetch; `*` stands for slashes too. Pickles and programs never are.

  Raises ValueError, one line, if the name is malformed, the hub's client is not installed, or the client fails.
  """
  name = _parsed(place)
  try:
    import huggingface_hub
  except ImportError as error:
    raise ValueError(
      f'{place} is on the Hugging Face hub, and its client is not installed; expected '
      '`pip install "vild_jax[hub]"`, or the path of a folder'
    ) from error
  try:
    found = huggingface_hub.snapshot_download(
      name['repository'], revision=name['revision'], allow_patterns=list(wanted), ignore_patterns=list(_NEVER)
    )
  except Exception as error:  # the client raises errors of many types: its own, of its HTTP library, of the system
    raise ValueError(
      f'the Hugging Face hub did not give {place}: {messages.first_line(error)}; expected a name that exists and a '
      'network, or the path of a folder'
    ) from error
  return Path(found)


def _parsed(place: str | Path) -> re.Match[str]:
  name = _NAME.fullmatch(str(place))
  if name is None:
    raise ValueError(f'{place} is not a name on the Hugging Face hub; expected the text {FORM}')
  return name
