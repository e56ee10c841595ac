"""Batches: what reaches training, the same examples whatever runs them, and geometry that holds together."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.examples import CATEGORIES, IS_BASE, NAMES, TINY, configured, example, examples, objects, same, take
from vild_jax.data import batch, pictures, rle, transforms
from vild_jax.data.schema import DataError


@pytest.fixture
def labels() -> batch.LabelMap:
  return batch.label_map(CATEGORIES, NAMES, IS_BASE)


# --- labels ---------------------------------------------------------------------------------------------------------


def test_label_map_matches_raw_names_and_drops_novel(labels):
  np.testing.assert_array_equal(labels(np.array([9, 5, 3, 77])), [-1, 0, 3, -1])
  everything = batch.label_map(CATEGORIES, NAMES, IS_BASE, novel=True)
  np.testing.assert_array_equal(everything(np.array([9, 5, 3])), [2, 0, 3])
  assert labels(np.zeros(0, np.int64)).shape == (0,)


def test_label_map_errors_name_both_sides():
  with pytest.raises(DataError, match=r"'red_ball'.*'apple'"):
    batch.label_map(CATEGORIES, ['apple', 'pear'], [True, True])
  with pytest.raises(DataError, match='novel'):
    batch.label_map(CATEGORIES[2:], NAMES, IS_BASE)
  with pytest.raises(DataError, match="'kite' twice"):
    batch.label_map(CATEGORIES, [*NAMES, 'kite'], [*IS_BASE, True])


# --- one example ----------------------------------------------------------------------------------------------------


def test_only_base_objects_in_the_crop_reach_training(labels):
  image = np.zeros((64, 64, 3), np.uint8)
  found = objects(
    (9, (0, 0, 9, 9), False),  # novel
    (3, (4, 4, 40, 40), True),  # crowd
    (5, (10, 10, 30, 20), False),
    (77, (1, 1, 5, 5), False),  # of a category that the vocabulary lacks
    (3, (20, 8, 20, 30), False),  # without height
    (3, (0, 32, 64, 64), False),
  )
  data = dataclasses.replace(TINY, scale_range=(1.0, 1.0), flip=False)
  item = batch.train_example(example(image, found), labels, data, np.random.default_rng(0))
  np.testing.assert_array_equal(item['valid'], [True, True, False, False])
  np.testing.assert_array_equal(item['labels'], [0, 3, 0, 0])
  np.testing.assert_allclose(item['boxes'], [[10, 10, 30, 20], [0, 32, 63, 63], [0] * 4, [0] * 4], atol=1e-5)
  assert item['masks'][2:].sum() == 0 and item['masks'].dtype == np.uint8
  assert (item['masks'][1] > 250).mean() > 0.95


def test_first_objects_stay_when_there_are_too_many(labels):
  found = objects(*[(3, (i, i, i + 8, i + 8), False) for i in range(6)])
  data = dataclasses.replace(TINY, scale_range=(1.0, 1.0), flip=False)
  item = batch.train_example(example(np.zeros((64, 64, 3), np.uint8), found), labels, data, np.random.default_rng(0))
  np.testing.assert_allclose(item['boxes'][:, 0], [0, 1, 2, 3], atol=1e-5)
  assert item['valid'].all()


def test_picture_without_annotations_is_kept(labels):
  item = batch.train_example(
    example(np.full((50, 30, 3), 200, np.uint8), objects()), labels, TINY, np.random.default_rng(0)
  )
  assert not item['valid'].any() and item['boxes'].shape == (4, 4) and item['image'].any()


@pytest.mark.parametrize('seed', range(12))
def test_boxes_masks_and_pixels_move_together(labels, seed):
  """A white L on black, cut, scaled and mirrored at random: box and pasted mask must lie on its pixels."""
  height, width = 120, 150
  y, x = np.mgrid[:height, :width]
  inside = (abs(y - 50) <= 30) & (abs(x - 100) <= 40)
  inside[20:50, 60:85] = False  # no mirror symmetry, and a box that stays tight when the crop cuts it
  rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
  box = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
  found = objects((3, box, False, rle.encode_mask(inside)))
  data = dataclasses.replace(TINY, image_size=128, scale_range=(0.7, 1.8))
  rng = np.random.default_rng(seed)
  item = batch.train_example(example(np.uint8(inside)[:, :, None].repeat(3, 2) * 255, found), labels, data, rng)
  white = item['image'][:, :, 0] * transforms.STD[0] + transforms.MEAN[0] > 0.5
  white[int(item['image_size'][0]) :] = white[:, int(item['image_size'][1]) :] = False  # padding is no black
  assert item['valid'][0]
  y1, x1, y2, x2 = item['boxes'][0]
  rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
  # Within a pixel of the source (up to 1.5 here): legacy bilinear shifts by half a pixel, and clipping stops at S - 1.
  np.testing.assert_allclose([y1, x1, y2, x2], [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], atol=2.1)
  grid = np.ix_(
    np.clip(((np.arange(128) - y1) / (y2 - y1) * 111).round(), -1, 112).astype(int) + 1,
    np.clip(((np.arange(128) - x1) / (x2 - x1) * 111).round(), -1, 112).astype(int) + 1,
  )
  pasted = np.pad(item['masks'][0] > 127, 1)[grid]
  assert (pasted & white).sum() / (pasted | white).sum() > 0.93


def test_both_directions_are_drawn(labels):
  image = np.zeros((64, 64, 3), np.uint8)
  image[:, :20] = 255
  item = example(image, objects((3, (0, 0, 64, 20), False)))
  lefts = [
    batch.train_example(item, labels, dataclasses.replace(TINY, scale_range=(1.0, 1.0)), np.random.default_rng(i))[
      'boxes'
    ][0, 1]
    for i in range(20)
  ]
  assert set(lefts) == {0.0, 44.0}


def test_size_that_contradicts_the_annotation_is_an_error(labels):
  wrong = dataclasses.replace(example(np.zeros((20, 30, 3), np.uint8), objects(), 31), height=30, width=20)
  with pytest.raises(DataError, match=r'image 31.*20 x 30.*30 x 20'):
    batch.train_example(wrong, labels, TINY, np.random.default_rng(0))


def test_an_object_without_segmentation_has_a_box_and_no_mask(labels):
  found = objects((3, (2, 2, 30, 30), False, []), (9, (1, 1, 9, 9), False), (5, (4, 8, 40, 50), False))
  mixed = example(np.zeros((64, 64, 3), np.uint8), found)
  data = dataclasses.replace(TINY, scale_range=(1.0, 1.0), flip=False)
  item = batch.train_example(mixed, labels, data, np.random.default_rng(0))
  np.testing.assert_array_equal(item['valid'], [True, True, False, False])
  np.testing.assert_array_equal(item['has_mask'], [False, True, False, False])
  np.testing.assert_array_equal(item['boxes'][:2], [[2, 2, 30, 30], [4, 8, 40, 50]])
  assert not item['masks'][0].any() and (item['masks'][1] > 250).mean() > 0.9
  alone = batch.train_example(mixed, labels, data, np.random.default_rng(0), masks=False)
  assert item.keys() - alone.keys() == {'masks', 'has_mask'} and same(alone, {k: item[k] for k in alone})


def test_a_mask_without_a_pixel_is_no_target(labels):
  found = objects((3, (2, 2, 30, 30), False, [[70.0, 2, 90, 2, 90, 30]]), (5, (4, 8, 40, 50), False))
  data = dataclasses.replace(TINY, scale_range=(1.0, 1.0), flip=False)
  empty = example(np.zeros((64, 64, 3), np.uint8), found)
  item = batch.train_example(empty, labels, data, np.random.default_rng(0))
  np.testing.assert_array_equal(item['valid'], [True, True, False, False])
  np.testing.assert_array_equal(item['has_mask'], [False, True, False, False])


def test_the_stream_holds_its_examples(labels):
  (shown,), config = examples(1), configured(batch_size=2, scale_range=(0.5, 2.0))
  stream = take(batch.train_batches([shown], labels, config), 2)
  for index in range(4):
    step, slot = divmod(index, 2)
    item = batch.stream_example(index, shown, labels=labels, config=config, regions=None)
    assert same({key: value[slot] for key, value in stream[step].items()}, item)


def test_in_uint8_a_batch_holds_the_same_in_fewer_bytes(labels):
  rle_of = rle.encode_mask(np.random.default_rng(0).random((64, 48)) < 0.5)
  found = objects((3, (2, 2, 60, 30), False, rle_of), (5, (4, 8, 40, 40), False, []), (5, (9, 9, 50, 40), False))
  shown = [example(np.random.default_rng(1).integers(0, 256, (64, 48, 3), np.uint8), found)]
  of = lambda **data: take(batch.train_batches(shown, labels, configured(scale_range=(0.5, 2.0), **data)), 3)
  for plain, small in zip(of(max_instances=20), of(max_instances=20, transfer='uint8'), strict=True):
    images, masks = small.pop('image'), small.pop('masks')
    assert same({key: plain[key] for key in small}, small) and plain.keys() - small.keys() == {'image', 'masks'}
    assert {key: value.shape for key, value in masks.items()} == {'bits': (4, 16, 28, 224), 'weights': (4, 16, 2, 112)}
    assert not masks['bits'][:, 1].any() and not plain['masks'][:, 16:].any()  # the second object has no mask
    for i, (height, width) in enumerate(small['image_size'].astype(int)):
      soft = [transforms.soft_mask(masks['bits'][i, slot], masks['weights'][i, slot]) for slot in range(16)]
      np.testing.assert_array_equal(np.round(255 * np.array(soft)), plain['masks'][i, :16])
      wanted = 255 * (plain['image'][i] * transforms.STD + transforms.MEAN)
      np.testing.assert_allclose(images[i, :height, :width], wanted[:height, :width], atol=8.5)  # 0.5 with OpenCV 5


def test_of_masks_as_bits_the_slots_in_use_are_sent():
  assert [batch.sent_slots(used, 300) for used in (0, 1, 16, 17, 64, 65, 200, 257, 300)] == [
    16, 16, 16, 32, 64, 128, 256, 300, 300
  ]  # fmt: skip
  assert batch.sent_slots(3, 5) == 5


# --- streams --------------------------------------------------------------------------------------------------------


def test_batches_have_the_promised_shapes(labels):
  (first,) = take(batch.train_batches(examples(5), labels, configured()), 1)
  shapes = {
    'image': (4, 64, 64, 3),
    'image_size': (4, 2),
    'boxes': (4, 4, 4),
    'labels': (4, 4),
    'masks': (4, 4, 112, 112),
    'has_mask': (4, 4),
    'valid': (4, 4),
    'image_id': (4,),
  }
  types = {
    'image': 'float32',
    'image_size': 'float32',
    'boxes': 'float32',
    'labels': 'int32',
    'masks': 'uint8',
    'has_mask': 'bool',
    'valid': 'bool',
    'image_id': 'int64',
  }
  assert {k: v.shape for k, v in first.items()} == shapes
  assert {k: str(v.dtype) for k, v in first.items()} == types


def test_every_epoch_holds_every_picture_in_a_new_order(labels):
  batches = take(batch.train_batches(examples(8), labels, configured()), 8)
  ids = np.concatenate([b['image_id'] for b in batches]).reshape(4, 8)
  for epoch in ids:
    assert sorted(epoch) == list(range(100, 108))
  assert len({tuple(epoch) for epoch in ids}) == 4


def test_resume_continues_the_stream(labels):
  whole = take(batch.train_batches(examples(5), labels, configured()), 6)
  resumed = take(batch.train_batches(examples(5), labels, configured(), start_step=4), 2)
  assert same(whole[4], resumed[0]) and same(whole[5], resumed[1])
  assert not same(whole[0], whole[4])


def test_processes_share_the_global_batch(labels):
  whole = take(batch.train_batches(examples(5), labels, configured(), start_step=2), 3)
  parts = [
    take(batch.train_batches(examples(5), labels, configured(), start_step=2, process_index=p, process_count=2), 3)
    for p in range(2)
  ]
  for step, expected in enumerate(whole):
    assert same({k: np.concatenate([p[step][k] for p in parts]) for k in expected}, expected)
  with pytest.raises(DataError, match=r'batch_size=4.*3 processes'):
    batch.train_batches(examples(5), labels, configured(), process_count=3)


@pytest.mark.parametrize('threshold', [0.0, 0.5])
def test_processes_may_draw_from_their_own_part_of_the_pictures(labels, threshold):
  config = configured(order='per_process', repeat_threshold=threshold)

  def stream(process, count=2, steps=10, start=0, config=config):
    where = {'start_step': start, 'process_index': process, 'process_count': count}
    return take(batch.train_batches(examples(9), labels, config, **where), steps)

  parts = [stream(0), stream(1)]  # batches of 2 pictures
  for part, own in zip(parts, (range(100, 104), range(104, 109)), strict=True):
    ids = np.concatenate([b['image_id'] for b in part])
    assert set(ids) == set(own)
    if not threshold:  # every epoch holds each picture of the part once
      assert all(sorted(ids[i : i + len(own)]) == list(own) for i in range(0, 20 - len(own) + 1, len(own)))
  for process in range(2):
    assert all(map(same, stream(process, steps=3, start=7), parts[process][7:]))
  # The draws of an example are those of its place in the global batch: on one process nothing else changes.
  together = configured(repeat_threshold=threshold)
  assert all(map(same, stream(0, count=1, steps=3), stream(0, count=1, steps=3, config=together)))
  single = stream(0, count=1, steps=1)[0]
  assert single['image'].shape[0] == 4 and not same(parts[0][0], parts[1][0])
  with pytest.raises(DataError, match=r'9 pictures for 12 processes'):
    twelve = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=12))
    batch.train_batches(examples(9), labels, twelve, process_count=12)


def test_the_draws_of_two_processes_differ_in_one_step(labels):
  config = configured(order='per_process', flip=False, scale_range=(0.5, 2.0))
  same_pictures = [dataclasses.replace(examples(1)[0], image_id=i) for i in range(4)]
  parts = [
    take(batch.train_batches(same_pictures, labels, config, process_index=p, process_count=2), 1)[0] for p in range(2)
  ]
  images = np.concatenate([part['image'] for part in parts])
  assert len({image.tobytes() for image in images}) == 4


def test_a_batch_of_one_picture(labels):
  one = configured(batch_size=1)
  (first,) = take(batch.train_batches(examples(5), labels, one), 1)
  (second,) = take(batch.train_batches(examples(5), labels, one, start_step=1), 1)
  assert first['image_id'].shape == (1,) and first['image_id'] != second['image_id']
  (whole,) = take(batch.train_batches(examples(5), labels, configured()), 1)
  (part,) = take(batch.train_batches(examples(5), labels, configured(), process_index=2, process_count=4), 1)
  assert same(part, {key: value[2:3] for key, value in whole.items()})


def test_seeds_differ(labels):
  (first,) = take(batch.train_batches(examples(5), labels, configured()), 1)
  (other,) = take(batch.train_batches(examples(5), labels, dataclasses.replace(configured(), seed=8)), 1)
  assert not same(first, other)


def test_tiny_data_set_fills_a_batch(labels):
  (first,) = take(batch.train_batches(examples(1), labels, configured()), 1)
  np.testing.assert_array_equal(first['image_id'], [100] * 4)
  assert len({image.tobytes() for image in first['image']}) == 4  # each drawn anew
  with pytest.raises(DataError, match='no pictures'):
    batch.train_batches([], labels, configured())


def test_broken_picture_is_one_line(labels):
  broken = examples(2)
  broken[1] = dataclasses.replace(broken[1], image=broken[1].image[:200])
  with pytest.raises(DataError, match='image 101') as caught:
    take(batch.train_batches(broken, labels, configured()), 2)
  assert '\n' not in str(caught.value)


# Workers import this script's __main__ again, as they would a user's; pytest's own is not fit for that.
_WORKERS = """
import sys
from unittest import mock
sys.path.insert(0, {tests!r})
import dataclasses
from tests.helpers.examples import *
from tests.helpers.joined import config, equal, planted
from vild_jax.data import batch
from vild_jax.data.schema import DataError

