"""The shards of a store are compared with its manifest while something else runs, which then stops with one line."""

from __future__ import annotations

import itertools
import shutil
import threading

import pytest

from tests.helpers import small_store
from vild_jax.data.regions import verified
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.schema import DataError


@pytest.fixture
def foreign(tmp_path):
  """A store with a shard of another one: as many regions, other embeddings, the same size."""
  small_store.make(tmp_path / 'store')
  (shard,) = (tmp_path / 'store').glob('shard-00002-*.array_record')
  content, other = shard.read_bytes(), shutil.copytree(tmp_path / 'store', tmp_path / 'other')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(small_store, 'regions', lambda image_id, dim, made=small_store.regions: made(image_id + 7, dim))
    shutil.rmtree(other)
    small_store.make(other)
  shutil.copy(other / shard.name, shard)
  assert shard.stat().st_size == len(content) and shard.read_bytes() != content
  return RegionStore(tmp_path / 'store')


def test_a_whole_store_lets_everything_pass(tmp_path):
  small_store.make(tmp_path / 'store')
  with verified.Verification(RegionStore(tmp_path / 'store')) as verification:
    assert list(verification.watched(lambda start: iter(range(start, 5)))(2)) == [2, 3, 4]
    verification.wait()
  with verified.Verification(None) as verification:
    verification.wait()


def test_a_shard_of_another_store_stops_the_stream_and_is_named(foreign):
  shard = foreign.shards()[2][0]
  expected = rf'^{shard} is not the shard that the manifest of the store lists .*; expected the store as it was written'
  with verified.Verification(foreign) as verification:
    with pytest.raises(DataError, match=expected):
      verification.wait()
    closed = threading.Event()

    def endless(start):
      try:
        yield from itertools.count(start)
      finally:
        closed.set()

    with pytest.raises(DataError, match=expected):
      for _ in verification.watched(endless)(0):
        pass
    assert closed.is_set()


def test_processes_share_the_shards(foreign):
  for part, finds in ((0, True), (1, False)):
    with verified.Verification(foreign, part, 2) as verification:
      if finds:
        with pytest.raises(DataError, match='shard-00002'):
          verification.wait()
      else:
        verification.wait()


def test_the_reading_ends_with_the_block(tmp_path, monkeypatch):
  begun = threading.Event()

  def endless(path, told):
    while True:
      begun.set()
      told(1)

  small_store.make(tmp_path / 'store')
  monkeypatch.setattr(verified.digests, 'sha256', endless)
  with verified.Verification(RegionStore(tmp_path / 'store')) as verification:
    assert begun.wait(60) and not verification._done.done()
  assert verification._done.done()
