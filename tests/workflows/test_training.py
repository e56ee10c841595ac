"""What a training reads, and starts from: which pictures it is shown, which classes are labelled, whose weights."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest

from tests.helpers import planted_store, small_set, tiny
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax import vocabulary
from vild_jax.data import prepare, sources
from vild_jax.data.schema import DataError
from vild_jax.train import checkpoint, state
from vild_jax.vocabulary import VocabularyFile, save
from vild_jax.workflows import training

RED_MUG = 3  # its id


def _opened(folder, base, *more, crowds=(), without=None, masks=True):
  """Pictures 5 (an ant), 7 (a tree), 11 (a mug and a tree) and 300 (nothing), with these classes as base."""
  tree = small_set.annotations()
  tree['annotations'] = [a for a in tree['annotations'] if a['category_id'] != without]
  for annotation in tree['annotations']:
    annotation['iscrowd'] = int(annotation['image_id'] in crowds)
    if not masks:
      del annotation['segmentation']
  prepare.prepare(*small_set.write(folder, tree), folder / 'data')
  names = tuple(category['name'] for category in tree['categories'])
  words = VocabularyFile(np.eye(3, 16, dtype=np.float32), names, np.array([n in base for n in names]), 'made up', '')
  save(folder / 'v.npz', words)
  places = [f'data.train={folder / "data"}', f'vocabulary={folder / "v.npz"}', 'data.batch_size=2']
  return training.open_training(tiny.config(*places, *more))


def _seen(opened, batches=12):
  return {int(i) for arrays in itertools.islice(opened.stream(0), batches) for i in arrays['image_id']}


def test_pictures_without_a_base_object_are_trained_on_unless_the_config_says_otherwise(tmp_path, capsys):
  assert _seen(_opened(tmp_path / 'all', {'ant'})) == {5, 7, 11, 300}
  only = 'data.only_with_objects=true'
  assert _seen(_opened(tmp_path / 'ant', {'ant'}, only)) == {5}
  assert '1 of 4 pictures show an object of a class that training may use' in capsys.readouterr().err
  assert _seen(_opened(tmp_path / 'tree', {'tree'}, only)) == {7, 11}
  assert _seen(_opened(tmp_path / 'crowd', {'tree', 'ant'}, only, crowds=(7,))) == {5, 7, 11}
  assert _seen(_opened(tmp_path / 'repeat', {'tree'}, only, 'data.repeat_threshold=0.9')) == {7, 11}
  novel = 'assignment.novel_labels=true'
  assert _seen(_opened(tmp_path / 'novel', {'ant'}, only, novel)) == {5, 7, 11}


def test_a_fixed_background_is_trained_with_and_kept(tmp_path):
  opened = _opened(tmp_path, {'ant'})
  assert opened.classes().background is None
  fixed = dataclasses.replace(opened.vocabulary, background=np.eye(16)[1])
  np.testing.assert_array_equal(dataclasses.replace(opened, vocabulary=fixed).classes().background, np.eye(16)[1])
  training._keep_vocabulary(tmp_path / 'kept.npz', fixed)
  training._keep_vocabulary(tmp_path / 'kept.npz', fixed)
  with pytest.raises(ValueError, match='differs from the given vocabulary'):
    training._keep_vocabulary(tmp_path / 'kept.npz', opened.vocabulary)


def test_without_any_such_picture_the_data_set_is_refused(tmp_path):
  with pytest.raises(DataError, match='none of the 4 pictures shows an object of a class that training may use'):
    _opened(tmp_path, {'red mug'}, 'data.only_with_objects=true', without=RED_MUG)


def test_classes_that_are_no_categories_of_the_data_are_known_as_unlabelled(tmp_path):
  opened = _opened(tmp_path / 'all', {'tree', 'ant'})
  assert opened.classes().labelled is None and not len(opened.unlabelled)
  words = opened.vocabulary
  names, rows = (*words.names, 'cup', 'fox'), np.eye(5, 16, dtype=np.float32)
  for base, novel, expected in (
    (['cup'], False, [True, True, True, False, True]),  # a novel class takes no part anyway
    (['cup'], True, [True, True, True, False, False]),
    ([], False, None),
  ):
    larger = VocabularyFile(rows, names, np.array([n in ('tree', *base) for n in names]), 'made up', '')
    save(tmp_path / 'all' / 'v.npz', larger)
    again = training.open_training(
      config_lib.override(opened.config, [f'assignment.novel_labels={str(novel).lower()}'])
    )
    found = again.classes().labelled
    assert (found.tolist() if found is not None else None) == expected


def test_boxes_alone_keep_the_mask_head_that_they_start_from_if_it_is_frozen(tmp_path, capsys):
  start, frozen = 'train.init=bundle', 'train.freeze=backbone/*,mask_head/*'
  for number, (more, masks) in enumerate((((), False), ((start,), False), ((frozen,), False), ((start, frozen), True))):
    opened = _opened(tmp_path / str(number), {'tree'}, *more, masks=False)
    assert opened.config.model.masks is masks
    said = capsys.readouterr().err
    assert '0 of 2 objects to learn have a mask; ' in said and ('the frozen mask head stays' in said) is masks
    batch = next(opened.stream(0))
    assert ('masks' in batch) is masks and not (masks and batch['has_mask'].any())


def _start(folder, *settings):
  """A folder that a training may start from, as far as its config says it."""
  folder.mkdir()
  (folder / checkpoint.CONFIG_FILE).write_text(config_lib.to_text(tiny.config(*settings)))
  return f'train.init={folder}'


def test_boxes_alone_do_not_take_the_masks_of_a_detector_that_has_them(tmp_path, capsys):
  start = _start(tmp_path / 'bundle')
  opened = _opened(tmp_path / 'a', {'tree'}, start, 'train.freeze=backbone/*', masks=False)
  assert opened.config.model.masks and opened.config.train.freeze == ('backbone/*', 'mask_head/*')
  said = '0 of 2 objects to learn have a mask; the frozen mask head stays (mask_head/* is added to train.freeze)'
  assert said in capsys.readouterr().err
  # Resumed, the training has what it had, with or without the bundle.
  (tmp_path / 'w').mkdir()
  (tmp_path / 'w' / checkpoint.CONFIG_FILE).write_text(config_lib.to_text(opened.config))
  given = config_lib.override(opened.config, ['train.freeze=backbone/*'])
  shutil.rmtree(tmp_path / 'bundle')
  assert training.open_training(given, tmp_path / 'w').config == opened.config
  assert training.open_training(opened.config, tmp_path / 'w').config == opened.config
  for number, other in enumerate(('model.masks=false', 'model.mask_head.channels=16')):
    start = _start(tmp_path / f'bundle{number}', other)
    assert not _opened(tmp_path / f'b{number}', {'tree'}, start, masks=False).config.model.masks


def test_masks_that_the_config_leaves_out_are_named(tmp_path, capsys):
  start = _start(tmp_path / 'bundle', 'model.masks=false')
  opened = _opened(tmp_path / 'a', {'tree'}, start, 'model.masks=false')
  assert '2 of 2 objects to learn have a mask; model.masks is false, and they are not learnt' in capsys.readouterr().err
  nothing = state.Start(None, (), '')
  assert training._meaning(opened.config, opened.vocabulary, nothing) == []
  learning = config_lib.override(opened.config, ['model.masks=true'])
  assert training._meaning(learning, opened.vocabulary, nothing) == [
    '  settings differ: model.masks: False and True, that of the folder first'
  ]
  _opened(tmp_path / 'b', {'tree'}, 'model.masks=false', masks=False)
  assert 'have a mask' not in capsys.readouterr().err


def test_frozen_weights_need_the_teacher_that_they_were_trained_with(tmp_path):
  config = tiny.config(_start(tmp_path / 'bundle'))
  rows, base = np.eye(3, 16, dtype=np.float32), np.ones(3, bool)
  save(tmp_path / 'bundle' / 'vocabulary.npz', VocabularyFile(rows, ('ant', 'tree', 'cup'), base, 'one', ''))
  start = lambda *frozen: state.Start(None, frozen, '')
  of = lambda frozen, rows=rows, teacher='one': training._meaning(
    config, VocabularyFile(rows, ('ant', 'cup', 'fox'), base, teacher, ''), start(*frozen)
  )
  assert of(('region_head/projection/kernel',), rows[[0, 2, 1]]) == []
  assert of((), rows + 1e-5)[0].startswith("  'cup' for one has another embedding there")
  assert of((), rows[[1, 2, 0]])[0].startswith("  'ant' for one has another embedding there")
  assert of(('backbone/group1_block1/projection/kernel', 'region_head/fc1/kernel'), teacher='two') == [
    '  its classes are embedded by another teacher: one, here two'
  ]
  kept = config_lib.override(config, ['train.retention=1'])
  other = VocabularyFile(rows, ('ant', 'cup', 'fox'), base, 'two', '')
  assert 'which it has never seen' in training._meaning(kept, other, start())[1]
  for name in ('region_head/projection/kernel', 'image_head/projection/bias', 'background'):
    with pytest.raises(ValueError, match=rf'train\.freeze: {name} is frozen, and in .* another teacher: one, here two'):
      of(('backbone/stem/kernel', name), teacher='two')


def test_a_fixed_background_that_the_new_vocabulary_lacks_is_named(tmp_path):
  config = tiny.config(_start(tmp_path / 'bundle'))
  rows, base = np.eye(3, 16, dtype=np.float32), np.ones(3, bool)
  of = lambda background: VocabularyFile(rows, ('ant', 'tree', 'cup'), base, 'one', '', background)
  said = lambda words: training._meaning(config, words, state.Start(None, (), ''))
  save(tmp_path / 'bundle' / 'vocabulary.npz', of(-rows[0]))
  (line,) = said(of(None))
  assert 'it was trained with a fixed background, which the vocabulary lacks' in line
  assert said(of(-rows[0])) == []
  save(tmp_path / 'bundle' / 'vocabulary.npz', of(None))
  assert said(of(None)) == said(of(-rows[0])) == []


def test_a_training_says_which_classes_have_no_labels_and_no_objects(tmp_path):
  opened = _opened(tmp_path, {'tree', 'red mug', 'ant'}, without=RED_MUG)
  (line,) = training._on_classes(opened)
  assert line.startswith("1 of 3 categories to learn have no object in the split, 'red mug' for one; ")
  larger = VocabularyFile(np.eye(2, 16, dtype=np.float32), ('tree', 'cup'), np.ones(2, bool), 'made up', '')
  save(tmp_path / 'v.npz', larger)
  for freeze, count in (('backbone/*', 3), ('backbone/*,rpn_head/*', 2)):
    again = training.open_training(config_lib.override(opened.config, [f'train.freeze={freeze}']))
    lines = training._on_classes(again)
    assert len(lines) == count
    assert "1 of 2 classes of the vocabulary are not categories of the data, 'cup' for one" in lines[1]
    assert ('background to the proposal network' in lines[-1]) == (count == 3)


@pytest.mark.slow
def test_a_training_starts_from_a_bundle_leaves_what_is_frozen_and_resumes_without_the_bundle(made, tmp_path, capsys):
  bundle = shutil.copytree(made / 'bundle', tmp_path / 'bundle')
  known = vocabulary.load(made / 'v.npz')
  cup = np.eye(1, 16, dtype=np.float32)
  larger = VocabularyFile(
    np.concatenate([known.embeddings, cup]), (*known.names, 'cup'), np.append(known.is_base, True), 'other', ''
  )
  save(tmp_path / 'v.npz', larger)
  words = ('train', made / 'config.json', '--workdir', tmp_path / 'w', f'--train.init={bundle}')
  words += ('--train.freeze=backbone/*,fpn/*,rpn_head/*,mask_head/*', f'--vocabulary={tmp_path / "v.npz"}')
  words += ('--distillation.weight=0', '--distillation.store=', '--train.pictures=0', '--model.temperature=0.02')
  words += ('--train.retention=2',)
  capsys.readouterr()
  assert run(*words) == 0
  told = capsys.readouterr().err
  before = jax.device_get(checkpoint.load_variables(bundle, checkpoint.read_config(bundle)))
  count = len(jax.tree.leaves(before))
  assert f'train.init: {count} of {count} arrays' in told
  assert '  settings differ: model.temperature: 0.01 and 0.02' in told
  assert f'  its classes are embedded by another teacher: {known.teacher}, here other' in told
  assert "1 of 4 classes of the vocabulary are not categories of the data, 'cup' for one" in told
  config = checkpoint.read_config(tmp_path / 'w')
  after = jax.device_get(checkpoint.load_variables(tmp_path / 'w', config))
  for kind, tree in after.items():
    for part, values in tree.items():
      same = jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), values, before[kind][part])
      frozen = part in ('backbone', 'fpn', 'rpn_head', 'mask_head')
      assert all(jax.tree.leaves(same)) if frozen else not all(jax.tree.leaves(same)), (kind, part)
  logged = [json.loads(line) for line in (tmp_path / 'w' / 'metrics.jsonl').read_text().splitlines()]
  assert logged and all(line.keys() >= {'retention_loss', 'retention_box_loss'} for line in logged)
  assert (tmp_path / 'w' / 'start').is_dir()
  shutil.rmtree(bundle)
  assert run(*words) == 0
  assert 'train.init' not in capsys.readouterr().err
  jax.tree.map(np.testing.assert_array_equal, checkpoint.load_variables(tmp_path / 'w', config), after)


@pytest.mark.parametrize(
  ('base', 'options', 'found'),
  [
    ({'ant', 'tree', 'red mug'}, {'crowds': (5, 7, 11)}, 'of 4 objects, 0 are of no class .* and 4 are crowds'),
    ({'ant', 'tree'}, {'crowds': (5, 7, 11)}, 'of 4 objects, 1 are of no class .* and 3 are crowds'),
    ({'red mug'}, {'without': RED_MUG}, 'of 3 objects, 3 are of no class .* and 0 are crowds'),
  ],
)
def test_a_split_without_an_object_to_learn_is_refused(tmp_path, base, options, found):
  with pytest.raises(DataError, match=f"split 'train': nothing to learn; {found}") as error:
    _opened(tmp_path, base, **options)
  assert '\n' not in str(error.value)


def test_so_is_one_without_annotations(tmp_path):
  tree = small_set.annotations() | {'annotations': []}
  prepare.prepare(*small_set.write(tmp_path, tree), tmp_path / 'data')
  words = VocabularyFile(np.eye(1, 16, dtype=np.float32), ('ant',), np.array([True]), 'made up', '')
  save(tmp_path / 'v.npz', words)
  with pytest.raises(DataError, match='nothing to learn; of 0 objects'):
    training.open_training(tiny.config(f'data.train={tmp_path / "data"}', f'vocabulary={tmp_path / "v.npz"}'))


def test_a_shard_of_another_store_stops_the_training(made, tmp_path, capsys):
  """Of equal size, as an interrupted copy leaves it: only its hash tells."""
  teacher = vocabulary.load(made / 'v.npz').teacher
  other = planted_store.write(tmp_path / 'other', sources.open_dataset(made / 'data', 'train'), teacher=teacher, seed=1)
  folder = shutil.copytree(made / 'regions', tmp_path / 'regions')
  shard = sorted(folder.glob('*.array_record'))[0]
  assert shard.stat().st_size == (other / shard.name).stat().st_size
  shutil.copy(other / shard.name, shard)
  words = ('train', made / 'config.json', '--workdir', tmp_path / 'w', f'--distillation.store={folder}')
  assert run(*words, '--train.pictures=0') == 2
  assert (
    capsys.readouterr()
    .err.splitlines()[-1]
    .startswith(f'vild-jax train: {shard} is not the shard that the manifest of the store lists')
  )
