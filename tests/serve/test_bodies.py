"""The memory that a body takes while its request is answered."""

from __future__ import annotations

import asyncio
import tracemalloc
from types import SimpleNamespace

from vild_jax.serve import bodies
from vild_jax.serve.limits import Limits


def test_a_body_is_in_memory_once():
  async def stream():
    for _ in range(8):
      yield bytes(10**6)

  async def read() -> tuple[int, int]:
    async with bodies.Reader(Limits()).read(SimpleNamespace(headers={}, stream=stream)) as body:
      return len(body), tracemalloc.get_traced_memory()[0]

  tracemalloc.start()
  try:
    size, traced = asyncio.run(read())
  finally:
    tracemalloc.stop()
  assert size == 8 * 10**6 and traced < 1.3 * size
