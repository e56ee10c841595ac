"""Writes the reports of `evaluate` and `score`: a table for the console, metrics.json, per_category.csv and plots."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from vild_jax.eval.scoring import Metrics
from vild_jax.runtime import digests, files

RESULTS_FILE = 'results.json'
METRICS_FILE, TABLE_FILE, CURVES_FILE = 'metrics.json', 'per_category.csv', 'precision_recall.png'
GROUPS_FILE, PAGE, DIAGNOSIS, COSINE_FILE = 'ap_by_group.png', 'report.html', 'diagnosis.json', 'teacher_cosine.json'
# All that is said about a results file, beside it.
_ABOUT = (METRICS_FILE, TABLE_FILE, CURVES_FILE, GROUPS_FILE, PAGE, DIAGNOSIS, COSINE_FILE)
_BOX, _MASK, _GRID, _INK = '#2f6fdb', '#e2711d', '#e3e5e8', '#30343b'
_GROUPS = {'AP': 'all', 'APr': 'rare', 'APc': 'common', 'APf': 'frequent', 'AP_base': 'base', 'AP_novel': 'novel'}


def text(metrics: Metrics) -> str:
  """Returns lines for the console: the table, and what was counted by which protocol."""
  counted = (
    f'{metrics["protocol"]}: {metrics["detections_counted"]}; {metrics["images"]:,} pictures, '
    f'{metrics["categories"]:,} categories, {metrics["categories_with_objects"]:,} of them with objects'
  )
  lines = [table(metrics), counted]
  if only := metrics.get('novel_only'):
    values = [f'{kind} AP50 {_percent(only[f"{kind}_AP50"])}' for kind in ('box', 'mask')]
    lines.insert(1, f'novel classes alone, on the {only["images"]:,} pictures that show one: {", ".join(values)}')
  if against := metrics.get('against'):
    for key in ('AP', 'AP50', 'APr'):
      if key in against['box']:
        row = against['box'][key]
        values = [f'{100 * row[name]:+.1f}' for name in ('difference', 'lower', 'upper')]
        lines.append(f'box {key} against {against["file"]}: {values[0]} ({values[1]} to {values[2]}, 95 %)')
  return '\n'.join(lines)


def table(metrics: Metrics) -> str:
  """Returns a table for the console: what there is of box and mask, in per cent."""
  kinds = [kind for kind in ('box', 'mask') if metrics[kind] is not None]
  if not kinds:
    return 'nothing to score: neither boxes nor masks'
  keys = [key for key in metrics[kinds[0]] if metrics[kinds[0]][key] is not None]
  width = max(12, *(len(key) + 2 for key in keys))
  lines = ['AP in %  ' + ''.join(f'{key:>{width}}' for key in keys)]
  for kind in kinds:
    lines.append(f'{kind:<9}' + ''.join(f'{_percent(metrics[kind][key]):>{width}}' for key in keys))
  return '\n'.join(lines)


def _percent(value: float | None) -> str:
  return '-' if value is None else f'{100 * value:.1f}'


def short(metrics: Metrics) -> Metrics:
  """Returns the metrics without the rows of categories and without curves, as metrics.json has them."""
  return {key: value for key, value in metrics.items() if key not in ('per_category', 'curves')}


def write_reports(out_dir: str | Path, metrics: Metrics) -> list[Path]:
  """Writes metrics into a folder, which is created if needed.

  Returns:
    The paths of metrics.json (`short`) and, as far as the protocol has rows and curves, of per_category.csv,
    precision_recall.png and ap_by_group.png.
  """
  folder = files.path(out_dir)
  folder.mkdir(parents=True, exist_ok=True)
  contents: dict[str, str | bytes] = {METRICS_FILE: json.dumps(short(metrics), indent=2, allow_nan=False) + '\n'}
  if 'per_category' in metrics:
    rows = io.StringIO(newline='')
    writer = csv.DictWriter(rows, list(metrics['per_category'][0]) if metrics['per_category'] else ['id'])
    writer.writeheader()
    writer.writerows(metrics['per_category'])
    contents[TABLE_FILE] = rows.getvalue().encode()
  if 'curves' in metrics:
    contents |= {CURVES_FILE: _precision_recall(metrics), GROUPS_FILE: _ap_by_group(metrics)}
  return [files.write(folder / name, content) for name, content in contents.items()]


def remove_reports(out_dir: str | Path) -> None:
  """Removes what an earlier evaluation said about the results in a folder, before they are replaced.

  A run that is killed then leaves results without metrics, never with those of others.
  """
  for name in _ABOUT:
    (files.path(out_dir) / name).unlink(missing_ok=True)


def problem(metrics_file: Path, metrics: Metrics) -> str:
  """Returns why metrics are not of the results file beside them, in words; '' if they are, or do not say of which."""
  said = metrics.get('identity')
  if not isinstance(said, dict) or 'results' not in said:
    return ''
  path = metrics_file.with_name(RESULTS_FILE)
  if path.is_file() and digests.sha256(files.fetched(path)) != said['results']:
    return f'{metrics_file} is not about the {RESULTS_FILE} beside it, which has another SHA-256'
  return ''


def _precision_recall(metrics: Metrics) -> bytes:
  figure, axes = _figure('Precision and recall at IoU 0.5, mean over categories')
  for kind, color in (('box', _BOX), ('mask', _MASK)):
    curve = metrics['curves'][kind]
    if curve is not None:
      axes.plot(
        metrics['curves']['recall'],
        curve,
        color=color,
        linewidth=2,
        label=f'{kind}, AP50 {100 * metrics[kind]["AP50"]:.1f} %',
      )
      axes.fill_between(metrics['curves']['recall'], curve, color=color, alpha=0.08, linewidth=0)
  axes.set(xlabel='recall', ylabel='precision', xlim=(0, 1), ylim=(0, 1.02))
  if axes.lines:
    axes.legend(frameon=False, labelcolor=_INK)
  return _png(figure)


def _ap_by_group(metrics: Metrics) -> bytes:
  figure, axes = _figure('AP (IoU 0.5 to 0.95) by group of categories, %')
  kinds = [(kind, color) for kind, color in (('box', _BOX), ('mask', _MASK)) if metrics[kind] is not None]
  groups = [group for group in _GROUPS if any(metrics[kind][group] is not None for kind, _ in kinds)]
  for k, (kind, color) in enumerate(kinds):
    heights = [100 * (metrics[kind][group] or 0) for group in groups]
    bars = axes.bar(
      [i + (k - (len(kinds) - 1) / 2) * 0.38 for i in range(len(groups))], heights, 0.35, color=color, label=kind
    )
    labels = [
      'none' if metrics[kind][group] is None else f'{height:.1f}' for group, height in zip(groups, heights, strict=True)
    ]
    axes.bar_label(bars, labels, padding=3, fontsize=9, color=_INK)
  axes.set_xticks(range(len(groups)), [_GROUPS[group] for group in groups])
  axes.grid(visible=False, axis='x')
  axes.margins(y=0.15)
  if groups:
    axes.legend(frameon=False, labelcolor=_INK, loc='lower right', bbox_to_anchor=(1, 0.99), ncols=2)
  return _png(figure)


def _figure(title: str) -> tuple[Any, Any]:
  # Imported here, so that scoring alone does not load matplotlib. A Figure made directly needs neither a display nor
  # pyplot.
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 4.2), dpi=150, layout='constrained')
  axes = figure.add_subplot()
  axes.set_title(title, loc='left', fontsize=11, color=_INK, pad=12)
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.spines['bottom'].set_color('#9aa0a8')
  axes.grid(color=_GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(colors=_INK, length=0, labelsize=9)
  axes.xaxis.label.set_color(_INK)
  axes.yaxis.label.set_color(_INK)
  return figure, axes


def _png(figure: Any) -> bytes:
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', facecolor='white')
  return buffer.getvalue()
