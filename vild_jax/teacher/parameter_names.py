"""Finds each of our parameters of a teacher in its file, by the names of transformers' models or OpenAI's own.

The tables name every parameter of towers in the layout of transformers (`CLIPModel`, `SiglipModel`) and in that of
OpenAI's weights (`visual.…`, `transformer.resblocks.…`; a ModifiedResNet has only these names).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import numpy as np

from vild_jax.nn import clip

Path_ = tuple[str, ...]

_LINEAR, _CONV = (1, 0), (2, 3, 1, 0)  # torch's axes in our order: [out, in] and [out, in, height, width]
_QUERY_KEY_VALUE = ('query', 'key', 'value')


@dataclass(frozen=True)
class Source:
  """Says where a parameter is in a file.

  Attributes:
    name: of the tensor.
    part: which third of its first axis; None for the whole tensor (some files pack query, key and value in one).
    shape: that of the tensor, if our parameter has the same numbers in another shape.
    view: the shape to give the tensor before its axes are transposed.
    axes: for each of our axes, the axis of the tensor; None if they are the same.
  """

  name: str
  part: int | None = None
  shape: tuple[int, ...] | None = None
  view: tuple[int, ...] | None = None
  axes: tuple[int, ...] | None = None

  def shape_in_file(self, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that the tensor must have for a parameter of the shape `ours`."""
    if self.shape is not None:
      return self.shape
    shape = ours if self.axes is None else tuple(ours[i] for i in np.argsort(self.axes))
    return shape if self.part is None else (3 * shape[0], *shape[1:])

  def read(self, tensor: np.ndarray) -> np.ndarray:
    """Turns the tensor into our parameter."""
    value = tensor if self.part is None else np.split(tensor, 3)[self.part]
    value = value if self.view is None else value.reshape(self.view)
    return np.array(value if self.axes is None else value.transpose(self.axes), order='C')

  def write(self, ours: np.ndarray) -> np.ndarray:
    """Turns our parameter into the tensor, or into its third of the tensor."""
    value = ours if self.axes is None else ours.transpose(np.argsort(self.axes))
    return np.array(value if self.shape is None else value.reshape(self.shape), order='C')


class _Table(dict[Path_, Source]):
  """Holds {our path: source}; the methods add whole layers."""

  def __init__(self, *tower: str):
    super().__init__()
    self.tower = tower

  def add(self, name: str, *ours: str, **how) -> None:
    self[(*self.tower, *ours)] = Source(name, **how)

  def dense(self, name: str, *ours: str) -> None:
    self.add(f'{name}.weight', *ours, 'kernel', axes=_LINEAR)
    self.add(f'{name}.bias', *ours, 'bias')

  def norm(self, name: str, *ours: str) -> None:
    self.add(f'{name}.weight', *ours, 'scale')
    self.add(f'{name}.bias', *ours, 'bias')

  def packed(self, name: str, *ours: str) -> None:
    """Adds an attention of torch, which has one tensor for query, key and value."""
    for part, which in enumerate(_QUERY_KEY_VALUE):
      self.add(f'{name}.in_proj_weight', *ours, which, 'kernel', part=part, axes=_LINEAR)
      self.add(f'{name}.in_proj_bias', *ours, which, 'bias', part=part)
    self.dense(f'{name}.out_proj', *ours, 'out')


def parameter_table(config: clip.ClipConfig, tower: str, original: bool = False) -> dict[Path_, Source]:
  """Returns {our path: source} of one tower: 'text', or 'image' with the parameters that belong to neither tower.

  `original` means OpenAI's own names, which only CLIP has. A ModifiedResNet has them in either case.
  """
  if tower == 'text':
    return _original_text(config) if original else _text(config)
  resnet = isinstance(config.image, clip.ModifiedResNet)
  table = _resnet(config.image) if resnet else _original_vit(config) if original else _vision(config)
  shape = (1,) if config.sigmoid else ()
  for name in ('logit_scale', 'logit_bias') if config.sigmoid else ('logit_scale',):
    table[name,] = Source(name, shape=shape, view=())
  return table


@functools.lru_cache(maxsize=8)  # tracing takes a quarter of a second
def expected_shapes(config: clip.ClipConfig) -> dict[Path_, tuple[int, ...]]:
  """Returns {path: shape} of all parameters of `clip.Clip`."""
  images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), np.float32)
  tokens = jax.ShapeDtypeStruct((1, config.context_length), np.int32)
  tree = jax.eval_shape(clip.Clip(config).init, jax.random.key(0), images, tokens)['params']
  return {tuple(key.key for key in path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)}


# --- transformers' names --------------------------------------------------------------------------------------------


def _blocks(table: _Table, root: str, layers: int) -> None:
  for i in range(layers):
    theirs, ours = f'{root}.encoder.layers.{i}', f'block_{i}'
    for name, part in (('q_proj', 'query'), ('k_proj', 'key'), ('v_proj', 'value'), ('out_proj', 'out')):
      table.dense(f'{theirs}.self_attn.{name}', ours, 'attention', part)
    for name in ('fc1', 'fc2'):
      table.dense(f'{theirs}.mlp.{name}', ours, name)
    table.norm(f'{theirs}.layer_norm1', ours, 'norm1')
    table.norm(f'{theirs}.layer_norm2', ours, 'norm2')


