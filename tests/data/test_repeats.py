"""Repeat-factor sampling: factors of the LVIS paper, epochs of their size, the same stream whatever runs it."""

from __future__ import annotations

import collections
import copy

import numpy as np
import pytest

from tests.helpers.examples import CATEGORIES, IS_BASE, NAMES, configured, example, objects, same, take
from vild_jax.data import batch, repeats

BOX = (2, 3, 15, 11)
# What each picture shows, as (category id, crowd or not): 3 and 5 are base, 9 is novel, 77 in no vocabulary.
SHOWN = [
  [(3, False), (3, False)],
  [(3, False)],
  [(3, False), (5, False)],
  [],
  [(3, False), (9, False)],
  [(3, False), (5, True)],
  [(77, False)],
  [(3, False)],
]
BASE, ALL = {3: 3, 5: 0}, {3: 3, 5: 0, 9: 2}


def dataset():
  rng = np.random.default_rng(0)
  image = lambda: rng.integers(0, 256, (20, 24, 3), np.uint8)
  return [example(image(), objects(*((c, BOX, crowd) for c, crowd in shown)), 100 + i) for i, shown in enumerate(SHOWN)]


def factors_by_hand(trained, threshold):
  """Straight from the definition, picture by picture."""
  result = []
  for shown in SHOWN:
    factor = 1.0
    for category in [c for c, crowd in shown if not crowd and c in trained]:
      share = np.mean([any(c == category and not crowd for c, crowd in other) for other in SHOWN])
      factor = max(factor, np.sqrt(threshold / share))
    result.append(factor)
  return result


@pytest.mark.parametrize('trained', [BASE, ALL])
@pytest.mark.parametrize('threshold', [0.001, 0.3, 0.5, 1.0])
def test_factors_are_those_of_the_definition(trained, threshold):
  found = repeats.image_factors(dataset(), trained, threshold)
  np.testing.assert_allclose(found, factors_by_hand(trained, threshold), rtol=1e-12)
  assert found.min() >= 1 and found[3] == found[6] == 1


def test_factors_by_example():
  """Category 5 is in one picture of eight: √(0.5 · 8) = 2; 3 in six of eight; a novel one counts where it trains."""
  np.testing.assert_allclose(repeats.image_factors(dataset(), BASE, 0.5), [1, 1, 2, 1, 1, 1, 1, 1])
  np.testing.assert_allclose(repeats.image_factors(dataset(), ALL, 0.5), [1, 1, 2, 1, 2, 1, 1, 1])


def test_fractions_are_rounded_at_random_anew_in_each_epoch():
  factors = np.array([1.0, 2.25, 1.5, 3.0])
  epochs = [np.bincount(repeats.epoch_order(factors, np.random.default_rng(e)), minlength=4) for e in range(800)]
  assert {tuple(np.unique(c)) for c in np.transpose(epochs)} == {(1,), (2, 3), (1, 2), (3,)}
  np.testing.assert_allclose(np.mean(epochs, axis=0), factors, atol=0.08)  # four deviations


def stream_of(count, seed=4, start=0):
  factors = np.array([1.0, 2.25, 1.5, 3.0, 1.01])
  made = repeats.Repeated(list(range(5)), factors, seed)
  return [made[i] for i in range(start, start + count)]


def test_epochs_follow_each_other():
  """The endless stream is one epoch after another, each of its own length and order."""
  factors = np.array([1.0, 2.25, 1.5, 3.0, 1.01])
  orders = [
    repeats.epoch_order(factors, np.random.default_rng(np.random.SeedSequence(4, spawn_key=(e, 2)))) for e in range(20)
  ]
  assert len({len(order) for order in orders}) > 1 and len({tuple(order) for order in orders}) == 20
  expected = np.concatenate(orders)
  assert stream_of(len(expected)) == expected.tolist()
  assert stream_of(60, seed=5) != expected[:60].tolist()


def test_any_position_can_be_asked_first():
  whole = stream_of(300)
  assert stream_of(7, start=280) == whole[280:287]
  made = repeats.Repeated(list(range(5)), np.array([1.0, 2.25, 1.5, 3.0, 1.01]), 4)
  order = np.random.default_rng(0).permutation(300)
  assert [made[int(i)] for i in order] == [whole[i] for i in order]
  assert copy.copy(made)[299] == whole[299]


# --- the stream of batches ------------------------------------------------------------------------------------------


@pytest.fixture
def stream():
  labels = batch.label_map(CATEGORIES, NAMES, IS_BASE)
  return lambda threshold=0.5, **where: batch.train_batches(
    dataset(), labels, configured(repeat_threshold=threshold), **where
  )


def test_batches_hold_rare_categories_more_often(stream):
  seen = collections.Counter(np.concatenate([b['image_id'] for b in take(stream(), 36)]).tolist())
  assert seen[102] == 32 and all(seen[100 + i] == 16 for i in range(8) if i != 2)  # 16 epochs of 9 pictures


def test_resume_and_processes_share_one_stream(stream):
  whole = take(stream(), 6)
  assert all(map(same, take(stream(start_step=4), 2), whole[4:]))
  parts = [take(stream(start_step=4, process_index=p, process_count=2), 2) for p in range(2)]
  for step, expected in enumerate(whole[4:]):
    assert same({k: np.concatenate([p[step][k] for p in parts]) for k in expected}, expected)


def test_novel_labels_train_where_they_are_asked_for():
  labels = batch.label_map(CATEGORIES, NAMES, IS_BASE, novel=True)
  config = configured(repeat_threshold=0.5, scale_range=(1.0, 1.0))
  batches = take(batch.train_batches(dataset(), labels, config), 10)
  seen = collections.Counter(np.concatenate([b['image_id'] for b in batches]).tolist())
  assert seen[104] == seen[102] == 2 * seen[100]
  assert {int(x) for b in batches for x in b['labels'][b['valid']]} == {0, 2, 3}
