"""Results and metrics of an evaluation are of one detector, vocabulary and data set, whatever ends the command."""

from __future__ import annotations

import hashlib
import json
import shutil

from tests.helpers.small_experiment import run
from vild_jax.eval import summary


def test_metrics_say_of_which_results_weights_classes_and_data_they_are(made):
  metrics = json.loads((made / 'evaluation' / 'metrics.json').read_text())
  results = hashlib.sha256((made / 'evaluation' / 'results.json').read_bytes()).hexdigest()
  assert metrics['identity'] == metrics['detector'] | {
    'results': results,
    'vocabulary': metrics['detector']['training vocabulary'],
    'data': metrics['identity']['data'],
  }
  metadata = json.loads(next((made / 'data').rglob('metadata.json')).read_text())
  assert metrics['identity']['data'] in {record['identity'] for record in metadata['contents'].values()}


def test_an_evaluation_that_ends_between_results_and_metrics_leaves_no_mixed_pair(made, tmp_path, monkeypatch):
  """Into the folder of an earlier evaluation, of another detector; the same command then completes it."""
  out = shutil.copytree(made / 'evaluation', tmp_path / 'evaluation')
  old = {name: f'of another detector: {name}' for name in ('results.json', 'metrics.json', 'report.html')}
  for name, content in old.items():
    (out / name).write_text(content)
  words = ('evaluate', made / 'config.json', '--checkpoint', made / 'run', '--out', out)

  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(summary, 'write_reports', killed)
    assert run(*words) == 130
  assert (out / 'results.json').read_text() != old['results.json']
  assert not (out / 'metrics.json').exists() and not (out / 'report.html').exists()
  assert run(*words) == 0
  new = json.loads((made / 'evaluation' / 'metrics.json').read_text())
  assert json.loads((out / 'metrics.json').read_text())['identity'] == new['identity']
  assert run('check', out) == 0


def test_a_mixed_pair_is_refused(made, tmp_path, capsys):
  out = shutil.copytree(made / 'evaluation', tmp_path / 'evaluation')
  (out / 'results.json').write_text('[]')
  metrics = json.loads((out / 'metrics.json').read_text())
  expected = f'{out}/metrics.json is not about the results.json beside it, which has another SHA-256'
  assert summary.problem(out / 'metrics.json', metrics) == expected
  capsys.readouterr()
  words = ('export', made / 'config.json', '--checkpoint', made / 'run', '--out', tmp_path / 'b')
  assert run(*words, '--metrics', out / 'metrics.json') == 2
  assert f'{expected}; expected the metrics of one evaluation: evaluate again' in capsys.readouterr().err
  assert run('check', out) == 2 and f'DAMAGED  identity: {expected}' in capsys.readouterr().out
  (out / 'results.json').unlink()  # metrics alone are of no other results
  assert not summary.problem(out / 'metrics.json', metrics)
  del metrics['identity']  # of an older version
  assert not summary.problem(out / 'metrics.json', metrics)
