"""OpenAI's ModifiedResNet image tower as a plain torch module, with the parameter names of the published weights.

Written from the description in the paper and the names and shapes of the published files; the oracle of
`tests/interop`, since transformers has no such tower.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
  def __init__(self, inputs: int, channels: int, stride: int):
    super().__init__()
    self.stride = stride
    self.conv1 = nn.Conv2d(inputs, channels, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(channels)
    self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    self.bn2 = nn.BatchNorm2d(channels)
    self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * channels)
    self.downsample = None
    if stride > 1 or inputs != 4 * channels:
      self.downsample = nn.ModuleDict({'0': nn.Conv2d(inputs, 4 * channels, 1, bias=False),
                                       '1': nn.BatchNorm2d(4 * channels)})

  def forward(self, x):
    pool = (lambda y: functional.avg_pool2d(y, self.stride)) if self.stride > 1 else (lambda y: y)
    y = self.bn1(self.conv1(x)).relu()
    y = self.bn2(self.conv2(y)).relu()
    y = self.bn3(self.conv3(pool(y)))
    if self.downsample is not None:
      x = self.downsample['1'](self.downsample['0'](pool(x)))
    return (x + y).relu()


class Pool(nn.Module):
  def __init__(self, side: int, width: int, heads: int, out: int):
    super().__init__()
    self.heads = heads
    self.positional_embedding = nn.Parameter(torch.zeros(side * side + 1, width))
    self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
    self.c_proj = nn.Linear(width, out)

  def forward(self, x):
    cells = x.flatten(2).transpose(1, 2)
    cells = torch.cat([cells.mean(1, keepdim=True), cells], 1) + self.positional_embedding
    split = lambda y: y.unflatten(2, (self.heads, -1)).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(
      split(self.q_proj(cells[:, :1])), split(self.k_proj(cells)), split(self.v_proj(cells)))
    return self.c_proj(mixed.transpose(1, 2).flatten(2))[:, 0]


class Tower(nn.Module):
  """`layers`: blocks of each stage; `size`: the side of the pictures; `out`: the embedding dimension."""

  def __init__(self, layers: tuple[int, ...], width: int, heads: int, size: int, out: int):
    super().__init__()
    self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
    self.bn1 = nn.BatchNorm2d(width // 2)
    self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
    self.bn2 = nn.BatchNorm2d(width // 2)
    self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
    self.bn3 = nn.BatchNorm2d(width)
    inputs = width
    for stage, blocks in enumerate(layers, 1):
      channels = width * 2 ** (stage - 1)
      modules = [Block(inputs if not i else 4 * channels, channels, 2 if stage > 1 and not i else 1)
                 for i in range(blocks)]
      self.add_module(f'layer{stage}', nn.Sequential(*modules))
      inputs = 4 * channels
    self.stages = len(layers)
    self.attnpool = Pool(size // (2 ** (self.stages + 1)), inputs, heads, out)

  def forward(self, x):
    for i in (1, 2, 3):
      x = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(x)).relu()
    x = functional.avg_pool2d(x, 2)
    for stage in range(1, self.stages + 1):
      x = getattr(self, f'layer{stage}')(x)
    return self.attnpool(x)
