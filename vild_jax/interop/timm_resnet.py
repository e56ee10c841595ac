"""Converts ResNets of timm, torchvision and Hugging Face (ImageNet) into the backbone that training starts from.

Differences between theirs and ours, and how they are treated:

  stride        both are v1.5, with the stride on the 3x3. A model with its stride on the 1x1 has the same shapes; it is
                refused if the `config.json` beside the file says so.
  stem          both have a 7x7/2 convolution. Their 3x3/2 max-pool pads a row before the picture, ours one after it, so
                that our features are those of a picture moved by two pixels. Nothing is converted: training starts
                from these weights and can follow.
  normalisation eps is 1e-5 there and 1e-4 here: the difference goes into variance and scale, and the output of a block
                at inference stays the same up to rounding.
  projection    theirs has none in the first group of ResNet-18 and -34, where this backbone has one: these are refused,
                as is any other architecture (deep stems, squeeze-and-excitation, grouped convolutions).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy

from vild_jax.config import Backbone
from vild_jax.nn.resnet import LAYOUTS
from vild_jax.runtime import reading

_THEIR_EPS, _OUR_EPS = 1e-5, 1e-4
_NORM = ('weight', 'bias', 'running_mean', 'running_var')
# Classifiers and counters are not part of a backbone.
_LEFT_OUT = re.compile(r'(fc|classifier(\.\d+)?)\.(weight|bias)|.*num_batches_tracked')


def from_tensors(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], Backbone]:
  """Turns tensors, by PyTorch name, into ({'params': {'backbone'}, 'batch_stats': {'backbone'}}, settings), float32.

  The names tell the naming (timm and torchvision, or Hugging Face) and the depth. Raises ValueError, one line that
  names the tensor: it fits nothing, it is missing, its shape is wrong, or it has a number that is not finite.
  """
  given = {name: np.asarray(value) for name, value in tensors.items() if not _LEFT_OUT.fullmatch(name)}
  backbone, table = _recognise(given)
  known = {name for conv, norm in table for name in (f'{conv}.weight', *(f'{norm}.{leaf}' for leaf in _NORM))}
  for name in sorted(known - given.keys()):
    raise ValueError(
      f'{name} is missing; expected a plain ResNet-{backbone.depth} with a projection in the first '
      'block of every group (ResNet-18 and -34 have none in the first group there)'
    )
  for name in sorted(given.keys() - known):
    raise ValueError(
      f'{name} fits nothing in a plain ResNet-{backbone.depth}; expected no deep stem, no '
      'squeeze-and-excitation and no other variant'
    )
  flat: dict[tuple[str, ...], np.ndarray] = {}
  paths = layer_paths(backbone)
  for (conv, norm), (path, shape) in zip(table, paths.items(), strict=True):
    kernel = _tensor(given, f'{conv}.weight', (shape[3], shape[2], *shape[:2])).transpose(2, 3, 1, 0)
    flat['params', 'backbone', *path, 'kernel'] = np.ascontiguousarray(kernel)
    scale, bias, mean, var = (_tensor(given, f'{norm}.{leaf}', shape[3:]) for leaf in _NORM)
    if (var < 0).any():
      raise ValueError(f'{norm}.running_var holds a negative number; expected variances')
    scale, var = fold_eps(scale, var)
    below = ('backbone', *path[:-1], f'{path[-1]}_bn', 'bn')
    flat['params', *below, 'scale'], flat['params', *below, 'bias'] = scale, bias
    flat['batch_stats', *below, 'mean'], flat['batch_stats', *below, 'var'] = mean, var
  return flax.traverse_util.unflatten_dict(flat), backbone


def fold_eps(scale: np.ndarray, var: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Turns (scale, var) [C] of a normalisation with eps 1e-5 into those that give the same with eps 1e-4.

  The difference goes into the variance. Where that would make it negative (a channel that hardly varies), the variance
  becomes 0 and the rest goes into the scale.
  """
  exact = var.astype(np.float64) + _THEIR_EPS
  folded = np.maximum(exact - _OUR_EPS, 0)
  return (scale * np.sqrt((folded + _OUR_EPS) / exact)).astype(np.float32), folded.astype(np.float32)


