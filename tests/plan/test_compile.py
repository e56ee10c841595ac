"""The plan of a training: the very step that `train` calls, measured without a single array of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas

from tests.helpers import examples, joined, tiny
from vild_jax import cli
from vild_jax import config as config_lib
from vild_jax.data import batch as batches
from vild_jax.plan import compile as plan_lib
from vild_jax.plan import flops, report, search, topology
from vild_jax.train import loop, sharding, step

CONFIG = tiny.config('mesh.fsdp=2', 'data.batch_size=4')
OF = topology.target('cpu:2')


@pytest.fixture(scope='module', autouse=True)
def _eight_devices():
  assert len(jax.devices()) == 8  # now JAX runs, and no plan can give this process others


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """(what the first plan says, the folder that keeps it): one compilation for the tests of this file."""
  cache = tmp_path_factory.mktemp('plan') / 'cache'
  return plan_lib.plan(CONFIG, OF, classes=tiny.CLASSES, hbm=2**30, cache=cache), cache


def test_the_planned_program_is_the_one_that_train_calls():
  mesh = sharding.make_mesh(CONFIG.mesh, topology.devices(OF))
  assert loop.make_train_step is step.make_train_step  # one mesh, one config: one function
  assert plan_lib.program(CONFIG, mesh, 6)[0] is loop.make_train_step(CONFIG, mesh)


def test_the_abstract_batch_is_what_training_puts_on_the_devices():
  labels = batches.label_map(examples.CATEGORIES, examples.NAMES, examples.IS_BASE)
  for transfer in ('float32', 'uint8'):
    settings = ('distillation.weight=1', 'distillation.regions_per_image=7', 'model.region_head.embedding_dim=3')
    config = config_lib.override(CONFIG, [f'data.transfer={transfer}', 'data.max_instances=20', *settings])
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:2])
    (arrays,) = examples.take(batches.train_batches(examples.examples(5), labels, config, regions=joined.planted()), 1)
    placed = sharding.put_batch(mesh, loop.to_batch(arrays))
    like = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)
    assert like(plan_lib.abstract_batch(config, mesh)) == like(placed)


@pytest.mark.parametrize('overrides', [[], ['distillation.weight=0.5', 'distillation.regions_per_image=7']])
def test_the_abstract_arguments_are_like_those_of_training(overrides):
  config = config_lib.override(CONFIG, overrides)
  mesh = sharding.make_mesh(config.mesh, topology.devices(OF))
  _, batch, vocabulary = plan_lib.program(config, mesh, tiny.CLASSES)[1]
  like = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert like(batch.replace(regions=None)) == like(tiny.batch(size=4))
  assert like(vocabulary) == like(tiny.vocabulary())
  assert (batch.regions is None) == (not overrides)
  if overrides:
    assert batch.regions.embeddings.shape == (4, 7, 16) and batch.regions.boxes.sharding.spec == sharding.BATCH_SPEC


def test_a_plan_says_what_a_device_holds_and_what_it_tells_others(made):
  found, _ = made
  memory = found['memory']
  assert (found['batch'], found['batch_per_device'], found['fits']) == (4, 2, True)
  batch = 2 * (64 * 64 * 3 * 4 + 8 + 5 * (16 + 4 + 112 * 112 + 1))
  assert memory['arguments'] == pytest.approx(found['state_bytes'] + batch, rel=0.01)
  assert memory['shared'] == pytest.approx(found['state_bytes'], rel=0.01)  # the state is donated
  assert memory['batches_ahead'] == pytest.approx(3 * batch, rel=1e-3)
  rest = memory['arguments'] + memory['temporaries'] + memory['batches_ahead']
  assert memory['needed'] > rest > memory['batches_ahead'] + memory['arguments'] > 0
  kinds = {(row['kind'], *row['axes']) for row in found['collectives']}
  assert {('all-gather', 'fsdp')} <= kinds and {kind for kind, *_ in kinds} <= {
    'all-gather',
    'all-reduce',
    'reduce-scatter',
  }
  assert found['gathered'] == [] and found['rematerialised_by_the_partitioner'] == 0
  assert 0.3 < found['model_flops'] / found['xla_flops'] < 1.5
  assert len(found['largest']) == 10 and found['largest'][0]['bytes'] >= found['largest'][-1]['bytes'] > 0
  assert 'fits' in report.report(found) and 'all-gather' in report.report(found)


@pytest.mark.parametrize('topology_name', ['cpu:8', 'v5e:2x4'])
def test_the_partitioner_is_heard_where_it_brings_an_array_together(topology_name):
  """In a process of its own: this one has silenced XLA. To P('b a') it finds no way but over the whole array."""
  if topology_name != 'cpu:8' and importlib.util.find_spec('libtpu') is None:
    pytest.skip('the compiler for TPUs is not installed')
  program = f"""
