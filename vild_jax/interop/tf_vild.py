"""Converts checkpoints of the reference (TensorFlow 1) into our variables; a variable without a match is an error.

The reference numbers its variables in the order in which it makes them; `parameter_table` says where each belongs. The
class embeddings are among them, as `class-predict/kernel`; here they are data, a vocabulary, not weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from vild_jax.config import Backbone, Config, Model, RegionHead
from vild_jax.nn.resnet import LAYOUTS
from vild_jax.train import checkpoint

_HEAD = 'frcnn_layer_0/fast_rcnn_head'
CLASS_EMBEDDINGS = f'{_HEAD}/class-predict/kernel'
_PROJECTION = f'{_HEAD}/project-to-clip/kernel'
# What only training needs: optimiser slots, averages of weights, counters, TF2's table of objects.
_TRAIN_ONLY = re.compile(r'(.*/)?(Momentum|ExponentialMovingAverage|global_step)|_CHECKPOINTABLE_OBJECT_GRAPH')


@dataclass(frozen=True)
class Place:
  """Says where a variable belongs: its path below {'params', 'batch_stats'}, and how its array is converted."""

  path: tuple[str, ...]
  convert: Callable[[np.ndarray], np.ndarray] = lambda x: x


def from_variables(variables: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], Config]:
  """Turns the reference's variables, by name (without ':0'), into ({'params', 'batch_stats'}, config), float32 NumPy.

  Names and shapes give the depth, the width, the embedding dimension and whether there is an image head
  (ViLD-ensemble); ViLD-text and ViLD are the same model at inference. What only training needs is left out. The class
  embeddings must be there, but are not in the result: `class_embeddings` reads them.

  Raises ValueError, one line that names the variable: it has no place, it is missing, its shape is wrong, or it has a
  number that is not finite.
  """
  config = _recognise(variables)
  table = parameter_table(config.model)
  class_embeddings(variables)
  given = {name for name in variables if not is_train_only(name)} - {CLASS_EMBEDDINGS}
  for name in sorted(given - table.keys()):
    raise ValueError(f"{name} has no place in {config.name}; expected the variables of the reference's ViLD")
  for name in sorted(table.keys() - given):
    raise ValueError(f'{name} is missing; expected it for {"/".join(table[name].path)} of {config.name}')
  expected = {
    tuple(key.key for key in path): leaf.shape
    for path, leaf in jax.tree_util.tree_flatten_with_path(checkpoint.abstract_variables(config))[0]
  }
  for path in sorted(expected.keys() ^ {place.path for place in table.values()}):
    raise ValueError(f'{"/".join(path)} of {config.name} has no variable; expected one for each parameter')
  flat = {}
  for name, place in table.items():
    value = place.convert(np.asarray(variables[name], np.float32))
    if value.shape != expected[place.path]:
      raise ValueError(
        f'{name} has shape {np.shape(variables[name])}, here {value.shape}; expected '
        f'{expected[place.path]} for {"/".join(place.path)}'
      )
    if not np.isfinite(value).all():
      raise ValueError(f'{name} holds numbers that are not finite; expected the weights of a trained model')
    flat[place.path] = value
  return flax.traverse_util.unflatten_dict(flat), config


def class_embeddings(variables: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns float32 [C, D], unit rows: the class embeddings in the order of the data set, without the background.

  Raises ValueError if the variable is missing or not a matrix, or the embedding of a class is zero.
  """
  if CLASS_EMBEDDINGS not in variables:
    raise ValueError(f'{CLASS_EMBEDDINGS} is missing; expected the class embeddings [D, C] of a ViLD checkpoint')
  columns = np.asarray(variables[CLASS_EMBEDDINGS], np.float32)
  if columns.ndim != 2:
    raise ValueError(f'{CLASS_EMBEDDINGS} has shape {columns.shape}; expected [D, C]')
  rows = np.ascontiguousarray(columns.T)
  norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
  if not (norms > 1e-8).all():
    raise ValueError(
      f'{CLASS_EMBEDDINGS} has no direction in column {int(np.argmin(norms[:, 0] > 1e-8))}; expected an '
      'embedding in each'
    )
  return (rows / norms).astype(np.float32)


