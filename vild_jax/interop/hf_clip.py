"""Teacher directories: CLIP in the Hugging Face layout, read and written, every parameter matched or an error.

A directory holds `config.json`, `model.safetensors` (transformers' names of CLIPModel), `tokenizer.json` and
`preprocessor_config.json`. A text tower alone (`text_tower/` of a bundle) is the same without the image tower's
parameters and without preprocessing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers

from vild_jax.nn import clip

Params = Mapping[str, Any]
Path_ = tuple[str, ...]


@dataclass(frozen=True)
class Teacher:
  """A teacher in memory.

  Attributes:
    config: the sizes of both towers.
    params: float32 parameters of `clip.Clip`: `text`, and unless it is a text tower alone, `image` and `logit_scale`.
    tokenizer_json: the text of tokenizer.json.
    preprocessor: the contents of preprocessor_config.json; None for a text tower alone.
  """

  config: clip.ClipConfig
  params: Params
  tokenizer_json: str
  preprocessor: Mapping[str, Any] | None = None

  @cached_property
  def text_identity(self) -> str:
    """`model:hash` of the text tower, a function of its weights, sizes and tokens; the same for a copy of it alone."""
    tokens = tokenizers.Tokenizer.from_str(self.tokenizer_json).get_vocab()
    facts = [self.config.text, self.config.end_id, sorted(tokens.items())]
    return f'{_model_name(self.config)}:{_hash(self.params["text"], repr(facts))}'

  @cached_property
  def image_identity(self) -> str:
    """`model:hash` of the image tower and its preprocessing."""
    facts = [self.config.image, json.dumps(self.preprocessor, sort_keys=True)]
    return f'{_model_name(self.config)}:{_hash(self.params["image"], repr(facts))}'


def load_teacher(directory: str | Path) -> Teacher:
  """Reads a teacher directory. ValueError, one line, names the file or parameter that does not fit."""
  directory = Path(directory)
  teacher = _load(directory, ('text', 'image'))
  return dataclasses.replace(teacher, preprocessor=_read_json(directory / 'preprocessor_config.json'))


def load_text_tower(directory: str | Path) -> Teacher:
  """Reads the text tower of a teacher directory or of a `text_tower/`; the image tower's weights are not touched."""
  return _load(Path(directory), ('text',))


def save_teacher(directory: str | Path, teacher: Teacher) -> None:
  """Writes a teacher directory that `load_teacher` and transformers' CLIPModel read."""
  _save(Path(directory), teacher, ('text', 'image'), 'CLIPModel')


def save_text_tower(directory: str | Path, teacher: Teacher) -> None:
  """Writes the text tower and the tokenizer alone, which is what a bundle keeps of its teacher."""
  _save(Path(directory), teacher, ('text',), 'CLIPTextModelWithProjection')


# --- the parameters' names ------------------------------------------------------------------------------------------

_LINEAR, _CONV = (1, 0), (2, 3, 1, 0)  # transformers' axes in our order: [out, in] and [out, in, height, width]


def parameter_table(config: clip.ClipConfig, tower: str) -> dict[str, tuple[Path_, Path_ | None]]:
  """{transformers' name: (our path, the order in which our axes stand in theirs)} of one tower, 'text' or 'image'."""
  table: dict[str, tuple] = {}

  def linear(theirs: str, *ours: str, bias: bool = True) -> None:
    table[f'{theirs}.weight'] = ((tower, *ours, 'kernel'), _LINEAR)
    if bias:
      table[f'{theirs}.bias'] = ((tower, *ours, 'bias'), None)

  def norm(theirs: str, *ours: str) -> None:
    table[f'{theirs}.weight'] = ((tower, *ours, 'scale'), None)
    table[f'{theirs}.bias'] = ((tower, *ours, 'bias'), None)

  if tower == 'text':
    root, layers = 'text_model', config.text.layers
    table[f'{root}.embeddings.token_embedding.weight'] = ((tower, 'token', 'embedding'), None)
    norm(f'{root}.final_layer_norm', 'norm_out')
    linear('text_projection', 'project', bias=False)
  else:
    root, layers = 'vision_model', config.image.layers
    table[f'{root}.embeddings.class_embedding'] = ((tower, 'class_token'), None)
    table[f'{root}.embeddings.patch_embedding.weight'] = ((tower, 'patch', 'kernel'), _CONV)
    norm(f'{root}.pre_layrnorm', 'norm_in')
    norm(f'{root}.post_layernorm', 'norm_out')
    linear('visual_projection', 'project', bias=False)
    table['logit_scale'] = (('logit_scale',), None)
  table[f'{root}.embeddings.position_embedding.weight'] = ((tower, 'position'), None)
  for i in range(layers):
    theirs, ours = f'{root}.encoder.layers.{i}', f'block_{i}'
    for name, part in (('q_proj', 'query'), ('k_proj', 'key'), ('v_proj', 'value'), ('out_proj', 'out')):
      linear(f'{theirs}.self_attn.{name}', ours, 'attention', part)
    linear(f'{theirs}.mlp.fc1', ours, 'fc1')
    linear(f'{theirs}.mlp.fc2', ours, 'fc2')
    norm(f'{theirs}.layer_norm1', ours, 'norm1')
    norm(f'{theirs}.layer_norm2', ours, 'norm2')
  return table


