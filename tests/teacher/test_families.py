from __future__ import annotations

import fnmatch
import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.helpers import fake_hub, family_golden
from tests.helpers.tensor_names import theirs
from vild_jax.nn import clip
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import hf_config

_TEXT = clip.Transformer(64, 2, 1, 256)


@functools.cache
def config_of(case: str) -> clip.ClipConfig:
  if case in family_golden.SIGLIP:
    return hf_config.parse(family_golden.SIGLIP[case], Path('config.json'))
  sizes = family_golden.ORIGINAL[case]
  resnet = lambda: clip.ModifiedResNet(sizes['layers'], sizes['width'], sizes['heads'])
  image = clip.Transformer(64, 2, 1, 256) if case == 'vit' else resnet()
  return clip.ClipConfig(sizes['out'], image, sizes['size'], sizes.get('patch'), _TEXT, 60)


def write(directory: Path, case: str) -> Path:
  shapes = theirs(config_of(case), case in family_golden.ORIGINAL, case == 'siglip2_any_size')
  return family_golden.write_directory(directory, case, shapes)


@functools.cache
def tower(config: clip.ClipConfig, kind: type, dtype=jnp.float32):
  return jax.jit(lambda params, x: clip.normalize(kind(config, dtype).apply({'params': params}, x)))


def embeddings(teacher, images, tokens, dtype=jnp.float32):
  return (
    np.asarray(tower(teacher.config, clip.ImageTower, dtype)(teacher.params['image'], images)),
    np.asarray(tower(teacher.config, clip.TextTower, dtype)(teacher.params['text'], tokens)),
  )


@pytest.mark.parametrize('case', family_golden.CASES)
def test_embeddings_equal_those_of_torch(tmp_path, case):
  teacher = teacher_checkpoint.load_teacher(write(tmp_path / 'teacher', case))
  assert teacher.config == config_of(case)
  image, text = embeddings(teacher, *family_golden.inputs(case))
  with np.load(family_golden.GOLDEN) as golden:
    shapes = theirs(teacher.config, case in family_golden.ORIGINAL, case == 'siglip2_any_size')
    assert family_golden.names_hash(shapes) == str(golden[f'{case}_names']), 'other names or shapes than in torch'
    np.testing.assert_allclose(image, golden[f'{case}_image'], atol=1e-5, rtol=0)
    np.testing.assert_allclose(text, golden[f'{case}_text'], atol=1e-5, rtol=0)


@pytest.mark.parametrize('case', family_golden.CASES)
def test_the_golden_is_what_torch_says_today(case):
  pytest.importorskip('torch', reason='a live comparison where torch and transformers are installed')
  pytest.importorskip('transformers')
  image, text, shapes = family_golden.torch_embeddings(case)
  with np.load(family_golden.GOLDEN) as golden:
    np.testing.assert_allclose(image, golden[f'{case}_image'], atol=1e-6)
    np.testing.assert_allclose(text, golden[f'{case}_text'], atol=1e-6)
    assert family_golden.names_hash(shapes) == str(golden[f'{case}_names'])


# The written directory of each family is transformers' own layout, or, for a ModifiedResNet, half of it.
@pytest.mark.parametrize('case', ['siglip_so400m_p14', 'siglip2_any_size', 'rn50x4', 'vit'])
def test_a_saved_teacher_is_the_teacher(tmp_path, case):
  teacher = teacher_checkpoint.load_teacher(write(tmp_path / 'source', case))
  teacher_checkpoint.save_teacher(tmp_path / 'copy', teacher)
  teacher_checkpoint.save_text_tower(tmp_path / 'text_tower', teacher)
  teacher_checkpoint.save_image_tower(tmp_path / 'image_tower', teacher)
  copy, text, image = (
    teacher_checkpoint.load_teacher(tmp_path / 'copy'),
    teacher_checkpoint.load_text_tower(tmp_path / 'text_tower'),
    teacher_checkpoint.load_image_tower(tmp_path / 'image_tower'),
  )
  assert copy.config == text.config == image.config == teacher.config
  assert copy.preprocessor == image.preprocessor == teacher.preprocessor
  jax.tree.map(np.testing.assert_array_equal, copy.params, teacher.params)
  jax.tree.map(np.testing.assert_array_equal, text.params, {'text': teacher.params['text']})
  assert (copy.text_identity, copy.image_identity) == (teacher.text_identity, teacher.image_identity)
  assert (text.text_identity, image.image_identity) == (teacher.text_identity, teacher.image_identity)
  jax.tree.map(np.testing.assert_array_equal, image.params, {k: v for k, v in teacher.params.items() if k != 'text'})
  assert not [path for path in tmp_path.glob('*/*') if path.name.startswith('.')]