def _text(config: clip.ClipConfig) -> _Table:
  table, root = _Table('text'), 'text_model'
  table.add(f'{root}.embeddings.token_embedding.weight', 'token', 'embedding')
  table.add(f'{root}.embeddings.position_embedding.weight', 'position')
  table.norm(f'{root}.final_layer_norm', 'norm_out')
  if config.sigmoid:
    table.dense(f'{root}.head', 'project')
  else:
    table.add('text_projection.weight', 'project', 'kernel', axes=_LINEAR)
  _blocks(table, root, config.text.layers)
  return table


def _vision(config: clip.ClipConfig) -> _Table:
  table, root = _Table('image'), 'vision_model'
  table.add(f'{root}.embeddings.patch_embedding.weight', 'patch', 'kernel', axes=_CONV)
  table.add(f'{root}.embeddings.position_embedding.weight', 'position')
  table.norm(f'{root}.post_layernorm', 'norm_out')
  if config.sigmoid:
    width = config.image.width
    table.add(f'{root}.embeddings.patch_embedding.bias', 'patch', 'bias')
    table.add(f'{root}.head.probe', 'pool', 'probe', shape=(1, 1, width), view=(width,))
    table.packed(f'{root}.head.attention', 'pool', 'attention')
    table.norm(f'{root}.head.layernorm', 'pool', 'norm')
    for name in ('fc1', 'fc2'):
      table.dense(f'{root}.head.mlp.{name}', 'pool', name)
  else:
    table.add(f'{root}.embeddings.class_embedding', 'class_token')
    table.norm(f'{root}.pre_layrnorm', 'norm_in')  # transformers' spelling
    table.add('visual_projection.weight', 'project', 'kernel', axes=_LINEAR)
  _blocks(table, root, config.image.layers)
  return table


def with_flat_patches(table: dict[Path_, Source], config: clip.ClipConfig) -> dict[Path_, Source]:
  """Returns the image table of a model with a dense layer [W, P * P * 3] for patches (transformers' Siglip2Model)."""
  path, size, width = ('image', 'patch', 'kernel'), config.patch_size, config.image.width
  flat = Source(table[path].name, shape=(width, size * size * 3), view=(width, size, size, 3), axes=(1, 2, 3, 0))
  return {**table, path: flat}


# --- OpenAI's names -------------------------------------------------------------------------------------------------


def _original_blocks(table: _Table, root: str, layers: int) -> None:
  for i in range(layers):
    theirs, ours = f'{root}.resblocks.{i}', f'block_{i}'
    table.packed(f'{theirs}.attn', ours, 'attention')
    table.dense(f'{theirs}.mlp.c_fc', ours, 'fc1')
    table.dense(f'{theirs}.mlp.c_proj', ours, 'fc2')
    table.norm(f'{theirs}.ln_1', ours, 'norm1')
    table.norm(f'{theirs}.ln_2', ours, 'norm2')


def _original_text(config: clip.ClipConfig) -> _Table:
  table = _Table('text')
  table.add('token_embedding.weight', 'token', 'embedding')
  table.add('positional_embedding', 'position')
  table.norm('ln_final', 'norm_out')
  table.add('text_projection', 'project', 'kernel')
  _original_blocks(table, 'transformer', config.text.layers)
  return table


def _original_vit(config: clip.ClipConfig) -> _Table:
  table = _Table('image')
  table.add('visual.conv1.weight', 'patch', 'kernel', axes=_CONV)
  table.add('visual.class_embedding', 'class_token')
  table.add('visual.positional_embedding', 'position')
  table.norm('visual.ln_pre', 'norm_in')
  table.norm('visual.ln_post', 'norm_out')
  table.add('visual.proj', 'project', 'kernel')
  _original_blocks(table, 'visual.transformer', config.image.layers)
  return table


def _resnet(config: clip.ModifiedResNet) -> _Table:
  table = _Table('image')

  def conv_norm(conv: str, norm: str, *ours: str) -> None:
    table.add(f'{conv}.weight', *ours, 'kernel', axes=_CONV)
    for theirs, name in (('weight', 'scale'), ('bias', 'bias'), ('running_mean', 'mean'), ('running_var', 'var')):
      table.add(f'{norm}.{theirs}', *ours[:-1], f'{ours[-1]}_bn', name)

  for i in (1, 2, 3):
    conv_norm(f'visual.conv{i}', f'visual.bn{i}', f'stem{i}')
  for stage, blocks in enumerate(config.layers, 1):
    for block in range(blocks):
      theirs, ours = f'visual.layer{stage}.{block}', f'stage{stage}_block{block}'
      for i in (1, 2, 3):
        conv_norm(f'{theirs}.conv{i}', f'{theirs}.bn{i}', ours, f'conv{i}')
      if not block:  # the first block of every stage changes the number of channels
        conv_norm(f'{theirs}.downsample.0', f'{theirs}.downsample.1', ours, 'projection')
  table.add('visual.attnpool.positional_embedding', 'position')
  for name, part in (('q_proj', 'query'), ('k_proj', 'key'), ('v_proj', 'value'), ('c_proj', 'out')):
    table.dense(f'visual.attnpool.{name}', 'pool', part)
  return table
