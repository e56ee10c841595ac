"""One device and eight mean the same, however they are arranged; and the program moves nothing it need not."""

from __future__ import annotations

import re

import jax
import numpy as np
import optax
import pytest

from tests.helpers import same_training, tiny
from tests.helpers.same_training import BASE
from vild_jax import config as config_lib
from vild_jax.config import ConfigError
from vild_jax.structs import Batch
from vild_jax.train import checkpoint, optim, sharding, state

ONE = tiny.config(*BASE, 'mesh.data=1')
MANY = {
  '8 data': (),
  '4 data x 2 fsdp': ('mesh.fsdp=2',),
  '2 data x 2 fsdp x 2 spatial': ('mesh.fsdp=2', 'mesh.spatial=2'),
}


@pytest.fixture(scope='module')
def on_one_device(tmp_path_factory):
  return same_training.on_one_device(tmp_path_factory, ten=False)


# Each arrangement compiles for half a minute; the one that splits all three axes is in every run.
@pytest.mark.parametrize(
  'arranged', [pytest.param(name, marks=[pytest.mark.slow] if 'spatial' not in name else []) for name in MANY]
)
def test_first_step_is_the_same_on_one_device_and_on_eight(on_one_device, arranged):
  config = tiny.config(*BASE, *MANY[arranged])
  metrics, gradients = same_training.first_gradients(config)
  assert metrics['distillation_loss'] > 0
  same_training.assert_same_first_step(on_one_device, {'metrics': metrics, 'gradients': same_training.named(gradients)})
  _check_collectives(same_training.program_text(config), config, gradients)


def _check_collectives(text, config, params):
  """Parameters are gathered, and rows of a picture over `spatial`; pictures never are, and no loop waits for others."""
  assert re.search(r'all-reduce(?:-start)?\(', text) and not re.search(r'all-to-all(?:-start)?\(', text)
  held = config.data.batch_size // (8 // config.mesh.spatial)
  shapes = {x.shape for x in jax.tree.leaves(params)}
  gathers = re.findall(r'= \w+\[([\d,]+)\]\S* all-gather\(.*dimensions=\{(\d+)\}.*op_name="([^"]*)"', text)
  assert len(gathers) == len(re.findall(r'all-gather(?:-start)?\(', text))
  for shape, axis, name in gathers:
    shape = tuple(map(int, shape.split(',')))
    # The gather is named by what asks for it, and from jax 0.12 on by the parameter itself.
    of_parameter = name.endswith('sharding_constraint') or name.startswith('args[0].params[')
    is_parameter = config.mesh.fsdp > 1 and of_parameter and shape in shapes
    is_picture = config.mesh.spatial > 1 and shape[0] == held and axis == '1'
    # The proposal network's outputs have their fields, objectness or four deltas, before the pictures.
    is_output = config.mesh.spatial > 1 and shape[0] in (1, 4) and shape[1] == held and axis == '2' and 'rpn' in name
    assert is_parameter or is_picture or is_output, (shape, axis, name)
  assert config.mesh.fsdp == 1 or gathers
  # Loops are printed apart from their bodies, so each body is looked up: a collective there would run in every round.
  bodies = re.findall(r'(?:body|condition)=%?([\w.-]+)', text)
  assert bodies
  for body in bodies:
    block = text[text.index(f'%{body} (') :]
    assert not re.search(
      r'(all-(?:reduce|gather|to-all)|collective-permute)(?:-start)?\(', block[: block.index('\n}')]
    ), body


@pytest.mark.slow  # two minutes; the arrangement that splits all three axes
def test_ten_steps_end_at_the_same_parameters(tmp_path_factory):
  one = same_training.on_one_device(tmp_path_factory, ten=True)
  with jax.enable_x64(True):
    _, many = same_training.ten_steps(tiny.config(*BASE, *MANY['2 data x 2 fsdp x 2 spatial']))
  same_training.assert_same_end(one['after'], same_training.named(many), one['before'])