def parameter_table(model: Model) -> dict[str, Place]:
  """Returns {name in the reference: place} of every variable of a model, except the class embeddings."""
  table: dict[str, Place] = {}

  def layer(name: str, *path: str, bias: bool = True) -> None:
    table[f'{name}/kernel'] = Place(('params', *path, 'kernel'))
    if bias:
      table[f'{name}/bias'] = Place(('params', *path, 'bias'))

  def norm(name: str, *path: str) -> None:
    for theirs, ours in (('gamma', 'scale'), ('beta', 'bias')):
      table[f'{name}/{theirs}'] = Place(('params', *path, 'bn', ours))
    for theirs, ours in (('moving_mean', 'mean'), ('moving_variance', 'var')):
      table[f'{name}/{theirs}'] = Place(('batch_stats', *path, 'bn', ours))

  def numbered(scope: str, name: str, number: int) -> str:
    return f'{scope}/{name}_{number}' if number else f'{scope}/{name}'

  resnet = f'resnet{model.backbone.depth}'
  for i, path in enumerate(backbone_layers(model.backbone.depth)):
    layer(numbered(resnet, 'conv2d', i), 'backbone', *path, bias=False)
    norm(numbered(resnet, 'batch_normalization', i), 'backbone', *path[:-1], f'{path[-1]}_bn')

  levels = range(model.pyramid.min_level, model.pyramid.max_level + 1)
  for level in levels:
    if level <= 5:
      layer(f'fpn/l{level}', 'fpn', f'lateral{level}')
    layer(f'fpn/post_hoc_d{level}' if level <= 5 else f'fpn/p{level}', 'fpn', f'output{level}')
    norm(f'fpn/p{level}-bn', 'fpn', f'output{level}_bn')

  for i in range(model.rpn.num_convs):
    suffix = f'-{i}' if i else ''
    layer(f'rpn_head/rpn{suffix}', 'rpn_head', f'conv{i + 1}')
    for level in levels:
      norm(f'rpn_head/rpn-l{level}-bn{suffix}', 'rpn_head', f'conv{i + 1}_bn{level}')
  layer('rpn_head/rpn-class', 'rpn_head', 'objectness')
  layer('rpn_head/rpn-box', 'rpn_head', 'box')

  count = 0  # the normalisations of both heads are numbered together
  for head, prefix, projection in (
    ('region_head', '', 'project-to-clip'),
    ('image_head', 'distill_', 'distill-project-to-clip'),
  )[: 1 + model.image_head]:
    names = [(f'{prefix}conv_{i}', f'conv{i + 1}') for i in range(model.region_head.num_convs)]
    names += [(f'{prefix}fc{i + 6}', f'fc{i + 1}') for i in range(model.region_head.num_fcs)]
    for theirs, ours in names:
      layer(f'{_HEAD}/{theirs}', head, ours)
      norm(numbered(_HEAD, 'batch_normalization', count), head, f'{ours}_bn')
      count += 1
    layer(f'{_HEAD}/{projection}', head, 'projection')
  layer(f'{_HEAD}/box-predict', 'region_head', 'box')
  table[f'{_HEAD}/background-class-predict/kernel'] = Place(('params', 'background'), lambda x: x[..., 0])

  for i in range(model.mask_head.num_convs):
    layer(f'mask_head/mask-conv-l{i}', 'mask_head', f'conv{i + 1}')
    norm(numbered('mask_head', 'batch_normalization', i), 'mask_head', f'conv{i + 1}_bn')
  # Kernels of transposed convolutions are [h, w, out, in] there.
  layer('mask_head/conv5-mask', 'mask_head', 'deconv')
  kernel = 'mask_head/conv5-mask/kernel'
  table[kernel] = replace(table[kernel], convert=lambda x: np.swapaxes(x, -1, -2))
  norm(numbered('mask_head', 'batch_normalization', model.mask_head.num_convs), 'mask_head', 'deconv_bn')
  layer('mask_head/mask_fcn_logits', 'mask_head', 'logits')
  return table


def backbone_layers(depth: int) -> list[tuple[str, ...]]:
  """Returns the paths of the backbone's convolutions in the reference's order: in a block, the projection first."""
  groups, bottleneck = LAYOUTS[depth]
  paths: list[tuple[str, ...]] = [('stem',)]
  for group, blocks in enumerate(groups):
    for block in range(blocks):
      names = [*(['projection'] if block == 0 else []), 'conv1', 'conv2', *(['conv3'] if bottleneck else [])]
      paths += [(f'group{group + 1}_block{block + 1}', name) for name in names]
  return paths


