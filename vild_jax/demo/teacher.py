"""Trains the toy teacher: a small CLIP that learns from captioned pictures of single objects in a minute or two.

It replaces OpenAI's weights where nothing can be downloaded: it has the same module, the same files and the same use.
It sees the whole vocabulary of the toy world, as CLIP has seen the web, but never the detection data set. Its image
tower is a narrow ModifiedResNet: from so few pictures a ViT learns shapes far more slowly.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vild_jax.nn import clip
from vild_jax.runtime import progress
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import prompts
from vild_jax.teacher.tokenizer import END, START, Tokenizer

_CONTEXT_LENGTH = 32
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # those of OpenAI's CLIP
_LEARNING_RATE, _WARMUP = 4e-3, 0.1
_BATCH = 64  # with 32 the batch statistics are too noisy: such teachers stayed below 50 % accuracy
_PROMPTS = ('vild', 'imagenet', 'single')


def train(
  images: np.ndarray,
  category_index: np.ndarray,
  names: Sequence[str],
  out_dir: str | Path,
  *,
  seed: int = 0,
  steps: int = 3000,
) -> teacher_checkpoint.Teacher:
  """Trains on captioned pictures and writes a teacher directory.

  Args:
    images: uint8 [N, S, S, 3], each of one object or of none; S is a multiple of 16.
    category_index: int [N], index into `names` of what each picture shows.
    names: the vocabulary. Captions are these names in all published templates.
    out_dir: where the teacher directory goes.
    seed: of initialisation, order, captions and augmentation; equal seeds give equal teachers.
    steps: number of batches of 64 pictures.

  Raises:
    ValueError: there are fewer pictures than one batch, or not one label per picture.
  """
  if len(images) < _BATCH or len(images) != len(category_index):
    raise ValueError(
      f'{len(images)} pictures and {len(category_index)} labels; expected as many of each, at least {_BATCH}'
    )
  templates = [template for which in _PROMPTS for template in prompts.load_templates(which)]
  captions = [prompts.fill(name, templates) for name in names]
  tokenizer_json = word_tokenizer([caption for of_name in captions for caption in of_name])
  config = _config(images.shape[1], tokenizer_json)
  tokenizer = Tokenizer(tokenizer_json, _CONTEXT_LENGTH)
  tokens = np.stack([tokenizer(of_name) for of_name in captions])  # [C, templates, T]
  tokens = tokens[..., : int((tokens > 0).sum(-1).max())]
  params = _initial(jax.random.key(seed), config=config)
  opt_state = _optimizer(steps).init(params)
  rng = np.random.default_rng([seed, 1])
  order = np.zeros(0, np.int64)
  with progress.bar(steps, 'toy teacher', unit='step') as bar:
    for i in range(steps):
      if len(order) < _BATCH:
        order = rng.permutation(len(images))
      chosen, order = order[:_BATCH], order[_BATCH:]
      texts = tokens[np.arange(len(names)), rng.integers(len(templates), size=len(names))]
      key = jax.random.fold_in(jax.random.key(seed), i)
      params, opt_state, loss = _step(
        params, opt_state, images[chosen], category_index[chosen], texts, key, config=config, steps=steps
      )
      if i % 20 == 0 or i == steps - 1:
        bar.set_postfix_str(f'loss {float(loss):.3f}', refresh=False)
      bar.update()
  teacher = teacher_checkpoint.Teacher(
    config, jax.tree.map(np.asarray, params), tokenizer_json, _preprocessor(images.shape[1])
  )
  teacher_checkpoint.save_teacher(out_dir, teacher)
  return teacher


def word_tokenizer(texts: Sequence[str]) -> str:
  """Makes a tokenizer.json whose tokens are the words and punctuation marks of `texts`; any other word is `<unk>`.

  Padding has the id 0 and the end token the largest id, as in CLIP's own tokenizer.
  """
  words = sorted({word for text in texts for word in re.findall(r'\w+|[^\w\s]+', text.lower())})
  vocab = {token: i for i, token in enumerate(['<pad>', '<unk>', *words, START, END])}
  special = [
    {
      'id': vocab[token],
      'content': token,
      'single_word': False,
      'lstrip': False,
      'rstrip': False,
      'normalized': False,
      'special': True,
    }
    for token in ('<pad>', '<unk>', START, END)
  ]
  return json.dumps(
    {
      'version': '1.0',
      'truncation': None,
      'padding': None,
      'added_tokens': special,
      'normalizer': {'type': 'Lowercase'},
      'pre_tokenizer': {'type': 'Whitespace'},
      'post_processor': {
        'type': 'RobertaProcessing',
        'sep': [END, vocab[END]],
        'cls': [START, vocab[START]],
        'trim_offsets': False,
        'add_prefix_space': False,
      },
      'decoder': None,
      'model': {'type': 'WordLevel', 'vocab': vocab, 'unk_token': '<unk>'},
    },
    indent=1,
  )


def _config(size: int, tokenizer_json: str) -> clip.ClipConfig:
  vocab_size = len(json.loads(tokenizer_json)['model']['vocab'])
  return clip.ClipConfig(
    embedding_dim=64,
    image=clip.ModifiedResNet(layers=(1, 1, 1), width=16, heads=4),
    image_size=size,
    patch_size=None,
    text=clip.Transformer(64, 1, 2, 256),
    vocab_size=vocab_size,
    context_length=_CONTEXT_LENGTH,
    end_id=vocab_size - 1,
  )


def _preprocessor(size: int) -> dict[str, Any]:
  """Stretches pictures to the square: they are boxes of objects, and a central crop would cut off ends of long ones."""
  square = {'height': size, 'width': size}
  return {
    'image_processor_type': 'CLIPImageProcessor',
    'do_convert_rgb': True,
    'do_resize': True,
    'size': square,
    'resample': 3,
    'do_center_crop': False,
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(_MEAN),
    'image_std': list(_STD),
  }


def _normalized(images: Any) -> jax.Array:
  mean, std = (jnp.asarray(v).reshape(1, 1, 1, 3) for v in (_MEAN, _STD))
  return (jnp.asarray(images, jnp.float32) / 255 - mean) / std


@functools.partial(jax.jit, static_argnames='config')
def _initial(key: jax.Array, *, config: clip.ClipConfig) -> Any:
  pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
  params = clip.Clip(config).init(key, pixels, jnp.zeros((1, 1), jnp.int32))['params']
  for name, part in params['image'].items():
    if 'block' in name:
      # Scales of zero help deep towers to start; a tower as shallow as this learns faster with scales of one.
      part['conv3_bn']['scale'] = jnp.ones_like(part['conv3_bn']['scale'])
  return params


def _optimizer(steps: int) -> optax.GradientTransformation:
  schedule = optax.warmup_cosine_decay_schedule(0.0, _LEARNING_RATE, int(_WARMUP * steps), steps)
  matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
  return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05, mask=matrices))


@functools.partial(jax.jit, static_argnames=('config', 'steps'), donate_argnums=(0, 1))
def _step(
  params: Any,
  opt_state: Any,
  images: jax.Array,
  labels: jax.Array,
  texts: jax.Array,
  key: jax.Array,
  *,
  config: clip.ClipConfig,
  steps: int,
) -> tuple[Any, Any, jax.Array]:
  # Mirrors pictures at random: no name depends on left and right.
  mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  pixels = _normalized(images)
  pixels = jnp.where(mirrored, pixels[:, :, ::-1], pixels)

  def loss_of(params: Any) -> tuple[jax.Array, Any]:
    towers, updated = clip.Clip(config).apply({'params': params}, pixels, texts, train=True, mutable=['batch_stats'])
    return contrastive_loss(*towers, labels), updated['batch_stats']

  (loss, statistics), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
  updates, opt_state = _optimizer(steps).update(gradient, opt_state, params)
  params = clip.with_statistics(optax.apply_updates(params, updates), statistics)
  return params, opt_state, loss


def contrastive_loss(images: jax.Array, texts: jax.Array, scale: jax.Array, labels: jax.Array) -> jax.Array:
  """Computes CLIP's symmetric loss of pictures [B, D] and one caption per class [C, D], both unit rows.

  Pictures of one class have the same caption: all of them are its positives, with equal weights.
  """
  logits = jnp.minimum(scale, 100.0) * images @ texts.T
  positive = jax.nn.one_hot(labels, len(texts))
  count = positive.sum(axis=0)
  to_text = -(positive * jax.nn.log_softmax(logits, axis=1)).sum() / len(images)
  to_image = -(positive * jax.nn.log_softmax(logits, axis=0)).sum(axis=0) / jnp.maximum(count, 1)
  return (to_text + to_image.sum() / (count > 0).sum()) / 2
