"""An ImageNet ResNet of random weights, as published files have it."""

from __future__ import annotations

import numpy as np

DEPTH, WIDTH = 14, 8


def layers():
  """[(kernel [out, in, h, w], gamma, beta, mean, variance)] in the order of a network's making, as PyTorch has them."""
  rng = np.random.default_rng(0)
  shapes, channels = [(WIDTH, 3, 7, 7)], WIDTH
  for group in range(4):
    inner = WIDTH * 2**group
    shapes += [(4 * inner, channels, 1, 1), (inner, channels, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)]
    channels = 4 * inner
  found = []
  for shape in shapes:
    kernel = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    variance = rng.uniform(0.2, 2, shape[0])
    variance[0] = 1e-6  # a channel that hardly moves: eps is what divides it
    norm = rng.uniform(0.5, 1.5, shape[0]), rng.normal(0, 0.1, shape[0]), rng.normal(0, 0.1, shape[0]), variance
    found.append(tuple(x.astype(np.float32) for x in (kernel, *norm)))
  return found


def _names(hugging_face: bool) -> list[tuple[str, str]]:
  if hugging_face:
    start = 'resnet.encoder.stages.{0}.layers.0.'
    inner = ['shortcut', 'layer.0', 'layer.1', 'layer.2']
    stems = ['resnet.embedder.embedder', *(start.format(g) + part for g in range(4) for part in inner)]
    return [(f'{stem}.convolution', f'{stem}.normalization') for stem in stems]
  found = [('conv1', 'bn1')]
  for g in range(4):
    found += [(f'layer{g + 1}.0.downsample.0', f'layer{g + 1}.0.downsample.1')]
    found += [(f'layer{g + 1}.0.conv{i}', f'layer{g + 1}.0.bn{i}') for i in (1, 2, 3)]
  return found


def tensors(hugging_face: bool = False) -> dict[str, np.ndarray]:
  """The weights by the names of timm and torchvision, or of Hugging Face."""
  found = {}
  for (conv, norm), (kernel, *values) in zip(_names(hugging_face), layers(), strict=True):
    found[f'{conv}.weight'] = kernel
    found |= dict(
      zip((f'{norm}.{leaf}' for leaf in ('weight', 'bias', 'running_mean', 'running_var')), values, strict=True)
    )
    found[f'{norm}.num_batches_tracked'] = np.array(7)
  head = 'classifier.1' if hugging_face else 'fc'
  return found | {f'{head}.weight': np.zeros((10, 256), np.float32), f'{head}.bias': np.zeros(10, np.float32)}