import os
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '1'
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from vild_jax.plan import hlo, topology
from vild_jax.runtime import messages
mesh = Mesh(np.reshape(topology.devices(topology.target('{topology_name}')), (2, 2, 2)), ('a', 'b', 'c'))
of = lambda *axes: NamedSharding(mesh, P(*axes))
for end in (of('a', 'b', 'c'), of(('b', 'a'))):
  function = lambda x: jnp.cos(jax.lax.with_sharding_constraint(jnp.sin(x).reshape(16, 8, 16), end))
  lowered = jax.jit(function).lower(jax.ShapeDtypeStruct((8, 16, 16), jnp.float32, sharding=of('a', 'b', 'c')))
  with messages.stderr_of_libraries() as said:
    lowered.compile()
  print(hlo.rematerialised(said[0]))
"""
  ran = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=600)
  assert ran.stdout.split() == ['0', '1'], ran.stderr


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='the compiler for TPUs is not installed')
def test_what_the_compiler_for_tpus_refuses_is_a_plan_that_does_not_fit():
  program = """
import jax, jax.numpy as jnp
from vild_jax.plan import compile as plan_lib
from vild_jax.plan import topology
from vild_jax.train import sharding
from vild_jax.config import Mesh
target = topology.target('v5e:2x2')
mesh = sharding.make_mesh(Mesh(), topology.devices(target)[:1])
x = jax.ShapeDtypeStruct((2**16, 2**17), jnp.float32, sharding=sharding.replicated(mesh))
found = plan_lib._fitted(plan_lib._measured(jax.jit(jnp.sum).lower(x), mesh, {}), None, target)
print(found['fits'], found['compiled'], found['memory']['needed'] / 2**30, found['memory']['available'] / 2**30)
"""
  ran = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=600)
  fits, compiled, needed, available = ran.stdout.split()
  assert (fits, compiled, float(available)) == ('False', 'False', 15.75) and 32 <= float(needed) < 33, ran.stdout


def test_what_was_measured_is_kept_and_memory_is_judged_anew(made):
  found, cache = made
  again = plan_lib.plan(CONFIG, OF, classes=tiny.CLASSES, hbm=1000, cache=cache)
  assert again['cached'] and not found['cached'] and not again['fits']
  assert again['collectives'] == found['collectives'] and again['model_flops'] == found['model_flops']
  assert [json.loads(file.read_text())['compiled'] for file in cache.iterdir()] == [True]


def test_the_compiler_for_tpus_has_the_first_word_and_a_given_limit_the_next():
  fits = lambda needed, hbm, of, **more: plan_lib._fitted(
    {'compiled': True, 'memory': {'needed': needed}} | more, hbm, topology.target(of)
  )['fits']
  assert fits(17 * 2**30, None, 'v5e:2x2') is True and fits(17 * 2**30, 2**34, 'v5e:2x2') is False
  assert fits(1, None, 'cpu:2') is None and fits(1, 2, 'cpu:2') is True
  refused = {'compiled': False, 'memory': {'needed': 3, 'available': 2}}
  assert fits(3, None, 'v5e:2x2', **refused) is False and fits(3, 9, 'v5e:2x2', **refused) is False
  says = lambda hbm, of, **more: report.verdict(
    plan_lib._fitted({'compiled': True, 'memory': {'needed': 2**30}} | more, hbm, topology.target(of))
  )
  assert says(None, 'v5e:2x2') == '1.00 GiB of 15.75 GiB: fits, according to the compiler'
  assert says(2**29, 'v5e:2x2') == '1.00 GiB of 512.00 MiB: does NOT fit'
  assert says(2**23, 'v5e:2x2', compiled=False, memory={'needed': 3 * 2**20, 'available': 2**21}) == (
    '3.00 MiB of 2.00 MiB: does NOT fit, according to the compiler'
  )
  assert says(None, 'cpu:2') == '1.00 GiB of an unknown size (set --hbm GIB): cannot tell whether it fits'


@pytest.mark.parametrize('most', [0, 1, 2, 3, 5, 8, 23, 1000])
@pytest.mark.parametrize(
  'memory',
  [
    lambda n, most: (3 + 10 * n, 10 * most + 8),  # the line that it looks for
    lambda n, most: (min(10 * n, 33 + n), 10 * most),
    lambda n, most: (n**2, most**2 + 1),
    lambda n, most: (5, 10),  # says nothing
  ],
)
def test_the_largest_that_fits(most, memory):
  tried = []
  assert search.largest_that(lambda n: (tried.append(n) or n <= most, *memory(n, most))) == most
  assert len(set(tried)) == len(tried) <= 3 + 2 * most.bit_length()


def test_where_memory_is_a_line_the_largest_that_fits_takes_four_trials():
  tried = []
  assert search.largest_that(lambda n: (tried.append(n) or n <= 37, 5 + 2 * n, 80)) == 37
  assert tried == [1, 2, 37, 38]


def test_fit_takes_batches_that_the_mesh_can_share(monkeypatch):
  def measured(config, of, **_):
    return {
      'memory': {'needed': config.data.batch_size, 'available': 30},
      'judge': 'sum',
      'fits': config.data.batch_size <= 30,
    }

  monkeypatch.setattr(search, 'plan', measured)
  found = search.planned(tiny.config('mesh.fsdp=2', 'train.accumulate=3'), OF, fit=True)
  assert found['largest_batch'] == found['memory']['needed'] == 30
  assert found['tried'] == {batch: batch for batch in (6, 12, 30, 36)}


def test_flops_are_those_of_the_mathematics():
  def of(function, *shapes):
    return flops.count(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)))

  assert of(jnp.dot, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
  assert of(lambda x, y: jax.lax.scan(lambda c, _: (c @ y, None), x, None, length=7)[0], (4, 4), (4, 4)) == 7 * 128
  conv = lambda stride: lambda x, k: jax.lax.conv_general_dilated(x, k, (stride,), 'SAME')
  assert of(conv(1), (2, 3, 10), (5, 3, 3)) == 2 * 2 * 3 * 5 * (3 * 10 - 2)  # less what falls on the padding
  forward = of(conv(2), (2, 3, 10), (5, 3, 3))
  both = of(jax.grad(lambda x, k: conv(2)(x, k).sum(), (0, 1)), (2, 3, 10), (5, 3, 3))
  assert both in (2 * forward, 3 * forward)  # each gradient has the products of the forward pass, and no zeros
  mesh = sharding.make_mesh(CONFIG.mesh, topology.devices(OF))
  split = sharding.per_image(mesh)(lambda x: x @ x)
  assert of(split, (4, 3, 3)) == 4 * 2 * 27
  product = lambda x, y, out: out.__setitem__(..., x[...] @ y[...])
  kernel = lambda x, y: pallas.pallas_call(product, jax.ShapeDtypeStruct((8, 8), jnp.float32))(x, y)
  assert of(kernel, (8, 8), (8, 8)) == 0


@pytest.mark.parametrize(
  ('topology_name', 'platform', 'message'),
  [
    ('v5e', None, "--topology is 'v5e'; expected v5e:16x16"),
    ('v5e:0x4', None, 'expected v5e:16x16'),
    ('v5e:32x32', None, '1024 chips; expected at most 256 of v5e'),
    ('cpu:8', 'tpu', 'is not a TPU; expected --platform cpu'),
    ('cpu:9', None, 'JAX runs already with 8 devices'),
  ],
)
def test_devices_that_cannot_be(topology_name, platform, message):
  with pytest.raises(ValueError, match=message):
    topology.devices(topology.target(topology_name, platform))


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--hbm', '0'], '--hbm is 0.0; expected a positive number of GiB'),
    (['--hbm', 'inf'], '--hbm is inf; expected a positive number of GiB'),
    (['--effort', '2'], '--effort is 2.0; expected a number from -1 to 1'),
  ],
)
def test_numbers_that_cannot_be(tmp_path, capsys, words, message):
  (tmp_path / 'c.json').write_text(config_lib.to_text(CONFIG))
  assert cli.main(['plan', str(tmp_path / 'c.json'), '--topology', 'cpu:2', '--cache', str(tmp_path), *words]) == 2
  assert capsys.readouterr().err == f'vild-jax plan: {message}\n'


def test_without_the_compiler_for_tpus_one_line_says_so(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
  (tmp_path / 'c.json').write_text(config_lib.to_text(CONFIG))
  assert cli.main(['plan', str(tmp_path / 'c.json'), '--topology', 'v5e:2x2', '--cache', str(tmp_path)]) == 2
  assert capsys.readouterr().err == (
    "vild-jax plan: the compiler for TPUs is not installed; expected libtpu: pip install 'vild_jax[tpu]'\n"
  )
  assert np.prod(topology.target('v5e:4x4', 'cpu').sizes) == 16  # emulated it needs none
