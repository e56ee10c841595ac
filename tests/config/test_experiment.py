"""Configs: overrides with checked types, text that reads back, errors that name the key, no field without a reader."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import typing
from pathlib import Path

import pytest

from vild_jax import config as config_lib
from vild_jax.config import Config, ConfigError

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
CHANGED = [
  '--model.backbone.depth=18',
  '--data.scale_range=0.5,1.5',
  '--optimizer.decay_at=0.5',
  '--name=a name',
  '--data.flip=false',
  '--model.temperature=1e-1',
  '--seed=7',
]


def test_text_reads_back_to_an_equal_config():
  config = config_lib.override(Config(), CHANGED)
  assert config != Config()
  assert config_lib.from_text(config_lib.to_text(config)) == config


def test_a_saved_file_loads_and_takes_overrides(tmp_path):
  path = tmp_path / 'config.json'
  path.write_text(config_lib.to_text(config_lib.override(Config(), CHANGED)), encoding='utf-8')
  config = config_lib.load(path, ['--seed=8'])
  assert (config.seed, config.model.backbone.depth, config.name) == (8, 18, 'a name')


@pytest.mark.parametrize(
  ('assignment', 'key', 'value'),
  [
    ('--model.backbone.depth=18', 'model.backbone.depth', 18),
    ('model.backbone.depth=18', 'model.backbone.depth', 18),
    ('--optimizer.learning_rate=1', 'optimizer.learning_rate', 1.0),
    ('--optimizer.learning_rate=2e-3', 'optimizer.learning_rate', 0.002),
    ('--data.flip=False', 'data.flip', False),
    ('--data.train=/a/path=with/equals', 'data.train', '/a/path=with/equals'),
    ('--name=7', 'name', '7'),
    ('--vocabulary=', 'vocabulary', ''),
    ('--data.scale_range=0.5,1.5', 'data.scale_range', (0.5, 1.5)),
    ('--data.scale_range=(1, 1)', 'data.scale_range', (1.0, 1.0)),
    ('--optimizer.decay_at=[0.5, 0.75]', 'optimizer.decay_at', (0.5, 0.75)),
    ('--optimizer.decay_at=0.5,', 'optimizer.decay_at', (0.5,)),
    ('--optimizer.decay_at=()', 'optimizer.decay_at', ()),
    ('--train.freeze=backbone/*', 'train.freeze', ('backbone/*',)),
    ('--train.freeze=backbone/*, fpn/output[12]', 'train.freeze', ('backbone/*', 'fpn/output[12]')),
    ('--train.freeze=("backbone/*", "fpn/*")', 'train.freeze', ('backbone/*', 'fpn/*')),
    ("--train.freeze=['backbone/*',]", 'train.freeze', ('backbone/*',)),
    ('--train.freeze=()', 'train.freeze', ()),
    ('--train.freeze=', 'train.freeze', ()),
    ('--model.postprocess.temperature=0.007', 'model.postprocess.temperature', 0.007),
    ('--model.postprocess.novel_weight=1', 'model.postprocess.novel_weight', 1.0),
    ('--model.postprocess.novel_weight=null', 'model.postprocess.novel_weight', None),
  ],
)
def test_override_changes_one_leaf(assignment, key, value):
  leaves = config_lib.flatten(config_lib.override(Config(), [assignment]))
  assert leaves[key] == value
  assert type(leaves[key]) is type(value)
  assert {k: v for k, v in leaves.items() if k != key} == {
    k: v for k, v in config_lib.flatten(Config()).items() if k != key
  }


def test_later_overrides_win():
  assert config_lib.override(Config(), ['--seed=1', '--seed=2']).seed == 2


def test_settings_that_exclude_or_need_each_other_come_in_any_order():
  staged = config_lib.override(Config(), ['--train.init_first_stage=start'])
  words = ['--train.init=bundle', '--train.init_first_stage=', '--train.retention=5']
  expected = config_lib.override(Config(), ['--train.init=bundle']).train
  for order in itertools.permutations(words):
    tuned = config_lib.override(staged, list(order))
    assert tuned.train == dataclasses.replace(expected, retention=5.0)
    for back in (['--train.init=', '--train.retention=0'], ['--train.retention=0', '--train.init=']):
      assert config_lib.override(tuned, back) == Config()
  with pytest.raises(ConfigError, match=r'train\.init is bundle; expected'):
    config_lib.override(staged, words[:1])


@pytest.mark.parametrize(
  ('assignment', 'named'),
  [
    ('--optimizer.learnig_rate=1', ["'optimizer.learnig_rate'", "'optimizer.learning_rate'"]),
    ('--backbone.depth=18', ["'backbone.depth'", "'model.backbone.depth'"]),
    ('--model.backbone=18', ["'model.backbone'"]),
    ('--seed.value=1', ["'seed.value'"]),
    ('--seed', ["'--seed'", '--key.path=value']),
    ('--seed=1.5', ['seed', '1.5', 'a whole number']),
    ('--seed=true', ['seed', 'True', 'a whole number']),
    ('--seed=', ['seed', 'a whole number']),
    ('--data.flip=1', ['data.flip', 'true or false']),
    ('--optimizer.learning_rate=fast', ['optimizer.learning_rate', 'fast', 'a number']),
    ('--optimizer.learning_rate="1"', ['optimizer.learning_rate', 'a number']),
    ('--data.scale_range=1', ['data.scale_range', '2 numbers separated by commas']),
    ('--data.scale_range=1,x', ['data.scale_range', '2 numbers separated by commas']),
    ('--data.scale_range=2,1', ['data.scale_range', 'the smaller first']),
    ('--optimizer.decay_at=0.9,0.5', ['optimizer.decay_at', 'increasing fractions']),
    ('--model.backbone.depth=20', ['model.backbone.depth', '20', '18']),
    ('--model.dtype=float16', ['model.dtype', 'float16', 'bfloat16']),
    ('--data.image_size=1000', ['data.image_size', '1000', 'multiple of 64']),
    ('--data.batch_size=0', ['data.batch_size', '0', 'positive']),
    ('--data.transfer=int8', ['data.transfer', 'int8', "'float32' or 'uint8'"]),
    ('--model.region_head.num_convs=1000000', ['model.region_head.num_convs', '1000000', 'at most 100']),
    ('--data.image_size=1048576', ['data.image_size', '1048576', 'at most 16384']),
    (f'--seed={10**400}', ['seed', 'a whole number']),
    (f'--optimizer.learning_rate={10**400}', ['optimizer.learning_rate', 'a number']),
    ('--optimizer.learning_rate=1e999', ['optimizer.learning_rate', 'inf', 'a number']),
    (f'--seed={"[" * 100_000}', ['seed', 'a whole number']),
    ('--mesh.data=0', ['mesh.data', '0', '-1']),
    ('--optimizer.learning_rate=nan', ['optimizer.learning_rate', 'nan', 'a number']),
    ('--optimizer.learning_rate=-1', ['optimizer.learning_rate', '-1', 'positive']),
    ('--optimizer.momentum=1', ['optimizer.momentum', '1.0', 'below 1']),
    ('--model.rpn.max_proposals=0', ['model.rpn.max_proposals', '0', 'positive']),
    ('--model.postprocess.nms_threshold=2', ['model.postprocess.nms_threshold', '2.0', 'from 0 to 1']),
    ('--model.postprocess.temperature=cold', ['model.postprocess.temperature', 'cold', 'a number, or null']),
    ('--model.postprocess.temperature=0', ['model.postprocess.temperature', '0', 'positive']),
    ('--model.postprocess.novel_weight=2', ['model.postprocess.novel_weight', '2.0', 'from 0 to 1']),
    ('--model.postprocess.objectness_weight=-1', ['model.postprocess.objectness_weight', '-1', 'zero or a positive']),
    ('--assignment.rpn_negative_iou=0.8', ['assignment.rpn_negative_iou', '0.8', 'at most', '0.7']),
    ('--train.freeze=fpn/*,,rpn_head/*', ['train.freeze', 'patterns of names']),
    ('--train.freeze=1', ['train.freeze', 'expected text']),
    ('--train.pictures=-1', ['train.pictures', '-1', 'zero or a positive']),
    ('--distillation.min_visible=1.5', ['distillation.min_visible', '1.5', 'from 0 to 1']),
    ('--distillation.regions_per_image=0', ['distillation.regions_per_image', '0', 'positive']),
    ('--data.repeat_threshold=-0.1', ['data.repeat_threshold', '-0.1', 'from 0 to 1']),
  ],
)
def test_a_bad_override_is_one_line_that_names_key_and_expectation(assignment, named):
  with pytest.raises(ConfigError) as error:
    config_lib.override(Config(), [assignment])
  message = str(error.value)
  assert '\n' not in message
  for text in named:
    assert text in message


@pytest.mark.parametrize(
  ('change', 'named'),
  [
    (lambda tree: tree['model'].update(widht=3), ["'model.widht'", 'model.']),
    (
      lambda tree: tree['optimizer'].update(learnig_rate=1.0),
      ["'optimizer.learnig_rate'", "'optimizer.learning_rate'"],
    ),
    (lambda tree: tree.update(model=3), ['model', 'int', 'a mapping']),
    (lambda tree: tree.update(seed='1'), ['seed', "'1'", 'a whole number']),
    (lambda tree: tree['data'].update(scale_range=[1.0]), ['data.scale_range', '2 numbers']),
  ],
)
def test_text_with_a_bad_key_or_value_is_refused(change, named):
  tree = json.loads(config_lib.to_text(Config()))
  change(tree)
  with pytest.raises(ConfigError) as error:
    config_lib.from_text(json.dumps(tree))
  for text in named:
    assert text in str(error.value)


@pytest.mark.parametrize('text', ['', '{', '[]', '3', 'null'])
def test_text_that_is_no_config_is_refused(text):
  with pytest.raises(ConfigError):
    config_lib.from_text(text)


@pytest.mark.parametrize(
  ('name', 'content', 'named'),
  [
    ('absent.py', None, 'not a file'),
    ('empty.py', '', 'get_config()'),
    ('wrong.py', 'def get_config():\n  return {}\n', 'dict'),
    ('config.txt', 'text', 'not a Python file'),
    ('syntax.py', 'def get_config(:\n  pass\n', 'line 1: SyntaxError'),
    ('misspelt.py', 'from vild_jax.config import *\ndef get_config():\n  return Config(sead=1)\n', 'line 3: TypeError'),
    (
      'value.py',
      'from vild_jax.config import Config, Data\ndef get_config():\n  return Config(data=Data(workers=-1))\n',
      'data.workers is -1',
    ),
    ('config.json', '{"sead": 1}', "'seed'"),
  ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, name, content, named):
  path = tmp_path / name
  if content is not None:
    path.write_text(content, encoding='utf-8')
  with pytest.raises(ConfigError) as error:
    config_lib.load(path)
  assert named in str(error.value) and len(str(error.value).splitlines()) == 1


def test_calibrated_settings_are_overrides(tmp_path):
  settings = {'model.postprocess.temperature': 0.02, 'model.postprocess.base_weight': 0.9}
  (tmp_path / 's.json').write_text(json.dumps({'settings': settings, 'trials': []}))
  post = config_lib.override(Config(), config_lib.calibrated(tmp_path / 's.json')).model.postprocess
  assert (post.temperature, post.base_weight, post.novel_weight) == (0.02, 0.9, None)


@pytest.mark.parametrize('content', [None, '{', '[]', '{}', '{"settings": 3}', '{"settings": {"train.steps": 5}}'])
def test_a_file_that_holds_no_settings_is_refused(tmp_path, content):
  if content is not None:
    (tmp_path / 's.json').write_text(content)
  with pytest.raises(ConfigError, match=r's.json.*; expected settings of model.postprocess that `vild-jax') as error:
    config_lib.calibrated(tmp_path / 's.json')
  assert '\n' not in str(error.value) and 'Error' not in str(error.value)


def test_difference_names_each_leaf_that_differs():
  assert config_lib.difference(Config(), Config()) == []
  lines = config_lib.difference(Config(), config_lib.override(Config(), ['--seed=3', '--model.backbone.depth=18']))
  assert [line.split(':')[0] for line in lines] == ['seed', 'model.backbone.depth']
  assert '0' in lines[0] and '3' in lines[0]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_loads_is_short_and_reads_back(path):
  config = config_lib.load(path)
  assert config_lib.from_text(config_lib.to_text(config)) == config
  assert len(path.read_text(encoding='utf-8').splitlines()) <= 60


@pytest.mark.parametrize(
  ('name', 'base', 'changed'),
  [
    ('vild_r50_lvis', 'vild_text_r50_lvis', {'distillation.weight': 0.5, 'distillation.store': 'data/lvis_v1_regions'}),
    ('vild_ensemble_r50_lvis', 'vild_r50_lvis', {'model.image_head': True}),
    ('vild_r152_lvis', 'vild_r50_lvis', {'model.backbone.depth': 152, 'distillation.weight': 1.0}),
    (
      'vild_ensemble_r152_lvis',
      'vild_r50_lvis',
      {'model.backbone.depth': 152, 'model.image_head': True, 'distillation.weight': 2.0},
    ),
    (
      'supervised_rfs_r50_lvis',
      'vild_text_r50_lvis',
      {'assignment.novel_labels': True, 'data.repeat_threshold': 0.001},
    ),
    (
      'vild_ensemble_r50_coco_ovd',
      'vild_ensemble_r50_lvis',
      {
        'evaluation.protocol': 'coco',
        'evaluation.only_with_objects': True,
        'data.only_with_objects': True,
        'train.steps': 45_000,
        'vocabulary': 'data/coco_ovd_vocabulary.npz',
        'data.train': 'data/coco',
        'data.val': 'data/coco',
        'distillation.store': 'data/coco_regions',
      },
    ),
  ],
)
def test_the_papers_experiments_differ_in_what_defines_them(name, base, changed):
  """docs/method.md, 1 and 3: weights of the distillation, backbones, labels and sampling."""
  leaves, others = (config_lib.flatten(config_lib.load(ROOT / 'configs' / f'{n}.py')) for n in (name, base))
  assert {key: value for key, value in leaves.items() if value != others[key]} == {'name': name, **changed}
  described = (ROOT / 'configs' / f'{name}.py').read_text(encoding='utf-8')
  assert f'vild-jax train configs/{name}.py' in described and 'vild-jax embed-text' in described
  assert ('vild-jax embed-regions' in described) == (leaves['distillation.weight'] > 0)


def fields(kind: type, prefix: str = '') -> list[tuple[str, str]]:
  """(dotted key, field name) of every leaf below a dataclass."""
  found = []
  for name, inner in typing.get_type_hints(kind).items():
    found += fields(inner, f'{prefix}{name}.') if dataclasses.is_dataclass(inner) else [(prefix + name, name)]
  return found


def attributes_read() -> set[str]:
  """Every NAME that some file of the package but those of the settings reads as `.NAME`."""
  names = set()
  for path in sorted((ROOT / 'vild_jax').rglob('*.py')):
    if path.name in ('config.py', 'config_model.py'):
      continue
    tree = ast.parse(path.read_text(encoding='utf-8'))
    names |= {
      node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
  return names


def test_every_field_is_read_by_some_code():
  read = attributes_read()
  unread = [key for key, name in fields(Config) if name not in read]
  assert not unread, f'no code reads {", ".join(unread)}: a setting that does nothing'
