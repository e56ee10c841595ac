"""What is scored: a data set's categories and a vocabulary that has some of them."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from tests.helpers import small_set, tiny
from vild_jax.data import class_lists, prepare, sources
from vild_jax.data.schema import DataError
from vild_jax.eval import detections, protocols, shards, truth
from vild_jax.inference import evaluation, jobs
from vild_jax.train import sharding
from vild_jax.vocabulary import VocabularyFile

CAT, PERSON, CUP, HOT_DOG = 17, 1, 47, 58  # novel, base, novel, and one of the 15 that are neither
_OF = {3: CAT, 1: PERSON, 8: HOT_DOG}  # in the place of the small set's own
SPLIT = class_lists.class_list('coco-ovd')
WORDS = VocabularyFile(np.eye(65, 80), SPLIT.names, np.array(SPLIT.is_base), 'made up', '')


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  """The small set with COCO's 80 categories: a cat, a person and two hot dogs."""
  folder = tmp_path_factory.mktemp('data')
  tree = small_set.annotations([{'id': c.id, 'name': c.name} for c in class_lists.coco_categories()])
  tree['annotations'] = [{**a, 'category_id': _OF[a['category_id']]} for a in tree['annotations']]
  prepare.prepare(*small_set.write(folder, tree, stem='small_val'), folder / 'data')
  return sources.open_dataset(folder / 'data', 'val')


def perfect(config, variables, classes, trained_on, dataset, mesh, timer):
  """Finds every object that has a name in the vocabulary, and in each picture a cup, which none of them is."""
  row_of, name_of = {name: row for row, name in enumerate(classes.names)}, {c.id: c.name for c in dataset.categories}
  for example in map(dataset.__getitem__, range(len(dataset))):
    objects = example.objects
    known = [i for i, c in enumerate(objects.category_ids) if name_of[int(c)] in row_of]
    labels = [row_of[name_of[int(objects.category_ids[i])]] for i in known] + [row_of['cup']]
    boxes = np.concatenate([objects.boxes[known], [[0, 0, 9, 9]]])
    timer.add(0.1, 1)
    yield (
      {
        'image_id': example.image_id,
        'original_size': (example.height, example.width),
        'boxes': boxes,
        'labels': np.array(labels, int),
        'scores': np.linspace(0.9, 0.5, len(labels)),
        'masks': np.ones((len(labels), 28, 28), np.float32),
      },
    )


def evaluate(dataset, out, protocol, *more, words=WORDS, predict=perfect, variables=None):
  config = tiny.config(f'evaluation.protocol={protocol}', 'model.region_head.embedding_dim=80', *more)
  return evaluation.evaluate(
    config, variables or {}, words, words, dataset, out, mesh=sharding.make_mesh(config.mesh), predict=predict
  )


def test_open_vocabulary_coco_is_scored_on_the_categories_of_the_vocabulary(dataset, tmp_path, capsys):
  metrics = evaluate(dataset, tmp_path, 'coco')
  assert capsys.readouterr().err.splitlines() == [
    "15 of 80 categories of the data are not in the vocabulary, 'traffic light' for one; they are not scored"
  ]
  for group, base in (('base', True), ('novel', False)):
    rows = {row['id'] for row in metrics['per_category'] if row['base'] is base}
    assert rows == {key for key, flag in zip(SPLIT.ids, SPLIT.is_base, strict=True) if flag is base}, group
  instances = {row['id']: row['instances'] for row in metrics['per_category'] if row['instances']}
  assert instances == {CAT: 1, PERSON: 1} and metrics['images'] == 4
  assert metrics['box']['AP50'] == metrics['box']['AP50_base'] == metrics['box']['AP50_novel'] == pytest.approx(1)
  assert {r['category_id'] for r in json.loads((tmp_path / 'results.json').read_text())} == {CAT, PERSON, CUP}


def test_pictures_without_a_scored_object_are_left_out_if_the_config_says_so(dataset, tmp_path, capsys):
  """The picture of the hot dog, which is neither base nor novel, and the one without objects."""
  metrics = evaluate(dataset, tmp_path, 'coco', 'evaluation.only_with_objects=true')
  said = capsys.readouterr().err
  assert '2 of 4 pictures show an object of a scored category (evaluation.only_with_objects)' in said
  assert metrics['images'] == 2
  assert {r['image_id'] for r in json.loads((tmp_path / 'results.json').read_text())} == {5, 11}


