from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.helpers import clip_golden
from tests.helpers.tensor_names import theirs
from vild_jax.nn import clip
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import hf_config, parameter_names

FILES = ['config.json', 'model.safetensors', 'preprocessor_config.json', 'tokenizer.json']


def write(directory, case):
  config = hf_config.parse({'model_type': 'clip', **clip_golden.CASES[case]}, directory / 'config.json')
  clip_golden.write_directory(directory, case, theirs(config))
  return directory


@pytest.fixture
def tiny(tmp_path):
  return write(tmp_path / 'teacher', 'tiny_legacy_end')


def embeddings(teacher, images, tokens):
  image, text, _ = jax.jit(clip.Clip(teacher.config).apply)({'params': teacher.params}, images, tokens)
  return np.asarray(image), np.asarray(text)


@pytest.mark.parametrize('case', clip_golden.CASES)
def test_embeddings_equal_those_of_transformers(tmp_path, case):
  teacher = teacher_checkpoint.load_teacher(write(tmp_path / 'teacher', case))
  image, text = embeddings(teacher, *clip_golden.inputs(case))
  with np.load(clip_golden.GOLDEN) as golden:
    np.testing.assert_allclose(image, golden[f'{case}_image'], atol=1e-5, rtol=0)
    np.testing.assert_allclose(text, golden[f'{case}_text'], atol=1e-5, rtol=0)


@pytest.mark.parametrize('case', ['tiny_legacy_end', 'tiny_gelu'])
def test_the_golden_is_what_transformers_says_today(case):
  pytest.importorskip('torch', reason='a live comparison where torch and transformers are installed')
  pytest.importorskip('transformers')
  image, text = clip_golden.torch_embeddings(case)
  with np.load(clip_golden.GOLDEN) as golden:
    np.testing.assert_allclose(image, golden[f'{case}_image'], atol=1e-6)
    np.testing.assert_allclose(text, golden[f'{case}_text'], atol=1e-6)


@pytest.mark.parametrize('case', ['tiny_legacy_end', 'tiny_gelu'])
def test_a_saved_teacher_is_the_teacher(tmp_path, case):
  source = write(tmp_path / 'source', case)
  teacher = teacher_checkpoint.load_teacher(source)
  teacher_checkpoint.save_teacher(tmp_path / 'copy', teacher)
  before = safetensors.numpy.load_file(source / 'model.safetensors')
  after = safetensors.numpy.load_file(tmp_path / 'copy' / 'model.safetensors')
  assert before.keys() == after.keys()
  for name, value in before.items():
    np.testing.assert_array_equal(after[name], value, err_msg=name)
  copy = teacher_checkpoint.load_teacher(tmp_path / 'copy')
  assert copy.config == teacher.config and copy.preprocessor == teacher.preprocessor
  assert (copy.text_identity, copy.image_identity) == (teacher.text_identity, teacher.image_identity)
  assert sorted(p.name for p in (tmp_path / 'copy').iterdir()) == FILES


def test_a_text_tower_alone_has_the_identity_of_its_teacher(tmp_path, tiny):
  teacher = teacher_checkpoint.load_teacher(tiny)
  teacher_checkpoint.save_text_tower(tmp_path / 'text_tower', teacher)
  names = safetensors.numpy.load_file(tmp_path / 'text_tower' / 'model.safetensors').keys()
  assert names == {source.name for source in parameter_names.parameter_table(teacher.config, 'text').values()}
  for directory in (tmp_path / 'text_tower', tiny):
    alone = teacher_checkpoint.load_text_tower(directory)
    assert set(alone.params) == {'text'} and alone.text_identity == teacher.text_identity
  with pytest.raises(ValueError, match=r'no preprocessor_config\.json'):
    teacher_checkpoint.load_teacher(tmp_path / 'text_tower')


def test_an_image_tower_alone_has_the_identity_of_its_teacher(tmp_path, tiny):
  teacher = teacher_checkpoint.load_teacher(tiny)
  teacher_checkpoint.save_image_tower(tmp_path / 'image_tower', teacher)
  assert sorted(p.name for p in (tmp_path / 'image_tower').iterdir()) == [name for name in FILES if 'token' not in name]
  names = safetensors.numpy.load_file(tmp_path / 'image_tower' / 'model.safetensors').keys()
  assert names == {source.name for source in parameter_names.parameter_table(teacher.config, 'image').values()}
  for directory in (tmp_path / 'image_tower', tiny):
    alone = teacher_checkpoint.load_image_tower(directory)
    assert set(alone.params) == {'image', 'logit_scale'} and alone.image_identity == teacher.image_identity
  with pytest.raises(ValueError, match=r'no tokenizer\.json'):
    teacher_checkpoint.load_text_tower(tmp_path / 'image_tower')


def test_identity_follows_weights_sizes_and_tokens(tiny):
  teacher = teacher_checkpoint.load_teacher(tiny)
  # Vocabularies and region stores name them: the identity of a teacher may never change.
  assert teacher.text_identity == 'clip-vit-3x48-patch5-24d:722c3dff947b4f63'
  assert teacher.image_identity == 'clip-vit-3x48-patch5-24d:04725ebb312413aa'
  weights = jax.tree.map(np.copy, dict(teacher.params))
  weights['text']['project']['kernel'][0, 0] += 1e-3
  changed = dataclasses.replace(teacher, params=weights)
  assert changed.text_identity != teacher.text_identity and changed.image_identity == teacher.image_identity
  text = dataclasses.replace(teacher.config.text, activation='gelu')
  assert (
    dataclasses.replace(teacher, config=dataclasses.replace(teacher.config, text=text)).text_identity
    != teacher.text_identity
  )
  assert (
    dataclasses.replace(teacher, tokenizer_json=teacher.tokenizer_json.replace('w7', 'seven')).text_identity
    != teacher.text_identity
  )
  spaced = json.dumps(json.loads(teacher.tokenizer_json), indent=1)
  assert dataclasses.replace(teacher, tokenizer_json=spaced).text_identity == teacher.text_identity


