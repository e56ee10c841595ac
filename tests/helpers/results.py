"""Results files for tests, from results that are all in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vild_jax.eval.results import Result, ResultsWriter


def write_results(path: str | Path, results: Sequence[Result]) -> None:
  """Writes a results file as `vild-jax evaluate` does."""
  with ResultsWriter(path) as writer:
    for result in results:
      writer.write(result['image_id'], [result])
