"""Proposals of a tiny detector in a region store: the right boxes, the same bytes however they were made."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import picture_list, small_set, tiny
from tests.helpers.planted_store import content
from tests.helpers.processes import as_process
from vild_jax import cli, detector
from vild_jax import config as config_lib
from vild_jax.data import pictures as pictures_lib
from vild_jax.data import prepare, transforms
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.regions.writer import StoreWriter
from vild_jax.data.schema import DataError
from vild_jax.distill import propose as propose_lib
from vild_jax.train import checkpoint, weights

SIZES = [(40, 60), (33, 21), (64, 64), (20, 30), (64, 48), (100, 30), (17, 90)]
CONFIG = tiny.config('mesh.data=2', 'evaluation.batch_size=2')
MESH = propose_lib.local_mesh(CONFIG)
COUNT = 50  # more than the 30 that the network is set to keep


def pictures() -> picture_list.Pictures:
  return picture_list.make(SIZES)


@pytest.fixture(scope='module')
def variables():
  return jax.device_get(tiny.variables(CONFIG, deltas=0.02))


def propose(variables, out: Path, *, dataset: picture_list.Pictures | None = None, config=CONFIG, **options) -> dict:
  options = {'max_proposals': COUNT, 'images_per_shard': 3, 'mesh': MESH} | options
  return propose_lib.propose(config, variables, pictures() if dataset is None else dataset, out, **options)


@pytest.fixture(scope='module')
def store(variables, tmp_path_factory):
  path = tmp_path_factory.mktemp('propose') / 'store'
  made = propose(variables, path)
  assert made['whole'] and made['images'] == len(SIZES)
  assert made['identity'] == hashlib.sha256((path / 'manifest.json').read_bytes()).hexdigest()
  return path


def test_the_proposals_are_those_of_the_first_stage_in_the_pictures_own_pixels(store, variables):
  """Against the first stage on each picture alone, mapped back here."""
  rpn = dataclasses.replace(CONFIG.model.rpn, max_proposals=COUNT, max_per_level=COUNT, test_pre_nms_top_k=COUNT)
  model = dataclasses.replace(CONFIG.model, rpn=rpn)
  first = jax.jit(lambda image: detector.first_stage(model, variables, image, train=False)[0].proposals)
  made, dropped = RegionStore(store), 0
  assert made.kind == 'proposals' and made.dataset == 'd' * 64 and made.split == 'train'
  np.testing.assert_array_equal(made.image_ids, [100, 99, 98, 97, 96, 95, 94])
  for i, (height, width) in enumerate(SIZES):
    resized = transforms.resize_and_pad(pictures_lib.decode(small_set.picture(height, width, seed=i, kind='.png')), 64)
    found = jax.device_get(first(jnp.asarray(resized.image[None])))
    expected = []
    for (y1, x1, y2, x2), score, valid in zip(found.boxes[0], found.scores[0], found.valid[0], strict=True):
      y1, y2 = (min(y / resized.scale[0], height) for y in (y1, y2))
      x1, x2 = (min(x / resized.scale[1], width) for x in (x1, x2))
      if valid and y2 > y1 and x2 > x1:
        expected.append((y1, x1, y2, x2, score))
      dropped += valid and not (y2 > y1 and x2 > x1)
    expected = np.array(expected)
    regions = made[100 - i]
    assert len(regions.boxes) == len(expected) > 15 and regions.embeddings is None
    np.testing.assert_allclose(regions.scores, expected[:, 4], atol=1e-5)
    found = np.column_stack([regions.boxes, regions.scores])
    distance = np.abs(found[:, None] - expected).max(axis=-1)  # near ties come in either order
    assert distance.min(axis=0).max() < 1e-3 and distance.min(axis=1).max() < 1e-3
    assert (regions.boxes[:, 2:].max(0) > 0.9 * np.array([height, width])).all(), 'not the pixels of the network'
  assert dropped, 'no box of the padding alone; the test shows too little'
  assert max(len(made[100 - i].boxes) for i in range(len(SIZES))) > 30, "the network's own limit was not raised"


def test_fewer_proposals_are_the_best_of_them(store, variables, tmp_path):
  few, many = propose_lib.with_proposals(CONFIG, 5).model.rpn, propose_lib.with_proposals(CONFIG, 500).model.rpn
  assert (few.max_proposals, few.max_per_level, few.test_pre_nms_top_k) == (5, 30, 40)
  assert (many.max_proposals, many.max_per_level, many.test_pre_nms_top_k) == (500, 500, 500)
  with pytest.raises(ValueError, match='--max-proposals is 0; expected at least 1'):
    propose(variables, tmp_path / 'none', max_proposals=0)


def test_interrupted_at_any_picture_it_goes_on_to_the_same_bytes(store, variables, tmp_path):
  for trap in (0, 4, 6):
    path, broken = tmp_path / f'at-{trap}', pictures()
    broken.trap = trap
    with pytest.raises(KeyboardInterrupt):
      propose(variables, path, dataset=broken)
    assert not (path / 'manifest.json').exists()
    kept = {file.name for file in path.glob('*.array_record')}
    assert len(kept) <= trap // 3
    made = propose(variables, path)
    assert made['images'] == len(SIZES) - 3 * len(kept), 'only what was missing is computed'
    assert content(path) == content(store)


def test_shards_of_two_processes_are_the_same_store(store, variables, tmp_path):
  path = tmp_path / 'store'
  with as_process(1, 2):
    second = propose(variables, path)
  assert second['images'] == 3 and not second['whole']
  with pytest.raises(DataError, match=r'is not whole: writing it was interrupted \(1 shards'):
    RegionStore(path)
  with as_process(0, 2):
    first = propose(variables, path)
  assert first['images'] == 4 and first['whole']
  assert content(path) == content(store)
  assert propose(variables, path)['images'] == 0


def test_another_job_and_a_locked_store_are_refused(store, variables, tmp_path):
  before, other = content(store), tiny.variables(CONFIG, seed=1)
  for options, words in (
    ({'max_proposals': 7}, 'max_regions is 50 there and 7 here'),
    (
      {'config': tiny.config('mesh.data=2', 'evaluation.batch_size=2', 'data.image_size=128')},
      'origin.image_size is 64 there and 128 here',
    ),
    # The same boxes in the end, but for what rounding makes of another program.
    ({'config': tiny.config('mesh.data=2', 'evaluation.batch_size=4')}, 'origin.batch_size is 2 there and 4 here'),
  ):
    with pytest.raises(DataError, match=r'belongs to another job \(.*' + re.escape(words)):
      propose(variables, store, **options)
  with pytest.raises(DataError, match=r'belongs to another job'):
    propose(other, store)
  stranger = pictures()
  stranger.identity = 'e' * 64
  with pytest.raises(DataError, match=r'dataset is "ddd.* there and "eee.* here'):
    propose(variables, store, dataset=stranger)
  with (
    StoreWriter(store, RegionStore(store).job),
    pytest.raises(DataError, match=r'is being written by another process'),
  ):
    propose(variables, store)
  assert content(store) == before


def test_weights_that_are_not_finite_and_devices_that_cannot_share_are_refused(variables, tmp_path):
  broken = jax.tree.map(np.copy, variables)
  broken['params']['background'][0] = np.nan
  with pytest.raises(ValueError, match=r'params/background of the checkpoint is not finite'):
    propose(broken, tmp_path / 'store')
  with pytest.raises(ValueError, match=r'evaluation.batch_size is 3, which 2 devices \(data x fsdp\) cannot share'):
    propose(variables, tmp_path / 'store', config=tiny.config('mesh.data=2', 'evaluation.batch_size=3'))
  assert not (tmp_path / 'store').exists()


def test_the_identity_of_weights_is_of_names_and_values(variables):
  one = {'a': np.ones(2, np.float32), 'b': np.zeros(2, np.float32)}
  identity = weights.identity(one)
  assert identity == weights.identity({'b': jnp.zeros(2), 'a': jnp.ones(2)})
  for other in (
    {'a': one['b'], 'b': one['a']},
    {'a': one['a'], 'c': one['b']},
    {'a': one['a'], 'b': -one['b']},
    {'a': one['a'].reshape(1, 2), 'b': one['b']},
    {'a': one['a'].astype(np.float16), 'b': one['b']},
  ):
    assert weights.identity(other) != identity


def test_a_mesh_of_this_process():
  assert propose_lib.local_mesh(tiny.config()).size == jax.local_device_count()
  with as_process(0, 2):
    assert propose_lib.local_mesh(tiny.config('mesh.data=4')).size == 2


def test_sizes_for_people():
  assert [propose_lib.readable(n) for n in (0, 999, 1000, 62_040_000_000)] == ['0 bytes', '999 bytes', '1 kB', '62 GB']


def test_the_command_refuses_what_does_not_fit_together(tmp_path, variables, capfd):
  path, images = small_set.write(tmp_path)
  prepare.prepare(path, images, tmp_path / 'data')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text(config_lib.to_text(CONFIG))
  checkpoint.save_variables(tmp_path / 'run', variables)
  good = {'--data': tmp_path / 'data', '--checkpoint': tmp_path / 'run', '--out': tmp_path / 'store'}
  for change, words in (
    ({'--split': 'val'}, "has no split 'val'; expected one of train"),
    ({'--checkpoint': images}, 'holds no config.json; expected a work directory'),
    ({'--model.rpn.channels=8': None}, 'was trained with another model: model.rpn.channels'),
    ({'--data': tmp_path / 'nowhere'}, 'nowhere is not a folder; expected the folder of a data set'),
    ({'--max-proposals': 0}, '--max-proposals is 0; expected at least 1'),
    ({'--out': images}, 'holds train2017 and no job.json; expected a new or empty folder'),
  ):
    options = [str(word) for pair in (good | change).items() for word in pair if word is not None]
    assert cli.main(['propose', str(tmp_path / 'run' / 'config.json'), *options]) == 2
    error = capfd.readouterr().err
    assert words in error and error.count('\n') == 1 and 'Traceback' not in error
    assert not (tmp_path / 'store').exists()
