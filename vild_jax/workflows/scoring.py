"""Scores a results file of any detector, without JAX: reads, scores by a protocol, says why, and writes reports."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vild_jax.data import class_lists, transforms
from vild_jax.data.annotations import picture_files
from vild_jax.data.schema import DataError
from vild_jax.eval import detections, diagnosis, protocols, recall, summary
from vild_jax.eval import truth as truth_lib
from vild_jax.eval.diagnosis import Confusion
from vild_jax.eval.found import Found
from vild_jax.eval.truth import Split, Truth
from vild_jax.report import scores as report_lib
from vild_jax.runtime import collector, files

PAGE, DIAGNOSIS = 'report.html', 'diagnosis.json'
_SIDE = 160  # pixels of a picture on the page


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
    images: folder of the pictures, to show confusions on the page; None shows none.
    against: results of another detector, to compare boxes with; None compares with none.
    resamples: of the pictures, for the intervals of the comparison.

  Returns:
    The metrics of `protocols.score`, and with `against` those of the comparison under 'against'.

  Raises:
    DataError: a file cannot be read or does not fit, or a protocol has no comparison.
  """
  with collector.off():
    truth = truth_lib.read(annotations)
    split = _split(truth, protocol, base)
    read = lambda path: _read(path, truth, protocol, ignore_unknown)
    found = read(results)
    metrics = protocols.score(protocol, truth, found, base=split)
    if against:
      metrics['against'] = _compare(truth, found, read(against), protocol, split, resamples) | {'file': str(against)}
    if out:
      summary.write_reports(out, {key: value for key, value in metrics.items() if key != 'against'})
      write_page(out, truth, found, metrics, split, images)
    return metrics


def _read(path: str | Path, truth: Truth, protocol: str, ignore_unknown: bool) -> Found:
  if protocol == 'proposals' and Path(path).is_dir():
    found = recall.from_store(path, truth)
  else:
    classless = protocol == 'proposals'
    found = detections.read(path, truth, ignore_unknown=ignore_unknown, classless=classless, processes=0)
  _say(f'{len(found):,} detections in {len(truth.images):,} pictures; {len(truth.annotations):,} objects')
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
  done = diagnosis.compare(**matching(truth, found, split), other=second, resamples=resamples)
  keys = ('this', 'other', 'difference', 'lower', 'upper')
  return {
    'box': {name: dict(zip(keys, values, strict=True)) for name, values in done.metrics.items()},
    'per_category': [list(row) for row in done.per_category],
    'resamples': resamples,
  }


def write_page(
  out: Path,
  truth: Truth,
  found: Found,
  metrics: dict[str, Any],
  split: Split | None,
  images: Path | None = None,
) -> None:
  """Writes `report.html` and `diagnosis.json` into a folder; see `score` for the arguments."""
  content: dict[str, Any] = {}
  matching = protocols.PROTOCOLS[metrics['protocol']].matching
  if matching is not None and metrics['box'] is not None and len((arguments := matching(truth, found, split))['found']):
    of = diagnosis.diagnose(per_category=metrics['per_category'], **arguments)
    files.write(out / DIAGNOSIS, json.dumps(of.as_json(), indent=2) + '\n')
    rows = lambda chosen: [(row['name'], row['instances'], row['box_AP']) for row in chosen]
    content = {
      'errors': [(kind, diagnosis.ERRORS[kind], *values) for kind, values in of.errors.items()],
      'calibration': of.calibration,
      'calibration_error': of.calibration_error,
      'confusions': [(c.category, c.called, c.count, c.share, _pictures(c, truth, images)) for c in of.confusions],
      'best': rows(of.best),
      'worst': rows(of.worst),
    }
  if against := metrics.get('against'):
    content |= {
      'comparison': {name: tuple(values.values()) for name, values in against['box'].items()},
      'differences': [tuple(row) for row in against['per_category']],
      'other': against['file'],
      'resamples': against['resamples'],
    }
  command = shlex.join(['vild-jax', *sys.argv[1:]])
  report_lib.write_html(out / PAGE, report_lib.Scores(metrics, command=command, **content))


def _pictures(confusion: Confusion, truth: Truth, folder: Path | None) -> Sequence[np.ndarray]:
  """The examples of a confusion, each cut out with half of its size around it."""
  if folder is None:
    return ()
  by_id = {int(image['id']): image for image in truth.images}
  shown = []
  for image_id, (x, y, w, h), _ in confusion.examples:
    places = [folder / name for name in picture_files(by_id[image_id])]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
      raise DataError(
        f"{folder} holds no picture of image {image_id}; expected the folder of the annotations' pictures"
      )
    picture = transforms.decode(path)
    margin = 0.5 * max(w, h, 8)
    top, left = max(int(y - margin), 0), max(int(x - margin), 0)
    part = picture[top : int(np.ceil(y + h + margin)), left : int(np.ceil(x + w + margin))].copy()
    corner = (int(x) - left, int(y) - top)
    cv2.rectangle(part, corner, (corner[0] + int(w), corner[1] + int(h)), (255, 179, 102), max(1, len(part) // 80))
    scale = _SIDE / max(part.shape[:2])
    size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    shown.append(cv2.resize(part, size, interpolation=cv2.INTER_AREA))
  return shown


def _say(text: str) -> None:
  print(text, file=sys.stderr)
