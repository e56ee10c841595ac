"""ResNet v1.5 and feature pyramid in plain NumPy, written from the reference's conventions (docs/method.md, 2).

It reads a network in the order in which its layers were made, so that it knows nothing of our names.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BLOCKS = {14: (1, 1, 1, 1), 50: (3, 4, 6, 3), 152: (3, 8, 36, 3)}
# number of the layer -> kernel [h, w, in, out], gamma, beta, mean, variance
Layer = Callable[[int], tuple[np.ndarray, ...]]


def convolve(x: np.ndarray, kernel: np.ndarray, stride: int, pads: tuple[int, int]) -> np.ndarray:
  """x [H, W, C], zeros `pads` (before, after) on both axes, one matmul over the windows."""
  size, _, channels, out = kernel.shape
  x = np.pad(x, (pads, pads, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(0, 1))[::stride, ::stride]
  height, width = windows.shape[:2]
  columns = windows.transpose(0, 1, 3, 4, 2).reshape(height * width, size * size * channels)
  return (columns @ kernel.reshape(-1, out)).reshape(height, width, out)


def max_pool(x: np.ndarray) -> np.ndarray:
  """3x3, stride 2, SAME: on an even size nothing before, one after."""
  x = np.pad(x, ((0, 1), (0, 1), (0, 0)), constant_values=-np.inf)
  return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(0, 1))[::2, ::2].max(axis=(3, 4))


def normalise(x: np.ndarray, gamma, beta, mean, variance, eps: float) -> np.ndarray:
  return (x - mean) / np.sqrt(variance + eps) * gamma + beta


def resnet(image: np.ndarray, depth: int, layer: Layer, *, eps: float = 1e-4) -> dict[int, np.ndarray]:
  """Image [S, S, 3] -> {2..5: [S / 2**l, S / 2**l, C]}, bottleneck blocks."""
  number = -1

  def conv_bn(x: np.ndarray, stride: int) -> np.ndarray:
    nonlocal number
    number += 1
    kernel, *norm = layer(number)
    pad = (kernel.shape[0] - 1) // 2
    return normalise(convolve(x, kernel, stride, (pad, pad)), *norm, eps)

  relu = lambda v: np.maximum(v, 0)
  x, features = max_pool(relu(conv_bn(image, 2))), {}
  for group, blocks in enumerate(BLOCKS[depth]):
    for block in range(blocks):
      stride = 2 if group and not block else 1
      shortcut = conv_bn(x, stride) if block == 0 else x
      y = relu(conv_bn(x, 1))
      y = relu(conv_bn(y, stride))
      x = relu(conv_bn(y, 1) + shortcut)
    features[group + 2] = x
  return features


def pyramid(backbone: dict[int, np.ndarray], weights: dict[str, np.ndarray]) -> dict[int, np.ndarray]:
  """{2..5} of a backbone -> {2..6}, by the names of the reference."""
  conv = lambda x, name, stride, pads: (
    convolve(x, weights[f'fpn/{name}/kernel'], stride, pads) + weights[f'fpn/{name}/bias']
  )
  merged = {5: conv(backbone[5], 'l5', 1, (0, 0))}
  for level in (4, 3, 2):
    merged[level] = conv(backbone[level], f'l{level}', 1, (0, 0)) + merged[level + 1].repeat(2, 0).repeat(2, 1)
  features = {level: conv(x, f'post_hoc_d{level}', 1, (1, 1)) for level, x in merged.items()}
  features[6] = conv(features[5], 'p6', 2, (0, 1))
  return {
    level: normalise(
      x, *(weights[f'fpn/p{level}-bn/{leaf}'] for leaf in ('gamma', 'beta', 'moving_mean', 'moving_variance')), 1e-4
    )
    for level, x in features.items()
  }


def by_tf_name(weights: dict[str, np.ndarray], depth: int) -> Layer:
  """The layers of the reference's ResNet, which numbers them in the order of making."""

  def layer(number: int) -> tuple[np.ndarray, ...]:
    suffix = f'_{number}' if number else ''
    norm = f'resnet{depth}/batch_normalization{suffix}'
    return (
      weights[f'resnet{depth}/conv2d{suffix}/kernel'],
      *(weights[f'{norm}/{leaf}'] for leaf in ('gamma', 'beta', 'moving_mean', 'moving_variance')),
    )

  return layer
