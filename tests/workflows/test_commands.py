"""The commands end to end on a small set, and one clear line for each kind of bad input."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import event_accumulator

import vild_jax
from tests.helpers import planted_store, small_experiment, small_set, small_teacher, tiny
from tests.helpers.small_experiment import run
from vild_jax import config as config_lib
from vild_jax import detector as detector_lib
from vild_jax import vocabulary
from vild_jax.data import sources
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.train import step

NAMES = ('ant', 'red mug', 'tree')


def sections(kind: type) -> list[type]:
  """A settings class and all below it."""
  inner = [k for k in typing.get_type_hints(kind).values() if dataclasses.is_dataclass(k)]
  return [kind, *(section for k in inner for section in sections(k))]


@pytest.fixture(scope='module')
def settings_read():
  """{(class, field)} that code other than the settings' own has read of any config since the module began."""
  read, own = set(), {'config.py', 'config_model.py', 'settings.py', 'dataclasses.py', 'copy.py', '<string>', '<stdin>'}

  def getattribute(self, name):
    code = sys._getframe(1).f_code  # the settings' own code does not count, but for properties
    if (
      Path(code.co_filename).name not in own or isinstance(getattr(config_lib.Model, code.co_name, None), property)
    ) and name in type(self).__dataclass_fields__:
      read.add((type(self).__name__, name))
    return object.__getattribute__(self, name)

  step._train_step.cache_clear()  # a program that another test has compiled would read nothing again
  step._predict_step.cache_clear()
  with pytest.MonkeyPatch.context() as patch:
    for section in sections(config_lib.Config):
      patch.setattr(section, '__getattribute__', getattribute, raising=False)
    yield read


@pytest.fixture(scope='module')
def made(tmp_path_factory, settings_read):
  """A prepared set, a vocabulary, a trained work directory, a bundle and an evaluation, all by commands.

  The training distils from a planted store, so that every setting has its reader.
  """
  folder = tmp_path_factory.mktemp('made')
  small_experiment.prepare(folder)
  small_experiment.plant_regions(folder)
  config = tiny.config(
    f'vocabulary={folder / "v.npz"}',
    f'data.train={folder / "data"}',
    f'data.val={folder / "data"}',
    'train.steps=2',
    'train.pictures=1',
    'distillation.weight=0.5',
    f'distillation.store={folder / "regions"}',
    'distillation.regions_per_image=6',
  )
  (folder / 'config.json').write_text(config_lib.to_text(config))
  assert run('train', folder / 'config.json', '--workdir', folder / 'run') == 0
  assert run('export', folder / 'config.json', '--checkpoint', folder / 'run', '--out', folder / 'bundle') == 0
  assert (
    run(
      'evaluate',
      folder / 'config.json',
      '--checkpoint',
      folder / 'run',
      '--out',
      folder / 'evaluation',
      '--json',
      folder / 'm.json',
    )
    == 0
  )
  Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 72, 3), dtype=np.uint8)).save(folder / 'picture.png')
  return folder


def test_every_setting_is_read_by_training_evaluation_or_export(made, settings_read):
  with_head = tiny.config('model.image_head=true')  # what only an ensemble reads
  jax.eval_shape(
    lambda: detector_lib.predict(
      with_head,
      detector_lib.init(with_head, jax.random.key(0)),
      jnp.zeros((64, 64, 3)),
      (64, 64),
      jax.tree.map(jnp.asarray, tiny.vocabulary()),
    )
  )
  unread = [
    f'{section.__name__}.{name}'
    for section in sections(config_lib.Config)
    for name, kind in typing.get_type_hints(section).items()
    if not dataclasses.is_dataclass(kind) and (section.__name__, name) not in settings_read
  ]
  assert not unread, f'{", ".join(unread)}: settings that do nothing'


def test_the_vocabulary_knows_base_from_the_frequencies(made):
  file = vocabulary.load(made / 'v.npz')
  assert file.names == NAMES and file.is_base.tolist() == [False, True, True]


