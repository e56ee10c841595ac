"""`model.precision` reaches every convolution and matmul of the programs that train and detect."""

from __future__ import annotations

import re

import jax
import pytest

from tests.helpers import tiny
from vild_jax.train import checkpoint, sharding, state
from vild_jax.train.step import make_predict_step, make_propose_step, make_train_step

ENSEMBLE = ('model.image_head=true', 'distillation.weight=0.5')


def _products(lowered):
  """The precision of every convolution and matmul of a program, in words."""
  text = lowered.as_text()
  lines = [line for line in text.splitlines() if re.search(r'stablehlo\.(convolution|dot_general)', line)]
  assert len(lines) > 10
  return [
    ' '.join(re.findall(r'(?:#stablehlo<precision |precision = \[)?(DEFAULT|HIGHEST|HIGH)\b', line)) for line in lines
  ]


def _programs(config):
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  whole = state.abstract(config, mesh)
  of = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
  batch, words = of(tiny.distilled_batch()), of(tiny.vocabulary())
  variables = {'params': of(whole.params), 'batch_stats': of(whole.batch_stats)}
  yield make_train_step(config, mesh).lower(whole, batch, words)
  yield make_predict_step(config, mesh).lower(variables, batch.image, batch.image_size, words)
  yield make_propose_step(config, mesh).lower(variables, batch.image)


@pytest.mark.parametrize('precision', ['highest', pytest.param('high', marks=pytest.mark.slow)])
def test_every_product_has_the_precision_of_the_config(precision):
  for lowered in _programs(tiny.config(*ENSEMBLE, f'model.precision={precision}')):
    found = _products(lowered)
    allowed = {'HIGHEST HIGHEST', f'{precision.upper()} {precision.upper()}'}  # some always have the highest
    assert set(found) <= allowed and f'{precision.upper()} {precision.upper()}' in found, set(found)


def test_by_default_the_network_has_that_of_the_platform():
  train = next(_programs(tiny.config(*ENSEMBLE)))  # the others are not even traced
  assert 'HIGH HIGH' not in (found := _products(train)) and set(found) - {'HIGHEST HIGHEST'}


def test_a_checkpoint_may_be_evaluated_with_another_precision(tmp_path):
  checkpoint.claim_workdir(tmp_path, tiny.config())
  assert checkpoint.same_model(tiny.config('model.precision=highest'), tmp_path).model.precision == 'highest'