@pytest.mark.parametrize('name', ['vild_r50_lvis', 'vild_ensemble_r152_lvis'])
def test_fsdp_of_eight_leaves_a_device_a_seventh_of_the_full_size_state_at_most(name):
  config = config_lib.load(f'configs/{name}.py', ['mesh.fsdp=8'])
  one = sharding.make_mesh(ONE.mesh)
  whole, split = (
    sharding.bytes_per_device((s.params, s.opt_state))
    for s in (state.abstract(config, one), state.abstract(config, sharding.make_mesh(config.mesh)))
  )
  assert 2 * 4 * 40e6 < whole < 2 * 4 * 120e6  # parameters and momentum, float32
  assert whole / 8 <= split <= whole / 7


def test_the_largest_dimension_is_split_and_what_is_small_or_indivisible_is_whole():
  mesh = sharding.make_mesh(tiny.config('mesh.fsdp=4').mesh)
  spec = lambda *shape: tuple(sharding.split_largest(shape, mesh))
  assert spec(3, 3, 64, 128) == (None, None, None, 'fsdp')
  assert spec(3, 3, 128, 64) == (None, None, 'fsdp')
  assert spec(64, 64) == (None, 'fsdp')
  assert spec(98, 64) == (None, 'fsdp')  # 98 is larger, but 4 does not divide it
  assert spec(99, 99) == spec(1024) == spec() == ()


def test_a_state_saved_on_one_mesh_is_the_same_on_others(tmp_path):
  config = tiny.config(*BASE, 'mesh.fsdp=2')
  saved = same_training.noisy_start(config, sharding.make_mesh(config.mesh))
  for part in (saved.params, saved.opt_state):
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(part))
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(3, saved, 1.0)
  checkpoints.close()
  same_training.assert_restored(tmp_path, saved, ('mesh.data=1',), (), ('mesh.fsdp=8',))


@pytest.mark.slow  # compiles for a quarter of a minute
def test_muon_moves_split_parameters_as_whole_ones_also_from_a_checkpoint(tmp_path):
  """It multiplies whole kernels, which fsdp splits; its state holds more kinds of leaves than momentum."""
  config = tiny.config(*BASE, 'optimizer.rule=muon')
  drawn = jax.device_get(tiny.variables(config))['params']
  gradient = jax.tree.map(lambda x: np.flip(x) * 0.1, drawn)
  moved, folder = {}, tmp_path / 'saved'
  for axes in (('mesh.data=1',), ('mesh.fsdp=8',)):
    mesh = sharding.make_mesh(tiny.config(*BASE, *axes).mesh)
    abstract, update = state.abstract(config, mesh), optim.optimizer(config)
    split = jax.tree.map(lambda x: x.sharding, (abstract.params, abstract.opt_state))
    place = lambda tree, to=split[0]: jax.tree.map(jax.device_put, tree, to)

    def step(params, opt_state, gradient, update=update):
      updates, opt_state = update.update(gradient, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    program = jax.jit(step, out_shardings=split)
    if not folder.exists():
      begun = jax.jit(update.init)(place(drawn))
      params, opt_state = program(place(drawn), begun, place(gradient))
      whole = abstract.replace(
        step=np.int32(1),
        key=np.asarray(jax.random.PRNGKey(0)),
        params=params,
        batch_stats=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract.batch_stats),
        opt_state=opt_state,
      )
      checkpoints = checkpoint.Checkpoints(folder)
      checkpoints.save(1, whole, 1.0)
      checkpoints.close()
      moved['without a break'] = jax.device_get(program(params, opt_state, place(gradient))[0])
    found = checkpoint.Checkpoints(folder).restore(config, mesh)
    kernels = [x for x in jax.tree.leaves(found.opt_state) if x.size >= sharding.MIN_SPLIT]
    assert kernels and all(x.sharding.is_fully_replicated == (axes == ('mesh.data=1',)) for x in kernels)
    moved[axes[0]] = jax.device_get(program(found.params, found.opt_state, place(gradient))[0])
  one = moved.pop('without a break')
  jax.tree.map(np.testing.assert_array_equal, moved.pop('mesh.data=1'), one)
  for a, b, before in zip(*map(jax.tree.leaves, (moved['mesh.fsdp=8'], one, drawn)), strict=True):
    np.testing.assert_allclose(a - before, b - before, atol=1e-3 * np.abs(b - before).max())


