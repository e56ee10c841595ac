"""`vild-jax score`: any results file, every protocol, without JAX; what is wrong with input is one line."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.helpers import small_scores, small_store
from vild_jax import cli
from vild_jax.config import defaults
from vild_jax.eval import counted, detections, recall, truth


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Annotations, results, and the names of base classes."""
  folder = tmp_path_factory.mktemp('scores')
  ground_truth, results = small_scores.case(1)
  (folder / 'truth.json').write_text(json.dumps(ground_truth))
  (folder / 'results.json').write_text(json.dumps(results))
  (folder / 'base.txt').write_text(ground_truth['categories'][0]['name'] + '\n')
  return folder


def test_masks_that_are_not_scored_are_said(files, tmp_path, capsys):
  results = json.loads((files / 'results.json').read_text())
  of = truth.read(files / 'truth.json')
  found = detections.read(results, of)
  unlisted = ~counted.listed(of, found)
  assert unlisted.any() and not unlisted.all()
  for row in np.flatnonzero(unlisted):
    del results[row]['segmentation']
  (tmp_path / 'r.json').write_text(json.dumps(results))
  lines = []
  for protocol in ('lvis', 'coco'):
    assert cli.main(_words(files, protocol, '--json', tmp_path / f'{protocol}.json', results=tmp_path / 'r.json')) == 0
    lines.append(capsys.readouterr().err)
  assert 'masks are not scored' not in lines[0] and json.loads((tmp_path / 'lvis.json').read_text())['mask']
  why = json.loads((tmp_path / 'coco.json').read_text())['masks_not_scored']
  assert why == f'{unlisted.sum()} detections have none, and the protocol counts some of them'
  assert f'masks are not scored: {why}' in lines[1]


def test_a_folder_of_other_pictures_is_refused_before_anything_is_written(files, tmp_path, capsys):
  more = ('--out', tmp_path / 'out', '--images', tmp_path)
  for protocol in ('lvis', 'voc'):
    assert cli.main(_words(files, protocol, *more)) == 2
    assert 'holds no picture of image' in capsys.readouterr().err and not (tmp_path / 'out').exists()


def _words(folder, protocol, *more, results='results.json'):
  words = ['score', '--annotations', folder / 'truth.json', '--results', folder / results, '--protocol', protocol]
  return list(map(str, [*words, *more]))


@pytest.mark.parametrize('protocol', defaults.PROTOCOLS)
def test_every_protocol_prints_a_table_and_writes_json(files, tmp_path, capsys, protocol):
  more = ('--base', files / 'base.txt', '--json', tmp_path / 'm.json', '--out', tmp_path / 'out')
  assert cli.main(_words(files, protocol, *more)) == 0
  printed = capsys.readouterr()
  metrics = json.loads((tmp_path / 'm.json').read_text())
  assert metrics['protocol'] == protocol and protocol in printed.out
  first = next(key for key, value in metrics['box'].items() if value is not None)
  assert first in printed.out and f'{100 * metrics["box"][first]:.1f}' in printed.out
  assert 'detections in' in printed.err
  assert json.loads((tmp_path / 'out' / 'metrics.json').read_text()) == metrics
  if protocol in ('lvis', 'coco', 'coco-ovd', 'voc'):
    table = (tmp_path / 'out' / 'per_category.csv').read_text().splitlines()
    assert len(table) == 1 + metrics['categories']


def test_scoring_loads_no_jax(files):
  program = (
    'import sys\n'
    'from vild_jax import cli\n'
    f'assert cli.main({_words(files, "lvis")!r}) == 0\n'
    'found = {"jax", "jaxlib", "flax", "tensorflow", "torch", "orbax"} & set(sys.modules)\n'
    'assert not found, found\n'
  )
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr


def test_several_processes_read_the_same(tmp_path):
  of = truth.read(small_scores.case(5)[0])
  rows = [row for seed in range(5, 40) for row in small_scores.case(5)[1]]
  assert len(rows) > 100
  (tmp_path / 'r.json').write_text(json.dumps(rows))
  one, two = (detections.read(tmp_path / 'r.json', of, part=2000, processes=n) for n in (1, 2))
  for name in ('image', 'category', 'score', 'boxes'):
    np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
  assert one.codes.strings() == two.codes.strings() and one.repeated == two.repeated > 0


