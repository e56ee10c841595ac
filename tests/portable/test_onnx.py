"""ONNX is written by another interpreter: what it is handed, and what is said where it cannot."""

from __future__ import annotations

import subprocess

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from vild_jax.core import nms
from vild_jax.portable import onnx, program

RNG = np.random.default_rng(0)
VARIABLES = {
  'params': {'a': {'kernel': RNG.random((2, 3))}, 'b': np.float32([1, 2])},
  'batch_stats': {'a': {'m': np.ones(2)}},
}


def test_the_other_interpreter_gets_what_the_model_is_made_of(tmp_path, monkeypatch):
  given = program.Source(tiny.config(), VARIABLES, np.float32([1, 0]), False, {'b': 1, 'c': 64})
  seen = []

  def ran(command, **how):
    assert command[:3] == ['python', '-m', 'vild_jax.portable.onnx'] and command[4] == str(tmp_path)
    seen.append(onnx.read(onnx.Path(command[3])))
    return subprocess.CompletedProcess(command, 0)

  monkeypatch.setattr(subprocess, 'run', ran)
  assert onnx.write(tmp_path, given, 'python') == {'model': 'model.onnx', 'masks': 'masks.onnx'}
  (found,) = seen
  assert found.config == given.config and not found.suppress and found.sizes == given.sizes
  np.testing.assert_array_equal(found.background, given.background)
  jax.tree.map(np.testing.assert_array_equal, found.variables, VARIABLES)
  assert not list(tmp_path.iterdir())


def test_what_the_other_interpreter_says_at_last_is_passed_on(tmp_path, monkeypatch):
  done = subprocess.CompletedProcess([], 1, '', 'Traceback\n  line\nRuntimeError: no such operation\n')
  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: done)
  given = program.Source(tiny.config(), VARIABLES, None, True, {'b': 1, 'c': 64})
  with pytest.raises(ValueError, match=r'could not write the model .RuntimeError: no such operation.; expected --onnx'):
    onnx.write(tmp_path, given, 'python')


def test_an_interpreter_without_jax2onnx_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'absent.*, which does not run .*; expected --onnx-python PYTHON'):
    onnx.check(str(tmp_path / 'absent'))
  (tmp_path / 'python').write_text('#!/bin/sh\nexit 1\n')
  (tmp_path / 'python').chmod(0o755)
  with pytest.raises(ValueError, match=r'needs jax2onnx, which .*python does not have; expected --onnx-python PYTHON'):
    onnx.check(str(tmp_path / 'python'))


def test_a_source_with_fixed_sizes_has_them_in_its_shapes():
  source = program.Source(tiny.config(), None, None, True, {'b': 1, 'c': 64})
  arrays = {'x': ('float32', ('b', 3)), 'y': ('bool', (2, 'c + 1')), 'z': ('bool', ('c',))}
  assert source.sized(arrays) == {'x': ('float32', (1, 3)), 'y': ('bool', (2, 65)), 'z': ('bool', (64,))}
  assert program.Source(tiny.config(), None, None, True).sized(arrays) == arrays
  on_batch = program.of_one(lambda a, b: {'sum': a + b['c']})
  found = on_batch(np.float32([[1, 2]]), {'c': np.float32([[3, 4]])})
  np.testing.assert_array_equal(found['sum'], [[4, 6]])


def test_a_program_with_pooling_is_computed_without():
  def call(x, y):
    pooled = jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), 'SAME')
    return pooled + y, jax.lax.top_k(pooled[0, 0, 0], 2)[1], 2 * x.shape[1]

  x, y = RNG.normal(size=(1, 7, 8, 5)).astype(np.float32), np.float32(3)
  traced = jax.make_jaxpr(call)(x, y)
  found = onnx.evaluate(traced, x, y)
  jax.tree.map(np.testing.assert_array_equal, found, list(call(x, y)))
  again = jax.make_jaxpr(lambda *arrays: onnx.evaluate(traced, *arrays))(x, y)
  assert 'reduce_window' in str(traced) and 'reduce_window' not in str(again)


def test_suppression_needs_no_scattered_maximum_of_booleans():
  """onnxruntime has none, and only a model that needs a second round of suppression would meet it."""

  def scattered(jaxpr):
    for step in jaxpr.eqns:
      if step.primitive.name.startswith('scatter') and step.primitive.name != 'scatter':
        yield step.outvars[0].aval.dtype
      for inner in step.params.values():
        if hasattr(inner, 'jaxpr'):
          yield from scattered(inner.jaxpr)

  how = {'iou_threshold': 0.5, 'score_threshold': 0.0, 'max_outputs': 20}
  traced = jax.make_jaxpr(lambda *arrays: nms.classwise_nms(*arrays, **how))(np.ones((40, 4)), np.ones((40, 3)))
  found = list(scattered(traced.jaxpr))
  assert found and bool not in found
