"""Converts `config.json` of a teacher to the sizes of its towers and back; reads sizes off OpenAI's shapes."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vild_jax.nn import clip

Tree = Mapping[str, Any]
_RESNET = 'clip_modified_resnet'  # transformers has no such model: the name and its `vision_config` are our own
_LEGACY_END_ID = 2  # of old files; transformers then pools at the largest id
# The classes of transformers for one tower alone.
_CLIP_CLASSES = {('text',): 'CLIPTextModelWithProjection', ('image',): 'CLIPVisionModelWithProjection'}
_SIGLIP_CLASSES = {('text',): 'SiglipTextModel', ('image',): 'SiglipVisionModel'}
_OPENAI_HEAD = 64  # channels of one head in all of OpenAI's models

# Defaults of transformers for what a config.json does not say; it writes only what differs from them.
_CLIP_TEXT = {
  'hidden_size': 512,
  'intermediate_size': 2048,
  'num_hidden_layers': 12,
  'num_attention_heads': 8,
  'hidden_act': 'quick_gelu',
  'layer_norm_eps': 1e-5,
  'vocab_size': 49408,
  'max_position_embeddings': 77,
  'eos_token_id': 49407,
}
_CLIP_IMAGE = {
  'hidden_size': 768,
  'intermediate_size': 3072,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'hidden_act': 'quick_gelu',
  'layer_norm_eps': 1e-5,
  'image_size': 224,
  'patch_size': 32,
}
_SIGLIP = {
  'hidden_size': 768,
  'intermediate_size': 3072,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'hidden_act': 'gelu_pytorch_tanh',
  'layer_norm_eps': 1e-6,
}
_SIGLIP_TEXT = {**_SIGLIP, 'vocab_size': 32000, 'max_position_embeddings': 64}
_SIGLIP_IMAGE = {**_SIGLIP, 'patch_size': 16, 'vision_use_head': True}
_RESNET_IMAGE = {'layers': [3, 4, 6, 3], 'width': 64, 'heads': 32, 'image_size': 224}
# What a config.json may ask for at most, far above any teacher: its file may be of others, and work is done before the
# sizes are compared with those of the weights. All else is at most `_LARGEST`.
_MOST = {'num_hidden_layers': 1000, 'max_position_embeddings': 8192, 'image_size': 4096}
_LARGEST = 2**24
_STAGES = 8  # of a ModifiedResNet
_DEFAULTS = {
  'clip': (_CLIP_TEXT, _CLIP_IMAGE),
  _RESNET: (_CLIP_TEXT, _RESNET_IMAGE),
  'siglip': (_SIGLIP_TEXT, {**_SIGLIP_IMAGE, 'image_size': 224}),
  'siglip2': (_SIGLIP_TEXT, {**_SIGLIP_IMAGE, 'num_patches': 256}),
}


def parse(tree: Tree, path: Path) -> clip.ClipConfig:
  """Returns the sizes that `tree` describes. Raises ValueError, one line that names the wrong field of `path`."""
  family = tree.get('model_type')
  if not isinstance(family, str) or family not in _DEFAULTS:
    raise ValueError(f'{path}: model_type is {reprlib.repr(family)}; expected one of {", ".join(map(repr, _DEFAULTS))}')
  text, image = (
    _section(tree, name, defaults, path) for name, defaults in zip(('text', 'vision'), _DEFAULTS[family], strict=True)
  )
  sigmoid = family in ('siglip', 'siglip2')
  if family == _RESNET:
    tower, image_size, patch_size = _resnet(image, path), image['image_size'], None
  else:
    tower, patch_size = _transformer(image, 'vision', path), image['patch_size']
    # SigLIP 2 for any resolution is used at the one for which its positions were learned, a square.
    image_size = image['image_size'] if family != 'siglip2' else math.isqrt(image['num_patches']) * patch_size
    if image_size < patch_size:
      raise ValueError(f'{path}: vision_config.image_size is {image_size}; expected at least a patch of {patch_size}')
  end_id = None if sigmoid or text['eos_token_id'] == _LEGACY_END_ID else text['eos_token_id']
  return clip.ClipConfig(
    embedding_dim=_sigmoid_dim(tree, text, image, path)
    if sigmoid
    else _dimension(tree.get('projection_dim', 512), 'projection_dim', path),
    image=tower,
    image_size=image_size,
    patch_size=patch_size,
    text=_transformer(text, 'text', path),
    vocab_size=text['vocab_size'],
    context_length=text['max_position_embeddings'],
    end_id=end_id,
    sigmoid=sigmoid,
  )


def has_flat_patches(tree: Tree) -> bool:
  """Tells whether the patches of this model go through a dense layer, as in SigLIP 2 for any resolution."""
  return tree.get('model_type') == 'siglip2'


def write(config: clip.ClipConfig, towers: tuple[str, ...]) -> dict[str, Any]:
  """Returns a config.json of 'text', 'image' or both that `parse` reads as `config`.

  So does transformers, if it has such a model.
  """

  def section(t: clip.Transformer) -> dict[str, Any]:
    return {
      'hidden_size': t.width,
      'intermediate_size': t.mlp_width,
      'num_hidden_layers': t.layers,
      'num_attention_heads': t.heads,
      'hidden_act': t.activation,
      'layer_norm_eps': t.epsilon,
    }

  text = {**section(config.text), 'vocab_size': config.vocab_size, 'max_position_embeddings': config.context_length}
  image, dim = {'image_size': config.image_size}, config.embedding_dim
  if isinstance(config.image, clip.ModifiedResNet):
    image |= {'layers': list(config.image.layers), 'width': config.image.width, 'heads': config.image.heads}
  else:
    image |= section(config.image) | {'patch_size': config.patch_size}
  if config.sigmoid:
    return {
      'architectures': [_SIGLIP_CLASSES.get(towers, 'SiglipModel')],
      'model_type': 'siglip',
      'text_config': {**text, 'projection_size': dim},
      'vision_config': image,
    }
  end_id = _LEGACY_END_ID if config.end_id is None else config.end_id
  tree = {'projection_dim': dim, 'text_config': {**text, 'projection_dim': dim, 'eos_token_id': end_id}}
  if isinstance(config.image, clip.ModifiedResNet):
    return {'model_type': _RESNET, **tree, 'vision_config': image}
  return {
    'architectures': [_CLIP_CLASSES.get(towers, 'CLIPModel')],
    'model_type': 'clip',
    **tree,
    'vision_config': {**image, 'projection_dim': dim},
  }


def model_name(config: clip.ClipConfig) -> str:
  """Returns a name made of the sizes alone, so that it does not depend on the place of a copy."""
  if isinstance(config.image, clip.ModifiedResNet):
    blocks = '-'.join(map(str, config.image.layers))
    return f'clip-resnet-{blocks}x{config.image.width}-{config.embedding_dim}d'
  family = 'siglip' if config.sigmoid else 'clip'
  return f'{family}-vit-{config.image.layers}x{config.image.width}-patch{config.patch_size}-{config.embedding_dim}d'


def is_original(names: set[str]) -> bool:
  """Tells whether these are OpenAI's own names of parameters."""
  return 'token_embedding.weight' in names