def test_a_region_store_is_scored_as_proposals(tmp_path, capsys):
  small_store.make(tmp_path / 'store')
  images = [{'id': key, 'height': 100, 'width': 100} for key in (5, 2**40, 77)]  # 77 is not in the store
  boxes = small_store.regions(5).boxes
  y1, x1, y2, x2 = np.sort(boxes.reshape(-1, 2, 2), 1).reshape(-1, 4)[0].tolist()
  objects = [{'id': 1, 'image_id': 5, 'category_id': 1, 'bbox': [x1, y1, x2 - x1, y2 - y1], 'area': 1.0}]
  (tmp_path / 'truth.json').write_text(
    json.dumps({'images': images, 'annotations': objects, 'categories': [{'id': 1, 'name': 'a'}]})
  )
  of = truth.read(tmp_path / 'truth.json')
  found = recall.from_store(tmp_path / 'store', of)
  assert len(found) == sum(len(small_store.regions(key).boxes) for key in (5, 2**40))
  np.testing.assert_allclose(found.boxes[found.image == 0][:, :2], boxes[:, 1::-1])
  assert cli.main(_words(tmp_path, 'proposals', results='store')) == 0
  assert 'AR@100' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('change', 'more', 'message'),
  [
    (
      lambda rows: [*rows[:-1], rows[0] | {'image_id': 999}],
      (),
      'of pictures that the ground truth lacks (image_id 999)',
    ),
    (lambda rows: [*rows, rows[0] | {'score': float('nan')}], (), 'score is nan'),
    (lambda rows: json.dumps(rows)[:-20], (), 'is not JSON'),
    (lambda rows: rows, ('--base', 'absent.txt'), 'is not a list of classes'),
  ],
)
def test_bad_input_is_one_line(files, tmp_path, capsys, change, more, message):
  made = change(json.loads((files / 'results.json').read_text()))
  path = tmp_path / 'bad.json'
  path.write_text(made if isinstance(made, str) else json.dumps(made))
  assert cli.main(_words(files, 'lvis', '--out', tmp_path / 'out', *more, results=path)) == 2
  said = capsys.readouterr().err
  assert message in said and said.count('\n') <= 2
  assert not (tmp_path / 'out').exists()


def test_what_looks_odd_is_said(files, tmp_path, capsys):
  rows = json.loads((files / 'results.json').read_text())
  path = tmp_path / 'odd.json'
  path.write_text(json.dumps([*rows, rows[0], rows[0] | {'image_id': 999}]))
  assert cli.main(_words(files, 'coco', '--ignore-unknown', '--json', tmp_path / 'm.json', results=path)) == 0
  said = capsys.readouterr().err
  assert '1 detections stand more than once' in said and '1 detections of unknown' in said
  metrics = json.loads((tmp_path / 'm.json').read_text())
  assert metrics['ignored'] == metrics['repeated'] == 1


def test_an_empty_file_scores_zero(files, tmp_path, capsys):
  (tmp_path / 'none.json').write_text('[]')
  for protocol in ('lvis', 'coco', 'voc', 'proposals', 'lvis-fixed'):
    assert cli.main(_words(files, protocol, '--json', tmp_path / 'm.json', results=tmp_path / 'none.json')) == 0
    box = json.loads((tmp_path / 'm.json').read_text())['box']
    assert {value for value in box.values() if value is not None} == {0.0}
  del capsys


def test_a_comparison_shows_pictures_and_intervals(tmp_path, capsys):
  annotations, results = small_scores.case(13)
  for image in annotations['images']:
    image['file_name'] = f'{image["id"]}.png'
    Image.new('RGB', (60, 60), (90, 120, 60)).save(tmp_path / image['file_name'])
  other = [*results[::2], *({**row, 'score': 0.5 * row['score']} for row in results[1::2])]
  for name, content in (('truth', annotations), ('results', results), ('other', other)):
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  more = ('--against', tmp_path / 'other.json', '--resamples', 10, '--json', tmp_path / 'm.json')
  page = ('--out', tmp_path / 'out', '--images', tmp_path, '--proposals', tmp_path / 'results.json')
  assert cli.main(_words(tmp_path, 'coco', *more, *page)) == 0
  against = json.loads((tmp_path / 'm.json').read_text())['against']
  assert against['per_category'] and against['box']
  for row in against['per_category']:
    assert row['lower'] <= row['upper'] and row['pictures'] > 0
  made = json.loads((tmp_path / 'out' / 'diagnosis.json').read_text())
  assert made['against'] == against and made['pictures']['best'] and made['recall']['named']['all'] > 0
  assert made['recall']['proposals@100'] == made['recall']['detections@100']
  text = (tmp_path / 'out' / 'report.html').read_text()
  for heading in ('What boxes find', 'Best and worst pictures', 'Categories that differ most'):
    assert heading in text
  assert 'data:image/jpeg' in text
  del capsys


def test_proposals_need_a_page_and_a_protocol_with_classes(files, tmp_path, capsys):
  more = ('--proposals', files / 'results.json')
  assert cli.main(_words(files, 'coco', *more)) == 2
  assert 'expected --out too' in capsys.readouterr().err
  assert cli.main(_words(files, 'proposals', *more, '--out', tmp_path / 'out')) == 2
  assert 'beside results with classes' in capsys.readouterr().err and not (tmp_path / 'out').exists()
