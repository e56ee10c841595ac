"""Makes one process look like one of several, for code that asks JAX which it is and needs nothing of the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax


@contextlib.contextmanager
def as_process(index: int, count: int) -> Iterator[None]:
  """`jax.process_index` and `jax.process_count` answer so within the block."""
  with mock.patch.object(jax, 'process_index', lambda: index), mock.patch.object(jax, 'process_count', lambda: count):
    yield
