"""Tells whether the process that owns a temporary file or a lock is alive: machine, process number and start time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import socket
from pathlib import Path


@functools.cache
def machine() -> str:
  """Identifies what process numbers belong to: host name, boot, and namespace of process numbers (containers)."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    parts.append(Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii'))
    parts.append(os.readlink('/proc/self/ns/pid'))
  return hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:8]


def started(pid: int) -> int | None:
  """Returns when a process of this machine started, in ticks since boot; 0 if it cannot be seen, None if it is dead."""
  try:
    fields = Path(f'/proc/{pid}/stat').read_text(encoding='ascii', errors='replace').rpartition(')')[2].split()
    return None if fields[0] in 'ZX' else int(fields[19])
  except (OSError, IndexError, ValueError):
    pass  # no /proc, or one that hides the processes of other users
  try:
    os.kill(pid, 0)
  except (ProcessLookupError, OverflowError):
    return None
  except OSError:
    pass  # it runs and belongs to another user
  return 0


def owner() -> str:
  """Returns the name of this process: machine, process number and start time, joined by dashes."""
  return f'{machine()}-{os.getpid()}-{started(os.getpid()) or 0}'


def is_dead(name: str) -> bool:
  """Returns whether an owner is known to be a process of this machine that does not run any more."""
  of_machine, pid, began = name.split('-')
  return of_machine == machine() and started(int(pid)) not in (int(began), 0)
