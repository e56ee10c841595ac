"""Writes the report of a run: one self-contained HTML page for people, one JSON file for programs.

The caller fills a `Report`; nothing is measured here. Metrics are fractions in the JSON and per cent on the page.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.report import charts, page, pictures
from vild_jax.report import lesson as lesson_lib
from vild_jax.runtime import files

_COLUMNS = (
  ('all', 'AP', 'AP'),
  ('all', 'AP50', 'AP50'),
  ('base', 'AP', 'AP_base'),
  ('base', 'AP50', 'AP50_base'),
  ('novel', 'AP', 'AP_novel'),
  ('novel', 'AP50', 'AP50_novel'),
  ('AP by frequency', 'rare', 'APr'),
  ('AP by frequency', 'common', 'APc'),
  ('AP by frequency', 'frequent', 'APf'),
)
_STATISTICS = {
  'images': 'pictures',
  'annotations': 'annotated objects',
  'occluded_fraction': 'objects partly occluded',
  'small_fraction': 'objects under 32² px',
  'novel_image_fraction': 'pictures with a novel object',
  'annotations_per_image': 'objects per picture (least, mean, most)',
  'annotations_per_frequency': 'objects of rare / common / frequent classes',
  'least_images_of_a_category': 'fewest pictures of a class',
  'least_annotations_of_a_category': 'fewest objects of a class',
  'negatives_per_image': 'classes verified absent, per picture',
  'not_exhaustive_images': 'pictures with a class not exhaustively annotated',
}


_GROUPS = {'base': 'base objects', 'novel': 'novel objects', 'other': 'no object', 'all': 'all regions'}


@dataclass(frozen=True)
class Stage:
  """Describes one stage of the run: a short name (the key in report.json), a sentence, and the seconds it took."""

  name: str
  what: str
  seconds: float


@dataclass(frozen=True)
class Pair:
  """Holds one picture of the gallery twice, as drawn by `inference.drawing.draw`: uint8 [H, W, 3]."""

  caption: str
  ground_truth: np.ndarray
  prediction: np.ndarray


@dataclass(frozen=True)
class Report:
  """Holds everything that the page and the JSON show.

  Attributes:
    title: the heading.
    summary: one or two sentences that describe the run.
    seed: the seed of the whole run.
    stages: in the order they ran.
    data: {column, such as 'train': {statistic: value}}; keys that end in `_fraction` are shown in per cent.
    methods: {name, such as 'vild_text': {'box': metrics, 'mask': metrics or None, 'seconds_per_image'}}, with metrics
      as `eval.lvis.evaluate` returns them; for a method that distils also 'teacher_cosine', as
      `distill.agreement.distillation_cosine` returns it.
    titles: {name of a method: its name on the page}.
    curves: {training run: the lines of its metrics.jsonl: {'step': ..., metric: number}}.
    gallery: ground truth beside predictions.
    gallery_note: which predictions the gallery shows, such as the lowest score drawn.
    machine: facts about machine and software, the command line among them: {fact: value}.
    lesson: the figure below the title that shows what was learnt from what, or None.
    classes: a picture of each class, which is shown beside its name.
  """

  title: str
  summary: str
  seed: int
  stages: Sequence[Stage]
  data: Mapping[str, Mapping[str, Any]]
  methods: Mapping[str, Mapping[str, Any]]
  titles: Mapping[str, str]
  curves: Mapping[str, Sequence[Mapping[str, float]]]
  gallery: Sequence[Pair]
  gallery_note: str
  machine: Mapping[str, Any]
  lesson: lesson_lib.Lesson | None = None
  classes: Sequence[lesson_lib.ClassCard] = ()


def write_json(path: str | Path, report: Report) -> None:
  """Writes report.json: methods, seed, seconds of each stage, counts of the data, facts about the machine."""
  content = {
    'methods': report.methods,
    'seed': report.seed,
    'seconds': {stage.name: stage.seconds for stage in report.stages},
    'data': report.data,
    'machine': report.machine,
  }
  files.write(path, json.dumps(content, indent=2, allow_nan=False, default=_number) + '\n')


def write_html(path: str | Path, report: Report) -> None:
  """Writes the page: one file with pictures and style inside and no script, for light and dark mode and phones."""
  sections = [
    lesson_lib.figure(report.lesson) if report.lesson else '',
    lesson_lib.cards(report.classes),
    _tiles(report),
    _results(report),
    _teacher(report),
    _gallery(report),
    _training(report),
    _stages(report),
    _data(report),
    _machine(report),
  ]
  files.write(path, page.document(report.title, report.summary, sections))


def _tiles(report: Report) -> str:
  """The most important numbers: those of the method with the highest novel AP50, and the time of the run."""
  tiles = []
  # The supervised baseline was trained on the novel classes, and a head alone is a part of a method.
  candidates = [
    name for name in report.methods if name not in ('supervised', 'vild_ensemble_text', 'vild_ensemble_image')
  ]
  if candidates:
    best = max(candidates, key=lambda name: report.methods[name]['box']['AP50_novel'] or 0)
    for kind in ('box', 'mask'):
      metrics = report.methods[best].get(kind) or {}
      for group in ('base', 'novel'):
        value = metrics.get(f'AP50_{group}')
        tiles.append(
          (group, f'{kind} AP50, {group}', page.percent(value) + ('' if value is None else ' %'), report.titles[best])
        )
  total = sum(stage.seconds for stage in report.stages)
  tiles.append(('', 'the whole run', _duration(total), f'{len(report.stages)} stages, seed {report.seed}'))
  return page.tiles(tiles)


def _results(report: Report) -> str:
  tables = ''
  for kind, heading in (('box', 'Boxes'), ('mask', 'Masks')):
    methods = {name: values for name, values in report.methods.items() if values.get(kind)}
    if methods:
      tables += f'<h3>{heading}</h3>{_bars(kind, methods, report.titles)}{_table(kind, methods, report.titles)}'
  if not tables:
    return ''
  but = ' (the supervised row excepted)' if 'supervised' in report.methods else ''
  return (
    '<section><h2>Results</h2><p>Average precision in per cent, by the LVIS protocol: AP is the mean over IoU '
    '0.50 to 0.95, AP50 is at IoU 0.50. Base classes are annotated in training; '
    f'<b class="novel">novel</b> ones are not{but}.</p>{tables}</section>'
  )


def _bars(kind: str, methods: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> str:
  """A chart of the paper's four columns for every method; empty if there is only one method."""
  if len(methods) < 2:
    return ''
  keys = {'rare (novel)': 'APr', 'common': 'APc', 'frequent': 'APf', 'all': 'AP'}
  groups = [
    (titles[name], [None if values[kind].get(key) is None else 100 * values[kind][key] for key in keys.values()])
    for name, values in methods.items()
  ]
  return charts.bar_chart(f'{kind} AP by frequency', groups, list(keys))