def is_train_only(name: str) -> bool:
  """Tells whether only training needs a variable: optimiser slots, averages of weights, counters."""
  return _TRAIN_ONLY.fullmatch(name) is not None


def mapping_text(variables: Mapping[str, np.ndarray]) -> str:
  """Returns the mapping as a table of one line per variable, and totals. Raises ValueError as `from_variables` does."""
  _, config = from_variables(variables)
  table = parameter_table(config.model)
  lines, train_only = [], sorted(name for name in variables if is_train_only(name))
  for name in [*table, CLASS_EMBEDDINGS]:
    place = 'vocabulary.npz: embeddings' if name == CLASS_EMBEDDINGS else '/'.join(table[name].path)
    lines.append((name, 'x'.join(map(str, np.shape(variables[name]))), place))
  widths = [max(len(line[i]) for line in lines) for i in range(2)]
  text = [f'{name:<{widths[0]}}  {shape:>{widths[1]}}  {place}' for name, shape, place in lines]
  text.append(
    f'{config.name}: {len(lines)} of {len(variables) - len(train_only)} variables have a place, and every '
    f'parameter has a variable; {len(train_only)} are left out, which only training needs'
  )
  return '\n'.join(text)


def read_checkpoint(path: str | Path, *, shapes_only: bool = False) -> dict[str, np.ndarray]:
  """Reads the variables of a TensorFlow checkpoint by name, without those that only training needs. Needs TensorFlow.

  Args:
    path: prefix of the checkpoint's files (`model.ckpt-180000`), one of the files, or the folder of the newest.
    shapes_only: whether to return all variables as ones that take no memory, in place of their values.

  Raises:
    ImportError: TensorFlow is not installed.
    ValueError: there is no readable checkpoint.
  """
  try:
    import tensorflow as tf
  except ImportError as error:
    raise ImportError(
      "reading a TensorFlow checkpoint needs TensorFlow, which is not installed; expected `pip install 'vild_jax[tf]'`"
    ) from error
  tf.config.set_visible_devices([], 'GPU')  # leaves the accelerator to JAX
  prefix = re.sub(r'\.(index|meta|data-\d+-of-\d+)$', '', str(path))
  try:
    reader = tf.train.load_checkpoint(prefix)
    shapes = reader.get_variable_to_shape_map()
    if shapes_only:
      types = reader.get_variable_to_dtype_map()
      return {
        name: np.broadcast_to(np.ones((), np.float32), shape)
        for name, shape in shapes.items()
        if types[name] != tf.string
      }
    return {name: np.asarray(reader.get_tensor(name)) for name in shapes if not is_train_only(name)}
  except (ValueError, RuntimeError, tf.errors.OpError) as error:
    raise ValueError(
      f'{path} is not a readable TensorFlow checkpoint; expected the prefix of its files, such as '
      'model.ckpt-180000, or their folder'
    ) from error


def _recognise(variables: Mapping[str, np.ndarray]) -> Config:
  """Returns the config of the model that has these variables, by their names and shapes."""
  stems = [match for name in variables if (match := re.fullmatch(r'resnet(\d+)/conv2d/kernel', name))]
  if len(stems) != 1 or _PROJECTION not in variables:
    lacking = 'resnetN/conv2d/kernel' if len(stems) != 1 else _PROJECTION
    raise ValueError(
      f'there is no ViLD in these {len(variables)} variables: {lacking} is missing or there are '
      'several; expected a checkpoint of the reference, such as ViLD R50'
    )
  depth, image_head = int(stems[0][1]), any(name.startswith(f'{_HEAD}/distill') for name in variables)
  if depth not in LAYOUTS:
    raise ValueError(f'{stems[0][0]} is of a ResNet-{depth}; expected one of {", ".join(map(str, LAYOUTS))}')
  width, dimension = (int(np.shape(variables[name])[-1]) for name in (stems[0][0], _PROJECTION))
  model = replace(
    Model(),
    backbone=Backbone(depth, width),
    region_head=RegionHead(embedding_dim=dimension),
    image_head=image_head,
    precision='highest',  # so that an accelerator gives the published numbers
  )
  return Config(name=f'vild{"_ensemble" if image_head else ""}_r{depth}', model=model)
