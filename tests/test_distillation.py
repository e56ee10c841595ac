"""Learning from the teacher: which head learns what, what padding may not do, and the scores of two heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import tiny
from tests.helpers.tiny import distilled_batch as batch
from vild_jax import config as config_lib
from vild_jax import detector, objective
from vild_jax.config import ConfigError
from vild_jax.structs import Batch, RegionTargets, Vocabulary
from vild_jax.targets import Targets
from vild_jax.train import optim

ONE_HEAD = tiny.config('distillation.weight=0.5')
TWO_HEADS = tiny.config('distillation.weight=0.5', 'model.image_head=true')
IMAGE = tiny.config('distillation.weight=0.5', 'model.background=false')  # ViLD-image


@pytest.fixture(scope='module')
def run():
  """batch -> loss, metrics, statistics, gradients of the whole and of the distillation alone, with two heads."""
  variables = tiny.variables(TWO_HEADS)

  def forward(batch, vocabulary):
    def losses(params):
      total, (metrics, statistics) = objective.objective(
        TWO_HEADS, {**variables, 'params': params}, batch, vocabulary, jax.random.PRNGKey(3)
      )
      return jnp.stack([total, metrics['distillation_loss']]), (metrics, statistics)

    (total, _), pull, (metrics, statistics) = jax.vjp(losses, variables['params'], has_aux=True)
    gradients = jax.vmap(lambda row: pull(row)[0])(jnp.eye(2))
    return total, metrics, statistics, *(jax.tree.map(lambda g, i=i: g[i], gradients) for i in range(2))

  forward = jax.jit(forward)
  return lambda batch: forward(batch, tiny.vocabulary())


def learns(gradients):
  """The parts of the model with a gradient, all of them finite."""
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
  return {part for part, tree in gradients.items() if max(np.abs(g).max() for g in jax.tree.leaves(tree)) > 0}


def test_the_image_head_learns_from_the_teacher_alone_and_it_alone_does(run):
  _, metrics, _, whole, alone = run(batch())
  assert metrics['distillation_loss'] > 0
  np.testing.assert_allclose(metrics['loss'], sum(v for k, v in metrics.items() if k.endswith('_loss')), rtol=1e-6)
  assert learns(alone) == {'backbone', 'fpn', 'image_head'}
  assert learns(whole) == set(whole)
  for a, b in zip(jax.tree.leaves(whole['image_head']), jax.tree.leaves(alone['image_head']), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)


def test_padding_is_in_no_loss_and_no_batch_statistic(run):
  """docs/departures.md, 3, for the regions to distil."""
  results = [run(batch(padding=padding)) for padding in (0.0, 31.0)]
  for a, b in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_batch_without_valid_regions_trains_on_its_labels(run):
  empty = batch()
  empty = empty.replace(regions=empty.regions.replace(valid=np.zeros((8, 6), bool)))
  total, metrics, statistics, whole, alone = run(empty)
  assert metrics['distillation_loss'] == 0 and metrics['class_loss'] > 0 and not learns(alone)
  assert np.isfinite(total) and all(np.isfinite(x).all() for x in jax.tree.leaves((statistics, whole)))


def test_one_head_normalises_all_its_regions_together():
  """Sampled and distilled regions share batch statistics, without padding, and stay in their own rows."""
  variables, regions = tiny.variables(ONE_HEAD), batch().regions
  rng = np.random.default_rng(5)
  features = {
    level: jnp.asarray(rng.normal(size=(8, 64 >> level, 64 >> level, 16)), jnp.float32) for level in range(2, 7)
  }
  rois, words = tiny.batch(1).boxes, jax.tree.map(jnp.asarray, tiny.vocabulary())
  valid = np.ones(rois.shape[:2], bool)
  stage = jax.jit(
    lambda rois, valid, distilled=None: detector.second_stage(
      ONE_HEAD.model, variables, features, rois, valid, words, train=True, distilled=distilled
    )
  )
  found, after = stage(rois, valid, regions)
  together, expected = stage(np.concatenate([rois, regions.boxes], 1), np.concatenate([valid, regions.valid], 1))
  np.testing.assert_allclose(found.embeddings, together.embeddings[:, :5], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found.student, together.embeddings[:, 5:], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found.deltas, together.deltas[:, :5], rtol=1e-5, atol=1e-6)
  assert found.logits.shape == (8, 5, tiny.CLASSES + 1)
  for a, b in zip(*(jax.tree.leaves(v['batch_stats']) for v in (after, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  other, after_other = stage(rois, valid, batch(padding=31.0).regions)
  np.testing.assert_array_equal(found.embeddings, other.embeddings)
  jax.tree.map(np.testing.assert_array_equal, after, after_other)
  alone, _ = stage(rois, valid)
  assert alone.student is None and np.abs(alone.embeddings - found.embeddings).max() > 1e-3


def test_vild_image_learns_no_class():
  """One head that learns from the teacher and from boxes: what labels, words and background are is all one to it."""
  variables, one, words = tiny.variables(IMAGE), *jax.tree.map(jnp.asarray, (batch(), tiny.vocabulary()))
  rng = np.random.default_rng(5)
  features = {
    level: jnp.asarray(rng.normal(size=(8, 64 >> level, 64 >> level, 16)), jnp.float32) for level in range(2, 7)
  }
  some = jnp.ones((8, 5), bool)
  first = detector.FirstStage({}, {2: jnp.zeros((8, 9))}, {2: jnp.zeros((8, 9, 4))}, None)

  @jax.jit
  def gradients(background, labels, words):
    targets = Targets(
      {2: jnp.ones((8, 9), jnp.int32)},
      {2: jnp.zeros((8, 9, 4))},
      {2: jnp.ones((8, 9), bool)},
      one.boxes,
      some,
      some,
      labels,
      jnp.ones((8, 5, 4)),
      None,
      some,
      some,
      jnp.ones((8, 5, 28, 28)),
      one.regions,
    )

    def loss(params):
      second, _ = detector.second_stage(
        IMAGE.model,
        {**variables, 'params': params},
        features,
        one.boxes,
        some,
        words,
        train=True,
        distilled=one.regions,
      )
      parts = objective.losses(IMAGE, objective.Outputs(first, second, jnp.zeros((8, 5, 28, 28))), targets, words)
      return sum(parts.values()), parts

    return jax.grad(loss, has_aux=True)(variables['params'] | {'background': background})

  background = variables['params']['background']
  found, parts = gradients(background, one.labels, words)
  assert set(parts) == {'rpn_score_loss', 'rpn_box_loss', 'box_loss', 'mask_loss', 'distillation_loss'}
  assert learns(found) == {'region_head'} and np.abs(found['region_head']['projection']['kernel']).max() > 0
  assert np.abs(found['region_head']['box']['kernel']).max() > 0
  other = gradients(-3 * background, (one.labels + 1) % tiny.BASE, words.replace(embeddings=words.embeddings[::-1]))
  jax.tree.map(np.testing.assert_array_equal, (found, parts), other)


def test_vild_image_has_the_variables_of_vild_and_every_rule_matches_them():
  shapes = lambda config: jax.eval_shape(lambda: detector.init(config, jax.random.PRNGKey(0)))
  assert shapes(IMAGE) == shapes(ONE_HEAD)
  assert optim.decay_mask(shapes(IMAGE)['params'])['background'] is True


def test_vild_image_scores_classes_without_the_background():
  rng = np.random.default_rng(0)
  embeddings, background = (rng.normal(size=size).astype(np.float32) for size in ((2, 7, 16), (16,)))
  words = jax.tree.map(lambda x: jnp.asarray(np.concatenate([x, np.zeros_like(x[:2])])), tiny.vocabulary())
  logits = detector.class_logits(
    IMAGE.model, {'params': {'background': jnp.asarray(background)}}, jnp.asarray(embeddings), words
  )
  found = detector.class_scores(IMAGE.model, detector.SecondStage(None, logits, None), words)
  units = embeddings.astype(np.float64) / np.linalg.norm(embeddings, axis=-1, keepdims=True)
  powers = np.exp(units @ tiny.vocabulary().embeddings.T.astype(np.float64) / 0.01)
  np.testing.assert_allclose(found[..., : tiny.CLASSES], powers / powers.sum(-1, keepdims=True), rtol=1e-3, atol=1e-12)
  assert (np.asarray(found)[..., tiny.CLASSES :] == 0).all()
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_vild_image_has_one_head():
  with pytest.raises(ConfigError, match=r'model\.background is False; expected true if model\.image_head is true'):
    tiny.config('model.image_head=true', 'model.background=false')


def test_a_weight_of_zero_is_vild_text():
  config = tiny.config()
  _, (metrics, _) = jax.eval_shape(
    lambda variables, batch, words: objective.objective(config, variables, batch, words, jax.random.PRNGKey(3)),
    tiny.variables(config),
    batch(),
    tiny.vocabulary(),
  )
  assert 'distillation_loss' not in metrics and 'class_loss' in metrics


@pytest.mark.parametrize('name', ['vild_r50_lvis', 'vild_ensemble_r50_lvis'])
def test_a_full_size_step_distils(name):
  config = config_lib.load(f'configs/{name}.py')
  count, regions = config.data.max_instances, config.distillation.regions_per_image
  shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)
  full = Batch(
    shape(2, 1024, 1024, 3),
    shape(2, 2),
    shape(2, count, 4),
    shape(2, count, dtype=jnp.int32),
    shape(2, count, 112, 112, dtype=jnp.uint8),
    shape(2, count, dtype=bool),
    RegionTargets(shape(2, regions, 4), shape(2, regions, 512), shape(2, regions, dtype=bool)),
  )
  words = Vocabulary(shape(1203, 512), shape(1203, dtype=bool), shape(1203, dtype=bool))
  variables = jax.eval_shape(lambda: detector.init(config, jax.random.PRNGKey(0)))
  total, (metrics, statistics) = jax.eval_shape(
    lambda *args: objective.objective(config, *args, jax.random.PRNGKey(0)), variables, full, words
  )
  assert regions == 300 and total.shape == metrics['distillation_loss'].shape == ()
  assert total.dtype == metrics['distillation_loss'].dtype == jnp.float32
  assert jax.tree.map(lambda x: x.shape, statistics) == jax.tree.map(lambda x: x.shape, variables['batch_stats'])


@pytest.mark.parametrize(
  ('overrides', 'regions', 'message'),
  [
    (['distillation.weight=0.5'], False, 'distillation.weight is 0.5, but the data holds no regions'),
    (['model.image_head=true'], True, 'model.image_head is true, but distillation.weight is 0'),
    (['model.background=false'], True, 'model.background is false .* but distillation.weight is 0'),
  ],
)
def test_a_head_without_a_teacher_is_refused(overrides, regions, message):
  config = tiny.config(*overrides)
  with pytest.raises(ValueError, match=message):
    objective.objective(config, {}, batch() if regions else tiny.batch(), tiny.vocabulary(), jax.random.PRNGKey(0))


def test_an_image_head_that_is_frozen_as_a_whole_needs_no_teacher():
  frozen = 'model.image_head=true', 'train.freeze=backbone/*,image_head/*'
  objective.check_distillation(tiny.config(*frozen), has_regions=False)
  with pytest.raises(ValueError, match=r'one that stays as it is \(train\.freeze=image_head/\*\)'):
    objective.check_distillation(tiny.config(frozen[0], 'train.freeze=image_head/fc1/*'), has_regions=False)


@pytest.mark.parametrize('base_weight', [2 / 3, 0.9])
def test_the_ensemble_weighs_both_heads_by_what_is_base(base_weight):
  config = tiny.config('model.image_head=true', f'model.postprocess.base_weight={base_weight}')
  rng = np.random.default_rng(0)
  text, image = (rng.normal(0, 3, (2, 7, columns)).astype(np.float32) for columns in (9, 8))
  text[..., 6:8] = image[..., 6:] = -np.inf  # two rows of padding
  words = jax.tree.map(lambda x: jnp.asarray(np.concatenate([x, np.zeros_like(x[:2])])), tiny.vocabulary())
  second = detector.SecondStage(None, jnp.asarray(text), None, jnp.asarray(image))
  found = detector.class_scores(config.model, second, words)

  def softmax(x):
    e = np.exp(x.astype(np.float64))
    return e / e.sum(-1, keepdims=True)

  exponent = np.where(words.is_base, base_weight, 1 - base_weight)
  np.testing.assert_allclose(found, softmax(text)[..., :-1] ** exponent * softmax(image) ** (1 - exponent), rtol=1e-5)
  alone = detector.class_scores(config.model, second.replace(image_logits=None), words)
  np.testing.assert_allclose(alone, softmax(text)[..., :-1], rtol=1e-5)


@pytest.mark.parametrize('image_head', [False, True])
def test_predictions_hold_image_logits_where_there_is_an_image_head(image_head):
  config = tiny.config(f'model.image_head={image_head}')
  inside = jax.eval_shape(
    lambda *args: detector.predict(config, *args, return_intermediates=True)[1],
    tiny.variables(config),
    tiny.batch().image[0],
    np.float32([64, 64]),
    tiny.vocabulary(),
  )
  assert inside['text_logits'].shape == (30, tiny.CLASSES + 1)
  assert inside['image_logits'].shape == (30, tiny.CLASSES) if image_head else inside['image_logits'] is None
