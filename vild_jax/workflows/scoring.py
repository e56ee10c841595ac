"""Scores a results file of any detector, without JAX: reads, scores by a protocol, says why, and writes reports."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from vild_jax.data import class_lists
from vild_jax.data.schema import DataError
from vild_jax.eval import comparison, detections, diagnosis, protocols, recall, summary
from vild_jax.eval import truth as truth_lib
from vild_jax.eval.found import Found
from vild_jax.eval.truth import Split, Truth
from vild_jax.report import scores as report_lib
from vild_jax.runtime import collector, files
from vild_jax.workflows import score_pictures

_RECALL_OF = (100, 300)  # detections of a picture, best first


def score(
  annotations: str | Path,
  results: str | Path,
  protocol: str,
  *,
  base: str | Path | None = None,
  ignore_unknown: bool = False,
  out: Path | None = None,
  images: Path | None = None,
  against: str | Path | None = None,
  resamples: int = 100,
  proposals: str | Path | None = None,
) -> dict[str, Any]:
  """Scores results by a protocol; notes on stderr say what was read and what looks odd.

  Args:
    annotations: ground truth in LVIS or COCO format.
    results: a results file; for the protocol 'proposals' also a region store.
    protocol: a name in `protocols.PROTOCOLS`.
    base: what says which categories are base; see `protocols.split`. By default the frequencies of LVIS, and for
      'coco-ovd' the published split.
    ignore_unknown: leave out detections of unknown pictures and categories.
    out: folder for metrics.json, per_category.csv, plots, report.html and diagnosis.json, or None.
    images: folder of the pictures, to show some on the page; None shows none.
    against: results of another detector, to compare boxes with; None compares with none.
    resamples: of the pictures, for the intervals of the comparison.
    proposals: a region store or a results file whose boxes are the proposals, for their recall on the page; None: none.

  Returns:
    The metrics of `protocols.score`, and with `against` those of the comparison under 'against'.

  Raises:
    DataError: a file cannot be read or does not fit, or a protocol has no comparison.
  """
  with collector.off():
    truth = truth_lib.read(annotations)
    pictures = None if images is None else score_pictures.Pictures(truth, images)  # before what takes long
    split = _split(truth, protocol, base)
    read = lambda path: _read(path, truth, protocol, ignore_unknown)
    found = read(results)
    boxes = None if proposals is None else _read(proposals, truth, 'proposals', ignore_unknown)
    if boxes is not None and (protocol == 'proposals' or boxes.boxes is None):
      raise DataError(f'--proposals {proposals}: expected boxes, beside results with classes')
    metrics = protocols.score(protocol, truth, found, base=split)
    if found.codes is not None and (why := metrics.get('masks_not_scored')):
      _say(f'masks are not scored: {why}')
    other = read(against) if against else None
    if other is not None:
      metrics['against'] = _compare(truth, found, other, protocol, split, resamples) | {'file': str(against)}
    if out:
      summary.write_reports(out, {key: value for key, value in metrics.items() if key != 'against'})
      write_page(out, truth, found, metrics, split, pictures=pictures, other=other, proposals=boxes)
    return metrics


def _read(path: str | Path, truth: Truth, protocol: str, ignore_unknown: bool) -> Found:
  if protocol == 'proposals' and Path(path).is_dir():
    found = recall.from_store(path, truth)
  else:
    classless = protocol == 'proposals'
    found = detections.read(path, truth, ignore_unknown=ignore_unknown, classless=classless, processes=0)
  _say(f'{path}: {len(found):,} detections in {len(truth.images):,} pictures; {len(truth.annotations):,} objects')
  if found.ignored:
    _say(f'{found.ignored:,} detections of unknown pictures or categories were left out')
  if found.repeated:
    _say(f'{found.repeated:,} detections stand more than once, with the same box and score; was a file joined twice?')
  return found


def _split(truth: Truth, protocol: str, base: str | Path | None) -> Split | None:
  if base is not None:
    return protocols.split(truth, base)
  names = {category['name'] for category in truth.categories}
  if protocol == 'coco-ovd' and names >= set(class_lists.class_list('coco-ovd').names):
    return protocols.split(truth, 'coco-ovd')
  return None


def _compare(
  truth: Truth, found: Found, other: Found, protocol: str, split: Split | None, resamples: int
) -> dict[str, Any]:
  matching = protocols.PROTOCOLS[protocol].matching
  if matching is None or found.boxes is None or other.boxes is None:
    raise DataError(
      f'--against compares boxes by AP; expected results with boxes, and another protocol than {protocol}'
    )
  _say(f'comparing over {resamples} samples of the pictures; with many categories this takes minutes')
  second = matching(truth, other, split)['found']
  return comparison.compare(**matching(truth, found, split), other=second, resamples=resamples).as_json()


def write_page(
  out: Path,
  truth: Truth,
  found: Found,
  metrics: dict[str, Any],
  split: Split | None,
  *,
  pictures: score_pictures.Pictures | None = None,
  other: Found | None = None,
  proposals: Found | None = None,
) -> None:
  """Writes `report.html` and `diagnosis.json` into a folder.

  Args:
    out: the folder.
    truth, found, metrics, split: of `protocols.score`; metrics may hold a comparison under 'against'.
    pictures: of the truth, or None.
    other: the detections that `found` was compared with, or None.
    proposals: boxes without classes, or None.
  """
  content: dict[str, Any] = {}
  numbers: dict[str, Any] = {}
  objects, named = truth, None
  base = truth.by_frequency() if split is None else split
  matching = protocols.PROTOCOLS[metrics['protocol']].matching
  if matching is not None and metrics['box'] is not None:
    arguments = matching(truth, found, split)
    objects = dataclasses.replace(truth, annotations=arguments['truth'].annotations)
    if len(arguments['found']):
      of = diagnosis.diagnose(per_category=metrics['per_category'], split=base, **arguments)
      shots = score_pictures.shots(
        arguments, None if other is None else matching(truth, other, split)['found'], pictures
      )
      named = of.recall
      numbers = of.as_json() | {'pictures': shots.as_json()}
      content = _explained(of, truth, pictures) | {'shots': shots}
  if metrics['protocol'] != 'proposals':
    numbers['recall'] = content['recall'] = _recalls(objects, found if metrics['box'] else None, proposals, base, named)
  if against := metrics.get('against'):
    numbers['against'] = against
    content |= {
      'comparison': {name: tuple(values.values()) for name, values in against['box'].items()},
      'differences': [tuple(row.values()) for row in against['per_category']],
      'other': against['file'],
      'resamples': against['resamples'],
    }
  if numbers:
    files.write(out / summary.DIAGNOSIS, json.dumps(numbers, indent=2, allow_nan=False) + '\n')
  command = shlex.join(['vild-jax', *sys.argv[1:]])
  report_lib.write_html(out / summary.PAGE, report_lib.Scores(metrics, command=command, **content))
  if pictures is not None and pictures.lacking:
    _say(f'pictures that the page cannot show: {len(pictures.lacking):,}; {next(iter(pictures.lacking.values()))}')


def _explained(of: diagnosis.Diagnosis, truth: Truth, pictures: score_pictures.Pictures | None) -> dict[str, Any]:
  """What the page shows of a diagnosis."""
  rows = lambda chosen: [(row['name'], row['instances'], row['box_AP']) for row in chosen]
  return {
    'errors': [(kind, diagnosis.ERRORS[kind], *values) for kind, values in of.errors.items()],
    'calibration': of.calibration,
    'calibration_error': of.calibration_error,
    'confusions': [
      (c.category, c.called, c.count, c.share, score_pictures.examples(c, truth, pictures)) for c in of.confusions
    ],
    'best': rows(of.best),
    'worst': rows(of.worst),
  }


def _recalls(
  truth: Truth, found: Found | None, proposals: Found | None, base: Split | None, named: dict[str, Any] | None
) -> dict[str, dict[str, float | None]]:
  """Recall of objects by detections under their right names and under any, and by proposals."""
  rows = {'named': named} if named else {}
  for name, of, counts in (('detections', found, _RECALL_OF), ('proposals', proposals, recall.COUNTS)):
    if of is not None:
      rows |= {f'{name}@{n}': row for n, row in recall.by_group(truth, of, base, counts).items()}
  return rows


def _say(text: str) -> None:
  print(text, file=sys.stderr)