def layer_paths(backbone: Backbone) -> dict[tuple[str, ...], tuple[int, int, int, int]]:
  """Returns {path below the backbone: kernel shape [h, w, in, out]} of every convolution, in our order."""
  groups, bottleneck = LAYOUTS[backbone.depth]
  paths: dict[tuple[str, ...], tuple[int, int, int, int]] = {('stem',): (7, 7, 3, backbone.width)}
  channels = backbone.width
  for group, blocks in enumerate(groups):
    inner = backbone.width * 2**group
    out = inner * (4 if bottleneck else 1)
    for block in range(blocks):
      name = f'group{group + 1}_block{block + 1}'
      if block == 0:
        paths[name, 'projection'] = (1, 1, channels, out)
      if bottleneck:
        paths[name, 'conv1'], paths[name, 'conv2'] = (1, 1, channels, inner), (3, 3, inner, inner)
        paths[name, 'conv3'] = (1, 1, inner, out)
      else:
        paths[name, 'conv1'], paths[name, 'conv2'] = (3, 3, channels, inner), (3, 3, inner, out)
      channels = out
  return paths


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
  """Reads a .safetensors file, float32. Raises ValueError if it is not one, or the model has its stride on the 1x1."""
  path = Path(path)
  if not path.is_file():
    raise ValueError(f'{path} is not a file; expected a .safetensors file of a ResNet')
  beside = path.with_name('config.json')
  if beside.is_file():
    about = reading.json_file(beside, 'the config.json of a ResNet')
    if isinstance(about, dict) and about.get('downsample_in_bottleneck'):
      raise ValueError(
        f'{beside}: downsample_in_bottleneck is true, the stride is on the 1x1 (ResNet v1); expected '
        'a ResNet v1.5, which strides on the 3x3'
      )
  with (
    reading.parsing(path, 'the weights of a ResNet', problem='is not a complete .safetensors file'),
    safetensors.safe_open(path, framework='flax') as tensors,
  ):
    return {name: np.asarray(tensors.get_tensor(name), dtype=np.float32) for name in tensors.keys()}  # noqa: SIM118


def mapping_text(tensors: Mapping[str, np.ndarray]) -> str:
  """Returns the mapping as a table of one line per convolution with its normalisation, and a line of totals."""
  _, backbone = from_tensors(tensors)
  _, table = _recognise(tensors)
  lines = [
    (f'{conv}.weight, {norm}.*', 'x'.join(map(str, shape)), '/'.join(('backbone', *path)))
    for (conv, norm), (path, shape) in zip(table, layer_paths(backbone).items(), strict=True)
  ]
  widths = [max(len(line[i]) for line in lines) for i in range(2)]
  text = [f'{names:<{widths[0]}}  {shape:>{widths[1]}}  {path}' for names, shape, path in lines]
  left_out = sum(_LEFT_OUT.fullmatch(name) is not None for name in tensors)
  text.append(
    f'ResNet-{backbone.depth}: {len(tensors) - left_out} of {len(tensors)} tensors have a place; {left_out} '
    'of the classifier and counters are left out'
  )
  return '\n'.join(text)


def _recognise(given: Mapping[str, np.ndarray]) -> tuple[Backbone, list[tuple[str, str]]]:
  """Returns (settings, [(convolution, normalisation)] in the order of `layer_paths`) by the names of the tensors."""
  for prefix, stem, pattern, inner in (
    ('', 'conv1.weight', r'layer(\d+)\.(\d+)\.conv(\d)\.weight', _torchvision),
    ('resnet.', 'resnet.embedder.embedder.convolution.weight', _HF_PATTERN, _hugging_face),
    ('', 'embedder.embedder.convolution.weight', _HF_PATTERN, _hugging_face),
  ):
    if stem in given:
      found = [tuple(map(int, m.groups())) for name in given if (m := re.fullmatch(re.escape(prefix) + pattern, name))]
      first = min((group for group, _, _ in found), default=0)
      blocks = tuple(len({block for group, block, _ in found if group == first + i}) for i in range(4))
      convs = len({conv for _, _, conv in found})
      for depth, (groups, bottleneck) in LAYOUTS.items():
        if (blocks, convs) == (groups, 3 if bottleneck else 2):
          return Backbone(depth, int(given[stem].shape[0])), inner(prefix, groups, convs)
      raise ValueError(
        f'these are blocks {blocks} of {convs} convolutions; expected a ResNet of depth {", ".join(map(str, LAYOUTS))}'
      )
  first = next(iter(sorted(given)), 'nothing')
  raise ValueError(
    f'there is no ResNet of timm, torchvision or Hugging Face in these {len(given)} tensors ({first}, '
    '...); expected conv1.weight or embedder.embedder.convolution.weight'
  )


_HF_PATTERN = r'encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d)\.convolution\.weight'


def _torchvision(prefix: str, groups: tuple[int, ...], convs: int) -> list[tuple[str, str]]:
  names = [('conv1', 'bn1')]
  for group, blocks in enumerate(groups):
    for block in range(blocks):
      start = f'layer{group + 1}.{block}'
      names += [(f'{start}.downsample.0', f'{start}.downsample.1')] if block == 0 else []
      names += [(f'{start}.conv{i + 1}', f'{start}.bn{i + 1}') for i in range(convs)]
  return [(prefix + conv, prefix + norm) for conv, norm in names]


def _hugging_face(prefix: str, groups: tuple[int, ...], convs: int) -> list[tuple[str, str]]:
  starts = ['embedder.embedder']
  for group, blocks in enumerate(groups):
    for block in range(blocks):
      start = f'encoder.stages.{group}.layers.{block}'
      starts += [f'{start}.shortcut'] if block == 0 else []
      starts += [f'{start}.layer.{i}' for i in range(convs)]
  return [(f'{prefix}{start}.convolution', f'{prefix}{start}.normalization') for start in starts]


def _tensor(given: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
  value = given[name]
  if value.shape != shape:
    raise ValueError(f'{name} has shape {value.shape}; expected {shape}, that of a plain ResNet')
  if not np.isfinite(value).all():
    raise ValueError(f'{name} holds numbers that are not finite; expected trained weights')
  return value.astype(np.float32)
