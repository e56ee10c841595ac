"""Trains the toy teacher: a small CLIP that learns from captioned pictures of single objects in about a minute.

It replaces OpenAI's weights where nothing can be downloaded: it has the same module, the same files and the same use.
It sees the whole vocabulary of the toy world, as CLIP has seen the web, but never the detection data set. Its image
tower is a narrow ModifiedResNet of four stages, like CLIP's own: from so few pictures a ViT learns shapes far more
slowly. Its matrices and kernels learn by Muon (https://kellerjordan.github.io/posts/muon/), which needs a third of the
steps of AdamW here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from vild_jax.nn import clip
from vild_jax.runtime import compiler, progress
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import prompts
from vild_jax.teacher.tokenizer import END, START, Tokenizer
from vild_jax.train.optim import MUON

_CONTEXT_LENGTH = 32
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # those of OpenAI's CLIP
# Most steps see pictures of half the size, which cost a quarter; the last ones see them whole. (share of the steps, by
# what sides are divided, learning rate of Muon)
_PHASES = ((0.8, 2, 0.05), (0.2, 1, 0.03))
_ADAM_SHARE = 0.07  # of Muon's rate: the rate of Adam, which all parameters have that are no matrices
_WARMUP = 0.1  # of the steps of a phase
_BATCH = 128
_PROMPTS = ('vild', 'imagenet', 'single')


def train(
  draw: Callable[[], tuple[np.ndarray, np.ndarray]],
  names: Sequence[str],
  out_dir: str | Path,
  *,
  size: int = 64,
  seed: int = 0,
  steps: int = 500,
) -> teacher_checkpoint.Teacher:
  """Trains on captioned pictures and writes a teacher directory.

  Args:
    draw: returns the pictures, uint8 [N, size, size, 3], each of one object or of none, and int [N], index into `names`
      of what each of them shows. It is called once, while the programs are compiled.
    names: the vocabulary. Captions are these names in all published templates.
    out_dir: where the teacher directory goes.
    size: side of the pictures in pixels, a multiple of 64.
    seed: of initialisation, order, captions and augmentation; equal seeds give equal teachers.
    steps: number of batches of 128 pictures.

  Raises:
    ValueError: there are fewer pictures than one batch, or not one label per picture.
  """
  templates = [template for which in _PROMPTS for template in prompts.load_templates(which)]
  captions = [prompts.fill(name, templates) for name in names]
  tokenizer_json = word_tokenizer([caption for of_name in captions for caption in of_name])
  config = _config(size, tokenizer_json)
  tokenizer = Tokenizer(tokenizer_json, _CONTEXT_LENGTH)
  tokens = np.stack([tokenizer(of_name) for of_name in captions]).astype(np.int32)  # [C, templates, T]
  tokens = tokens[..., : int((tokens > 0).sum(-1).max())]
  phases = [
    _Phase(dataclasses.replace(config, image_size=size // divisor), max(1, round(share * steps)), rate)
    for share, divisor, rate in _PHASES
  ]
  rng = np.random.default_rng([seed, 1])
  compilers = futures.ThreadPoolExecutor(len(phases))
  try:
    programs = [compilers.submit(_compiled, phase, size, tokens[:, 0]) for phase in phases]
    images, labels = draw()
    if len(images) < _BATCH or len(images) != len(labels):
      raise ValueError(f'{len(images)} pictures and {len(labels)} labels; expected as many of each, at least {_BATCH}')
    params, order, done = None, np.zeros(0, np.int64), 0
    with progress.bar(steps, 'toy teacher', unit='step') as bar:
      for phase, program in zip(phases, programs, strict=True):
        params = _initial(jax.random.key(seed), config=phase.config) if params is None else _finer(params)
        opt_state, step = _optimizer(phase).init(params), program.result()
        for i in range(phase.steps):
          if len(order) < _BATCH:
            order = rng.permutation(len(images))
          chosen, order = order[:_BATCH], order[_BATCH:]
          texts = tokens[np.arange(len(names)), rng.integers(len(templates), size=len(names))]
          key = jax.random.fold_in(jax.random.key(seed), done)
          params, opt_state, loss = step(params, opt_state, images[chosen], labels[chosen].astype(np.int32), texts, key)
          done += 1
          if done % 20 == 0 or i == phase.steps - 1:
            bar.set_postfix_str(f'loss {float(loss):.3f}', refresh=False)
          bar.update()
  finally:
    compilers.shutdown(wait=False, cancel_futures=True)  # after an error nobody waits for a compiler
  teacher = teacher_checkpoint.Teacher(config, jax.tree.map(np.asarray, params), tokenizer_json, _preprocessor(size))
  teacher_checkpoint.save_teacher(out_dir, teacher)
  return teacher


@dataclasses.dataclass(frozen=True)
class _Phase:
  """Describes steps with pictures of one size: the towers for that size, the number of steps, Muon's largest rate."""

  config: clip.ClipConfig
  steps: int
  rate: float


