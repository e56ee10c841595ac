from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vild_jax.nn import clip, modified_resnet

RESNET = clip.ModifiedResNet(layers=(1, 2), width=8, heads=4)
CONFIG = clip.ClipConfig(
  embedding_dim=12,
  image=RESNET,
  image_size=16,
  patch_size=None,
  text=clip.Transformer(16, 1, 2, 32),
  vocab_size=20,
  context_length=6,
)


def pixels(seed, batch=4):
  return np.random.default_rng(seed).normal(size=(batch, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope='module')
def params():
  """At random, also where the initial values are zero or one."""
  shapes = jax.eval_shape(clip.ImageTower(CONFIG).init, jax.random.key(0), pixels(0))['params']
  rng = np.random.default_rng(1)

  def leaf(shape):
    noise = rng.normal(size=shape).astype(np.float32)
    return noise / np.sqrt(np.prod(shape[:-1])).astype(np.float32) if len(shape) > 1 else 1 + 0.2 * np.abs(noise)

  return jax.tree.map(lambda leaf_shape: leaf(leaf_shape.shape), shapes)


def embed(params, images, dtype=jnp.float32):
  return np.asarray(jax.jit(clip.ImageTower(CONFIG, dtype).apply)({'params': params}, images))


def test_sizes():
  assert (RESNET.stride, RESNET.channels) == (8, 64)
  rn50 = clip.ModifiedResNet()
  assert (rn50.stride, rn50.channels) == (32, 2048)
  config = clip.ClipConfig(1024, rn50, 224, None, clip.Transformer(512, 12, 8, 2048), 49408)
  shapes = jax.eval_shape(clip.ImageTower(config).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))['params']
  # 38.3 million parameters, as published for RN50's image tower, and its running statistics.
  trained = sum(leaf.size for path, leaf in jax.tree.leaves_with_path(shapes) if path[-1].key not in ('mean', 'var'))
  assert trained == 38_316_896
  assert shapes['position'].shape == (50, 2048)


def test_each_picture_stands_alone_and_every_pixel_counts(params):
  images = pixels(2)
  np.testing.assert_allclose(embed(params, images)[1:2], embed(params, images[1:2]), atol=1e-5)
  gradient = jax.jit(jax.grad(lambda x: jnp.sum(clip.ImageTower(CONFIG).apply({'params': params}, x)[:, 0])))(images)
  assert (np.abs(gradient).max(axis=(0, -1)) > 0).all()


def test_training_normalises_by_the_batch_and_frozen_by_what_was_gathered(params):
  tower, images = clip.ImageTower(CONFIG), pixels(3, 8)
  trained, collected = jax.jit(lambda p, x: tower.apply({'params': p}, x, train=True, mutable=['batch_stats']))(
    params, images
  )
  assert np.abs(trained - embed(params, images)).max() > 1e-2
  # With the batch's own statistics in place of the running ones, the frozen tower says the same of that batch.
  moved = clip.with_statistics(params, collected['batch_stats'], momentum=0.0)
  assert jax.tree.structure(moved) == jax.tree.structure(params)
  np.testing.assert_allclose(embed(moved, images), trained, atol=2e-5)
  half = clip.with_statistics(params, collected['batch_stats'], momentum=0.5)['stem1_bn']
  np.testing.assert_allclose(half['mean'], (params['stem1_bn']['mean'] + moved['stem1_bn']['mean']) / 2, rtol=1e-6)
  np.testing.assert_array_equal(half['scale'], params['stem1_bn']['scale'])


def test_statistics_of_a_batch_in_numpy():
  norm, x = modified_resnet._BatchNorm(jnp.float32), pixels(4) * 3 + 1
  variables = norm.init(jax.random.key(0), x, False)
  out, collected = norm.apply({'params': variables['params']}, x, True, mutable=['batch_stats'])
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  np.testing.assert_allclose(out, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
  np.testing.assert_allclose(collected['batch_stats']['mean'], mean, atol=1e-5)
  np.testing.assert_allclose(collected['batch_stats']['var'], var, rtol=1e-5)


@pytest.mark.slow
def test_a_tower_learns_two_kinds_of_picture_and_keeps_them_when_frozen():
  rng = np.random.default_rng(0)
  labels = np.arange(16) % 2
  images = np.where(labels[:, None, None, None] == 1, 1.0, -1.0) * np.linspace(-1, 1, 16)[None, :, None, None]
  images = (images + 0.3 * rng.normal(size=(16, 16, 16, 3))).astype(np.float32)
  small = dataclasses.replace(CONFIG, embedding_dim=2, image=clip.ModifiedResNet((1,), width=8, heads=2))
  tower, optimizer = clip.ImageTower(small), optax.adam(1e-2)
  params = jax.jit(tower.init)(jax.random.key(0), images[:1])['params']
  state = optimizer.init(params)

  def loss_of(params):
    logits, collected = tower.apply({'params': params}, images, train=True, mutable=['batch_stats'])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), collected['batch_stats']

  @jax.jit
  def step(params, state):
    gradient, collected = jax.grad(loss_of, has_aux=True)(params)
    updates, state = optimizer.update(gradient, state, params)
    params = clip.with_statistics(optax.apply_updates(params, updates), collected, momentum=0.7)
    return params, state

  for _ in range(25):
    params, state = step(params, state)
  out = jax.jit(tower.apply)({'params': params}, images)
  np.testing.assert_array_equal(np.argmax(out, axis=1), labels)


@pytest.mark.parametrize('shape', [(3, 2, 2, 5), (2, 1, 1, 4), (1, 1, 2, 3), (2, 4, 3, 2), (0, 2, 2, 3)])
def test_the_convolution_of_small_maps_is_the_plain_one(shape):
  rng = np.random.default_rng([*shape])
  x, kernel = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in (shape, (3, 3, shape[-1], 6)))
  padding, numbers = [(1, 1), (1, 1)], ('NHWC', 'HWIO', 'NHWC')
  ours = jax.vjp(lambda x, kernel: modified_resnet._by_slices(x, kernel, (1, 1), padding), x, kernel)
  plain = jax.vjp(
    lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=numbers), x, kernel
  )
  weights = jnp.asarray(rng.normal(size=plain[0].shape), jnp.float32)
  for found, expected in zip((ours[0], *ours[1](weights)), (plain[0], *plain[1](weights)), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_stays_close(params):
  full, half = (clip.normalize(jnp.asarray(embed(params, pixels(5), dtype))) for dtype in (jnp.float32, jnp.bfloat16))
  assert embed(params, pixels(5), jnp.bfloat16).dtype == jnp.bfloat16
  assert float(jnp.sum(full * half, -1).min()) >= 0.999
