"""Region stores: what is written comes back, however the writing was cut up; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pickle
import re
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.helpers.planted_store import content
from tests.helpers.small_store import IDS, JOB, make, regions
from vild_jax.data.regions import records
from vild_jax.data.regions.records import Job, Regions
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.regions.writer import StoreWriter
from vild_jax.data.schema import DataError


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  path = tmp_path_factory.mktemp('whole') / 'store'
  assert make(path)
  return path


def test_what_was_written_comes_back(whole):
  store = RegionStore(whole)
  assert (store.kind, store.dataset, store.split, store.images, len(store)) == ('embeddings', 'd' * 64, 'train', 7, 7)
  assert (store.teacher, store.image_teacher, store.embedding_dim) == ('text', 'image', 3)
  assert store.recipe == {'scales': [1, 1.5]} and store.proposals == 'p' * 64
  np.testing.assert_array_equal(store.image_ids, IDS)
  for image_id in sorted(IDS):
    found, expected = store[image_id], regions(image_id)
    for key in ('boxes', 'scores', 'embeddings'):
      a, b = getattr(found, key), getattr(expected, key)
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, b)
  assert 300 in store and 301 not in store and -1 not in store and 2**41 not in store
  assert store.regions == sum(len(regions(i).boxes) for i in IDS)
  assert store.size == sum(file.stat().st_size for file in whole.glob('*.array_record')) and store.size > 0
  with pytest.raises(DataError, match=r'has no image 301; expected regions of every picture'):
    store[301]


def test_the_hash_of_the_boxes_is_of_the_boxes_alone(whole, tmp_path):
  """Reckoned here from the definition; shards, embeddings and teacher do not matter, one box in its last bit does."""
  digests = [
    hashlib.sha256(struct.pack('<qI', i, len(regions(i).boxes)) + regions(i).boxes.tobytes()).hexdigest() for i in IDS
  ]
  expected = hashlib.sha256(''.join(digests).encode()).hexdigest()
  other = Job(
    'proposals',
    dataset='d' * 64,
    split='train',
    images=7,
    max_regions=6,
    images_per_shard=3,
    origin={'checkpoint': 'c'},
  )
  assert make(tmp_path / 'proposals', other)
  proposals = RegionStore(tmp_path / 'proposals')
  assert proposals.boxes_identity == RegionStore(whole).boxes_identity == expected
  assert proposals.identity != RegionStore(whole).identity
  assert proposals[11].embeddings is None and proposals.origin == {'checkpoint': 'c'}
  with StoreWriter(tmp_path / 'moved', other) as writer:
    for shard in writer.missing():
      moved = [(IDS[i], regions(IDS[i], 0)) for i in other.examples(shard)]
      for _, found in moved[:1]:
        found.boxes[:1, 0] = np.nextafter(found.boxes[:1, 0], np.float32(1e9))
      writer.write(shard, moved)
    assert writer.finish()
  assert RegionStore(tmp_path / 'moved').boxes_identity != expected


def test_interrupted_anywhere_and_by_any_number_of_processes_the_bytes_are_the_same(whole, tmp_path):
  expected = content(whole)
  assert not any(name.startswith('.') for name in expected)
  for stop in range(JOB.shards):
    path = tmp_path / f'stopped-{stop}'
    with pytest.raises(KeyboardInterrupt):
      make(path, stop_after=stop)
    kept = {file.name: file.stat().st_mtime_ns for file in path.glob('shard-*')}
    assert len(kept) == 2 * stop, 'the shard under way leaves nothing, those before stay'
    (path / f'.shard-0000{stop}-of-00004.array_record.1.tmp').write_bytes(b'of a run that was killed')
    (path / '.part-5-of-9.lock').touch()
    assert make(path)
    assert content(path) == expected
    assert kept.items() <= {file.name: file.stat().st_mtime_ns for file in path.iterdir()}.items()
  for order in ([0, 1, 2], [2, 0, 1]):
    path = tmp_path / f'parts-{order[0]}'
    assert [make(path, part=(p, 3)) for p in order] == [False, False, True]
    assert content(path) == expected
  assert make(path) and content(path) == expected, 'made again, nothing changes'


def test_a_shard_lost_since_is_made_again(whole, tmp_path):
  path = tmp_path / 'store'
  make(path)
  shard = next(path.glob('shard-00002*.array_record'))
  for damage in (shard.unlink, lambda: shard.write_bytes(shard.read_bytes()[:100])):
    damage()
    assert make(path)
    assert content(path) == content(whole)


def test_another_job_is_refused_and_changes_nothing(whole):
  before = content(whole)
  for change, words in (
    ({'teacher': 'other'}, 'teacher is "text" there and "other" here'),
    ({'images_per_shard': 3}, 'images_per_shard is 2 there and 3 here'),
    ({'recipe': {'scales': [1, 2]}}, 'recipe.scales is [1, 1.5] there and [1, 2] here'),
    ({'recipe': {'scales': [1, 1.5], 'x': 3}}, 'recipe.x is null there and 3 here'),
  ):
    with pytest.raises(DataError, match=r'belongs to another job \(\w{12}; this one is \w{12}\): ' + re.escape(words)):
      StoreWriter(whole, dataclasses.replace(JOB, **change))
  assert content(whole) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.txt').write_text('mine')
  with pytest.raises(DataError, match=r'holds thesis.txt and no job.json'):
    StoreWriter(tmp_path, JOB)
  with pytest.raises(DataError, match=r'is a file; expected a new folder'):
    StoreWriter(tmp_path / 'thesis.txt', JOB)
  with pytest.raises(DataError, match=r'is not a region store; expected a folder that vild-jax propose'):
    RegionStore(tmp_path)
  with pytest.raises(DataError, match=r'is not a region store'):
    RegionStore(tmp_path / 'nowhere')


def test_a_store_that_is_being_written(tmp_path):
  path = tmp_path / 'store'
  with StoreWriter(path, JOB, process_index=1, process_count=2) as writer:
    with pytest.raises(DataError, match=r'is being written by another process \(.part-1-of-2.lock is held\)'):
      StoreWriter(path, JOB, process_index=1, process_count=2)
    with pytest.raises(DataError, match=r'is being written by another process'):  # whose shards would be the same
      StoreWriter(path, JOB)
    assert not make(path, part=(0, 2))  # the other half
    with pytest.raises(DataError, match=r'is being written by another process \(2 shards so far\)'):
      RegionStore(path)
    assert writer.missing() == [1, 3]
  with pytest.raises(DataError, match=r'is not whole: writing it was interrupted \(2 shards are there\)'):
    RegionStore(path)
  assert make(path, part=(1, 2))
  assert len(RegionStore(path)) == 7


def broken(**changes) -> Regions:
  return dataclasses.replace(regions(11), **changes)


@pytest.mark.parametrize(
  ('found', 'words'),
  [
    (broken(boxes=np.full((4, 4), np.nan, np.float32)), 'image 11: boxes of region 0 are not finite'),
    (
      broken(embeddings=np.array([[0] * 3, [0] * 3, [0, np.inf, 0], [0] * 3], np.float16)),
      'image 11: embeddings of region 2 are not finite',
    ),
    (broken(embeddings=np.zeros((4, 5), np.float16)), r'embeddings are float16 \[4, 5\]; expected float16 \[4, 3\]'),
    (broken(embeddings=np.zeros((4, 3))), r'embeddings are float64 \[4, 3\]; expected float16'),
    (broken(embeddings=None), 'embeddings are NoneType; expected float16'),
    (broken(scores=np.array([3, 2, 1, 2], np.float32)), 'scores ascend at region 3; expected the best region first'),
    (
      Regions(np.zeros((9, 4), np.float32), np.zeros(9, np.float32), np.zeros((9, 3), np.float16)),
      '9 regions; expected at most 6',
    ),
  ],
)
def test_the_writer_refuses(tmp_path, found, words):
  with StoreWriter(tmp_path / 'store', JOB) as writer:
    with pytest.raises(DataError, match=words):
      writer.write(0, [(11, found), (5, regions(5))])
    assert writer.missing() == [0, 1, 2, 3] and not writer.finish()
  assert list(content(tmp_path / 'store')) == ['job.json']


def test_the_writer_refuses_another_number_of_pictures_and_one_picture_twice(tmp_path):
  with StoreWriter(tmp_path / 'store', JOB) as writer:
    with pytest.raises(DataError, match=r'1 pictures for shard 0 of .*; expected 2'):
      writer.write(0, [(11, regions(11))])
    for shard in writer.missing():
      writer.write(shard, [(shard + 4 * i if i else 0, regions(5)) for i, _ in enumerate(JOB.examples(shard))])
    with pytest.raises(DataError, match=r'image 0 is in .* twice'):
      writer.finish()


def test_a_damaged_store_is_refused(whole, tmp_path):
  def copy(name):
    path = tmp_path / name
    make(path)
    return path, next(path.glob('shard-00001*.array_record'))

  path, shard = copy('truncated')
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(DataError, match=r'shard-00001.* has \d+ bytes; expected the \d+ bytes that the manifest'):
    RegionStore(path)
  shard.unlink()
  with pytest.raises(DataError, match=r'shard-00001.* is missing; expected the \d+ bytes'):
    RegionStore(path)

  path, shard = copy('flipped')
  raw = bytearray(shard.read_bytes())
  place = raw.index(regions(300).boxes.tobytes()[:8])
  raw[place] ^= 1
  shard.write_bytes(raw)
  store = RegionStore(path)
  with pytest.raises(DataError, match=r'shard-00001.*: image 300 cannot be read'):
    store[300]
  np.testing.assert_array_equal(store[11].boxes, regions(11).boxes)  # the others are still good

  path, _ = copy('other')
  (path / 'images.npy').write_bytes((path / 'images.npy').read_bytes()[:-1])
  with pytest.raises(DataError, match=r'images.npy is missing or damaged'):
    RegionStore(path)
  (path / 'manifest.json').write_text('{')
  with pytest.raises(DataError, match=r'manifest.json is damaged \(Expecting property'):
    RegionStore(path)


def test_workers_and_threads_may_share_a_store(whole):
  store = RegionStore(whole)
  store[11]
  again = pickle.loads(pickle.dumps(store))
  assert again.identity == store.identity == hashlib.sha256((whole / 'manifest.json').read_bytes()).hexdigest()
  with ThreadPoolExecutor(8) as pool:
    for image_id, found in zip(IDS * 20, pool.map(again.__getitem__, IDS * 20), strict=True):
      np.testing.assert_array_equal(found.boxes, regions(image_id).boxes)


def test_many_shards_do_not_keep_many_files_open(tmp_path, monkeypatch):
  monkeypatch.setattr('vild_jax.data.regions.store._OPEN_SHARDS', 2)
  job = dataclasses.replace(JOB, images_per_shard=1)
  make(tmp_path / 'store', job)
  store = RegionStore(tmp_path / 'store')
  for image_id in IDS * 2:
    np.testing.assert_array_equal(store[image_id].scores, regions(image_id).scores)
  assert len(store._readers) == 2


def test_the_manifest_says_what_the_store_is(whole):
  manifest = json.loads((whole / 'manifest.json').read_text())
  assert manifest['job']['dtype'] == 'float16' and manifest['job']['recipe'] == {'scales': [1, 1.5]}
  for shard in manifest['shards']:
    raw = (whole / shard['file']).read_bytes()
    assert (len(raw), hashlib.sha256(raw).hexdigest()) == (shard['bytes'], shard['sha256'])
  assert JOB.max_bytes == 7 * (20 + 6 * (16 + 4 + 6))


@pytest.mark.parametrize('is_whole', [True, False])
def test_a_shard_that_is_not_as_it_was_written_is_made_again(tmp_path, capsys, is_whole):
  path, good = tmp_path / 'store', tmp_path / 'good'
  make(good)
  make(path)
  if not is_whole:
    (path / 'manifest.json').unlink()
    (path / 'images.npy').unlink()
  (one,), (two,) = path.glob('shard-00001-*.array_record'), path.glob('shard-00002-*.array_record')
  changed = bytearray(one.read_bytes())
  changed[-5] ^= 1
  one.write_bytes(changed)
  with StoreWriter(path, JOB) as writer:
    assert writer.missing() == [1]
  assert f'{one} is not as it was written, and is made anew' in capsys.readouterr().err
  # A shard of another job with its sidecar, as an interrupted copy leaves it.
  foreign = dataclasses.replace(JOB, teacher='of others')
  make(tmp_path / 'foreign', foreign)
  for name in (two.name, two.with_suffix('.json').name):
    (path / name).write_bytes((tmp_path / 'foreign' / name).read_bytes())
  with StoreWriter(path, JOB) as writer:
    assert writer.missing() == [1, 2]
  assert make(path) and content(path) == content(good)


def test_a_sidecar_of_an_older_version_names_no_job_and_counts(tmp_path):
  path = tmp_path / 'store'
  make(path)
  for file in path.glob('shard-*.json'):
    said = json.loads(file.read_text())
    del said['job']
    file.write_text(json.dumps(said))
  with StoreWriter(path, JOB) as writer:
    assert writer.missing() == [] and writer.finish()


@pytest.mark.parametrize('key', ['max_regions', 'teacher'])
def test_a_manifest_of_another_job_than_job_json_is_refused(tmp_path, key):
  make(tmp_path)
  file = tmp_path / 'manifest.json'
  said = json.loads(file.read_text())
  said['job'][key] = {'max_regions': 7, 'teacher': 'other'}[key]
  file.write_text(records.as_text(said))
  with pytest.raises(DataError, match=r'job\.json and the job in manifest\.json differ; expected the same'):
    RegionStore(tmp_path)
  (tmp_path / 'job.json').unlink()  # copied without it
  RegionStore(tmp_path)


def test_a_manifest_with_another_number_of_regions_is_refused(tmp_path):
  make(tmp_path)
  file = tmp_path / 'manifest.json'
  said = json.loads(file.read_text())
  said['regions'] += 1
  file.write_text(records.as_text(said))
  with pytest.raises(DataError, match=r'manifest\.json is damaged: it says 22 regions, images\.npy 21'):
    RegionStore(tmp_path)