def _expected_shapes(config: clip.ClipConfig) -> dict[Path_, tuple[int, ...]]:
  images = jnp.zeros((1, config.image_size, config.image_size, 3))
  model = clip.Clip(config)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images, jnp.zeros((1, config.context_length), jnp.int32))
  return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(shapes['params']).items()}


# --- reading --------------------------------------------------------------------------------------------------------


def _load(directory: Path, towers: tuple[str, ...]) -> Teacher:
  if not directory.is_dir():
    raise ValueError(f'{directory} is no folder; expected a teacher directory (config.json, model.safetensors, ...)')
  for name, hint in _FILES.items():
    if not (directory / name).is_file() and (name != 'preprocessor_config.json' or 'image' in towers):
      raise ValueError(f'{directory} is no teacher directory: it has no {name}; {hint}')
  path = directory / 'config.json'
  config = _parse_config(_read_json(path), path)
  tokenizer_json = (directory / 'tokenizer.json').read_text(encoding='utf-8')
  _check_tokenizer(tokenizer_json, config, directory / 'tokenizer.json')
  return Teacher(config, _read_params(directory / 'model.safetensors', config, towers), tokenizer_json)


_FILES = {
  'config.json': 'expected the Hugging Face layout of CLIP',
  'model.safetensors': 'save the model with transformers, `CLIPModel.from_pretrained(...).save_pretrained(...)`',
  'tokenizer.json': 'save one with transformers, `CLIPTokenizerFast.from_pretrained(...).save_pretrained(...)`',
  'preprocessor_config.json': 'expected the mean, deviation and size of the teacher\'s pictures',
}


def _read_params(path: Path, config: clip.ClipConfig, towers: tuple[str, ...]) -> Params:
  tables = {tower: parameter_table(config, tower) for tower in ('text', 'image')}
  known = tables['text'] | tables['image']
  wanted = {name: entry for tower in towers for name, entry in tables[tower].items()}
  shapes = _expected_shapes(config)
  flat = {}
  try:
    with safetensors.safe_open(path, framework='flax') as tensors:
      names = set(tensors.keys())
      unknown = sorted(n for n in names - known.keys() if not n.endswith('position_ids'))
      missing = sorted(wanted.keys() - names)
      if unknown or missing:
        problem = f'has {unknown[0]}, which fits nothing' if unknown else f'lacks {missing[0]}'
        raise ValueError(f'{path} {problem} ({len(unknown)} unknown, {len(missing)} missing); '
                         f'expected the parameters of {_model_name(config)} as its config.json describes it')
      for name, (ours, axes) in wanted.items():
        value = np.asarray(tensors.get_tensor(name), dtype=np.float32)
        value = value if axes is None or value.ndim != len(axes) else np.array(value.transpose(axes), order='C')
        if value.shape != shapes[ours]:
          raise ValueError(f'{path}: {name} in our order of axes is {value.shape}; expected {shapes[ours]}')
        if not np.isfinite(value).all():
          raise ValueError(f'{path}: {name} holds numbers that are not finite')
        flat[ours] = value
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(f'{path} is no complete safetensors file: {_first_line(error)}') from error
  return flax.traverse_util.unflatten_dict(flat)


# What transformers assumes where a config.json is silent; it writes only what differs.
_TEXT_DEFAULTS = {'hidden_size': 512, 'intermediate_size': 2048, 'num_hidden_layers': 12, 'num_attention_heads': 8,
                  'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5, 'vocab_size': 49408,
                  'max_position_embeddings': 77, 'eos_token_id': 49407}
