"""What a portable model declares: its arrays, and how many classes it needs."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax import detector
from vild_jax.portable import program


def abstract(arrays, sizes):
  """Shapes and types of declared arrays, with numbers for the letters."""
  number = lambda size: size if isinstance(size, int) else sum(sizes.get(x) or int(x) for x in size.split(' + '))
  return [jax.ShapeDtypeStruct(tuple(map(number, shape)), dtype) for dtype, shape in arrays.values()]


@pytest.mark.slow  # traces two detectors
@pytest.mark.parametrize(
  ('overrides', 'suppress', 'names'),
  [
    (('model.image_head=true',), False, ('model', 'masks')),
    (('model.masks=false', 'model.dtype=bfloat16'), True, ('model',)),
  ],
)
def test_programs_return_what_they_declare(overrides, suppress, names):
  config = tiny.config(*overrides)
  variables = jax.eval_shape(lambda: detector.init(config, jax.random.key(0)))
  made = program.programs(program.Source(config, variables, None, suppress))
  assert tuple(one.name for one in made) == names
  for number, name in enumerate(names):
    sizes = {'b': 2, 'c': 48}

    def call(variables, *inputs, number=number):
      source = program.Source(config, variables, None, suppress)
      return program.programs(source)[number].call(*inputs)

    found = jax.eval_shape(call, variables, *abstract(made[number].inputs, sizes))
    expected = abstract(made[number].outputs, sizes)
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, np.dtype(x.dtype)) for x in expected], name


def test_the_fewest_classes_fill_the_pairs_that_suppression_ranks():
  assert program.fewest_classes(tiny.config().model) == 35  # 30 proposals
  assert program.fewest_classes(tiny.config('model.rpn.max_proposals=1000').model) == 16