def test_half_precision_and_position_ids_are_read(tiny):
  expected = teacher_checkpoint.load_teacher(tiny).params
  tensors = safetensors.numpy.load_file(tiny / 'model.safetensors')
  halved = {k: v.astype(np.float16) for k, v in tensors.items()}
  halved['text_model.embeddings.position_ids'] = np.arange(12, dtype=np.int64)[None]
  safetensors.numpy.save_file(halved, tiny / 'model.safetensors')
  params = teacher_checkpoint.load_teacher(tiny).params
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), params, expected)


def edit_config(directory, **changes):
  tree = json.loads((directory / 'config.json').read_text())
  for key, value in changes.items():
    section, _, leaf = key.partition('__')
    if leaf:
      tree[section][leaf] = value
    else:
      tree[section] = value
  (directory / 'config.json').write_text(json.dumps(tree))


def edit_weights(directory, change):
  tensors = safetensors.numpy.load_file(directory / 'model.safetensors')
  change(tensors)
  safetensors.numpy.save_file(tensors, directory / 'model.safetensors')


def halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def poison(tensors):
  tensors['visual_projection.weight'][0, 0] = np.nan


NO_TEACHER = {
  'no folder': (shutil.rmtree, 'is not a folder'),
  'no config': (lambda d: (d / 'config.json').unlink(), r'no config\.json'),
  'no tokenizer': (lambda d: (d / 'tokenizer.json').unlink(), 'CLIPTokenizerFast'),
  'no weights': (lambda d: (d / 'model.safetensors').unlink(), r'no model\.safetensors'),
  'weights cut in half': (lambda d: halve(d / 'model.safetensors'), 'not a complete safetensors'),
  'config cut in half': (lambda d: halve(d / 'config.json'), 'is not JSON'),
  'tokenizer cut in half': (lambda d: halve(d / 'tokenizer.json'), 'not a usable tokenizer'),
  'another family': (lambda d: edit_config(d, model_type='bert'), "model_type is 'bert'; expected one of 'clip'"),
  'unknown activation': (lambda d: edit_config(d, text_config__hidden_act='relu'), "'relu'; expected one of"),
  'heads that do not divide': (lambda d: edit_config(d, vision_config__num_attention_heads=5), 'multiple of its 5'),
  'a size as text': (lambda d: edit_config(d, vision_config__image_size='20'), "image_size is '20'"),
  'tokens': (lambda d: edit_config(d, text_config__vocab_size=60), 'has 50 tokens; expected 60'),
  'layers without end': (
    lambda d: edit_config(d, text_config__num_hidden_layers=10**6),
    '1000000; expected at most 1000',
  ),
  'a picture without end': (
    lambda d: edit_config(d, vision_config__image_size=10**6),
    '1000000; expected at most 4096',
  ),
  'a section that is a list': (lambda d: edit_config(d, text_config=[1]), r'text_config is \[1\]; expected an object'),
  'a family that is a list': (
    lambda d: edit_config(d, model_type=['clip']),
    r"model_type is \['clip'\]; expected one of",
  ),
  'too few layers': (lambda d: edit_config(d, text_config__num_hidden_layers=1), 'fits nothing'),
  'too many layers': (lambda d: edit_config(d, text_config__num_hidden_layers=3), r'lacks text_model.encoder.layers.2'),
  'another dimension': (
    lambda d: edit_config(d, projection_dim=25),
    r'text_projection.weight is \(24, 32\); expected \(25, 32\)',
  ),
  'a parameter too many': (lambda d: edit_weights(d, lambda t: t.update(extra=np.ones(1))), "has 'extra', which fits"),
  'a parameter missing': (lambda d: edit_weights(d, lambda t: t.pop('logit_scale')), 'lacks logit_scale'),
  'not finite': (lambda d: edit_weights(d, poison), 'visual_projection.weight holds numbers that are not finite'),
}


@pytest.mark.parametrize('case', NO_TEACHER)
def test_what_is_no_teacher_is_one_line(tiny, case):
  spoil, found = NO_TEACHER[case]
  spoil(tiny)
  with pytest.raises(ValueError, match=found) as error:
    teacher_checkpoint.load_teacher(tiny)
  assert '\n' not in str(error.value) and 'teacher' in str(error.value)


def test_silent_and_older_configs_mean_what_transformers_means(tmp_path):
  path = tmp_path / 'config.json'
  silent = hf_config.parse({'model_type': 'clip', 'text_config': {}, 'vision_config': {}}, path)
  assert silent == clip.ClipConfig(
    512, clip.Transformer(768, 12, 12, 3072), 224, 32, clip.Transformer(512, 12, 8, 2048), 49408, 77, 49407
  )
  older = hf_config.parse(
    {
      'model_type': 'clip',
      'vision_config': {},
      'text_config': {'hidden_act': 'gelu', 'hidden_size': 64},
      'text_config_dict': {'hidden_size': 128},
    },
    path,
  )
  assert (older.text.width, older.text.activation) == (128, 'quick_gelu')
