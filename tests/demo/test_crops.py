"""The crops that the toy teacher learns from: every category, a label that is right, and background without objects."""

from __future__ import annotations

import numpy as np
import pytest

from vild_jax.demo import crops as toy_crops
from vild_jax.demo import world as toy_world


def test_crops_for_the_teacher():
  images, labels = toy_crops.captioned_crops(3, 100, size=24)
  assert images.shape == (100, 24, 24, 3) and images.dtype == np.uint8 and labels.dtype == np.int32
  assert len(toy_world.caption_names()) == 49 and toy_world.caption_names()[:48] == toy_world.category_names()
  counts = np.bincount(labels, minlength=49)
  assert counts[:48].min() >= 1 and counts[:48].max() <= 3 and 5 <= counts[48] <= 20  # the last one: no object
  fewer, fewer_labels = toy_crops.captioned_crops(3, 40, size=24)
  np.testing.assert_array_equal(fewer, images[:40])
  np.testing.assert_array_equal(fewer_labels, labels[:40])
  assert (toy_crops.captioned_crops(4, 40, size=24)[0] != fewer).any()


def test_a_bar_counts_the_crops(monkeypatch):
  bars, of_product = [], toy_crops.progress.bar
  monkeypatch.setattr(
    toy_crops.progress, 'bar', lambda *args, **named: bars.append(of_product(*args, **named)) or bars[0]
  )
  toy_crops.captioned_crops(3, 20, size=24)
  assert [(bar.total, bar.n) for bar in bars] == [(20, 20)]


@pytest.mark.parametrize(
  ('look', 'expected'),
  [('red square', [1, 0, 0]), ('yellow square', [1, 1, 0]), ('green square', [0, 1, 0]), ('blue square', [0, 0, 1])],
)
def test_a_crop_shows_what_its_label_says(look, expected):
  images, labels = toy_crops.captioned_crops(0, 1000)
  crops = images[labels == toy_world.looks().index(look)]
  centre = np.median(crops[:, 12:20, 12:20].astype(float), axis=(0, 1, 2))
  np.testing.assert_array_equal(centre > 0.6 * centre.max(), np.array(expected, bool))


def test_the_ground_shows_no_object():
  objects = np.zeros((90, 80), bool)
  objects[:, :60] = True
  picture = np.where(objects, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=-1)
  parts = [toy_crops._ground(np.random.default_rng(i), picture, objects) for i in range(30)]
  found = [part for part in parts if part is not None]
  assert len(found) > 5 and all(part.mean() <= 0.1 * 255 and min(part.shape[:2]) >= 14 for part in found)
  assert toy_crops._ground(np.random.default_rng(0), picture, np.ones_like(objects)) is None
