"""The files that an evaluation leaves behind."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from vild_jax.eval import lvis, summary


def _metrics(found):
  truth = {
    'images': [{'id': 1, 'height': 100, 'width': 200, 'neg_category_ids': [9]}],
    'categories': [{'id': 3, 'name': 'a, b', 'frequency': 'f'}, {'id': 9, 'name': 'c', 'frequency': 'r'}],
    'annotations': [{'id': 1, 'image_id': 1, 'category_id': 3, 'bbox': [10, 10, 40, 40], 'area': 1600}],
  }
  return lvis.evaluate(truth, found)


@pytest.mark.parametrize('found', [[], [{'image_id': 1, 'category_id': 3, 'bbox': [10, 10, 40, 40], 'score': 0.5}]])
def test_every_file_is_written_and_reads_back(tmp_path, found):
  metrics = _metrics(found)
  paths = summary.write_reports(tmp_path / 'out', metrics)
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == sorted(path.name for path in paths)
  read = json.loads(paths[0].read_text())
  assert read['box'] == metrics['box'] and read['mask'] is None and 'per_category' not in read
  rows = list(csv.DictReader(io.StringIO(paths[1].read_text())))
  assert [row['name'] for row in rows] == ['a, b', 'c'] and rows[1]['box_AP'] == ''
  assert float(rows[0]['box_AP50']) == metrics['box']['AP50']
  for path in paths[2:]:
    assert np.asarray(Image.open(path).convert('L')).std() > 5