if __name__ == '__main__':
  labels = batch.label_map(CATEGORIES, NAMES, IS_BASE)
  joined = lambda **data: take(batch.train_batches(examples(5), labels, config(**data), regions=planted()), 3)
  assert all(map(equal, joined(), joined(workers=2)))
  repeated = lambda **data: take(batch.train_batches(examples(5), labels, configured(repeat_threshold=1.0, **data)), 3)
  with mock.patch.object(batch, '_shared_memory_holds', lambda workers, needed: False):
    assert all(map(same, repeated(), repeated(workers=1)))
  broken = [dataclasses.replace(e, image=e.image[:200]) for e in examples(2)]
  try:
    take(batch.train_batches(broken, labels, configured(workers=1)), 1)
    raise AssertionError('broken pictures went through')
  except DataError as error:
    print(error)
  plain, fast = (list(batch.eval_batches(examples(5), configured(workers=w), batch_size=2)) for w in (0, 1))
  assert len(plain) == len(fast) == 3 and all(map(same, plain, fast))
  left_open = batch.train_batches(examples(5), labels, configured(workers=1))
  held = next(left_open)
"""


def test_workers_give_the_same_batches_and_end_quietly_even_if_left_open(tmp_path):
  root = str(Path(__file__).resolve().parents[2])
  script = tmp_path / 'script.py'
  script.write_text(_WORKERS.format(tests=root))
  done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240, check=False)
  assert (done.returncode, done.stderr) == (0, ''), done.stderr
  assert done.stdout.startswith('image 10') and done.stdout.count('\n') == 1


_KILLED = """
import multiprocessing, os, signal, sys
sys.path.insert(0, {tests!r})
from tests.helpers.examples import *
from vild_jax.data import batch