_IMAGE_DEFAULTS = {'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12, 'num_attention_heads': 12,
                   'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5, 'image_size': 224, 'patch_size': 32}
_LEGACY_END_ID = 2  # what old files say; transformers then pools at the largest id


def _parse_config(tree: Mapping[str, Any], path: Path) -> clip.ClipConfig:
  if tree.get('model_type') != 'clip':
    raise ValueError(f'{path}: model_type is {tree.get("model_type")!r}; expected \'clip\'')

  def section(name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    values, older = tree.get(f'{name}_config') or {}, tree.get(f'{name}_config_dict')
    # As in transformers, an older `_config_dict` outweighs the newer section, its defaults included.
    values = {**defaults, **values} if older is None else {**defaults, **older}
    for key, default in defaults.items():
      if type(values[key]) is not type(default) or (type(default) is int and values[key] < 1):
        raise ValueError(f'{path}: {name}_config.{key} is {values[key]!r}; expected a value such as {default!r}')
    return values

  def transformer(values: dict[str, Any], name: str) -> clip.Transformer:
    width, heads, activation = values['hidden_size'], values['num_attention_heads'], values['hidden_act']
    if activation not in clip.ACTIVATIONS:
      raise ValueError(f'{path}: {name}_config.hidden_act is {activation!r}; expected one of {list(clip.ACTIVATIONS)}')
    if width % heads:
      raise ValueError(f'{path}: {name}_config.hidden_size is {width}; expected a multiple of its {heads} heads')
    return clip.Transformer(width, values['num_hidden_layers'], heads, values['intermediate_size'], activation,
                            values['layer_norm_eps'])

  text, image = section('text', _TEXT_DEFAULTS), section('vision', _IMAGE_DEFAULTS)
  embedding_dim = tree.get('projection_dim', 512)
  if type(embedding_dim) is not int or embedding_dim < 1:
    raise ValueError(f'{path}: projection_dim is {embedding_dim!r}; expected a dimension such as 512')
  return clip.ClipConfig(
    embedding_dim=embedding_dim, image=transformer(image, 'vision'), image_size=image['image_size'],
    patch_size=image['patch_size'], text=transformer(text, 'text'), vocab_size=text['vocab_size'],
    context_length=text['max_position_embeddings'],
    end_id=None if text['eos_token_id'] == _LEGACY_END_ID else text['eos_token_id'])


def _check_tokenizer(text: str, config: clip.ClipConfig, path: Path) -> None:
  try:
    size = tokenizers.Tokenizer.from_str(text).get_vocab_size(with_added_tokens=True)
  except Exception as error:  # the library raises plain Exception
    raise ValueError(f'{path} is no usable tokenizer: {_first_line(error)}') from error
  if size != config.vocab_size:
    raise ValueError(f'{path} has {size} tokens; expected {config.vocab_size}, the vocab_size of config.json')


def _read_json(path: Path) -> dict[str, Any]:
  try:
    tree = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, OSError) as error:
    raise ValueError(f'{path} is no JSON: {_first_line(error)}') from error
  if not isinstance(tree, dict):
    raise ValueError(f'{path} holds a {type(tree).__name__}; expected an object')
  return tree


# --- writing --------------------------------------------------------------------------------------------------------


def _save(directory: Path, teacher: Teacher, towers: tuple[str, ...], architecture: str) -> None:
  directory.mkdir(parents=True, exist_ok=True)
  flat = flax.traverse_util.flatten_dict(teacher.params)
  tensors = {}
  for tower in towers:
    for name, (ours, axes) in parameter_table(teacher.config, tower).items():
      value = np.asarray(flat[ours], dtype=np.float32)
      tensors[name] = np.array(value if axes is None else value.transpose(np.argsort(axes)), order='C')
  files = {
    'model.safetensors': safetensors.numpy.save(tensors, metadata={'format': 'pt'}),
    'tokenizer.json': teacher.tokenizer_json.encode(),
    'config.json': _to_json({'architectures': [architecture], **_hf_config(teacher.config)}),
  }
  if 'image' in towers:
    files['preprocessor_config.json'] = _to_json(teacher.preprocessor)
  temporary = {name: directory / f'.{name}.{os.getpid()}.tmp' for name in files}
  try:
    for name, content in files.items():
      temporary[name].write_bytes(content)
    for name in files:
      os.replace(temporary[name], directory / name)
  finally:
    for path in temporary.values():
      path.unlink(missing_ok=True)


def _hf_config(config: clip.ClipConfig) -> dict[str, Any]:
  def section(t: clip.Transformer) -> dict[str, Any]:
    return {'hidden_size': t.width, 'intermediate_size': t.mlp_width, 'num_hidden_layers': t.layers,
            'num_attention_heads': t.heads, 'hidden_act': t.activation, 'layer_norm_eps': t.epsilon,
            'projection_dim': config.embedding_dim}

  end_id = _LEGACY_END_ID if config.end_id is None else config.end_id
  return {'model_type': 'clip', 'projection_dim': config.embedding_dim,
          'text_config': {**section(config.text), 'vocab_size': config.vocab_size,
                          'max_position_embeddings': config.context_length, 'eos_token_id': end_id},
          'vision_config': {**section(config.image), 'image_size': config.image_size,
                            'patch_size': config.patch_size}}


def _to_json(tree: Mapping[str, Any] | None) -> bytes:
  return (json.dumps(tree, indent=2) + '\n').encode()


# --- identity -------------------------------------------------------------------------------------------------------


def _model_name(config: clip.ClipConfig) -> str:
  """From the sizes alone, so that the name does not depend on where a copy lies."""
  return f'clip-vit-{config.image.layers}x{config.image.width}-patch{config.patch_size}-{config.embedding_dim}d'


def _hash(params: Params, facts: str) -> str:
  digest = hashlib.sha256(facts.encode())
  for path, value in sorted(flax.traverse_util.flatten_dict(params).items()):
    value = np.array(value, dtype=np.float32, order='C')
    digest.update(f'{path}{value.shape}'.encode())
    digest.update(value.data)
  return digest.hexdigest()[:16]


def _first_line(error: Exception) -> str:
  return str(error).splitlines()[0] if str(error) else type(error).__name__
