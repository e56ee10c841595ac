"""A teacher of random weights, small enough to be made anew in each test file."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np

from vild_jax.demo import teacher as toy_teacher
from vild_jax.nn import clip
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import prompts

PREPROCESSOR = {
  'image_processor_type': 'CLIPImageProcessor',
  'size': {'shortest_edge': 16},
  'crop_size': 16,
  'resample': 3,
  'image_mean': [0.5, 0.4, 0.3],
  'image_std': [0.2, 0.3, 0.4],
}


def make(
  words: str = 'red mug toy elephant', context_length: int = 14, sigmoid: bool = False, drawn: bool = False
) -> teacher_checkpoint.Teacher:
  """A ViT of 16-pixel pictures; its words are those of the templates and `words`. `sigmoid`: SigLIP's towers.

  `drawn` weights are NumPy's, for tests that only read and write them: compiling the initialisers takes seconds.
  """
  templates = [t for which in ('vild', 'imagenet', 'single') for t in prompts.load_templates(which)]
  tokenizer_json = toy_teacher.word_tokenizer([words, *(t.format('', article='a an') for t in templates)])
  size = len(json.loads(tokenizer_json)['model']['vocab'])
  tower = clip.Transformer(16, 1, 2, 32)
  config = clip.ClipConfig(
    embedding_dim=16 if sigmoid else 8,
    image=tower,
    image_size=16,
    patch_size=8,
    text=tower,
    vocab_size=size,
    context_length=context_length,
    end_id=None if sigmoid else size - 1,
    sigmoid=sigmoid,
  )
  tokens = jnp.zeros((1, context_length), jnp.int32)
  init, given = clip.Clip(config).init, (jax.random.key(0), jnp.zeros((1, 16, 16, 3)), tokens)
  if drawn:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), jax.eval_shape(init, *given))
  else:
    params = jax.jit(init)(*given)
  return teacher_checkpoint.Teacher(config, jax.tree.map(np.asarray, params['params']), tokenizer_json, PREPROCESSOR)