def from_shapes(shapes: Mapping[str, tuple[int, ...]], stated: Tree, path: Path) -> dict[str, Any]:
  """Makes a config.json for a file of OpenAI's own, from the shapes of its tensors.

  What shapes do not tell is as in all of OpenAI's models (QuickGELU, heads of 64 channels, the end token has the
  largest id), unless `stated`, the model's own config.json if it has one, says otherwise. Raises ValueError, one line.
  """

  def size(name: str, axis: int) -> int:
    if len(shapes.get(name, ())) <= axis:
      raise ValueError(f"{path} lacks {name}; expected the parameters of OpenAI's CLIP")
    return shapes[name][axis]

  def count(prefix: str) -> int:
    return len({name[len(prefix) :].partition('.')[0] for name in shapes if name.startswith(prefix)})

  def transformer(width: int, root: str) -> dict[str, Any]:
    return {
      'hidden_size': width,
      'num_hidden_layers': count(f'{root}.resblocks.'),
      'intermediate_size': size(f'{root}.resblocks.0.mlp.c_fc.weight', 0),
      'num_attention_heads': max(1, width // _OPENAI_HEAD),
    }

  text = {
    **transformer(size('token_embedding.weight', 1), 'transformer'),
    'eos_token_id': _LEGACY_END_ID,
    'vocab_size': size('token_embedding.weight', 0),
    'max_position_embeddings': size('positional_embedding', 0),
  }
  family = 'clip' if 'visual.class_embedding' in shapes else _RESNET
  if family == 'clip':
    patch = size('visual.conv1.weight', 3)
    image = {
      **transformer(size('visual.conv1.weight', 0), 'visual.transformer'),
      'patch_size': patch,
      'image_size': math.isqrt(size('visual.positional_embedding', 0)) * patch,
    }
  else:
    width, cells = size('visual.layer1.0.conv1.weight', 0), size('visual.attnpool.positional_embedding', 0)
    stages = count('visual.layer')
    tower = clip.ModifiedResNet(tuple(count(f'visual.layer{stage + 1}.') for stage in range(stages)), width)
    image = {
      'layers': list(tower.layers),
      'width': width,
      'heads': max(1, tower.channels // _OPENAI_HEAD),
      'image_size': math.isqrt(cells) * tower.stride,
    }
  if stated.get('model_type', family) not in ('clip', family):
    found = reprlib.repr(stated['model_type'])
    raise ValueError(f'{path}: model_type of config.json is {found}; expected {family!r}')
  given = {name: stated.get(name) or {} for name in ('text_config', 'vision_config')}
  for name, section in given.items():
    if not isinstance(section, Mapping):
      raise ValueError(f'{path}: {name} of config.json is {reprlib.repr(section)}; expected an object')
  return {
    'projection_dim': size('text_projection', 1),
    **stated,
    'model_type': family,
    'text_config': {**text, **given['text_config']},
    'vision_config': {**image, **given['vision_config']},
  }


def _section(tree: Tree, name: str, defaults: Tree, path: Path) -> dict[str, Any]:
  values, older = tree.get(f'{name}_config') or {}, tree.get(f'{name}_config_dict')
  for key, section in ((f'{name}_config', values), (f'{name}_config_dict', older or {})):
    if not isinstance(section, Mapping):
      raise ValueError(f'{path}: {key} is {reprlib.repr(section)}; expected an object')
  # As in transformers, an older `_config_dict` replaces the newer section, also where it only has defaults.
  values = {**defaults, **values} if older is None else {**defaults, **older}
  for key, default in defaults.items():
    value, most = values[key], _MOST.get(key, _LARGEST)
    fits = type(value) is type(default)
    if not fits or (type(value) is int and value < 1) or (type(value) is float and not 0 <= value < 1):
      raise ValueError(f'{path}: {name}_config.{key} is {reprlib.repr(value)}; expected a value such as {default!r}')
    if type(value) is int and value > most:
      raise ValueError(f'{path}: {name}_config.{key} is {reprlib.repr(value)}; expected at most {most}')
  return values


def _transformer(values: Tree, name: str, path: Path) -> clip.Transformer:
  width, heads, activation = values['hidden_size'], values['num_attention_heads'], values['hidden_act']
  if activation not in clip.ACTIVATIONS:
    raise ValueError(
      f'{path}: {name}_config.hidden_act is {reprlib.repr(activation)}; expected one of {list(clip.ACTIVATIONS)}'
    )
  if width % heads:
    raise ValueError(f'{path}: {name}_config.hidden_size is {width}; expected a multiple of its {heads} heads')
  return clip.Transformer(
    width, values['num_hidden_layers'], heads, values['intermediate_size'], activation, values['layer_norm_eps']
  )


def _resnet(values: Tree, path: Path) -> clip.ModifiedResNet:
  layers = values['layers']
  right = 0 < len(layers) <= _STAGES and all(type(n) is int and 0 < n <= _MOST['num_hidden_layers'] for n in layers)
  if not right:
    raise ValueError(
      f'{path}: vision_config.layers is {reprlib.repr(layers)}; expected blocks of each stage such as [3, 4, 6, 3]'
    )
  tower = clip.ModifiedResNet(tuple(layers), values['width'], values['heads'])
  if tower.channels % tower.heads or tower.width % 2:
    raise ValueError(
      f'{path}: vision_config.width is {tower.width}; expected an even one, and {tower.channels} '
      f'channels to be a multiple of {tower.heads} heads'
    )
  if values['image_size'] % tower.stride:
    raise ValueError(
      f'{path}: vision_config.image_size is {values["image_size"]}; expected a multiple of '
      f'{tower.stride}, the stride of its tower'
    )
  return tower


def _sigmoid_dim(tree: Tree, text: Tree, image: Tree, path: Path) -> int:
  dim = _dimension(text.get('projection_size') or text['hidden_size'], 'text_config.projection_size', path)
  if dim != image['hidden_size']:
    raise ValueError(
      f'{path}: text_config.projection_size is {dim}; expected {image["hidden_size"]}, the hidden_size of vision_config'
    )
  if not image['vision_use_head']:
    raise ValueError(f'{path}: vision_config.vision_use_head is False; expected a model that pools its image')
  return dim


def _dimension(value: Any, field: str, path: Path) -> int:
  if type(value) is not int or not 1 <= value <= _LARGEST:
    raise ValueError(f'{path}: {field} is {reprlib.repr(value)}; expected a dimension such as 512')
  return value
