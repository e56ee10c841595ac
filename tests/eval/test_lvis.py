"""Both protocols against the official evaluators, and the traps of the library they run on."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from vild_jax.data import rle
from vild_jax.data.schema import DataError
from vild_jax.eval import coco, lvis

KEYS = [
  'AP',
  'AP50',
  'AP75',
  'APs',
  'APm',
  'APl',
  'APr',
  'APc',
  'APf',
  'AP_base',
  'AP_novel',
  'AP50_base',
  'AP50_novel',
]


def _square(x, side=40):
  return [[x, 10, x + side, 10, x + side, 10 + side, x, 10 + side]]


CATEGORIES = [{'id': k, 'name': f'class {k}', 'frequency': f} for k, f in ((3, 'f'), (5, 'c'), (9, 'r'), (11, 'c'))]


def _truth(annotations, **image):
  """Two pictures known to lack class 11; annotations are (image, category, x, side)."""
  return {
    'images': [{'id': i, 'height': 100, 'width': 200, 'neg_category_ids': [11], **image} for i in (1, 2)],
    'categories': CATEGORIES,
    'annotations': [
      {
        'id': 0,
        'image_id': i,
        'category_id': k,
        'bbox': [x, 10, side, side],
        'area': side * side,
        'segmentation': _square(x, side),
      }
      for i, k, x, side in annotations
    ],
  }


def _found(image, category, x, score, side=40):
  return {'image_id': image, 'category_id': category, 'bbox': [x, 10, side, side], 'score': score}


@pytest.fixture(scope='module')
def official(shared):
  folder = shared / 'data' / 'lvis_eval'
  expected = json.loads((folder / 'golden.json').read_text())['results']
  return folder / 'lvis_val_100.json', folder / 'results.json', expected


@pytest.fixture(scope='module')
def scored(official):
  return lvis.evaluate(*official[:2])


@pytest.mark.parametrize(('kind', 'name'), [('box', 'bbox'), ('mask', 'segm')])
def test_equals_the_official_lvis_evaluator(official, scored, kind, name):
  expected = {key: value for key, value in official[2][name]['lvis_official_maxdets300'].items() if key in KEYS}
  assert list(scored[kind]) == KEYS and len(expected) == 9
  np.testing.assert_allclose([scored[kind][key] for key in expected], list(expected.values()), atol=1e-9)
  assert scored[kind]['AP_novel'] == scored[kind]['APr']
  assert scored['images'] == 100 and scored['detections'] == 4604


def test_rows_and_curves_agree_with_the_averages(scored):
  rows = scored['per_category']
  assert len(rows) == 1230 and sum(row['instances'] for row in rows) == 977
  for kind in ('box', 'mask'):
    for key in ('AP', 'AP50'):
      values = [row[f'{kind}_{key}'] for row in rows if row[f'{kind}_{key}'] is not None]
      assert len(values) == sum(row['instances'] > 0 for row in rows)
      np.testing.assert_allclose(np.mean(values), scored[kind][key])
      base = [row[f'{kind}_{key}'] for row in rows if row['base'] and row[f'{kind}_{key}'] is not None]
      np.testing.assert_allclose(np.mean(base), scored[kind][f'{key}_base'])
    np.testing.assert_allclose(np.mean(scored['curves'][kind]), scored[kind]['AP50'])


@pytest.mark.parametrize(('kind', 'name'), [('box', 'bbox'), ('mask', 'segm')])
def test_equals_the_official_coco_evaluator(shared, kind, name):
  folder = shared / 'data' / 'coco_eval'
  metrics = coco.evaluate(
    folder / 'instances_val2014_100.json', folder / f'instances_val2014_fake{name}100_results.json'
  )
  expected = json.loads((folder / 'golden_coco.json').read_text())[name]['pycocotools']
  keys = [key for key in KEYS if key in expected]
  assert len(keys) == 6
  np.testing.assert_allclose([metrics[kind][key] for key in keys], [expected[key] for key in keys], atol=1e-9)
  assert metrics[kind]['APr'] is None and metrics[kind]['AP_base'] is None
  assert metrics['mask' if kind == 'box' else 'box'] is None


def test_base_categories_may_be_given_and_empty_groups_are_none():
  truth = _truth([(1, 3, 10, 40), (2, 9, 10, 40)])
  found = [_found(1, 3, 10, 0.9), _found(2, 9, 100, 0.9)]
  by_frequency = lvis.evaluate(truth, found)['box']
  assert by_frequency['AP_base'] == pytest.approx(1) and by_frequency['AP_novel'] == 0
  assert by_frequency['APc'] is None and by_frequency['APl'] is None and by_frequency['AP'] == pytest.approx(0.5)
  given = lvis.evaluate(truth, found, base_category_ids=[9])
  assert given['box']['AP50_base'] == 0 and given['box']['AP50_novel'] == pytest.approx(1)
  assert [row['base'] for row in given['per_category']] == [False, False, True, False]
  assert lvis.evaluate(truth, found, base_category_ids=[3, 5, 9, 11])['box']['AP_novel'] is None
  json.dumps(given, allow_nan=False)
  with pytest.raises(DataError, match='base category 4 is unknown'):
    lvis.evaluate(truth, found, base_category_ids=[3, 4])


def test_pictures_without_ground_truth_and_unlisted_categories_are_no_trap():
  truth = _truth([(1, 3, 10, 40)])
  rows, columns = np.ogrid[:100, :200]
  square = (rows >= 10) & (rows < 50) & (columns >= 10) & (columns < 50)
  mask = {'segmentation': rle.encode_mask(square)}
  found = [_found(1, 3, 10, 0.9) | mask, _found(2, 5, 10, 0.99) | mask, _found(2, 9, 10, 0.99) | mask]
  metrics = lvis.evaluate(truth, found)
  assert metrics['box']['AP'] == pytest.approx(1) and metrics['mask']['AP'] == pytest.approx(1)
  negative = lvis.evaluate(_truth([(1, 3, 10, 40)], neg_category_ids=[3]), [*found, _found(2, 3, 10, 0.95) | mask])
  assert negative['box']['AP'] == pytest.approx(0.5)  # now a false positive ranks above the hit


@pytest.mark.parametrize('lists', [{}, {'not_exhaustive_category_ids': [9]}])
def test_ground_truth_that_names_no_absent_class_is_refused_for_it_would_inflate(lists):
  truth = _truth([(1, 3, 10, 40), (2, 5, 10, 40)], neg_category_ids=[], **lists)
  wrong = [_found(1, 5, 10, 0.9), _found(2, 3, 10, 0.9)]
  found = [*wrong, _found(1, 3, 10, 0.5), _found(2, 5, 10, 0.5)]
  assert coco.evaluate(truth, found)['box']['AP50'] == pytest.approx(0.5)
  with pytest.raises(DataError, match=r'none of the 2 pictures .*; expected .* evaluation\.protocol=coco') as error:
    lvis.evaluate(truth, found)
  assert '\n' not in str(error.value)
  truth['images'][1]['neg_category_ids'] = [3]
  assert lvis.evaluate(truth, found)['box']['AP50'] == pytest.approx(0.75)
  for image in truth['images']:
    del image['neg_category_ids']
  with pytest.raises(DataError, match='none of the 2 pictures'):
    lvis.evaluate(truth, found)
  truth['categories'] = truth['categories'][:1]  # one class: nothing to be taken for another
  truth['annotations'] = truth['annotations'][:1]
  assert lvis.evaluate(truth, found[2:3])['box']['AP50'] == pytest.approx(1)


def test_the_photographs_say_which_protocol_they_are_for(shared):
  folder = shared / 'data' / 'coco_photos' / 'annotations'
  assert lvis.evaluate(folder / 'lvis_v1_style_val.json', [])['images'] == 44
  with pytest.raises(DataError, match=r'instances_val2017\.json: none of the 44 pictures'):
    lvis.evaluate(folder / 'instances_val2017.json', [])


@pytest.mark.parametrize('protocol', [lvis, coco])
@pytest.mark.parametrize(
  'segmentation',
  [{'segmentation': None}, {'segmentation': []}, {'segmentation': {}}, {}],
  ids=['null', 'empty list', 'empty object', 'no key'],
)
@pytest.mark.parametrize('is_crowd', [0, 1])
def test_masks_are_not_scored_where_an_object_has_none(protocol, segmentation, is_crowd):
  truth = _truth([(1, 3, 10, 40), (2, 3, 10, 40)])
  rows, columns = np.ogrid[:100, :200]
  mask = rle.encode_mask((rows >= 10) & (rows < 50) & (columns >= 10) & (columns < 50))
  found = [_found(i, 3, 10, 0.9) | {'segmentation': mask} for i in (1, 2)]
  assert protocol.evaluate(truth, found)['mask']['AP'] == pytest.approx(1)
  del truth['annotations'][1]['segmentation']
  truth['annotations'][1] |= {**segmentation, 'iscrowd': is_crowd}
  metrics = protocol.evaluate(truth, found)
  assert metrics['mask'] is None and metrics['curves']['mask'] is None
  assert metrics['per_category'][0]['mask_AP'] is None
  assert metrics['box']['AP'] == pytest.approx(1)


def test_only_the_best_300_of_a_picture_count():
  truth = _truth([(1, 3, 10, 40), (1, 5, 10, 40)])
  crowd = [_found(1, 5, 100, 0.9) for _ in range(300)]
  assert lvis.evaluate(truth, [*crowd, _found(1, 3, 10, 0.5)])['box']['APf'] == 0
  assert lvis.evaluate(truth, [*crowd[:-1], _found(1, 3, 10, 0.5)])['box']['APf'] == pytest.approx(1)


def test_small_ground_truth_and_thin_categories_can_be_left_out():
  truth = _truth([(1, 3, 10, 40), (1, 3, 60, 20), (2, 3, 10, 40), (2, 5, 10, 40), (2, 5, 60, 20)])
  found = [_found(1, 3, 10, 0.9), _found(2, 3, 10, 0.9), _found(1, 3, 60, 0.95, 20)]
  everything = lvis.evaluate(truth, found)
  assert everything['box']['AP50'] == pytest.approx(0.5)
  large = lvis.evaluate(truth, found, min_area=32**2, min_instances=2)
  assert [row['instances'] for row in large['per_category']] == [2, 1, 0, 0]
  assert large['box']['AP50'] == pytest.approx(1)  # the small hit is neither right nor wrong
  missed = lvis.evaluate(truth, found[:2], min_area=32**2, min_instances=2)
  assert missed['box']['AP50'] == pytest.approx(1)
  assert lvis.evaluate(truth, found[:2], min_instances=2)['box']['AP50'] < 0.5


def test_crowds_neither_help_nor_hurt_by_the_coco_protocol():
  truth = _truth([(1, 3, 10, 40), (1, 3, 100, 80)])
  found = [_found(1, 3, 10, 0.5), _found(1, 3, 110, 0.9), _found(1, 3, 130, 0.8)]
  assert coco.evaluate(truth, found)['box']['AP50'] < 0.5
  truth['annotations'][1]['iscrowd'] = 1
  metrics = coco.evaluate(truth, found)
  assert metrics['box']['AP50'] == pytest.approx(1) and metrics['per_category'][0]['instances'] == 1


def test_no_detections_score_zero():
  metrics = lvis.evaluate(_truth([(1, 3, 10, 40)]), [])
  assert metrics['box']['AP'] == 0 and metrics['mask']['AP50'] == 0 and metrics['box']['APr'] is None


def test_input_is_left_as_it_was():
  truth, found = _truth([(1, 3, 10, 40)]), [_found(1, 3, 10, 0.9)]
  before = json.dumps([truth, found])
  lvis.evaluate(truth, found)
  assert json.dumps([truth, found]) == before


@pytest.mark.parametrize(
  ('break_it', 'message'),
  [
    (lambda t: t.pop('images'), "no list 'images'"),
    (lambda t: t['annotations'][0].pop('bbox'), r"annotations\[0\]: no 'bbox'"),
    (lambda t: t['annotations'][0].update(image_id=77), r'annotations\[0\]: image_id 77 is unknown'),
    (lambda t: t['annotations'][0].update(category_id=77), 'category_id 77 is unknown'),
    (lambda t: t['images'][1].pop('height'), r"images\[1\]: no 'height'"),
  ],
)
def test_ground_truth_that_cannot_be_used_is_named(break_it, message):
  truth = _truth([(1, 3, 10, 40)])
  break_it(truth)
  with pytest.raises(DataError, match=message) as error:
    lvis.evaluate(truth, [])
  assert '\n' not in str(error.value)


def test_scoring_needs_no_jax(tmp_path):
  (tmp_path / 'truth.json').write_text(json.dumps(_truth([(1, 3, 10, 40)])))
  (tmp_path / 'found.json').write_text(json.dumps([_found(1, 3, 10, 0.9)]))
  program = (
    'import sys\n'
    'from vild_jax.eval import coco, lvis, paste, results, summary\n'
    f'metrics = lvis.evaluate({str(tmp_path / "truth.json")!r}, {str(tmp_path / "found.json")!r})\n'
    f'summary.write_reports({str(tmp_path / "out")!r}, metrics)\n'
    'print(metrics["box"]["AP"])\n'
    'found = {"jax", "flax", "torch", "tensorflow"} & set(sys.modules)\n'
    'assert not found, found\n'
  )
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert float(done.stdout) == pytest.approx(1) and (tmp_path / 'out' / 'metrics.json').is_file()