def _compiled(phase: _Phase, size: int, texts: np.ndarray) -> Callable[..., tuple[Any, Any, jax.Array]]:
  """Returns `_step` of a phase, compiled for a batch of pictures of `size` and for `texts` [C, T]."""
  key = jax.eval_shape(jax.random.key, 0)
  params = jax.eval_shape(functools.partial(_initial, config=phase.config), key)
  opt_state = jax.eval_shape(_optimizer(phase).init, params)
  images, labels = (
    jax.ShapeDtypeStruct((_BATCH, *shape), kind) for shape, kind in (((size, size, 3), np.uint8), ((), np.int32))
  )
  step = compiler.jit(_step, static_argnames='phase', donate_argnums=(0, 1))
  return step.lower(params, opt_state, images, labels, texts, key, phase=phase).compile()


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
    image=clip.ModifiedResNet(layers=(1, 1, 1, 1), width=8, heads=4),
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


def _shrunk(images: jax.Array, size: int) -> jax.Array:
  """Averages square cells of pixels, so that pictures have sides of `size`; float32."""
  factor, images = images.shape[1] // size, images.astype(jnp.float32)
  # Sums of strided slices: on a CPU, a mean over axes between others takes 30 times as long.
  rows = sum(images[:, i::factor] for i in range(factor))
  return sum(rows[:, :, i::factor] for i in range(factor)) / factor**2


@functools.partial(jax.jit, static_argnames='config')
def _initial(key: jax.Array, *, config: clip.ClipConfig) -> Any:
  pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
  params = clip.Clip(config).init(key, pixels, jnp.zeros((1, 1), jnp.int32))['params']
  for name, part in params['image'].items():
    if 'block' in name:
      # Scales of zero help deep towers to start; a tower as shallow as this learns faster with scales of one.
      part['conv3_bn']['scale'] = jnp.ones_like(part['conv3_bn']['scale'])
  return params


def _finer(params: Any) -> Any:
  """Returns the parameters for pictures of twice the side: each position of the pooling becomes four."""
  position = params['image']['position']  # [1 + cells, C]; the first is that of the mean of all cells
  side = math.isqrt(len(position) - 1)
  cells = position[1:].reshape(side, side, -1).repeat(2, 0).repeat(2, 1).reshape(4 * side * side, -1)
  return params | {'image': params['image'] | {'position': jnp.concatenate([position[:1], cells])}}


def _optimizer(phase: _Phase) -> optax.GradientTransformation:
  schedule = optax.warmup_cosine_decay_schedule(0.0, phase.rate, int(_WARMUP * phase.steps), phase.steps)
  muon = contrib.muon(
    schedule,
    **MUON,
    weight_decay=0.05,
    adam_learning_rate=lambda step: _ADAM_SHARE * schedule(step),
    muon_weight_dimension_numbers=_matrices,
  )
  return optax.chain(optax.clip_by_global_norm(1.0), muon)


def _matrices(params: Any) -> Any:
  """Says for each parameter which axes are its rows and columns, or None for those that are no matrices to Muon.

  The pooling is left out: its matrices are the largest, and Muon's own products would take a third of a step.
  """

  def of(path: tuple, leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
    name = jax.tree_util.keystr(path)
    if leaf.ndim == 4:
      return contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    if leaf.ndim == 2 and not any(part in name for part in ('pool', 'position', 'token')):
      return contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=1)
    return None

  return jax.tree_util.tree_map_with_path(of, params)


def _step(
  params: Any,
  opt_state: Any,
  images: jax.Array,
  labels: jax.Array,
  texts: jax.Array,
  key: jax.Array,
  *,
  phase: _Phase,
) -> tuple[Any, Any, jax.Array]:
  # Mirrors pictures at random: no name depends on left and right.
  mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  pixels = _normalized(_shrunk(images, phase.config.image_size))
  pixels = jnp.where(mirrored, pixels[:, :, ::-1], pixels)

  def loss_of(params: Any) -> tuple[jax.Array, Any]:
    towers, updated = clip.Clip(phase.config).apply(
      {'params': params}, pixels, texts, train=True, mutable=['batch_stats']
    )
    return contrastive_loss(*towers, labels), updated['batch_stats']

  (loss, statistics), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
  updates, opt_state = _optimizer(phase).update(gradient, opt_state, params)
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