def test_each_picture_of_the_split_is_read_once(dataset, tmp_path, monkeypatch):
  read, getitem = [], sources.PreparedDataset.__getitem__
  monkeypatch.setattr(
    sources.PreparedDataset, '__getitem__', lambda self, index: (read.append(index), getitem(self, index))[1]
  )
  evaluate(dataset, tmp_path / 'coco', 'coco', 'evaluation.only_with_objects=true')
  assert len(read) == len(set(read)) == 2
  read.clear()
  evaluate(dataset, tmp_path / 'all', 'coco')
  assert sorted(read) == [0, 1, 2, 3]


def test_a_killed_evaluation_goes_on_and_ends_as_one_without_a_break(dataset, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(shards, '_PICTURES', 1)
  monkeypatch.setattr(evaluation, '_WAITING', 0)
  settings = ('coco', 'evaluation.batch_size=1', 'mesh.data=1')
  asked = []

  def counting(config, variables, classes, trained_on, pictures, mesh, timer):
    asked.append(len(pictures))
    for n, found in enumerate(perfect(config, variables, classes, trained_on, pictures, mesh, timer)):
      if len(asked) == 1 and n == 3:
        raise KeyboardInterrupt
      yield found

  whole = evaluate(dataset, tmp_path / 'whole', *settings)
  with pytest.raises(KeyboardInterrupt):
    evaluate(dataset, tmp_path / 'broken', *settings, predict=counting)
  assert (tmp_path / 'broken' / 'unfinished' / 'job.json').is_file()
  for more, what in (
    (('data.image_size=128',), 'config'),
    (('model.temperature=0.5',), 'config'),
    (('evaluation.batch_size=2',), 'batch size'),
  ):
    with pytest.raises(DataError, match=f'an unfinished evaluation of which the {what} differs'):
      evaluate(dataset, tmp_path / 'broken', *settings, *more, predict=counting)
  with pytest.raises(DataError, match='of which the weights differs'):
    evaluate(dataset, tmp_path / 'broken', *settings, predict=counting, variables={'w': np.ones(3)})
  assert asked == [4]
  capsys.readouterr()
  # Neither the protocol nor the number of workers decides what is detected.
  resumed = evaluate(dataset, tmp_path / 'broken', *settings, 'data.flip=false', predict=counting)
  assert asked[1] < 4 and f'going on with {4 - asked[1]} of 4 shards' in capsys.readouterr().err
  assert resumed == whole | {'seconds_per_image': resumed['seconds_per_image']}
  texts = [(tmp_path / name / 'results.json').read_bytes() for name in ('whole', 'broken')]
  assert texts[0] == texts[1] and not (tmp_path / 'broken' / 'unfinished').exists()


def test_only_model_and_input_size_tell_the_configs_of_detectors_apart():
  """Else a setting that a later version adds would part an evaluation from its detector."""
  words = VocabularyFile(np.eye(1, 4), ('ant',), np.array([True]), 'made up', '')
  of = lambda *more: jobs.of_detector(tiny.config(*more), {'w': np.zeros(2)}, words)['config']
  model = dataclasses.asdict(tiny.config().model)
  expected = hashlib.sha256(json.dumps({'image_size': 64, 'model': model}, sort_keys=True).encode()).hexdigest()
  assert of() == of('train.steps=3', 'evaluation.batch_size=2', 'data.flip=false') == expected
  assert len({of(), of('data.image_size=128'), of('model.temperature=0.5')}) == 3


def federated(folder):
  """The small set with a vocabulary of its three classes: image 5 lists the mug as absent, and others list nothing."""
  prepare.prepare(*small_set.write(folder, stem='lists_val'), folder / 'lists')
  of = sources.open_dataset(folder / 'lists', 'val')
  names = tuple(category.name for category in of.categories)
  return of, VocabularyFile(np.eye(3, 80), names, np.array([True, False, True]), 'made up', '')


def every_class(config, variables, classes, trained_on, dataset, mesh, timer):
  """Finds something of every class in each picture."""
  for example in map(dataset.__getitem__, range(len(dataset))):
    count = len(classes.names)
    objects = example.objects.boxes
    yield (
      {
        'image_id': example.image_id,
        'original_size': (example.height, example.width),
        'boxes': np.concatenate([objects, np.tile([[3.0, 4, 20, 30]], (count, 1))])[:count],
        'labels': np.arange(count),
        'scores': np.linspace(0.9, 0.5, count),
        'masks': np.full((count, 28, 28), 0.8, np.float32),
      },
    )


def test_only_detections_that_the_protocol_can_count_get_masks(tmp_path):
  dataset, words = federated(tmp_path)
  metrics = {
    protocol: evaluate(dataset, tmp_path / protocol, protocol, words=words, predict=every_class)
    for protocol in ('lvis', 'coco', 'voc')
  }
  rows = {name: json.loads((tmp_path / name / 'results.json').read_text()) for name in metrics}
  bare = [{k: v for k, v in row.items() if k != 'segmentation'} for row in rows['coco']]
  assert all('segmentation' in row for row in rows['coco']) and rows['voc'] == bare
  lists = {11: {3, 8}, 5: {1, 3}, 7: {8}, 300: set()}
  assert rows['lvis'] == [
    row if row['category_id'] in lists[row['image_id']] else other
    for row, other in zip(rows['coco'], bare, strict=True)
  ]
  known = truth.read(sources.ground_truth(dataset)[0], str(dataset.folder))
  split = known.split([c.id for c, flag in zip(dataset.categories, words.is_base, strict=True) if flag])
  whole = protocols.score('lvis', known, detections.read(rows['coco'], known), base=split)
  assert (whole['box'], whole['mask']) == (metrics['lvis']['box'], metrics['lvis']['mask']) and whole['mask']['AP'] > 0


def test_an_unfinished_evaluation_goes_on_with_a_protocol_of_the_same_family(dataset, tmp_path, monkeypatch):
  monkeypatch.setattr(shards, '_PICTURES', 1)
  monkeypatch.setattr(evaluation, '_WAITING', 0)
  settings = ('evaluation.batch_size=1', 'mesh.data=1')

  def broken(*args):
    yield next(perfect(*args))
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    evaluate(dataset, tmp_path, 'coco', *settings, predict=broken)
  with pytest.raises(DataError, match='of which the choice of masks differs'):
    evaluate(dataset, tmp_path, 'voc', *settings)
  assert evaluate(dataset, tmp_path, 'coco-ovd', *settings)['protocol'] == 'coco-ovd'


def test_processes_that_encode_masks_change_nothing(dataset, tmp_path):
  evaluate(dataset, tmp_path / 'one', 'coco')
  evaluate(dataset, tmp_path / 'two', 'coco', 'data.workers=2')
  texts = [(tmp_path / name / 'results.json').read_bytes() for name in ('one', 'two')]
  assert texts[0] == texts[1] and b'counts' in texts[0]


def test_by_the_lvis_protocol_a_category_without_a_row_is_an_error(dataset, tmp_path):
  with pytest.raises(
    DataError,
    match=r"15 categories of the data set are not in the vocabulary, 'traffic light' for "
    'one; expected a row for each',
  ):
    evaluate(dataset, tmp_path / 'out', 'lvis')
  assert not (tmp_path / 'out').exists()


def test_a_vocabulary_of_none_of_the_categories_is_an_error(dataset, tmp_path):
  strangers = VocabularyFile(np.eye(2, 80), ('dodo', 'roc'), np.array([True, False]), 'made up', '')
  with pytest.raises(DataError, match=r"80 categories .* 'person' for one; expected a row for some"):
    evaluate(dataset, tmp_path / 'out', 'coco', words=strangers)


def test_the_background_is_that_of_the_classes_or_of_the_training():
  mesh = sharding.make_mesh(tiny.config('mesh.data=1').mesh)
  one, other = (dataclasses.replace(WORDS, background=row) for row in np.eye(80)[:2])
  assert evaluation.put_vocabulary(WORDS, WORDS, mesh).background is None
  for classes, trained_on, expected in ((WORDS, one, 0), (one, other, 0), (one, WORDS, 0), (WORDS, other, 1)):
    background = evaluation.put_vocabulary(classes, trained_on, mesh).background
    np.testing.assert_array_equal(background, np.eye(80)[expected])
