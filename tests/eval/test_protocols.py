"""Every protocol against another implementation of it, or numbers worked out by hand; and what reports say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from tests.helpers import small_scores
from vild_jax.config import defaults
from vild_jax.data.schema import DataError
from vild_jax.eval import detections, lvis, protocols, scoring, truth
from vild_jax.eval.truth import Split

BIG = 2**53


def _oracle(ground_truth, results, kind, federated, limit):
  """Precision by faster-coco-eval, which needs small ids and crashes on some detections of unlisted classes."""
  key = {'box': 'bbox', 'mask': 'segmentation'}[kind]
  keys = ('image_id', 'category_id', 'score', key)
  gt = COCO(json.loads(json.dumps(ground_truth)))
  dt = gt.loadRes([{k: r[k] for k in keys} for r in results])
  judge = COCOeval_faster(gt, dt, 'bbox' if kind == 'box' else 'segm', lvis_style=federated)
  judge.params.maxDets = [limit]
  judge.evaluate()
  judge.accumulate()
  table = np.array(judge.eval['precision'])[..., 0]
  return np.where(table < 0, np.nan, table)


def _listed(ground_truth, results):
  of = {i['id']: set(i['neg_category_ids']) for i in ground_truth['images']}
  for a in ground_truth['annotations']:
    of[a['image_id']].add(a['category_id'])
  return [r for r in results if r['category_id'] in of[r['image_id']]]


@pytest.mark.parametrize('federated', [True, False])
@pytest.mark.parametrize('block', range(3))
def test_precision_equals_another_evaluator_on_random_cases(block, federated):
  """100 cases; detections of classes that a picture does not list count by the COCO protocol alone."""
  compared = 0
  for seed in range(100 * block, 100 * block + 100):
    ground_truth, results = small_scores.case(seed, crowds=not federated)
    if not (results and ground_truth['annotations']):
      continue
    of = truth.read(ground_truth)
    found = detections.read(results, of)
    kept = lvis.listed(of, found) if federated else found
    for kind in ('box', 'mask'):
      ours = scoring.precision(of, kept, kind, federated=federated, max_detections=100)
      chosen = _listed(ground_truth, results) if federated else results
      if not chosen:
        assert not np.nansum(ours)
        continue
      np.testing.assert_allclose(
        ours, _oracle(ground_truth, chosen, kind, federated, 100), atol=1e-12, err_msg=str(seed)
      )
      compared += np.nansum(ours) > 0
  assert compared > 100


def test_ids_beyond_float64_and_the_order_of_lists_change_nothing():
  for seed in range(20):
    small, large = (small_scores.case(seed, first_id=first) for first in (1, BIG))
    if not small[0]['annotations']:
      continue
    one, other = (
      protocols.score(name, of, detections.read(results, of))
      for ground_truth, results in (small, large)
      for of in [truth.read(ground_truth | {'images': ground_truth['images'][::-1]})]
      for name in ['coco']
    )
    assert one['box'] == other['box'] and one['mask'] == other['mask']
  images = [{'id': BIG + i, 'height': 9, 'width': 9} for i in (0, 1)]
  boxes = [[0, 0, 5, 5], [3, 3, 6, 6]]
  objects = [{'id': i, 'image_id': BIG + i, 'category_id': 1, 'bbox': box, 'area': 25} for i, box in enumerate(boxes)]
  of = truth.read({'images': images, 'annotations': objects, 'categories': [{'id': 1, 'name': 'a'}]})
  swapped = [{'image_id': BIG + 1 - i, 'category_id': 1, 'bbox': box, 'score': 1} for i, box in enumerate(boxes)]
  assert protocols.score('coco', of, detections.read(swapped, of))['box']['AP50'] == 0


def test_the_lvis_protocol_knows_no_crowds():
  for seed in range(40):
    ground_truth, results = small_scores.case(seed)
    if not (results and ground_truth['annotations'] and any(i['neg_category_ids'] for i in ground_truth['images'])):
      continue
    plain = ground_truth | {'annotations': [a | {'iscrowd': 0} for a in ground_truth['annotations']]}
    with_crowds, without = (lvis.evaluate(of, results) for of in (ground_truth, plain))
    assert with_crowds == without


def _small_truth(annotations, images=2, classes='abc'):
  """(image, class, x, side) squares at y = 10 in pictures of 100 x 200."""
  return truth.read(
    {
      'images': [{'id': i, 'height': 100, 'width': 200, 'neg_category_ids': [1]} for i in range(1, images + 1)],
      'categories': [{'id': k, 'name': name} for k, name in enumerate(classes, 1)],
      'annotations': [
        {'image_id': i, 'category_id': k, 'bbox': [x, 10, side, side], 'area': side * side, **more}
        for i, k, x, side, more in ((*a, {})[:5] for a in annotations)
      ],
    }
  )


def _found(of, *rows):
  return detections.read(
    [{'image_id': i, 'category_id': k, 'bbox': [x, 10, 40, 40], 'score': s} for i, k, x, s in rows], of
  )


def test_fixed_ap_counts_a_category_however_many_a_picture_has(monkeypatch):
  of = _small_truth([(1, 1, 10, 40), (1, 2, 10, 40)])
  crowd = [(1, 2, 100, 0.9)] * 300
  found = _found(of, *crowd, (1, 1, 10, 0.5))
  assert protocols.score('lvis', of, found)['per_category'][0]['box_AP50'] == 0
  assert protocols.score('lvis-fixed', of, found)['per_category'][0]['box_AP50'] == pytest.approx(1)
  late = _found(of, (1, 1, 100, 0.9), (2, 1, 100, 0.8), (1, 1, 10, 0.5), (1, 2, 10, 0.1))
  assert protocols.score('lvis-fixed', of, late)['per_category'][0]['box_AP50'] == pytest.approx(1 / 3)
  monkeypatch.setattr(lvis, 'FIXED', 2)
  cut = protocols.score('lvis-fixed', of, late)['per_category']
  assert cut[0]['box_AP50'] == 0 and cut[1]['box_AP50'] == pytest.approx(1)  # 2 of each category, not of all


def test_open_vocabulary_coco_takes_other_classes_and_pictures_out():
  split = Split(frozenset({1}), frozenset({2}))
  of = _small_truth([(1, 1, 10, 40), (2, 2, 10, 40), (3, 3, 10, 40)], images=4)
  found = _found(of, (1, 1, 10, 0.9), (1, 2, 100, 0.8), (2, 2, 10, 0.7), (3, 2, 100, 0.95), (3, 3, 10, 0.9))
  metrics = protocols.score('coco-ovd', of, found, base=split)
  assert (metrics['images'], metrics['categories'], metrics['objects']) == (2, 2, 2)
  # The wrong detection in picture 3, which shows neither, does not count; the one in picture 1 does.
  assert metrics['box']['AP50_base'] == pytest.approx(1) and metrics['box']['AP50_novel'] == pytest.approx(0.5)
  assert metrics['box']['AP50'] == pytest.approx(0.75)
  assert metrics['novel_only'] == {'images': 1, 'box_AP50': pytest.approx(1), 'mask_AP50': None}
  alone = protocols.score('coco-ovd', of, found, base=Split(frozenset({1}), frozenset()))
  assert 'novel_only' not in alone and alone['box']['AP50_novel'] is None and alone['images'] == 1
  with pytest.raises(DataError, match='--protocol coco-ovd needs to know'):
    protocols.score('coco-ovd', of, found)


def test_proposals_are_recalled_whatever_their_class():
  # Four objects; at IoU 0.5 to 0.95 the exact boxes are found at all ten thresholds, the one moved by 8 of 40 pixels
  # (IoU 2/3) at four: 0.5, 0.55, 0.6, 0.65.
  of = _small_truth([(1, 1, 10, 40), (1, 2, 100, 40), (2, 1, 10, 40), (2, 3, 100, 40)])
  found = _found(of, (1, 3, 10, 0.9), (1, 1, 108, 0.8), (2, 1, 10, 0.7))
  split = Split(frozenset({1}), frozenset({2}))
  box = protocols.score('proposals', of, found, base=split)['box']
  assert box['AR@100'] == pytest.approx((1 + 0.4 + 1 + 0) / 4) == box['AR@1000'] == box['ARm@1000']
  assert box['AR_base@300'] == pytest.approx(1) and box['AR_novel@300'] == pytest.approx(0.4)
  assert box['ARs@1000'] is None
  many = _found(of, *[(1, 1, 150, 0.9)] * 150, (1, 1, 10, 0.5))
  recall = protocols.score('proposals', of, many)['box']
  assert recall['AR@100'] == 0 and recall['AR@300'] == pytest.approx(0.25) and 'AR_base@100' not in recall


def test_reports_say_what_was_counted(tmp_path):
  ground_truth, results = small_scores.case(4)
  (tmp_path / 'truth.json').write_text(json.dumps(ground_truth))
  of = truth.read(tmp_path / 'truth.json')
  found = detections.read(results, of)
  assert tuple(protocols.PROTOCOLS) == defaults.PROTOCOLS
  for name in set(protocols.PROTOCOLS) - {'coco-ovd'}:
    metrics = protocols.score(name, of, found)
    assert metrics['protocol'] == name and metrics['detections_counted'] == protocols.PROTOCOLS[name].counted
    assert metrics['annotations'] == {'file': str(tmp_path / 'truth.json'), 'sha256': of.digest}
    assert metrics['images'] == len(ground_truth['images']) and metrics['detections'] == len(results)
    assert metrics['categories_with_objects'] == len({a['category_id'] for a in ground_truth['annotations']})
    assert {'python', 'vild_jax', 'hotcoco', 'numpy'} == set(metrics['versions'])
    json.dumps(metrics, allow_nan=False)


def test_masks_alone_are_no_input_for_protocols_of_boxes():
  ground_truth, results = small_scores.case(4)
  of = truth.read(ground_truth)
  masks = detections.read([{k: v for k, v in row.items() if k != 'bbox'} for row in results], of)
  for name in ('voc', 'proposals'):
    with pytest.raises(DataError, match=f'the results have masks alone; --protocol {name} is of boxes'):
      protocols.score(name, of, masks)


def test_a_category_may_be_neither_base_nor_novel():
  of = _small_truth([(1, 1, 10, 40), (1, 3, 100, 40)])
  found = _found(of, (1, 1, 10, 0.9), (1, 3, 100, 0.9))
  split = Split(frozenset({1}), frozenset({2}))
  for name in ('voc', 'coco'):
    metrics = protocols.score(name, of, found, base=split)
    assert metrics['box']['AP50_base'] == pytest.approx(1) and metrics['box']['AP50_novel'] is None, name
    assert [row['base'] for row in metrics['per_category']] == [True, False, None], name


def test_a_split_is_read_from_a_vocabulary_a_list_of_names_or_the_published_one(tmp_path):
  of = _small_truth([], classes=('person', 'cat', 'bench'))
  np.savez(tmp_path / 'v.npz', names=['cat', 'zebra', 'person'], is_base=[False, False, True])
  assert protocols.split(of, tmp_path / 'v.npz') == Split(frozenset({1}), frozenset({2}))
  (tmp_path / 'base.txt').write_text('bench\nperson\n')
  assert protocols.split(of, tmp_path / 'base.txt') == Split(frozenset({1, 3}), frozenset({2}))
  assert protocols.split(of, 'coco-ovd') == Split(frozenset({1, 3}), frozenset({2}))
  for content, message in ((b'PK', 'cannot be read'), (b'', 'cannot be read')):
    (tmp_path / 'v.npz').write_bytes(content)
    with pytest.raises(DataError, match=message):
      protocols.split(of, tmp_path / 'v.npz')
  misspelt = _small_truth([], classes=('Person', 'Bakset', 'Cup'))  # as the official files of Objects365 have it
  (tmp_path / 'base.txt').write_text('Basket\n')
  assert protocols.split(misspelt, tmp_path / 'base.txt') == Split(frozenset({2}), frozenset({1, 3}))
  np.savez(tmp_path / 'w.npz', names=['Basket', 'Person'], is_base=[True, False])
  assert protocols.split(misspelt, tmp_path / 'w.npz') == Split(frozenset({2}), frozenset({1}))
  twice = _small_truth([], classes=('cat', 'dog', 'cat'))
  (tmp_path / 'base.txt').write_text('cat\n')
  assert protocols.split(twice, tmp_path / 'base.txt') == Split(frozenset({1, 3}), frozenset({2}))
  rare = {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'cat', 'frequency': 'f'}]}
  rare['categories'].append({'id': 2, 'name': 'dog', 'frequency': 'r'})
  (tmp_path / 'a.json').write_text(json.dumps(rare))
  assert protocols.split(twice, tmp_path / 'a.json') == Split(frozenset({1, 3}), frozenset({2}))
  np.savez(tmp_path / 'v.npz', names=['cat', 'dog'], is_base=[True])
  with pytest.raises(DataError, match='2 names and 1 flags'):
    protocols.split(of, tmp_path / 'v.npz')
  (tmp_path / 'base.txt').write_text('dodo\n')
  with pytest.raises(DataError, match='none of its 1 base classes is a category'):
    protocols.split(of, tmp_path / 'base.txt')


@pytest.mark.parametrize(
  ('protocol', 'masks', 'learnt', 'why'),
  [
    ('coco', (True, True), True, ''),
    ('coco', (True, True), False, 'the detector has learnt no masks'),
    ('lvis', (True, False), True, '1 of 2 objects have no mask'),
    ('coco', (), True, ''),
    ('voc', (False, False), False, ''),  # a protocol of boxes
  ],
)
def test_why_masks_are_not_scored(protocol, masks, learnt, why):
  annotations = [
    {'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 4, 4], 'area': 16}
    | ({'segmentation': [[0, 0, 4, 0, 4, 4]]} if has else {})
    for has in masks
  ]
  images, categories = [{'id': 1, 'height': 8, 'width': 8}], [{'id': 1, 'name': 'ant'}]
  of = truth.read({'images': images, 'categories': categories, 'annotations': annotations})
  assert protocols.boxes_alone(protocol, of, learnt=learnt) == why
  if learnt and protocol != 'voc':
    assert (protocols.masks(protocol, of) is None) == bool(why)
    none = detections.read([], of)
    assert protocols.score('coco', of, none)['masks_not_scored'] == why or not masks
