"""OpenAI's CLIP as plain torch modules with the parameter names of the published weights.

Written from the description in the paper and the names and shapes of the published files: the oracle of what
transformers has no model for (ModifiedResNet), and of the original names.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Bottleneck(nn.Module):
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
      self.downsample = nn.ModuleDict(
        {'0': nn.Conv2d(inputs, 4 * channels, 1, bias=False), '1': nn.BatchNorm2d(4 * channels)}
      )

  def forward(self, x):
    pool = (lambda y: functional.avg_pool2d(y, self.stride)) if self.stride > 1 else (lambda y: y)
    y = self.bn1(self.conv1(x)).relu()
    y = self.bn2(self.conv2(y)).relu()
    y = self.bn3(self.conv3(pool(y)))
    if self.downsample is not None:
      x = self.downsample['1'](self.downsample['0'](pool(x)))
    return (x + y).relu()


class AttentionPool(nn.Module):
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
      split(self.q_proj(cells[:, :1])), split(self.k_proj(cells)), split(self.v_proj(cells))
    )
    return self.c_proj(mixed.transpose(1, 2).flatten(2))[:, 0]


class ResNet(nn.Module):
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
      modules = [
        Bottleneck(inputs if not i else 4 * channels, channels, 2 if stage > 1 and not i else 1) for i in range(blocks)
      ]
      self.add_module(f'layer{stage}', nn.Sequential(*modules))
      inputs = 4 * channels
    self.stages = len(layers)
    self.attnpool = AttentionPool(size // (2 ** (self.stages + 1)), inputs, heads, out)

  def forward(self, x):
    for i in (1, 2, 3):
      x = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(x)).relu()
    x = functional.avg_pool2d(x, 2)
    for stage in range(1, self.stages + 1):
      x = getattr(self, f'layer{stage}')(x)
    return self.attnpool(x)


class ResidualAttention(nn.Module):
  def __init__(self, width: int, heads: int):
    super().__init__()
    self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
    self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.mlp = nn.ModuleDict({'c_fc': nn.Linear(width, 4 * width), 'c_proj': nn.Linear(4 * width, width)})

  def forward(self, x, mask):
    y = self.ln_1(x)
    x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
    y = self.mlp['c_fc'](self.ln_2(x))
    return x + self.mlp['c_proj'](y * torch.sigmoid(1.702 * y))


class Transformer(nn.Module):
  def __init__(self, width: int, layers: int, heads: int):
    super().__init__()
    self.resblocks = nn.ModuleList(ResidualAttention(width, heads) for _ in range(layers))

  def forward(self, x, mask=None):
    for block in self.resblocks:
      x = block(x, mask)
    return x


class Vit(nn.Module):
  def __init__(self, width: int, layers: int, heads: int, size: int, patch: int, out: int):
    super().__init__()
    self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
    self.class_embedding = nn.Parameter(torch.zeros(width))
    self.positional_embedding = nn.Parameter(torch.zeros((size // patch) ** 2 + 1, width))
    self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
    self.transformer = Transformer(width, layers, heads)
    self.proj = nn.Parameter(torch.zeros(width, out))

  def forward(self, x):
    x = self.conv1(x).flatten(2).transpose(1, 2)
    x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
    return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Clip(nn.Module):
  """`visual`: one of the image towers above; the text is pooled at its largest id."""

  def __init__(self, visual: nn.Module, width: int, layers: int, heads: int, vocab: int, context: int, out: int):
    super().__init__()
    self.visual = visual
    self.token_embedding = nn.Embedding(vocab, width)
    self.positional_embedding = nn.Parameter(torch.zeros(context, width))
    self.transformer = Transformer(width, layers, heads)
    self.ln_final = nn.LayerNorm(width)
    self.text_projection = nn.Parameter(torch.zeros(width, out))
    self.logit_scale = nn.Parameter(torch.zeros(()))

  def encode_text(self, tokens):
    length = tokens.shape[1]
    mask = torch.full((length, length), float('-inf')).triu(1)
    x = self.transformer(self.token_embedding(tokens) + self.positional_embedding[:length], mask)
    return self.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)] @ self.text_projection
