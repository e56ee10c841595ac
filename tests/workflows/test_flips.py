"""No single flipped bit in a bundle, a checkpoint, a region store or a data set changes a value unnoticed."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np

import vild_jax
from tests.helpers import flips
from vild_jax import config as config_lib
from vild_jax import vocabulary
from vild_jax.data import sources
from vild_jax.data.regions.store import RegionStore
from vild_jax.train import checkpoint, sharding


def _bytes(tree):
  return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def _assert_noticed(found):
  print(found)  # for the soak
  assert not found.lost and found.by_reading + found.by_check > 0


def test_bundle(made, tmp_path, flip_count):
  bundle = shutil.copytree(made / 'bundle', tmp_path / 'bundle')

  def read():
    found = vild_jax.load(bundle)
    return config_lib.to_text(found.config), _bytes(found.variables), vocabulary.digest(found.vocabulary)

  _assert_noticed(flips.notice(bundle, flip_count, 1, read))


def test_checkpoint(made, tmp_path, flip_count, monkeypatch):
  """Of the step and of the vocabulary beside it."""
  monkeypatch.setattr(checkpoint, 'abstract', functools.cache(checkpoint.abstract))  # it takes a second
  workdir = tmp_path / 'run'
  for name in ('checkpoints', 'vocabulary.npz', 'config.json'):
    source = made / 'run' / name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, _made(workdir) / name)
  config, mesh = checkpoint.read_config(workdir), sharding.make_mesh(config_lib.Mesh(), jax.devices()[:1])

  def read():
    loaded = checkpoint.Checkpoints(workdir)
    try:
      loss = json.loads((workdir / 'checkpoints' / '2' / 'metrics' / 'metrics').read_text())
      return _bytes(loaded.restore(config, mesh)), loss, vocabulary.digest(vocabulary.load(workdir / 'vocabulary.npz'))
    finally:
      loaded.close()

  _assert_noticed(flips.notice(workdir, flip_count, 2, read, leave=('config.json',)))


def _made(folder):
  folder.mkdir(exist_ok=True)
  return folder


def test_store(made, tmp_path, flip_count):
  folder = shutil.copytree(made / 'regions', tmp_path / 'regions')

  def read():
    store = RegionStore(folder)
    regions = [store[int(key)] for key in store.image_ids]
    return store.job, store.boxes_identity, [_bytes(dataclasses.asdict(found)) for found in regions]

  _assert_noticed(flips.notice(folder, flip_count, 3, read))


def test_data_set(made, tmp_path, flip_count):
  folder = shutil.copytree(made / 'data', tmp_path / 'data')

  def read():
    values = []
    for split in ('train', 'val'):
      dataset = sources.open_dataset(folder, split)
      labels = [dataclasses.astuple(dataclasses.replace(e, objects=None)) for e in dataset.labels()]
      examples = [dataset[i] for i in range(len(dataset))]
      objects = [_bytes(dataclasses.asdict(e.objects)) for e in examples]
      values.append((dataset.identity, dataset.categories, dataset.info, dataset.notes, dataset.counts(quiet=True)))
      values.append((labels, [dataclasses.astuple(dataclasses.replace(e, objects=None)) for e in examples], objects))
    return values

  _assert_noticed(flips.notice(folder, flip_count, 4, read))
