"""The schedule against the reference's, the decay rules, and the update rule against a hand-written one."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from tests.helpers import tiny
from vild_jax import detector
from vild_jax.config import Config, ConfigError, Optimizer, Train, load
from vild_jax.train import optim
from vild_jax.train.step import _of_the_program


def test_schedule_is_the_references_but_for_the_decay_that_it_lost(golden):
  values = golden('learning_rate')
  steps, expected = values['in_steps'], values['out_lr']
  with_defect = jax.vmap(optim.schedule(Optimizer(drop_last_decay=True), 180_000))(steps)
  np.testing.assert_allclose(with_defect, expected, rtol=1e-5)
  ours = jax.vmap(optim.schedule(Optimizer(), 180_000))(steps)
  before = steps < 175_500
  np.testing.assert_allclose(ours[before], expected[before], rtol=1e-5)
  np.testing.assert_allclose(ours[~before], 0.00032, rtol=1e-5)


def test_the_rate_follows_the_batch_and_the_warm_up_its_pictures():
  given = Optimizer(learning_rate=0.32, warmup_learning_rate=0.0032, warmup_steps=1000, reference_batch=256)
  of_64 = given.of_batch(64)
  assert (of_64.learning_rate, of_64.warmup_steps, of_64.reference_batch) == (0.08, 4000, None)
  assert of_64.warmup_learning_rate == pytest.approx(0.0008)
  rate, plain = optim.schedule(of_64, 180_000), optim.schedule(given.of_batch(256), 180_000)
  for pictures in (0, 128_000, 256_000, 1_000_000):  # a quarter of the rate, after as many pictures
    np.testing.assert_allclose(4 * rate(pictures // 64), plain(pictures // 256), rtol=1e-6)
  assert of_64.of_batch(8) == of_64 and Optimizer().of_batch(8) == Optimizer()


def test_the_optimiser_and_the_step_take_the_rate_of_the_batch():
  settings = ('reference_batch=2', 'warmup_learning_rate=0.01', 'warmup_steps=0', 'weight_decay=0')
  config = tiny.config(*(f'optimizer.{setting}' for setting in settings))  # its batch is 8
  params = {'a': {'kernel': np.ones((2, 2), np.float32)}}
  update = optim.optimizer(config)
  found, _ = update.update(params, update.init(params), params)
  np.testing.assert_allclose(found['a']['kernel'], -0.01 * 4, rtol=1e-6)
  assert _of_the_program(config).optimizer.learning_rate == pytest.approx(0.04)
  assert optim.described(config) == (
    'learning rate 0.04 after 0 steps of warm-up: 0.01 and 0 for a batch of 2 (optimizer.reference_batch), here of 8'
  )
  short = tiny.config('optimizer.reference_batch=64')  # 16 steps of warm-up, of 8 steps in all
  assert 'which do not end before the first decay at step 7:' in optim.described(short)
  assert optim.described(tiny.config()) == 'learning rate 0.01 after 2 steps of warm-up'
  with pytest.raises(ConfigError, match=r'optimizer\.reference_batch.*-2.*expected a number of pictures, or null'):
    tiny.config('optimizer.reference_batch=-2')
  assert tiny.config('optimizer.reference_batch=2', 'optimizer.reference_batch=null').optimizer.reference_batch is None


@pytest.mark.parametrize(
  'file', sorted((Path(__file__).resolve().parents[2] / 'configs').glob('*_r*.py')), ids=lambda file: file.stem
)
def test_the_configs_of_lvis_and_coco_give_their_rate_for_256_pictures(file):
  assert load(file).optimizer == Optimizer(reference_batch=256)


def test_every_parameter_has_a_rule_and_only_kernels_and_the_background_decay():
  config = tiny.config()
  params = jax.eval_shape(lambda: detector.init(config, jax.random.PRNGKey(0)))['params']
  decays = {
    optim.path_name(path): value for path, value in jax.tree_util.tree_flatten_with_path(optim.decay_mask(params))[0]
  }
  assert decays['background'] and decays['backbone/stem/kernel'] and decays['mask_head/deconv/kernel']
  assert not decays['mask_head/deconv/bias'] and not decays['fpn/output2_bn/bn/scale']
  assert all(value == (name == 'background' or name.endswith('kernel')) for name, value in decays.items())


def test_a_parameter_without_a_rule_is_an_error_that_names_it():
  with pytest.raises(ValueError, match="no rule of weight decay matches 'head/gain'"):
    optim.decay_mask({'head': {'gain': np.zeros(3)}})


def test_update_is_tensorflows_momentum_with_decay_in_the_gradient():
  config = Config(optimizer=Optimizer(learning_rate=0.5, warmup_learning_rate=0.5, weight_decay=0.1, momentum=0.9))
  update = optim.optimizer(config)
  params = {'a': {'kernel': np.array([2.0], np.float32), 'bias': np.array([3.0], np.float32)}}
  gradient = {'a': {'kernel': np.array([1.0], np.float32), 'bias': np.array([1.0], np.float32)}}
  state, weight, offset, slot_w, slot_b = update.init(params), 2.0, 3.0, 0.0, 0.0
  for _ in range(3):
    updates, state = update.update(gradient, state, params)
    params = jax.tree.map(lambda p, u: p + u, params, updates)
    slot_w, slot_b = 0.9 * slot_w + 1.0 + 0.1 * weight, 0.9 * slot_b + 1.0
    weight, offset = weight - 0.5 * slot_w, offset - 0.5 * slot_b
  np.testing.assert_allclose(params['a']['kernel'], weight, rtol=1e-6)
  np.testing.assert_allclose(params['a']['bias'], offset, rtol=1e-6)


def test_adamw_is_that_of_its_paper_with_our_schedule_and_mask():
  settings = Optimizer(rule='adamw', learning_rate=0.5, warmup_learning_rate=0.5, weight_decay=0.1, momentum=0.8)
  update = optim.optimizer(Config(optimizer=settings))
  params = {'a': {'kernel': np.array([2.0], np.float32), 'bias': np.array([3.0], np.float32)}}
  state, values, means, squares = update.init(params), {'kernel': 2.0, 'bias': 3.0}, {}, {}
  for t in range(1, 4):
    gradient = {'a': {'kernel': np.array([1.0 * t], np.float32), 'bias': np.array([-2.0], np.float32)}}
    updates, state = update.update(gradient, state, params)
    params = jax.tree.map(lambda p, u: p + u, params, updates)
    for name, decay in (('kernel', 0.1), ('bias', 0.0)):
      g = float(gradient['a'][name][0])
      means[name] = 0.8 * means.get(name, 0.0) + 0.2 * g
      squares[name] = 0.99 * squares.get(name, 0.0) + 0.01 * g * g
      step = means[name] / (1 - 0.8**t) / (np.sqrt(squares[name] / (1 - 0.99**t)) + 1e-8)
      values[name] -= 0.5 * (step + decay * values[name])
  for name, value in values.items():
    np.testing.assert_allclose(params['a'][name], value, rtol=1e-5)


PARAMS = {'body': {'conv': {'kernel': (3, 3, 4, 8), 'bias': (8,)}}, 'head': {'kernel': (8, 5)}, 'background': (5,)}


@pytest.mark.parametrize('rule', ['sgd', 'adamw', 'muon'])
def test_frozen_parameters_get_neither_update_nor_decay_nor_momentum_and_the_others_what_they_always_got(rule):
  settings = Optimizer(rule=rule, warmup_learning_rate=0.32, weight_decay=0.1)
  rng = np.random.default_rng(0)
  params, gradient = (
    jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), PARAMS, is_leaf=lambda s: isinstance(s, tuple))
    for _ in range(2)
  )
  found = {}
  for freeze in ((), ('body/*',), ('*/bias', 'head/*')):
    update = optim.optimizer(Config(optimizer=settings, train=Train(freeze=freeze)))
    state = update.init(params)
    for _ in range(2):
      updates, state = update.update(gradient, state, params)
    found[freeze] = jax.device_get(updates), {leaf.shape for leaf in jax.tree.leaves(state)}
  whole = found[()][0]
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # Muon's order of sums varies
  updates, shapes = found['body/*',]
  assert not updates['body']['conv']['kernel'].any() and not updates['body']['conv']['bias'].any()
  close(updates['head']['kernel'], whole['head']['kernel'])
  close(updates['background'], whole['background'])
  assert (3, 3, 4, 8) not in shapes and (8,) not in shapes and (8, 5) in shapes
  updates, _ = found['*/bias', 'head/*']
  close(updates['body']['conv']['kernel'], whole['body']['conv']['kernel'])
  assert not updates['body']['conv']['bias'].any() and not updates['head']['kernel'].any()
  assert all(leaf.any() for leaf in jax.tree.leaves(whole))


def test_patterns_that_freeze_nothing_or_everything_are_one_line():
  params = jax.tree.map(np.zeros, PARAMS, is_leaf=lambda s: isinstance(s, tuple))
  assert optim.frozen(('b*/kernel', 'background'), params) == {
    'body': {'conv': {'kernel': True, 'bias': False}},
    'head': {'kernel': False},
    'background': True,
  }
  with pytest.raises(
    ValueError, match=r"train\.freeze: 'neck/\*' matches no .* as background, body/\*, head/\*, or"
  ) as e:
    optim.frozen(('body/*', 'neck/*'), params)
  assert '\n' not in str(e.value)
  with pytest.raises(ValueError, match='which is every parameter; expected some that learn'):
    optim.frozen(('*/*', 'background'), params)


def test_an_unknown_rule_is_one_line():
  with pytest.raises(ValueError, match=r"optimizer\.rule is adam; expected 'sgd', 'adamw' or 'muon'"):
    Optimizer(rule='adam')


def test_muon_moves_kernels_by_matrices_near_orthogonal_and_the_rest_as_nadam():
  settings = {'learning_rate': 0.01, 'warmup_learning_rate': 0.01, 'weight_decay': 0.1}
  rng = np.random.default_rng(0)
  shapes = {'conv': {'kernel': (3, 3, 4, 8), 'bias': (8,)}, 'fc': {'kernel': (20, 6)}, 'background': (5,)}
  params, gradient = (
    jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))
    for _ in range(2)
  )

  update = optim.optimizer(Config(optimizer=Optimizer(rule='muon', kernel_factor=3.0, **settings)))
  ours = update.update(gradient, update.init(params), params)[0]
  adam = optax.nadam(0.01, 0.9, optim._BETA2)
  theirs = adam.update(gradient, adam.init(params), params)[0]
  for name in ('conv', 'fc'):
    weight, moved = params[name]['kernel'], np.asarray(ours[name]['kernel'])
    rows = int(np.prod(weight.shape[:-1]))
    step = -moved / (3.0 * 0.01) - 0.1 * weight  # without the rate and the decay
    values = np.linalg.svd(step.reshape(rows, -1), compute_uv=False)
    values /= max(1, weight.shape[-1] / rows) ** 0.5  # Muon scales matrices that are wider than high
    assert values.min() > 0.6 and values.max() < 1.3, values
    # Close to the orthogonal factor of the gradient, which an ordinary step is not.
    u, _, v = np.linalg.svd(np.asarray(gradient[name]['kernel'], np.float64).reshape(rows, -1), full_matrices=False)
    cosine = (step.reshape(rows, -1) * (u @ v)).sum() / np.linalg.norm(step) / np.linalg.norm(u @ v)
    assert cosine > 0.95
  np.testing.assert_allclose(ours['conv']['bias'], theirs['conv']['bias'], rtol=1e-5)
  np.testing.assert_allclose(ours['background'], theirs['background'], rtol=1e-5)


@pytest.mark.parametrize('rule', ['sgd', 'adamw', 'muon'])
def test_a_mask_head_that_learns_nothing_does_not_decay(rule):
  params = {part: {'conv1': {'kernel': np.ones((1, 1, 2, 2), np.float32)}} for part in ('mask_head', 'fpn')}
  still = jax.tree.map(np.zeros_like, params)
  for masks in (True, False):
    config = tiny.config(f'model.masks={masks}', f'optimizer.rule={rule}', 'optimizer.weight_decay=0.5')
    update = optim.optimizer(config)
    updates, _ = update.update(still, update.init(params), params)
    assert (updates['fpn']['conv1']['kernel'] < 0).all()
    assert (updates['mask_head']['conv1']['kernel'] < 0).all() == masks
    assert masks or not updates['mask_head']['conv1']['kernel'].any()
