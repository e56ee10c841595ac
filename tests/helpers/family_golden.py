"""Random teachers of the families beyond transformers' CLIPModel, and what torch makes of them.

SigLIP is transformers' SiglipModel and Siglip2Model, OpenAI's own names are the modules of `torch_clip`. As in
`clip_golden`, the weights are a pure function of name and shape, and `family_golden.npz` keeps outputs and a hash of
all names and shapes alone. To write it anew: `python -m tests.helpers.family_golden`, with torch and transformers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.helpers import clip_golden

GOLDEN = Path(__file__).with_name('family_golden.npz')
_NARROW_12 = {'hidden_size': 48, 'intermediate_size': 96, 'num_hidden_layers': 12, 'num_attention_heads': 12}
_NARROW_16 = {'hidden_size': 32, 'intermediate_size': 56, 'num_hidden_layers': 4, 'num_attention_heads': 16}
_SMALL_TEXT = {'hidden_size': 24, 'intermediate_size': 40, 'num_hidden_layers': 2, 'num_attention_heads': 2}
# Heads, patches, places and pooling as in the published models, in B/16 the layers too; the rest is narrow.
SIGLIP = {
  'siglip_b16': {
    'model_type': 'siglip',
    'text_config': {**_NARROW_12, 'vocab_size': 320},
    'vision_config': {**_NARROW_12, 'image_size': 224, 'patch_size': 16},
  },
  # 384 is no multiple of 14: the last pixels of each row and column are not seen.
  'siglip_so400m_p14': {
    'model_type': 'siglip',
    'text_config': {**_NARROW_16, 'vocab_size': 320},
    'vision_config': {**_NARROW_16, 'image_size': 160, 'patch_size': 14},
  },
  # SigLIP 2 at a fixed resolution is a SiglipModel; the giant's towers differ in width.
  'siglip2_giant': {
    'model_type': 'siglip',
    'text_config': {**_SMALL_TEXT, 'vocab_size': 256, 'projection_size': 48},
    'vision_config': {**_NARROW_12, 'image_size': 96, 'patch_size': 16},
  },
  'siglip2_any_size': {
    'model_type': 'siglip2',
    'text_config': {**_SMALL_TEXT, 'vocab_size': 256, 'projection_size': 48},
    'vision_config': {**_NARROW_12, 'num_patches': 49, 'patch_size': 8},
  },
}
_TEXT = {'width': 64, 'layers': 2, 'heads': 1, 'vocab': 60, 'context': 77}
# The stages of RN50, 1/8 as wide, at its grid of 7 x 7 cells; RN50x4's grid of 9 x 9; a ViT with original names.
ORIGINAL = {
  'rn50': {'layers': (3, 4, 6, 3), 'width': 8, 'heads': 4, 'size': 224, 'out': 24},
  'rn50x4': {'layers': (1, 2, 1, 1), 'width': 8, 'heads': 4, 'size': 288, 'out': 20},
  'vit': {'width': 64, 'layers': 2, 'heads': 1, 'size': 32, 'patch': 8, 'out': 24},
}
CASES = (*SIGLIP, *ORIGINAL)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  noise = clip_golden.weight(name, shape)
  if name.endswith('running_var'):  # small ones among them, so that the epsilon counts
    return np.abs(noise) + np.float32(0.01)
  if name.endswith('weight') and ('bn' in name or '.downsample.1.' in name):
    return noise / 2 + np.float32(0.3)
  if name == 'logit_bias':
    return np.full(shape, -10, np.float32)
  if name == 'logit_scale':
    return np.full(shape, 2.5, np.float32)
  return noise + np.float32(name.endswith('weight') and '.ln_' in f'.{name}')


def sizes(case: str) -> tuple[int, int, int]:
  """The side of the images, the length of the texts, the number of tokens."""
  if case in ORIGINAL:
    return ORIGINAL[case]['size'], _TEXT['context'], _TEXT['vocab']
  image, text = SIGLIP[case]['vision_config'], SIGLIP[case]['text_config']
  size = image.get('image_size') or int(image['num_patches'] ** 0.5) * image['patch_size']
  return size, 64, text['vocab_size']


def inputs(case: str) -> tuple[np.ndarray, np.ndarray]:
  """Images float32 [2, S, S, 3]; tokens int32 [3, T]: for SigLIP padded with 1, for the rest with noise."""
  size, length, vocabulary = sizes(case)
  rng = np.random.default_rng(8)
  tokens = rng.integers(3, vocabulary - 1, (3, length))
  for row, end in enumerate((4, length // 2, length - 1)):
    tokens[row, end] = vocabulary - 1
    if case in SIGLIP:
      tokens[row, end:] = 1
  return rng.standard_normal((2, size, size, 3)).astype(np.float32), tokens.astype(np.int32)


def names_hash(shapes: dict[str, tuple[int, ...]]) -> str:
  return hashlib.sha256(repr(sorted((name, tuple(shape)) for name, shape in shapes.items())).encode()).hexdigest()


def write_directory(directory: Path, case: str, shapes: dict[str, tuple[int, ...]]) -> Path:
  """A teacher directory; its tokenizer is a list of words of the right length."""
  directory.mkdir(exist_ok=True)
  size = sizes(case)[2]
  start_end = {'</s>': 1} if case in SIGLIP else {'<|startoftext|>': size - 2, '<|endoftext|>': size - 1}
  vocab = {f'w{i}': i for i in range(size) if i not in start_end.values()} | start_end
  tokenizer = {
    'version': '1.0',
    'added_tokens': [],
    'pre_tokenizer': {'type': 'Whitespace'},
    'model': {'type': 'WordLevel', 'vocab': vocab, 'unk_token': 'w0'},
  }
  (directory / 'tokenizer.json').write_text(json.dumps(tokenizer))
  if case in SIGLIP:
    (directory / 'config.json').write_text(json.dumps(SIGLIP[case]))
  (directory / 'preprocessor_config.json').write_text(json.dumps({'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}))
  tensors = {name: weight(name, shape) for name, shape in shapes.items()}
  safetensors.numpy.save_file(tensors, directory / 'model.safetensors', metadata={'format': 'pt'})
  return directory


def torch_model(case: str) -> Any:
  """The torch model of a case, with its weights."""
  import torch
  import transformers

  from tests.helpers import torch_clip

  if case in ORIGINAL:
    sizes_ = ORIGINAL[case]
    tower = torch_clip.Vit(**sizes_) if case == 'vit' else torch_clip.ResNet(**sizes_)
    model = torch_clip.Clip(tower, **_TEXT, out=sizes_['out'])
  elif SIGLIP[case]['model_type'] == 'siglip':
    model = transformers.SiglipModel(transformers.SiglipConfig(**SIGLIP[case]))
  else:
    model = transformers.Siglip2Model(transformers.Siglip2Config(**SIGLIP[case]))
  state = {
    name: value if name.endswith('num_batches_tracked') else torch.from_numpy(weight(name, tuple(value.shape)))
    for name, value in model.state_dict().items()
  }
  model.load_state_dict(state)
  return model.eval()


def torch_embeddings(case: str) -> tuple[np.ndarray, np.ndarray, dict[str, tuple[int, ...]]]:
  """Normalised embeddings of images and texts, and the shapes of all tensors."""
  import torch

  model = torch_model(case)
  images, tokens = (torch.from_numpy(array) for array in inputs(case))
  with torch.no_grad():
    if case in ORIGINAL:
      rows = model.visual(images.permute(0, 3, 1, 2)), model.encode_text(tokens.long())
    elif SIGLIP[case]['model_type'] == 'siglip':
      out = model(input_ids=tokens.long(), pixel_values=images.permute(0, 3, 1, 2))
      rows = out.image_embeds, out.text_embeds
    else:
      size, patch = images.shape[1], SIGLIP[case]['vision_config']['patch_size']
      side = size // patch
      patches = (
        images.reshape(-1, side, patch, side, patch, 3).permute(0, 1, 3, 2, 4, 5).reshape(len(images), side * side, -1)
      )
      out = model(
        input_ids=tokens.long(),
        pixel_values=patches,
        pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.int64),
        spatial_shapes=torch.tensor([[side, side]] * len(images)),
      )
      rows = out.image_embeds, out.text_embeds
  shapes = {
    name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith('num_batches_tracked')
  }
  return *(normalize(row.numpy()) for row in rows), shapes


def normalize(rows: np.ndarray) -> np.ndarray:
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == '__main__':
  arrays = {}
  for name in CASES:
    arrays[f'{name}_image'], arrays[f'{name}_text'], found = torch_embeddings(name)
    arrays[f'{name}_names'] = np.array(names_hash(found))
  np.savez_compressed(GOLDEN, **arrays)
  print({name: array.shape for name, array in arrays.items()})
