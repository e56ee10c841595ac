"""Batches are made ahead of their use, in order; errors come in their place, and closing ends thread and stream."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from vild_jax.train.ahead import Ahead


def until(condition):
  for _ in range(1000):
    if condition():
      return True
    time.sleep(0.005)
  return False


def test_two_items_are_made_before_they_are_asked_for_and_no_more():
  placed = []
  items = Ahead(iter(range(10)), lambda i: placed.append(i) or 2 * i)
  assert until(lambda: len(placed) == 2)
  time.sleep(0.05)
  assert placed == [0, 1] and items.ready
  assert next(items) == 0 and until(lambda: placed == [0, 1, 2])
  assert list(items) == [2, 4, 6, 8, 10, 12, 14, 16, 18]
  with pytest.raises(StopIteration):
    next(items)
  items.close()


@pytest.mark.parametrize('where', ['items', 'place'])
def test_an_error_is_raised_where_its_item_would_be(where):
  def numbers():
    yield 0
    yield 1
    if where == 'items':
      raise KeyError('broken')
    yield 2

  def place(i):
    if i == 2:
      raise KeyError('broken')
    return i

  items = Ahead(numbers(), place)
  assert [next(items), next(items)] == [0, 1]
  for _ in range(2):  # a second time too, rather than waiting for ever
    with pytest.raises(KeyError, match='broken'):
      next(items)
  items.close()


def test_closing_ends_the_thread_and_closes_the_stream_where_it_stands():
  closed, threads = [], set(threading.enumerate())

  def numbers():
    try:
      yield from itertools.count()
    finally:
      closed.append(True)

  items = Ahead(numbers(), lambda i: i)
  assert next(items) == 0
  items.close()
  assert closed == [True] and set(threading.enumerate()) == threads


def test_what_is_not_ready_is_waited_for():
  may = threading.Event()
  items = Ahead(iter(range(1)), lambda i: may.wait(10) and i)
  assert not items.ready
  may.set()
  assert next(items) == 0
  items.close()