if __name__ == '__main__':
  stream = batch.train_batches(examples(5), batch.label_map(CATEGORIES, NAMES, IS_BASE), configured(workers=1))
  next(stream)
  print(*[child.pid for child in multiprocessing.active_children()], flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_do_not_outlive_a_killed_run(tmp_path):
  script = tmp_path / 'script.py'
  script.write_text(_KILLED.format(tests=str(Path(__file__).resolve().parents[2])))
  # Inherited pipes stay open until the last worker is gone: communicate() returns only then.
  done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == -signal.SIGKILL and done.stdout.strip().isdigit(), done.stderr


def test_evaluation_takes_every_picture_once_in_order():
  source = examples(5)
  parts = [
    list(batch.eval_batches(source, configured(), batch_size=4, process_index=p, process_count=2)) for p in range(2)
  ]
  assert [len(p) for p in parts] == [2, 2]
  whole = {k: np.concatenate([p[step][k] for step in range(2) for p in parts]) for k in parts[0][0]}
  np.testing.assert_array_equal(whole['real'], [True] * 5 + [False] * 3)
  np.testing.assert_array_equal(whole['image_id'], [100, 101, 102, 103, 104, -1, -1, -1])
  assert whole['original_size'].dtype == np.int32 and whole['original_size'][1].tolist() == [23, 43]
  np.testing.assert_allclose(whole['image_size'][:5] / whole['original_size'][:5], whole['scale'][:5], rtol=1e-6)
  plain = transforms.resize_and_pad(pictures.decode(source[3].image), 64)
  np.testing.assert_array_equal(whole['image'][3], plain.image)
  assert not whole['image'][5:].any()


def test_evaluation_of_an_empty_set_ends_at_once():
  assert list(batch.eval_batches([], configured(), batch_size=4)) == []


def test_too_little_shared_memory_is_reported_with_what_it_would_take(monkeypatch, capsys):
  room = types.SimpleNamespace(f_bavail=16_384, f_frsize=4096)  # the 64 MiB of a container
  monkeypatch.setattr(batch.os, 'statvfs', lambda path: room)
  assert batch._shared_memory_holds(2, 2**26) and capsys.readouterr().err == ''
  assert not batch._shared_memory_holds(2, 300 * 2**20)
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('/dev/shm has 64 MiB, and batches of 2 workers take up to 300 MiB: they go through pipes')
