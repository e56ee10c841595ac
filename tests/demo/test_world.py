"""The toy world keeps its promises for any seed: format, counts, exact regions, bytes that the seed alone decides."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask

from vild_jax.data.schema import DataError
from vild_jax.demo import world as toy_world
from vild_jax.demo import world_drawing as toyworld_draw

_FREQUENCY = {c.id: c.frequency for c in toy_world.categories()}


def _read(world: Path, split: str) -> dict:
  return json.loads((world / 'annotations' / f'toy_{split}.json').read_text(encoding='utf-8'))


def _decode(segmentation: list | dict, height: int, width: int) -> np.ndarray:
  if isinstance(segmentation, list):
    segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
  return coco_mask.decode(segmentation).astype(bool)


def _files(world: Path) -> dict[str, bytes]:
  return {str(p.relative_to(world)): p.read_bytes() for p in sorted(world.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module', params=range(4))
def world(request, tmp_path_factory) -> Path:
  path = tmp_path_factory.mktemp('toy') / 'world'
  toy_world.generate(path, seed=request.param, train_images=48, val_images=24)
  return path


def test_vocabulary_has_unseen_combinations_of_seen_parts_and_an_unseen_shape():
  table = toy_world.categories()
  assert [c.id for c in table] == list(range(1, 49))
  assert toy_world.category_names() == tuple(c.name for c in table)
  assert len({c.name for c in table}) == 48
  novel = {tuple(look.split(' ')) for c, look in zip(table, toy_world.looks(), strict=True) if c.frequency == 'r'}
  base = {tuple(look.split(' ')) for c, look in zip(table, toy_world.looks(), strict=True) if c.frequency != 'r'}
  words = {*toyworld_draw.PATTERNS, *toyworld_draw.SHAPES}
  assert not any(word in ' '.join(c.synonyms) for c in table for word in words)  # a name says nothing of the look
  assert len(novel) == 12 and sum(c.frequency == 'c' for c in table) == 16
  assert {pattern for pattern, _ in base} == {pattern for pattern, _ in novel} == set(toyworld_draw.PATTERNS)
  seen = {shape for _, shape in base}
  assert set(toyworld_draw.SHAPES) - seen == {'crescent'}
  assert sum(shape in seen for _, shape in novel) == sum(shape not in seen for _, shape in novel) == 6


@pytest.mark.parametrize('split', ['train', 'val'])
def test_pictures_and_regions_are_what_the_json_says(world, split):
  content = _read(world, split)
  pictures = {i['id']: i for i in content['images']}
  assert sorted(p.name for p in (world / split).iterdir()) == [i['file_name'] for i in content['images']]
  for image in pictures.values():
    picture = cv2.imread(str(world / split / image['file_name']))
    assert picture.shape == (image['height'], image['width'], 3)
    assert min(picture.shape[:2]) >= 112 and max(picture.shape[:2]) <= 208
  assert len({a['id'] for a in content['annotations']}) == len(content['annotations'])
  owners = {i: np.zeros((image['height'], image['width']), int) for i, image in pictures.items()}
  for entry in content['annotations']:
    owner = owners[entry['image_id']]
    mask = _decode(entry['segmentation'], *owner.shape)
    owner += mask
    assert mask.sum() == entry['area'] > 0
    rows, columns = np.nonzero(mask)
    assert entry['bbox'] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
  assert max(owner.max() for owner in owners.values()) == 1, 'visible regions overlap'
  shapes = {c['id']: c['def'].split(' ')[1] for c in content['categories']}
  coded = {shapes[a['category_id']] for a in content['annotations'] if isinstance(a['segmentation'], dict)}
  assert 'ring' in coded, 'a region with a hole is no polygon'
  outlined = [a for a in content['annotations'] if isinstance(a['segmentation'], list)]
  assert any(len(a['segmentation']) > 1 for a in outlined), 'an occluder cuts some object in two'


@pytest.mark.parametrize('split', ['train', 'val'])
def test_federated_lists_are_true(world, split):
  content = _read(world, split)
  shown = {i['id']: set() for i in content['images']}
  for entry in content['annotations']:
    shown[entry['image_id']].add(entry['category_id'])
  for image in content['images']:
    negatives = image['neg_category_ids']
    assert 6 <= len(set(negatives)) == len(negatives) <= 10
    assert not set(negatives) & shown[image['id']]
    assert set(image['not_exhaustive_category_ids']) <= shown[image['id']]
  assert all(3 <= n <= 8 for n in Counter(a['image_id'] for a in content['annotations']).values())


@pytest.mark.parametrize('split', ['train', 'val'])
def test_counts_of_small_worlds(world, split):
  content = _read(world, split)
  statistics = content['info']['statistics']
  entries = content['annotations']
  assert statistics['annotations'] == len(entries)
  assert statistics['occluded_fraction'] == pytest.approx(np.mean([a['visible'] < 0.95 for a in entries]), abs=1e-4)
  assert statistics['small_fraction'] == pytest.approx(np.mean([a['area'] < 1024 for a in entries]), abs=1e-4)
  assert statistics['occluded_fraction'] >= 0.25  # 0.3 at the default size: here a hundred objects decide
  assert statistics['small_fraction'] >= 0.25
  novel = {a['image_id'] for a in entries if _FREQUENCY[a['category_id']] == 'r'}
  assert statistics['novel_image_fraction'] == pytest.approx(len(novel) / len(content['images']), abs=1e-4)
  assert statistics['novel_image_fraction'] >= 0.15


def test_frequencies_obey_the_cutoffs(world):
  content = _read(world, 'train')
  assert _read(world, 'val')['categories'] == content['categories']
  cutoffs = content['info']['frequency_cutoffs']
  pairs = Counter(c for _, c in {(a['image_id'], a['category_id']) for a in content['annotations']})
  for category in content['categories']:
    count = pairs[category['id']]
    assert category['image_count'] == count
    expected = 'r' if count <= cutoffs['r'] else 'c' if count <= cutoffs['c'] else 'f'
    assert category['frequency'] == expected


@pytest.mark.parametrize('seed', range(4))
def test_plan_of_the_default_size(seed):
  table = toy_world.categories()
  cutoffs = toy_world._cutoffs(1000)
  assert cutoffs == {'r': 30, 'c': 100}
  train = toy_world._plan(toy_world.random_stream(seed, 'train'), 'train', 1000)
  counts = Counter(i for objects in train for i in {i for i, _ in objects})
  for index, category in enumerate(table):
    low, high = {'r': (1, cutoffs['r']), 'c': (cutoffs['r'] + 1, cutoffs['c']), 'f': (cutoffs['c'] + 1, 1000)}[
      category.frequency
    ]
    assert low <= counts[index] <= high
  assert np.mean([any(table[i].frequency == 'r' for i, _ in objects) for objects in train]) >= 0.15
  val = toy_world._plan(toy_world.random_stream(seed, 'val'), 'val', 250)
  instances = Counter(i for objects in val for i, annotated in objects if annotated)
  pictures = Counter(i for objects in val for i in {i for i, _ in objects})
  assert min(instances[i] for i in range(48)) >= 20
  assert min(pictures[i] for i in range(48)) >= 10
  for objects in train + val:
    assert 3 <= len(objects) <= 8
    for index, annotated in objects:
      # What is left unannotated is one more of an annotated category.
      assert annotated or (index, True) in objects


def test_default_validation_set(tmp_path):
  summary = toy_world.generate(tmp_path / 'world', seed=0, train_images=1, val_images=250)['val']
  assert summary['occluded_fraction'] >= 0.3
  assert summary['small_fraction'] >= 0.25
  assert summary['least_annotations_of_a_category'] >= 20
  assert summary['least_images_of_a_category'] >= 10
  assert summary['not_exhaustive_images'] >= 5


def test_bytes_depend_on_the_seed_alone(tmp_path):
  for name, seed in (('a', 7), ('b', 7), ('c', 8)):
    toy_world.generate(tmp_path / name, seed=seed, train_images=5, val_images=3)
  first, same, other = (_files(tmp_path / name) for name in 'abc')
  assert len(first) == 10
  assert first == same
  assert all(first[name] != other[name] for name in first)
  keys = [(7, 'train', 0), (7, 'train', 1), (7, 'val', 0), (7, 'teacher', 0), (7 + 2**32, 'train', 0), (-7, 'train', 0)]
  assert len({toy_world.random_stream(*key).random() for key in keys}) == len(keys)


def test_a_world_is_reused_or_refused(tmp_path):
  out = tmp_path / 'world'
  out.mkdir()  # an empty folder is as good as none
  first = toy_world.generate(out, seed=-3, train_images=4, val_images=2)
  picture = next((out / 'train').iterdir())
  stamp = picture.stat().st_mtime_ns
  assert toy_world.generate(out, seed=-3, train_images=4, val_images=2) == first
  assert picture.stat().st_mtime_ns == stamp
  with pytest.raises(DataError, match=re.escape("'train_images': 4, 'val_images': 2}; expected")):
    toy_world.generate(out, seed=-3, train_images=5, val_images=2)
  assert [p.name for p in tmp_path.iterdir()] == ['world']


def test_what_is_no_world_is_left_alone(tmp_path):
  (tmp_path / 'thesis.txt').write_text('mine')
  for out in (tmp_path, tmp_path / 'thesis.txt'):
    with pytest.raises(DataError, match='holds no toy world'):
      toy_world.generate(out, train_images=1, val_images=1)
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.txt']
  with pytest.raises(DataError, match='val_images is 0; expected at least 1'):
    toy_world.generate(tmp_path / 'new', train_images=1, val_images=0)
  assert not (tmp_path / 'new').exists()


def test_an_interrupted_run_leaves_no_world_and_does_not_hinder(tmp_path, monkeypatch):
  calls = []

  def fail(rng, picture):
    calls.append(1)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return picture.astype(np.uint8)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(toyworld_draw, 'develop', fail)
    toy_world.generate(tmp_path / 'world', train_images=3, val_images=2)
  assert not (tmp_path / 'world').exists()
  toy_world.generate(tmp_path / 'world', train_images=3, val_images=2)
  assert [p.name for p in tmp_path.iterdir()] == ['world']


@pytest.mark.parametrize(
  'rows',
  [
    ['111', '101', '111'],  # a hole
    ['110', '110', '001'],  # two parts that touch at a corner
    ['10001', '11011', '00000'],  # two parts
    ['1'],
    ['0000', '0110', '1111', '0100'],
  ],
)
def test_regions_are_exact_to_the_pixel(rows):
  mask = np.pad(np.array([[c == '1' for c in row] for row in rows]), ((2, 1), (3, 4)))
  region = toy_world._region(mask, full=int(mask.sum()))
  np.testing.assert_array_equal(_decode(region['segmentation'], *mask.shape), mask)
  assert isinstance(region['segmentation'], dict) == (rows[1:2] == ['101'])
  assert region['visible'] == 1.0


def test_scene_keeps_every_object_recognisable():
  kinds = [(s, (s * 5) % 6) for s in range(8)]
  hidden = 0
  for seed in range(12):
    picture, owner, full = toyworld_draw.scene(np.random.default_rng(seed), 112, 130, kinds)
    assert picture.shape == (112, 130, 3) and picture.dtype == np.uint8
    seen = np.bincount(owner.ravel() + 1, minlength=9)[1:]
    assert (seen <= full).all()
    assert (seen >= 0.7 * full).all()  # more than 0.75, but where no place was found for that
    hidden += (seen < 0.95 * full).sum()
  assert hidden >= 0.3 * 12 * 8
