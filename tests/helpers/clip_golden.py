"""Random CLIP models that any framework can build again, and what transformers' torch CLIPModel makes of them.

The weights are a pure function of a parameter's name and shape, so only inputs' seeds and outputs are kept. Writing
`clip_golden.npz` anew needs torch and transformers: `python -m tests.helpers.clip_golden`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors.numpy

GOLDEN = Path(__file__).with_name('clip_golden.npz')
TINY_TEXT = {
  'hidden_size': 32,
  'intermediate_size': 80,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'vocab_size': 50,
  'max_position_embeddings': 12,
}
TINY_IMAGE = {
  'hidden_size': 48,
  'intermediate_size': 96,
  'num_hidden_layers': 3,
  'num_attention_heads': 3,
  'image_size': 20,
  'patch_size': 5,
}
NARROW_TEXT = {'hidden_size': 48, 'intermediate_size': 96, 'vocab_size': 60, 'eos_token_id': 59}
# End ids: 49 is the largest of its vocabulary (2: the legacy spelling of it); 30 is not.
CASES = {
  'tiny_legacy_end': {
    'projection_dim': 24,
    'text_config': {**TINY_TEXT, 'eos_token_id': 2},
    'vision_config': TINY_IMAGE,
  },
  'tiny_gelu': {
    'projection_dim': 40,
    'text_config': {**TINY_TEXT, 'eos_token_id': 30, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-3},
    'vision_config': {**TINY_IMAGE, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-3},
  },
  'vit_b32': {'projection_dim': 512, 'text_config': {}, 'vision_config': {}},
  # The layers, heads, patches and places of B/16 and L/14, narrow; LAION's H/14 (exact GELU) with few layers.
  'vit_b16': {
    'projection_dim': 32,
    'text_config': NARROW_TEXT,
    'vision_config': {'hidden_size': 48, 'intermediate_size': 96, 'patch_size': 16},
  },
  'vit_l14': {
    'projection_dim': 48,
    'text_config': {**NARROW_TEXT, 'num_attention_heads': 12},
    'vision_config': {
      'hidden_size': 32,
      'intermediate_size': 64,
      'num_hidden_layers': 24,
      'num_attention_heads': 16,
      'patch_size': 14,
    },
  },
  'laion_h14': {
    'projection_dim': 40,
    'text_config': {
      **NARROW_TEXT,
      'num_hidden_layers': 3,
      'num_attention_heads': 16,
      'hidden_act': 'gelu',
      'eos_token_id': 2,
    },
    'vision_config': {
      'hidden_size': 32,
      'intermediate_size': 64,
      'num_hidden_layers': 4,
      'num_attention_heads': 16,
      'patch_size': 14,
      'hidden_act': 'gelu',
    },
  },
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  rng = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))
  noise = rng.standard_normal(shape, dtype=np.float32)
  if name == 'logit_scale':
    return np.full(shape, 2.6592, np.float32)
  if len(shape) > 1:
    return noise * np.float32(np.prod(shape[1:]) ** -0.5)
  return noise * np.float32(0.1) + np.float32('norm' in name and name.endswith('weight'))


def inputs(case: str) -> tuple[np.ndarray, np.ndarray]:
  """Images float32 [2, S, S, 3] and tokens int32 [3, T], the padding at random: no result may depend on it."""
  text, image = CASES[case]['text_config'], CASES[case]['vision_config']
  rng = np.random.default_rng(7)
  size, length = image.get('image_size', 224), text.get('max_position_embeddings', 77)
  vocabulary = text.get('vocab_size', 49408)
  end = {2: vocabulary - 1}.get(text.get('eos_token_id', 49407), text.get('eos_token_id', 49407))
  tokens = rng.integers(3, min(end, 28), (3, length))
  tokens[:, 0] = vocabulary - 2
  tokens[[0, 1, 2], [2, length // 2, length - 1]] = end
  return rng.standard_normal((2, size, size, 3)).astype(np.float32), tokens.astype(np.int32)


def write_directory(directory: Path, case: str, shapes: dict[str, tuple[int, ...]]) -> None:
  """A teacher directory as transformers writes it; its tokenizer is a list of words of the right length."""
  directory.mkdir(exist_ok=True)
  size = CASES[case]['text_config'].get('vocab_size', 49408)
  vocab = {'<|startoftext|>': size - 2, '<|endoftext|>': size - 1, **{f'w{i}': i for i in range(size - 2)}}
  tokenizer = {
    'version': '1.0',
    'added_tokens': [],
    'pre_tokenizer': {'type': 'Whitespace'},
    'model': {'type': 'WordLevel', 'vocab': vocab, 'unk_token': 'w0'},
  }
  (directory / 'tokenizer.json').write_text(json.dumps(tokenizer))
  (directory / 'config.json').write_text(json.dumps({'model_type': 'clip', **CASES[case]}))
  (directory / 'preprocessor_config.json').write_text(json.dumps({'image_mean': [0.5] * 3, 'image_std': [0.5] * 3}))
  tensors = {name: weight(name, shape) for name, shape in shapes.items()}
  safetensors.numpy.save_file(tensors, directory / 'model.safetensors', metadata={'format': 'pt'})


def torch_embeddings(case: str) -> tuple[np.ndarray, np.ndarray]:
  """Normalised embeddings of images and texts by transformers."""
  import torch
  import transformers

  model = transformers.CLIPModel(transformers.CLIPConfig(**CASES[case])).eval()
  state = {
    k: torch.from_numpy(np.array(weight(k, tuple(v.shape))))
    for k, v in model.state_dict().items()
    if not k.endswith('position_ids')
  }
  model.load_state_dict(state, strict=False)
  images, tokens = inputs(case)
  with torch.no_grad():
    out = model(input_ids=torch.from_numpy(tokens).long(), pixel_values=torch.from_numpy(images).permute(0, 3, 1, 2))
  return out.image_embeds.numpy(), out.text_embeds.numpy()


if __name__ == '__main__':
  arrays = {}
  for case in CASES:
    arrays[f'{case}_image'], arrays[f'{case}_text'] = torch_embeddings(case)
  np.savez_compressed(GOLDEN, **arrays)
  print({name: array.shape for name, array in arrays.items()})