@pytest.mark.parametrize('case', ['siglip2_giant', 'siglip2_any_size', 'siglip_so400m_p14', 'vit'])
def test_transformers_reads_what_was_saved(tmp_path, case):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  teacher = teacher_checkpoint.load_teacher(write(tmp_path / 'source', case))
  teacher_checkpoint.save_teacher(tmp_path / 'copy', teacher)
  images, tokens = family_golden.inputs(case)
  model, report = transformers.AutoModel.from_pretrained(tmp_path / 'copy', output_loading_info=True)
  assert not report['missing_keys'] and not report['unexpected_keys'] and not report['mismatched_keys']
  with torch.no_grad():
    out = model.eval()(
      input_ids=torch.from_numpy(tokens).long(), pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2)
    )
  image, text = embeddings(teacher, images, tokens)
  np.testing.assert_allclose(image, out.image_embeds, atol=1e-5)
  np.testing.assert_allclose(text, out.text_embeds, atol=1e-5)


# Vocabularies and region stores name a teacher by these: they may never change.
@pytest.mark.parametrize(
  ('case', 'name', 'text', 'image'),
  [
    ('siglip2_giant', 'siglip-vit-12x48-patch16-48d', 'a08c99bc7cf852f7', '9203be0684f550f4'),
    ('rn50', 'clip-resnet-3-4-6-3x8-24d', 'e595a683be08d89a', '9906a42802d4f29a'),
    ('vit', 'clip-vit-2x64-patch8-24d', 'e595a683be08d89a', '0db379987c8ed79e'),
  ],
)
def test_identities_name_the_family_and_follow_the_weights(tmp_path, case, name, text, image):
  teacher = teacher_checkpoint.load_teacher(write(tmp_path / 'teacher', case))
  assert (teacher.text_identity, teacher.image_identity) == (f'{name}:{text}', f'{name}:{image}')
  last = sorted(teacher.params['image'])[-1]
  leaf = jax.tree.leaves(teacher.params['image'][last])[0]
  before = teacher.image_identity
  leaf.reshape(-1)[0] += 1e-3
  changed = teacher_checkpoint.Teacher(teacher.config, teacher.params, teacher.tokenizer_json, teacher.preprocessor)
  assert changed.image_identity != before and changed.text_identity == teacher.text_identity


@pytest.mark.parametrize('case', ['siglip_so400m_p14', 'rn50x4'])
def test_half_precision_is_close(tmp_path, case):
  teacher = teacher_checkpoint.load_teacher(write(tmp_path / 'teacher', case))
  images, tokens = family_golden.inputs(case)
  for full, half in zip(
    embeddings(teacher, images, tokens), embeddings(teacher, images, tokens, jnp.bfloat16), strict=True
  ):
    assert (np.sum(full * half, axis=1) >= 0.999).all()


def test_every_place_of_a_sigmoid_text_counts(tmp_path):
  teacher = teacher_checkpoint.load_teacher(write(tmp_path / 'teacher', 'siglip2_giant'))
  embed = tower(teacher.config, clip.TextTower)
  _, tokens = family_golden.inputs('siglip2_giant')
  rows = [embed(teacher.params['text'], x) for x in (tokens[:1], np.where(np.arange(64) > 4, 0, tokens)[:1])]
  assert np.abs(rows[0] - rows[1]).max() > 1e-3
  with pytest.raises(ValueError, match='texts of 63 tokens; expected 64, padded'):
    embed(teacher.params['text'], tokens[:, :63])