def test_a_bundle_detects_in_the_pictures_own_pixels(made):
  detector = vild_jax.load(made / 'bundle')
  image = np.asarray(Image.open(made / 'picture.png'))
  found = detector.detect(image, classes=['tree', 'red mug'], min_score=0.0)
  count = len(found.scores)
  assert count > 0 and found.boxes.shape == (count, 4) and found.boxes.dtype == np.float32
  assert found.masks.shape == (count, 40, 72) and found.masks.dtype == bool
  assert found.labels.dtype == np.int32 and set(found.labels) <= {0, 1}
  assert (np.diff(found.scores) <= 0).all() and (found.scores <= 1).all()
  assert (found.boxes >= 0).all() and (found.boxes <= [40, 72, 40, 72]).all()
  assert found.boxes[:, 3].max() > 36  # not the pixels of the 64 px network input
  from_path = detector.detect(made / 'picture.png', classes=['tree', 'red mug'], min_score=0.0)
  np.testing.assert_array_equal(found.boxes, from_path.boxes)


def test_a_bundle_and_its_work_directory_are_the_same_model(made):
  image = np.asarray(Image.open(made / 'picture.png'))
  bundle, workdir = (vild_jax.load(made / name).detect(image, min_score=0.0) for name in ('bundle', 'run'))
  np.testing.assert_array_equal(bundle.scores, workdir.scores)
  np.testing.assert_array_equal(bundle.masks, workdir.masks)


def test_base_and_novel_come_from_the_training_vocabulary(made):
  detector = vild_jax.load(made / 'bundle')
  assert detector.classes(['tree', 'ant', 'red mug']).is_base[:3].tolist() == [True, False, True]


def test_a_bundle_without_text_tower_answers_only_for_stored_names(made):
  detector = vild_jax.load(made / 'bundle')
  with pytest.raises(ValueError, match="'zebra' is not in the stored vocabulary and the bundle has no text tower"):
    detector.detect(made / 'picture.png', classes=['tree', 'zebra'])


def test_evaluate_writes_results_and_metrics(made, capsys):
  out = made / 'evaluation'
  metrics = json.loads((made / 'm.json').read_text())
  assert {'AP', 'AP50', 'APr', 'AP_base', 'AP50_novel'} <= set(metrics['box']) and metrics['seconds_per_image'] > 0
  results = json.loads((out / 'results.json').read_text())
  assert results and {r['category_id'] for r in results} <= {1, 3, 8}
  assert {r['image_id'] for r in results} <= set(small_set.SIZES)
  assert (out / 'per_category.csv').is_file() and (out / 'metrics.json').is_file()
  assert run('evaluate', made / 'config.json', '--checkpoint', made / 'bundle', '--out', made / 'again') == 0
  assert 'box' in capsys.readouterr().out
  assert json.loads((made / 'again' / 'results.json').read_text()) == results


def test_evaluate_says_how_near_the_student_comes_to_the_teacher(made, capsys):
  assert (
    run(
      'evaluate',
      made / 'config.json',
      '--checkpoint',
      made / 'run',
      '--split',
      'train',
      '--regions',
      made / 'regions',
      '--out',
      made / 'near',
      '--json',
      made / 'near.json',
    )
    == 0
  )
  assert 'mean cosine to the teacher: ' in capsys.readouterr().out
  cosine = json.loads((made / 'near' / 'teacher_cosine.json').read_text())['teacher_cosine']
  assert json.loads((made / 'near.json').read_text())['teacher_cosine'] == cosine
  assert cosine['regions']['all'] > 0 and -1 <= cosine['all'] <= 1


def test_detect_writes_pictures_and_json(made):
  assert (
    run(
      'detect',
      made / 'picture.png',
      '--checkpoint',
      made / 'bundle',
      '--classes',
      'tree, ant',
      '--out',
      made / 'found',
      '--min-score',
      '0',
    )
    == 0
  )
  assert Image.open(made / 'found' / 'picture_detections.png').size[0] >= 72
  (found,) = json.loads((made / 'found' / 'detections.json').read_text())
  assert found['detections'] and set(found['detections'][0]) == {'class', 'score', 'box_yxyx', 'mask'}


