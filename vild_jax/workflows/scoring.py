"""Scores a results file of any detector, without JAX: reads, scores by a protocol, and writes metrics and plots."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vild_jax.data import class_lists
from vild_jax.eval import detections, protocols, recall, summary
from vild_jax.eval import truth as truth_lib
from vild_jax.eval.truth import Split, Truth
from vild_jax.runtime import collector


def score(
  annotations: str | Path,
  results: str | Path,
  protocol: str,
  *,
  base: str | Path | None = None,
  ignore_unknown: bool = False,
  out: Path | None = None,
) -> dict[str, Any]:
  """Scores results by a protocol; notes on stderr say what was read and what looks odd.

  Args:
    annotations: ground truth in LVIS or COCO format.
    results: a results file; for the protocol 'proposals' also a region store.
    protocol: a name in `protocols.PROTOCOLS`.
    base: what says which categories are base; see `protocols.split`. By default the frequencies of LVIS, and for
      'coco-ovd' the published split.
    ignore_unknown: leave out detections of unknown pictures and categories.
    out: folder for metrics.json, per_category.csv and plots, or None.

  Returns:
    The metrics of `protocols.score`.

  Raises:
    DataError: a file cannot be read or does not fit.
  """
  with collector.off():
    return _score(annotations, results, protocol, base, ignore_unknown, out)


def _score(
  annotations: str | Path,
  results: str | Path,
  protocol: str,
  base: str | Path | None,
  ignore_unknown: bool,
  out: Path | None,
) -> dict[str, Any]:
  truth = truth_lib.read(annotations)
  split = _split(truth, protocol, base)
  if protocol == 'proposals' and Path(results).is_dir():
    found = recall.from_store(results, truth)
  else:
    found = detections.read(
      results, truth, ignore_unknown=ignore_unknown, classless=protocol == 'proposals', processes=0
    )
  _say(f'{len(found):,} detections in {len(truth.images):,} pictures; {len(truth.annotations):,} objects')
  if found.ignored:
    _say(f'{found.ignored:,} detections of unknown pictures or categories were left out')
  if found.repeated:
    _say(f'{found.repeated:,} detections stand more than once, with the same box and score; was a file joined twice?')
  metrics = protocols.score(protocol, truth, found, base=split)
  if out:
    summary.write_reports(out, metrics)
  return metrics


def _split(truth: Truth, protocol: str, base: str | Path | None) -> Split | None:
  if base is not None:
    return protocols.split(truth, base)
  names = {category['name'] for category in truth.categories}
  if protocol == 'coco-ovd' and names >= set(class_lists.class_list('coco-ovd').names):
    return protocols.split(truth, 'coco-ovd')
  return None


def _say(text: str) -> None:
  print(text, file=sys.stderr)