def edit_weights(directory, change):
  tensors = safetensors.numpy.load_file(directory / 'model.safetensors')
  change(tensors)
  safetensors.numpy.save_file(tensors, directory / 'model.safetensors')


def set_config(directory, tree):
  (directory / 'config.json').write_text(json.dumps(tree))


def test_sizes_repeated_as_tensors_and_counters_are_no_parameters(tmp_path):
  directory = write(tmp_path / 'teacher', 'vit')
  edit_weights(
    directory,
    lambda t: t.update({'input_resolution': np.array(32), 'context_length': np.array(77), 'vocab_size': np.array(60)}),
  )
  teacher_checkpoint.load_teacher(directory)


def test_a_config_beside_original_names_says_what_shapes_do_not(tmp_path):
  directory = write(tmp_path / 'teacher', 'rn50')
  set_config(
    directory,
    {
      'model_type': 'clip',
      'text_config': {'hidden_act': 'gelu', 'num_attention_heads': 4, 'eos_token_id': 7},
      'vision_config': {'heads': 8},
    },
  )
  config = teacher_checkpoint.load_teacher(directory).config
  assert config.text == clip.Transformer(64, 2, 4, 256, 'gelu') and config.end_id == 7
  assert config.image == clip.ModifiedResNet((3, 4, 6, 3), 8, 8)


def shard(directory, count=3):
  tensors = safetensors.numpy.load_file(directory / 'model.safetensors')
  (directory / 'model.safetensors').unlink()
  weight_map = {}
  for i in range(count):
    name = f'model-{i + 1:05}-of-{count:05}.safetensors'
    part = {key: tensors[key] for key in sorted(tensors)[i::count]}
    safetensors.numpy.save_file(part, directory / name)
    weight_map |= dict.fromkeys(part, name)
  (directory / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}))
  return directory


def test_several_files_are_one_teacher(tmp_path):
  teacher = teacher_checkpoint.load_teacher(write(tmp_path / 'teacher', 'vit'))
  parts = teacher_checkpoint.load_teacher(shard(tmp_path / 'teacher'))
  jax.tree.map(np.testing.assert_array_equal, parts.params, teacher.params)
  assert parts.image_identity == teacher.image_identity


def halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def unlist(directory):
  path = shard(directory) / 'model.safetensors.index.json'
  tree = json.loads(path.read_text())
  del tree['weight_map']['logit_scale']
  path.write_text(json.dumps(tree))