def test_training_logs_metrics_and_pictures(made):
  lines = [json.loads(line) for line in (made / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == [2] and lines[0]['images_per_second'] > 0
  events = event_accumulator.EventAccumulator(str(made / 'run' / 'tensorboard'))
  events.Reload()
  assert 'loss' in events.Tags()['scalars']
  (picture,) = (name for name in events.Tags()['images'] if name.startswith('predictions/'))
  shown = Image.open(io.BytesIO(events.Images(picture)[0].encoded_image_string))
  assert shown.size[0] > shown.size[1] / 2 and len(np.unique(np.asarray(shown))) > 100  # two noisy pictures, drawn on


def _spoiled(made, tmp_path, what):
  """(words of a command, expected part of its message) for one kind of bad input."""
  config, data = made / 'config.json', made / 'data'
  train = ('train', config, '--workdir', tmp_path / 'w')
  detect = ('detect', made / 'picture.png', '--checkpoint', made / 'bundle', '--out', tmp_path / 'o', '--classes')
  if what == 'unknown key':
    return (*train, '--model.backbon.depth=18'), "nearest valid one is 'model.backbone.depth'"
  if what == 'no config':
    return ('train', tmp_path / 'none.py', '--workdir', tmp_path / 'w'), 'none.py is not a file'
  if what == 'no data':
    return (*train, f'--data.train={tmp_path}'), str(tmp_path)
  if what == 'no vocabulary':
    return (*train, '--vocabulary='), 'vocabulary is empty'
  if what == 'dimension':
    return (*train, '--model.region_head.embedding_dim=32'), 'dimension 16; expected 32'
  if what == 'other config':
    return ('train', config, '--workdir', made / 'run', '--seed=7'), 'made with another config: seed: 0 and 7'
  if what in ('edited config', 'damaged checkpoint', 'no saved config'):
    shutil.copytree(made / 'run', tmp_path / 'run')
    copy = tmp_path / 'run' / 'config.json'
    if what == 'edited config':
      tree = json.loads(copy.read_text())
      tree['model']['mask_head']['channels'] = 4
      copy.write_text(json.dumps(tree))
      return ('train', copy, '--workdir', tmp_path / 'run'), 'is of another architecture: '
    if what == 'damaged checkpoint':
      for path in (tmp_path / 'run' / 'checkpoints').rglob('d/*'):
        path.write_bytes(b'')
      return ('train', config, '--workdir', tmp_path / 'run'), 'cannot be read'
    copy.unlink()
    return ('train', config, '--workdir', tmp_path / 'run'), 'holds checkpoints/ but no config.json'
  if what == 'teacher of another dimension':
    teacher_checkpoint.save_teacher(tmp_path / 't', small_teacher.make())
    return (
      'export',
      config,
      '--checkpoint',
      made / 'run',
      '--out',
      tmp_path / 'b',
      '--teacher',
      tmp_path / 't',
    ), f"{tmp_path / 't'} is of teacher 'clip-vit-1x16-patch8-8d:"
  if what == 'teacher of an export':
    return (
      'export',
      config,
      '--checkpoint',
      made / 'run',
      '--out',
      tmp_path / 'b',
      '--teacher',
      tmp_path / 'none',
    ), 'none is not a folder'
  if what == 'no distillation':
    return (*train, '--distillation.store='), 'the data holds no regions with embeddings of the teacher'
  if what.startswith('regions'):
    changed, message = {
      'regions of other data': ({'dataset': 'other'}, 'is of a data set with identity other, and'),
      'regions without embeddings': ({'kind': 'proposals'}, 'is a store of proposals without embeddings'),
      'regions of another teacher': ({'teacher': 'other'}, "regions has embeddings of teacher 'other', and"),
      'regions of another dimension': ({'dim': 8}, 'has embeddings of dimension 8; expected 16'),
      'regions of fewer pictures': ({'images': 3}, 'holds the regions of 3 pictures; expected 4'),
      'regions made anew': ({'each': 9}, 'was trained on proposals with identity'),
      'regions embedded anew': ({'recipe': {'crops': 'other'}}, 'was trained on a region store with identity'),
    }[what]
    teacher = vocabulary.load(made / 'v.npz').teacher
    path = planted_store.write(
      tmp_path / 'regions', sources.open_dataset(data, 'train'), **{'teacher': teacher, **changed}
    )
    words = (*train, f'--distillation.store={path}')
    if 'anew' in what:
      shutil.copytree(made / 'run', tmp_path / 'run')
      words = (*words[:2], '--workdir', tmp_path / 'run', words[-1])
    return words, message
  if what == 'unknown class':
    return (*detect, 'trees, zebra'), "'trees' is not in the stored vocabulary"
  if what == 'vocabulary folder':
    return (
      'embed-text',
      '--from-npy',
      made / 'rows.npy',
      '--classes',
      made / 'small_val.json',
      '--teacher-id',
      'x',
      '--out',
      made,
    ), f'{made}: Is a directory'
  if what == 'no backbone':
    return (*train, f'--train.init_backbone={tmp_path}'), 'holds no variables/; expected a folder of `vild-jax convert'
  if what == 'no first stage':
    return (*train, f'--train.init_first_stage={tmp_path}'), 'holds no checkpoint; expected a work directory'
  if what == 'no store':
    return (
      'evaluate',
      config,
      '--checkpoint',
      made / 'run',
      '--regions',
      data,
      '--out',
      tmp_path / 'o',
    ), f'{data} is not a region store'
  if what == 'top level':
    return (*train, '--model.pyramid.max_level=7'), 'data.image_size is 64; expected a multiple of 128'
  if what == 'not federated':
    tree = small_set.annotations()
    annotations, images = small_set.write(
      tmp_path, {**tree, 'images': [{**image, 'neg_category_ids': []} for image in tree['images']]}, stem='coco_val'
    )
    assert run('prepare', '--annotations', annotations, '--images', images, '--out', tmp_path / 'd') == 0
    return (
      'evaluate',
      config,
      '--checkpoint',
      made / 'run',
      '--data',
      tmp_path / 'd',
      '--split',
      'val',
      '--out',
      tmp_path / 'o',
    ), 'evaluation.protocol=coco'
  if what == 'other data':
    annotations, images = small_set.write(tmp_path, stem='other_train')
    tree = json.loads(annotations.read_text())
    annotations.write_text(json.dumps({**tree, 'annotations': tree['annotations'][1:]}))
    assert run('prepare', '--annotations', annotations, '--images', images, '--out', tmp_path / 'd') == 0
    shutil.copytree(made / 'run', tmp_path / 'run')
    saved = json.loads((tmp_path / 'run' / 'config.json').read_text())
    saved['data']['train'] = str(tmp_path / 'd')
    store = planted_store.write(
      tmp_path / 'regions',
      sources.open_dataset(tmp_path / 'd', 'train'),
      teacher=vocabulary.load(made / 'v.npz').teacher,
    )
    saved['distillation']['store'] = str(store)
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(saved))
    return ('train', tmp_path / 'run' / 'config.json', '--workdir', tmp_path / 'run'), 'expected the same data, or'
  if what == 'broken config':
    (tmp_path / 'c.py').write_text('from vild_jax.config import Config\n\ndef get_config():\n  return Config(sed=1)\n')
    return ('train', tmp_path / 'c.py', '--workdir', tmp_path / 'w'), 'c.py, line 4: TypeError'
  if what == 'unwritable':
    (tmp_path / 'file').write_text('')
    return ('train', config, '--workdir', tmp_path / 'file' / 'w'), 'Not a directory'
  if what == 'architecture':
    return (
      'evaluate',
      config,
      '--checkpoint',
      made / 'run',
      '--data',
      data,
      '--out',
      tmp_path / 'e',
      '--model.mask_head.channels=4',
    ), 'was trained with another model: model.mask_head.channels'
  if what == 'other meaning':
    return (
      'export',
      config,
      '--checkpoint',
      made / 'run',
      '--out',
      tmp_path / 'b',
      '--model.anchors.size=5',
    ), 'was trained with another model: model.anchors.size: 4.0 and 5.0'
  if what == 'other teacher':
    file = vocabulary.load(made / 'v.npz')
    vocabulary.save(tmp_path / 'v.npz', vocabulary.VocabularyFile(file.embeddings, file.names, file.is_base, 'x', ''))
    return (
      'evaluate',
      config,
      '--checkpoint',
      made / 'run',
      '--vocabulary',
      tmp_path / 'v.npz',
      '--out',
      tmp_path / 'e',
    ), "is of teacher 'x'"
  if what == 'empty classes':
    return (*detect, ' , '), 'expected names separated by commas'
  if what == 'no picture':
    (tmp_path / 'p.jpg').write_bytes(b'no picture')
    return (
      'detect',
      tmp_path / 'p.jpg',
      '--checkpoint',
      made / 'bundle',
      '--out',
      tmp_path / 'o',
      '--classes',
      'tree',
    ), 'p.jpg'
  if what == 'no bundle':
    return (
      'detect',
      made / 'picture.png',
      '--checkpoint',
      tmp_path,
      '--out',
      tmp_path / 'o',
      '--classes',
      'tree',
    ), 'holds no config.json'
  if what == 'damaged bundle':
    shutil.copytree(made / 'bundle', tmp_path / 'b')
    shutil.rmtree(tmp_path / 'b' / 'variables')
    return (
      'detect',
      made / 'picture.png',
      '--checkpoint',
      tmp_path / 'b',
      '--out',
      tmp_path / 'o',
      '--classes',
      'tree',
    ), 'holds no checkpoint'
  if what == 'no json':
    (tmp_path / 'a.json').write_text('{')
    return ('prepare', '--annotations', tmp_path / 'a.json', '--images', made, '--out', tmp_path / 'd'), 'JSON'
  assert what == 'export over a folder'
  (tmp_path / 'mine').mkdir()
  return ('export', config, '--checkpoint', made / 'run', '--out', tmp_path / 'mine'), 'exists and is not a bundle'


@pytest.mark.parametrize(
  'what',
  [
    'unknown key',
    'no config',
    'no data',
    'no vocabulary',
    'dimension',
    'other config',
    'other data',
    'edited config',
    'damaged checkpoint',
    'no saved config',
    'teacher of an export',
    'no distillation',
    'unknown class',
    'teacher of another dimension',
    'regions of other data',
    'regions without embeddings',
    'regions of another teacher',
    'regions of another dimension',
    'regions of fewer pictures',
    'regions made anew',
    'regions embedded anew',
    'vocabulary folder',
    'not federated',
    'no backbone',
    'no first stage',
    'no store',
    'top level',
    'broken config',
    'unwritable',
    'architecture',
    'other meaning',
    'other teacher',
    'empty classes',
    'no picture',
    'no bundle',
    'damaged bundle',
    'no json',
    'export over a folder',
  ],
)
def test_bad_input_gets_one_line_and_exit_code_2(made, tmp_path, capsys, what):
  words, message = _spoiled(made, tmp_path, what)
  before = {path: path.stat().st_mtime_ns for path in made.rglob('*') if path.is_file()}
  capsys.readouterr()
  assert run(*words) == 2
  error = capsys.readouterr().err.strip()
  assert message in error and len(error.splitlines()) == 1, error
  assert {path: path.stat().st_mtime_ns for path in made.rglob('*') if path.is_file()} == before
  assert not (tmp_path / 'w').is_dir() and not (tmp_path / 'o').exists() and not list(tmp_path.glob('.*'))


def test_help_names_every_command_and_each_has_an_example(capsys):
  commands = ('demo', 'prepare', 'embed-text', 'train', 'evaluate', 'detect', 'export')
  with pytest.raises(SystemExit):
    run('--help')
  text = capsys.readouterr().out
  assert all(command in text for command in commands)
  for command in commands:
    with pytest.raises(SystemExit):
      run(command, '--help')
    assert f'example: vild-jax {command}' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (('train', 'c.py', '--workdir', 'w', '--train.steps', '3'), 'expected --train.steps=VALUE'),
    (('train', 'c.py'), '--workdir'),
    (('evaluate', 'c.py', '--checkpoint', 'c', '--out', 'o', '--json', '/nowhere/m.json'), 'a folder that exists'),
  ],
)
def test_words_that_do_not_fit_are_one_line(capsys, words, message):
  with pytest.raises(SystemExit) as stopped:
    run(*words)
  error = capsys.readouterr().err.strip()
  assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_an_unknown_argument_is_refused():
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'vild_jax',
      'detect',
      'x.jpg',
      '--checkpoint',
      'c',
      '--classes',
      'a',
      '--out',
      'o',
      '--frobnicate=1',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2 and '--frobnicate=1' in done.stderr