def _teacher(report: Report) -> str:
  """The cosine between the embeddings of the students and those of the teacher."""
  rows = ''
  for name, values in report.methods.items():
    if cosine := values.get('teacher_cosine'):
      cells = ''.join(f'<td>{"–" if cosine[group] is None else f"{cosine[group]:.3f}"}</td>' for group in _GROUPS)
      rows += f'<tr><th scope="row">{escape(report.titles[name])}</th>{cells}</tr>'
  if not rows:
    return ''
  head = ''.join(f'<th>{name}</th>' for name in _GROUPS.values())
  return (
    '<section><h2>Student and teacher</h2><p>Mean cosine between the embedding that the detector gives a region '
    'and that of the teacher for its crops, on proposals of validation pictures. A region belongs to the object '
    'that it overlaps by an IoU of 0.5 or more.</p><div class="scroll"><table class="plain"><thead><tr><td></td>'
    f'{head}</tr></thead><tbody>{rows}</tbody></table></div></section>'
  )


def _table(kind: str, methods: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> str:
  """One row for each method; the best of each column is bold if there are several methods."""
  spans = Counter(group for group, _, _ in _COLUMNS)
  head = ''.join(f'<th class="{group.split()[0]} first" colspan="{span}">{group}</th>' for group, span in spans.items())
  names = ''.join(f'<th class="{_classes(i)}">{name}</th>' for i, (_, name, _) in enumerate(_COLUMNS))
  best = {key: max(values[kind].get(key) or 0 for values in methods.values()) for _, _, key in _COLUMNS}
  rows = ''
  for name, values in methods.items():
    rows += f'<tr><th scope="row">{escape(titles[name])}</th>'
    for i, (_, _, key) in enumerate(_COLUMNS):
      value = values[kind].get(key)
      winner = ' best' if len(methods) > 1 and value is not None and value >= best[key] else ''
      rows += f'<td class="{_classes(i)}{winner}">{page.percent(value)}</td>'
    rows += f'<td class="first">{_seconds(values.get("seconds_per_image"))}</td></tr>'
  return (
    f'<div class="scroll"><table><thead><tr><td></td>{head}<th class="first">speed</th></tr>'
    f'<tr><td></td>{names}<th class="first">s / picture</th></tr></thead><tbody>{rows}</tbody></table></div>'
  )


def _classes(i: int) -> str:
  first = i == 0 or _COLUMNS[i][0] != _COLUMNS[i - 1][0]
  return _COLUMNS[i][0].split()[0] + (' first' if first else '')


def _gallery(report: Report) -> str:
  figures = ''.join(
    f'<figure><figcaption>{escape(pair.caption)}</figcaption><div class="pair">'
    f'<div><img alt="ground truth" src="{pictures.inline(pair.ground_truth)}"><span>ground truth</span></div>'
    f'<div><img alt="prediction" src="{pictures.inline(pair.prediction)}"><span>prediction</span></div></div></figure>'
    for pair in report.gallery
  )
  if not figures:
    return ''
  return (
    f'<section><h2>Ground truth and predictions</h2><p>A star and a dashed box mark a <b class="novel">novel</b> '
    f'class. Numbers are scores in per cent. {escape(report.gallery_note)}</p>'
    f'<div class="gallery">{figures}</div></section>'
  )


def _training(report: Report) -> str:
  runs = []
  for name, lines in report.curves.items():
    keys = {key for line in lines for key in line} - {'step'}
    ordered = sorted(keys, key=lambda key: (key != 'loss', not key.endswith('loss'), key == 'images_per_second', key))
    plots = ''.join(
      charts.line_chart(
        key.replace('_per_', ' / ').replace('_', ' '), [(line['step'], line[key]) for line in lines if key in line]
      )
      for key in ordered
    )
    runs.append(f'<h3>{escape(name)}</h3><div class="charts">{plots}</div>')
  return f'<section><h2>Training</h2>{"".join(runs)}</section>' if runs else ''


def _stages(report: Report) -> str:
  longest = max((stage.seconds for stage in report.stages), default=0) or 1
  rows = ''.join(
    f'<tr><th scope="row">{escape(stage.name)}</th><td class="text">{escape(stage.what)}</td>'
    f'<td class="bar"><i style="width:{100 * stage.seconds / longest:.1f}%"></i></td>'
    f'<td>{_duration(stage.seconds)}</td></tr>'
    for stage in report.stages
  )
  return (
    '<section><h2>What was done</h2><div class="scroll"><table class="stages"><tbody>'
    f'{rows}</tbody></table></div></section>'
  )


def _data(report: Report) -> str:
  keys = list(dict.fromkeys(key for column in report.data.values() for key in column))
  if not keys:
    return ''
  head = ''.join(f'<th>{escape(name)}</th>' for name in report.data)
  rows = ''.join(
    f'<tr><th scope="row">{escape(_STATISTICS.get(key, key.replace("_", " ")))}</th>'
    + ''.join(f'<td>{_statistic(key, column.get(key))}</td>' for column in report.data.values())
    + '</tr>'
    for key in keys
  )
  return (
    f'<section><h2>The data</h2><div class="scroll"><table class="plain"><thead><tr><td></td>{head}</tr></thead>'
    f'<tbody>{rows}</tbody></table></div></section>'
  )


def _machine(report: Report) -> str:
  facts = ''.join(
    f'<div><dt>{escape(key)}</dt><dd>{escape(str(value))}</dd></div>' for key, value in report.machine.items()
  )
  return f'<section><h2>Machine</h2><dl>{facts}</dl></section>' if facts else ''


def _seconds(seconds: float | None) -> str:
  return '–' if seconds is None else f'{seconds:.2f}'


def _duration(seconds: float) -> str:
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  return f'{minutes} min {rest:02d} s' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'


def _statistic(key: str, value: Any) -> str:
  if value is None:
    return '–'
  if key.endswith('_fraction'):
    return f'{100 * value:.1f} %'
  if isinstance(value, Mapping):
    return ' / '.join(_statistic('', entry) for entry in value.values())
  if isinstance(value, list | tuple):
    return ', '.join(_statistic('', entry) for entry in value)
  return f'{value:,}'.replace(',', '\u202f') if isinstance(value, int) else escape(str(value))


def _number(value: Any) -> Any:
  """Turns NumPy scalars into numbers for json.dumps."""
  if isinstance(value, np.generic):
    return value.item()
  raise TypeError(f'{type(value).__name__} does not belong in report.json')
