"""Embeddings of regions in a store: the right ones, the same bytes however made, one line for what is wrong."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.helpers import picture_list, small_set, small_teacher
from tests.helpers.plain_crops import plain_embeddings, plain_pixels
from tests.helpers.planted_store import boxes_of, content, write_proposals
from tests.helpers.processes import as_process
from tests.helpers.small_experiment import run
from vild_jax import vocabulary
from vild_jax.data import pictures as pictures_lib
from vild_jax.data import sources
from vild_jax.data.regions import imported
from vild_jax.data.regions.records import Regions
from vild_jax.data.regions.store import RegionStore
from vild_jax.data.regions.writer import StoreWriter
from vild_jax.data.schema import DataError
from vild_jax.distill import embed as embed_lib
from vild_jax.teacher import checkpoint as teacher_checkpoint

SIZES = [(40, 60), (33, 21), (64, 64), (20, 30), (64, 48)]
MOST = 6


def pictures() -> picture_list.Pictures:
  return picture_list.make(SIZES)


@pytest.fixture(scope='module')
def teacher():
  return small_teacher.make()


@pytest.fixture(scope='module')
def proposals(tmp_path_factory):
  return write_proposals(tmp_path_factory.mktemp('proposals') / 'store', pictures())


def embed(teacher, proposals, out, *, dataset=None, **options):
  options = {'max_regions': MOST, 'images_per_shard': 2, 'batch_size': 8} | options
  return embed_lib.embed_regions(teacher, pictures() if dataset is None else dataset, proposals, out, **options)


@pytest.fixture(scope='module')
def store(teacher, proposals, tmp_path_factory):
  path = tmp_path_factory.mktemp('embedded') / 'store'
  made = embed(teacher, proposals, path)
  assert made['whole'] and (made['images'], made['crops'], made['regions']) == (5, 4 * 2 * MOST, 4 * MOST)
  return path


def test_the_embeddings_are_those_of_the_best_boxes(store, teacher, proposals):
  made = RegionStore(store)
  assert (made.kind, made.dataset, made.split, made.images) == ('embeddings', 'd' * 64, 'train', 5)
  assert (made.teacher, made.image_teacher) == (teacher.text_identity, teacher.image_identity)
  assert made.proposals == proposals.boxes_identity and made.recipe['scales'] == [1.0, 1.5]
  for i, (height, width) in enumerate(SIZES):
    found, expected = made[100 - i], boxes_of(i, height, width)
    np.testing.assert_array_equal(found.boxes, expected.boxes[:MOST])
    np.testing.assert_array_equal(found.scores, expected.scores[:MOST])
    assert found.embeddings.dtype == np.float16 and found.embeddings.shape == (len(found.boxes), 8)
    if len(found.boxes):
      picture = pictures_lib.decode(small_set.picture(height, width, seed=i, kind='.png'))
      rows = plain_embeddings(teacher, plain_pixels(picture, found.boxes))
      np.testing.assert_allclose(found.embeddings, rows, atol=5e-3)
  assert len(made[97].boxes) == 0


def test_interrupted_at_any_picture_and_shared_by_processes_it_is_the_same_store(
  store, teacher, proposals, tmp_path, capsys
):
  for trap in (0, 3, 4):
    broken = pictures()
    broken.trap = trap
    with pytest.raises(KeyboardInterrupt):
      embed(teacher, proposals, tmp_path / str(trap), dataset=broken)
    assert not (tmp_path / str(trap) / 'manifest.json').exists()
    made = embed(teacher, proposals, tmp_path / str(trap))
    assert made['images'] == 5 - trap // 2 * 2, 'only what was missing is computed'
    assert ('about 0 min 00 s for the 1 images to come' in capsys.readouterr().err) == (trap != 3)
    assert content(tmp_path / str(trap)) == content(store)
  with as_process(1, 2):
    second = embed(teacher, proposals, tmp_path / 'shared')
  assert second['images'] == 2 and not second['whole']
  with as_process(0, 2):
    assert embed(teacher, proposals, tmp_path / 'shared')['whole']
  assert content(tmp_path / 'shared') == content(store)
  embed(teacher, proposals, tmp_path / 'eight', devices=jax.devices())
  assert content(tmp_path / 'eight') == content(store)


def test_what_does_not_belong_together_is_refused(store, teacher, proposals, tmp_path):
  before = content(store)
  stranger = pictures()
  stranger.identity, stranger.split = 'e' * 64, 'val'
  with pytest.raises(DataError, match=r"is of the data set d{12}, split 'train'; expected e{12}, split 'val'"):
    embed(teacher, proposals, tmp_path / 'a', dataset=stranger)
  few = write_proposals(tmp_path / 'few', pictures(), count=4)
  with pytest.raises(DataError, match=r'few has no image 96; expected regions of every picture'):
    embed(teacher, few, tmp_path / 'b')
  with pytest.raises(ValueError, match='the teacher is a text tower alone'):
    embed(dataclasses.replace(teacher, preprocessor=None), proposals, tmp_path / 'c')
  assert not (tmp_path / 'a').exists() and not (tmp_path / 'c').exists()
  with pytest.raises(DataError, match=r'belongs to another job .*: teacher is'):
    embed(small_teacher.make('other words'), proposals, store)
  with pytest.raises(DataError, match=r'belongs to another job .*: max_regions is 6 there and 5 here'):
    embed(teacher, proposals, store, max_regions=5)
  with (
    StoreWriter(store, RegionStore(store).job),
    pytest.raises(DataError, match='is being written by another process'),
  ):
    embed(teacher, proposals, store)
  assert content(store) == before


def test_a_box_that_is_none_is_named_with_its_image(teacher, proposals, tmp_path):
  with StoreWriter(tmp_path / 'p', dataclasses.replace(proposals.job, max_regions=1)) as writer:
    wrong = Regions(np.array([[5, 0, 4, 1]], np.float32), np.ones(1, np.float32))
    writer.write(0, ((example.image_id, wrong) for example in pictures()))
    writer.finish()
  with pytest.raises(DataError, match=r'image 100: box 0 is \[5.0, 0.0, 4.0, 1.0\]; expected y1 <= y2'):
    embed(teacher, RegionStore(tmp_path / 'p'), tmp_path / 'store')


def test_embeddings_that_are_not_finite_leave_no_shard(teacher, proposals, tmp_path):
  broken = jax.tree.map(lambda x: np.full_like(x, np.nan), teacher.params)
  with pytest.raises(DataError, match=r'image 100: embeddings of region 0 are not finite; expected numbers'):
    embed(dataclasses.replace(teacher, params=broken), proposals, tmp_path / 'store')
  assert not list((tmp_path / 'store').glob('*.array_record'))


def test_a_damaged_picture_is_named(teacher, proposals, tmp_path):
  for index, change, words in (
    (1, {'image': b'x'}, 'image 99: no readable picture'),
    (4, {'height': 65}, 'image 96: the picture has 64 x 48 pixels; expected 65 x 48'),
  ):
    broken = pictures()
    list.__setitem__(broken, index, dataclasses.replace(broken[index], **change))
    with pytest.raises(DataError, match=words):
      embed(teacher, proposals, tmp_path / str(index), dataset=broken)


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def made(tmp_path_factory, teacher):
  """A prepared data set, its proposals and a teacher directory."""
  folder = tmp_path_factory.mktemp('made')
  annotations, images = small_set.write(folder)
  assert run('prepare', '--annotations', annotations, '--images', images, '--out', folder / 'data') == 0
  write_proposals(folder / 'proposals', sources.open_dataset(folder / 'data', 'train'))
  teacher_checkpoint.save_teacher(folder / 'teacher', teacher)
  return folder


def test_the_command_says_what_it_will_do_and_what_it_did(made, tmp_path, capsys):
  words = ('embed-regions', '--data', made / 'data', '--out', tmp_path / 'store', '--max-regions', 5)
  assert run(*words, '--teacher', made / 'teacher', '--proposals', made / 'proposals', '--json', tmp_path / 'j') == 0
  lines = capsys.readouterr().err.splitlines()
  assert '4 images, at most 20 regions of dimension 8 and 800 bytes in 1 shards' in lines[0]
  assert lines[0].endswith('to do: 1 shards, 4 images, at most 40 crops')
  assert not any('images to come' in line for line in lines)
  found = json.loads((tmp_path / 'j').read_text())
  assert found['whole'] and found['identity'] == RegionStore(tmp_path / 'store').identity
  assert f'{found["regions"]} regions' in lines[-1]
  for given, message in (
    ([], 'takes --teacher and --proposals, or --import'),
    (['--teacher', 'x', '--import', 'y'], '--import brings boxes'),
    (['--import', tmp_path / 'none'], 'has no .npz file'),
    (['--teacher', made / 'teacher', '--proposals', tmp_path], 'is not a region store'),
  ):
    assert run(*words, *given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_a_truncated_shard_of_proposals_is_named(made, teacher, tmp_path, capsys):
  write_proposals(tmp_path / 'p', sources.open_dataset(made / 'data', 'train'))
  (shard,) = (tmp_path / 'p').glob('*.array_record')
  shard.write_bytes(shard.read_bytes()[:-100])
  assert (
    run(
      'embed-regions',
      '--data',
      made / 'data',
      '--out',
      tmp_path / 'store',
      '--teacher',
      made / 'teacher',
      '--proposals',
      tmp_path / 'p',
    )
    == 2
  )
  error = capsys.readouterr().err
  assert str(shard) in error and 'bytes; expected the' in error and error.count('\n') == 1
  assert not (tmp_path / 'store').exists()


# --- arrays of others -----------------------------------------------------------------------------------------------


def arrays(ids, *, rows=3, seed=0, **change):
  rng = np.random.default_rng(seed)
  corners = rng.uniform(0, 15, (len(ids), rows, 2))  # the smallest picture has 20 x 30 pixels
  found = {
    'image_ids': np.array(ids),
    'embeddings': 3 * rng.normal(size=(len(ids), rows, 4)).astype(np.float32),
    'boxes': np.concatenate([corners, corners + 5], axis=2),
    'teacher': np.array('ours'),
    'scores': rng.uniform(size=(len(ids), rows)),
    'valid': np.arange(rows)[None] < [[rows]] * len(ids),
  }
  return {key: value for key, value in {**found, **change}.items() if value is not None}


def test_import(made, tmp_path):
  (tmp_path / 'npz').mkdir()
  first = arrays([300, 5], valid=np.array([[True, False, True], [False] * 3]))
  second = arrays([11, 7], seed=1, rows=8, scores=None, valid=None)
  np.savez(tmp_path / 'npz/a.npz', **first)
  np.savez_compressed(tmp_path / 'npz/b.npz', **second)
  out = tmp_path / 'store'
  assert (
    run('embed-regions', '--data', made / 'data', '--out', out, '--import', tmp_path / 'npz', '--max-regions', 5) == 0
  )
  store = RegionStore(out)
  np.testing.assert_array_equal(store.image_ids, [e.image_id for e in sources.open_dataset(made / 'data', 'train')])
  assert (store.teacher, store.embedding_dim, store.images, store.regions) == ('ours', 4, 4, 12)
  order = sorted((0, 2), key=lambda i: -first['scores'][0, i])
  np.testing.assert_allclose(store[300].boxes, first['boxes'][0, order], rtol=1e-6)
  np.testing.assert_allclose(store[300].scores, first['scores'][0, order], rtol=1e-6)
  rows = first['embeddings'][0, order]
  np.testing.assert_allclose(store[300].embeddings, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-3)
  assert len(store[5].boxes) == 0
  np.testing.assert_allclose(store[7].boxes, second['boxes'][1, :5], rtol=1e-6)
  np.save(tmp_path / 'rows.npy', np.eye(2, 4, dtype=np.float32))
  file = vocabulary.from_npy(tmp_path / 'rows.npy', ('a', 'b'), 'ours', np.zeros(2, bool))
  assert vocabulary.is_same_teacher(store.teacher, file)
  before = content(out)
  np.savez(tmp_path / 'npz/b.npz', **arrays([11, 7], seed=2, rows=8))
  assert (
    run('embed-regions', '--data', made / 'data', '--out', out, '--import', tmp_path / 'npz', '--max-regions', 5) == 2
  ), 'other arrays are another job'
  assert content(out) == before


def test_each_file_is_read_once_and_a_continued_import_is_the_same(made, tmp_path, monkeypatch):
  (tmp_path / 'npz').mkdir()
  for number, ids in enumerate(([300, 11], [5, 7])):
    np.savez(tmp_path / f'npz/{number}.npz', **arrays(ids, seed=number))
  seen, read = [], imported._read
  monkeypatch.setattr(imported, '_read', lambda file: (seen.append(file.name), read(file))[1])
  given = imported.ImportedRegions(tmp_path / 'npz')
  seen.clear()
  dataset = sources.open_dataset(made / 'data', 'train')
  embed_lib.import_regions(given, dataset, tmp_path / 'store', images_per_shard=1)
  assert seen == ['0.npz', '1.npz']
  whole = content(tmp_path / 'store')
  for file in (tmp_path / 'store').glob('shard-00002-*'):
    file.unlink()
  seen.clear()
  embed_lib.import_regions(given, dataset, tmp_path / 'store', images_per_shard=1)
  assert len(seen) == 1 and content(tmp_path / 'store') == whole
  assert sorted(path.name for path in tmp_path.iterdir()) == ['npz', 'store']


def test_a_box_may_touch_the_border_and_some_may_be_small(made, tmp_path):
  boxes = np.array([[0, 0, 1, 0.5], [-1, -1, 21, 21.5], [3, 3, 3, 9]])
  np.savez(tmp_path / 'a.npz', **arrays([300, 5, 11, 7], boxes=np.tile(boxes, (4, 1, 1)), scores=None))
  out = tmp_path / 'store'
  assert run('embed-regions', '--data', made / 'data', '--out', out, '--import', tmp_path / 'a.npz') == 0
  np.testing.assert_array_equal(RegionStore(out)[300].boxes, boxes.astype(np.float32))


NAN = arrays([300, 5, 11, 7])
NAN['embeddings'][1, 2, 0] = np.nan


@pytest.mark.parametrize(
  'tree, message',
  [
    (arrays([300, 5, 11]), 'has no image 7 (1 missing, 0 unknown)'),
    (arrays([300, 5, 11, 7, 12]), 'has an image 12 that is not in'),
    (arrays([300, 5, 11, 12]), 'has no image 7 (1 missing, 1 unknown)'),
    (arrays([300, 5, 11, 5]), 'image 5 is in'),
    (NAN, 'image 5: embeddings of region 2 are unusable; expected finite numbers, not all zero'),
    (arrays([300, 5, 11, 7], embeddings=np.zeros((4, 3, 4))), 'embeddings of region 0 are unusable'),
    (arrays([300, 5, 11, 7], boxes=np.ones((4, 3, 4)) * [5, 0, 4, 1]), 'boxes of region 0 are unusable'),
    (
      arrays([300, 5, 11, 7], boxes=np.ones((4, 3, 4)) * [0, -2, 9, 9]),
      'box [0.0, -2.0, 9.0, 9.0] of region 0 goes beyond the picture of',
    ),
    (
      arrays([300, 5, 11, 7], boxes=np.ones((4, 3, 4)) * [0, 0, 21.5, 9]),
      'image 300: box [0.0, 0.0, 21.5, 9.0] of region 0 goes beyond the picture of 20 x 30 pixels; expected y1, '
      'x1, y2, x2 in pixels',
    ),
    (
      arrays([300, 5, 11, 7], boxes=np.ones((4, 3, 4)) * [0, 0, 1, 0.5]),
      'box [0.0, 0.0, 1.0, 0.5] of region 0 has a side below 2 pixels, as all others in the picture of',
    ),
    (arrays([300, 5, 11, 7], scores=np.full((4, 3), np.inf)), 'scores of region 0 are unusable'),
    (arrays([300, 5, 11, 7], boxes=np.ones((4, 2, 4))), 'boxes is float64 [4, 2, 4]; expected floats [4, 3, 4]'),
    (arrays([300, 5, 11, 7], embeddings=np.ones((4, 3))), 'embeddings is float64 [4, 3]; expected floats [K, M, D]'),
    (arrays([300, 5, 11, 7], valid=np.ones((4, 3))), 'valid is float64 [4, 3]; expected bool [4, 3]'),
    (arrays([300, 5, 11, 7], teacher=None), "it has no array 'teacher'"),
    (arrays([300, 5, 11, 7], teacher=np.array('')), 'teacher is empty'),
    (arrays([300, 5, 11, 7], teacher=np.array(3)), 'teacher is int64 []; expected text []'),
    (arrays([300, 5, 11, 7], boxes=np.array([{}])), 'boxes holds Python objects, which are never read'),
  ],
)
def test_arrays_that_cannot_be_used_are_one_line(made, tmp_path, capsys, tree, message):
  np.savez(tmp_path / 'a.npz', **tree)
  assert run('embed-regions', '--data', made / 'data', '--out', tmp_path / 'store', '--import', tmp_path / 'a.npz') == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert message in line and str(tmp_path / 'a.npz') in line
  assert not (tmp_path / 'store/manifest.json').exists()


def test_files_of_two_teachers_and_broken_archives(made, tmp_path, capsys):
  np.savez(tmp_path / 'a.npz', **arrays([300, 5]))
  np.savez(tmp_path / 'b.npz', **arrays([11, 7], teacher=np.array('theirs')))
  words = ('embed-regions', '--data', made / 'data', '--out', tmp_path / 'store', '--import', tmp_path)
  assert run(*words) == 2
  assert "b.npz has teacher 'theirs' ('') and dimension 4; expected 'ours'" in capsys.readouterr().err
  (tmp_path / 'b.npz').write_bytes((tmp_path / 'a.npz').read_bytes()[:300])
  assert run(*words) == 2
  assert 'b.npz cannot be read (it is not a complete .npz archive)' in capsys.readouterr().err
  assert not (tmp_path / 'store').exists()