def test_leaves_and_fields_without_a_rule_are_errors_that_name_them():
  mesh = sharding.make_mesh(tiny.config().mesh)
  with pytest.raises(ValueError, match="no rule of sharding matches 'surprise'"):
    sharding.state_shardings(mesh, {'surprise': np.zeros(3)})
  with pytest.raises(ValueError, match="no rule of sharding matches 'regions/colours'"):
    sharding.put_batch(mesh, {'regions': {'colours': np.zeros(8)}})


def test_every_field_of_a_batch_has_a_rule_and_only_pictures_are_split_by_rows():
  mesh = sharding.make_mesh(tiny.config('data.image_size=256', 'mesh.spatial=2').mesh)
  found = sharding.batch_shardings(mesh, same_training.batch())
  assert isinstance(found, Batch) and tuple(found.image.spec) == (('data', 'fsdp'), 'spatial')
  others = jax.tree.leaves(found.replace(image=None))
  assert len(others) == 9 and all(tuple(s.spec) == (('data', 'fsdp'),) for s in others)


@pytest.mark.parametrize('axes', [(), ('mesh.fsdp=2', 'mesh.spatial=2')])
def test_devices_add_the_slots_of_masks_that_were_not_sent(axes):
  mesh = sharding.make_mesh(tiny.config('data.image_size=256', *axes).mesh)
  batch, _ = tiny.small_batch(tiny.batch(side=256, instances=20))
  sent = batch.replace(masks=jax.tree.map(lambda x: x[:, :16], batch.masks))
  found = sharding.put_batch(mesh, sent)
  for one, all_of_it in zip(jax.tree.leaves(found.masks), jax.tree.leaves(batch.masks), strict=True):
    assert one.sharding == sharding.batch_sharding(mesh)
    np.testing.assert_array_equal(one[:, :16], all_of_it[:, :16])
    assert one.shape == all_of_it.shape and not one[:, 16:].any()
  np.testing.assert_array_equal(found.image, batch.image)
  assert found.image.sharding == sharding.image_sharding(mesh)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (['mesh.data=16'], r'mesh\.data is 16, fsdp 1, spatial 1: 16 devices, but there are 8; expected at most that many'),
    (['mesh.data=3', 'mesh.fsdp=4'], '12 devices, but there are 8'),
    (
      ['mesh.fsdp=3'],
      r'mesh\.fsdp is 3 and mesh\.spatial 1, which do not divide 8 devices; expected 8 to be a multiple',
    ),
    (['mesh.fsdp=0'], r'mesh\.fsdp is 0; expected a positive number'),
    (['mesh.spatial=2'], r'data\.image_size is 64; expected a multiple of 256, so that each of mesh\.spatial = 2'),
  ],
)
def test_a_mesh_that_does_not_fit_says_so(overrides, message):
  with pytest.raises((ConfigError, ValueError), match=message):
    sharding.make_mesh(tiny.config(*overrides).mesh)


def test_a_batch_that_does_not_fit_says_so():
  mesh = sharding.make_mesh(tiny.config('mesh.fsdp=2', 'data.image_size=256', 'mesh.spatial=2').mesh)
  sharding.check_batch_size(mesh, 12, 'data.batch_size')
  with pytest.raises(ValueError, match=r'data\.batch_size is 10, which 4 devices .* expected a multiple of 4'):
    sharding.check_batch_size(mesh, 10, 'data.batch_size')
  with pytest.raises(ValueError, match='evenly in 2 microbatches; expected a multiple of 8'):
    sharding.check_batch_size(mesh, 12, 'data.batch_size', accumulate=2)


def test_what_a_device_holds_is_said():
  text = sharding.describe(
    mesh := sharding.make_mesh(tiny.config('mesh.fsdp=8').mesh), state.abstract(tiny.config('mesh.fsdp=8'), mesh)
  )
  assert re.fullmatch(
    r'mesh 1 data x 8 fsdp x 1 spatial of \S+; on each device: parameters \d+\.\d MiB, '
    r'optimiser \d+\.\d MiB',
    text,
  )