def escape(directory):
  (shard(directory) / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': '../a.safetensors'}}))


SPOILT = {
  'a part cut in half': (
    'vit',
    lambda d: halve(shard(d) / 'model-00002-of-00003.safetensors'),
    '00002-of-00003.safetensors is not a complete safetensors',
  ),
  'a part missing': (
    'vit',
    lambda d: (shard(d) / 'model-00002-of-00003.safetensors').unlink(),
    'lists model-00002-of-00003.safetensors, which is not there',
  ),
  'an index that forgets': ('vit', unlist, 'disagree about logit_scale'),
  'an index that leaves the folder': ('vit', escape, 'no usable weight_map'),
  'a pickle': ('vit', lambda d: (d / 'model.safetensors').rename(d / 'pytorch_model.bin'), 'which is never read'),
  'another vocabulary': (
    'rn50',
    lambda d: shutil.copy(write(d.parent / 'other', 'siglip_b16') / 'tokenizer.json', d),
    'has 320 tokens; expected 60',
  ),
  'another family': ('rn50', lambda d: set_config(d, {'model_type': 'bert'}), "'bert'; expected 'clip_modif"),
  'a norm missing': (
    'rn50',
    lambda d: edit_weights(d, lambda t: t.pop('visual.layer3.5.bn2.running_var')),
    r'lacks visual.layer3.5.bn2.running_var \(0 unknown, 1 missing\)',
  ),
  'a position missing': (
    'rn50',
    lambda d: edit_weights(d, lambda t: t.pop('visual.attnpool.positional_embedding')),
    'lacks visual.attnpool.positional_embedding',
  ),
  'a block too many': (
    'rn50',
    lambda d: edit_weights(d, lambda t: t.update({'visual.layer1.3.extra': np.ones(1)})),
    "lacks visual.layer1.3.bn1.bias|has 'visual.layer1.3.extra'",
  ),
  'another shape': (
    'rn50',
    lambda d: edit_weights(
      d, lambda t: t.update({'visual.layer2.0.conv2.weight': np.ones((16, 16, 1, 1), np.float32)})
    ),
    r'conv2.weight is \(16, 16, 1, 1\); expected \(16, 16, 3, 3\)',
  ),
  'packed attention cut': (
    'siglip2_giant',
    lambda d: edit_weights(
      d, lambda t: t.update({'vision_model.head.attention.in_proj_bias': np.ones(143, np.float32)})
    ),
    r'in_proj_bias is \(143,\); expected \(144,\)',
  ),
  'no bias of the logits': (
    'siglip2_giant',
    lambda d: edit_weights(d, lambda t: t.pop('logit_bias')),
    'lacks logit_bias',
  ),
  'a CLIP called SigLIP': (
    'siglip2_giant',
    lambda d: set_config(d, {**family_golden.SIGLIP['siglip2_giant'], 'model_type': 'clip'}),
    'fits nothing',
  ),
  'unequal dimensions': (
    'siglip2_giant',
    lambda d: set_config(d, {'model_type': 'siglip', 'text_config': {'projection_size': 40, 'vocab_size': 256}}),
    'projection_size is 40; expected 768, the hidden_size of vision_config',
  ),
  'no head': (
    'siglip2_giant',
    lambda d: set_config(d, {'model_type': 'siglip', 'vision_config': {'vision_use_head': False}}),
    'vision_use_head is False',
  ),
  'a picture smaller than a patch': (
    'siglip2_giant',
    lambda d: set_config(d, {'model_type': 'siglip', 'vision_config': {'image_size': 8}}),
    'image_size is 8; expected at least a patch',
  ),
  'a picture off the stride': (
    'rn50',
    lambda d: set_config(d, {'vision_config': {'image_size': 230}}),
    'image_size is 230; expected a multiple of 32',
  ),
  'no tokenizer but its parts': (
    'vit',
    lambda d: [(d / 'tokenizer.json').rename(d / 'vocab.json'), (d / 'merges.txt').touch()],
    r'no tokenizer\.json; its vocab.json and merges.txt make one: .*AutoTokenizer',
  ),
  'no tokenizer but its pieces': (
    'siglip2_giant',
    lambda d: (d / 'tokenizer.json').rename(d / 'spiece.model'),
    r'no tokenizer\.json; its spiece.model makes one',
  ),
}


@pytest.mark.parametrize('case', SPOILT)
def test_what_is_no_teacher_is_one_line(tmp_path, case):
  family, spoil, found = SPOILT[case]
  directory = write(tmp_path / 'teacher', family)
  spoil(directory)
  with pytest.raises(ValueError, match=found) as error:
    teacher_checkpoint.load_teacher(directory)
  assert '\n' not in str(error.value) and 'teacher' in str(error.value)


def test_a_teacher_on_the_hub_has_one_way_to_be_named(tmp_path, monkeypatch):
  asked = fake_hub.install(monkeypatch, {'openai/clip-vit': write(tmp_path / 'snapshot', 'vit')})
  monkeypatch.chdir(tmp_path)
  assert teacher_checkpoint.load_text_tower('hf://openai/clip-vit@v1').config == config_of('vit')
  ((repository, revision, wanted, _),) = asked
  assert (repository, revision) == ('openai/clip-vit', 'v1') and 'tokenizer.json' in wanted
  assert not any(fnmatch.fnmatch('pytorch_model.bin', pattern) for pattern in wanted)
  for path in ('openai/clip-vit', tmp_path / 'no' / 'folder', str(tmp_path / 'none'), 'none', 'a/b/c'):
    with pytest.raises(ValueError, match=r'is not a folder; expected a teacher directory .*hf://owner/name') as error:
      teacher_checkpoint.load_teacher(path)
    assert '\n' not in str(error.value)
  assert len(asked) == 1
  with pytest.raises(ValueError, match=r'the Hugging Face hub did not give hf://openai/x: no openai/x here; expected'):
    teacher_checkpoint.load_teacher('hf://openai/x')
