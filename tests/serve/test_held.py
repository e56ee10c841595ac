"""The pictures that are kept: by number, by bytes, the one that nobody asked for goes first."""

from __future__ import annotations

from tests.helpers.fake_detector import Looked
from vild_jax.serve.held import Held, HeldPicture


def picture(id: str, nbytes: int = 90) -> HeldPicture:
  return HeldPicture(id, b'0123456789', (4, 5), Looked((4, 5), nbytes))


def test_the_least_recently_used_goes_first():
  held = Held(2, 10**6)
  for id in 'ab':
    held.put(picture(id))
  assert held.get('a').id == 'a' and held.get('none') is None
  held.put(picture('c'))
  assert held.get('b') is None and held.get('a') and held.get('c')
  assert len(held) == 2 and held.nbytes == 200


def test_bytes_are_bounded():
  held = Held(10, 250)
  for id in 'abc':
    held.put(picture(id))
  assert len(held) == 2 and held.nbytes == 200 and held.get('a') is None
  held.put(picture('large', 241))
  assert held.get('large') is None and held.nbytes == 200
  held.put(picture('b'))
  assert held.nbytes == 200 and len(held) == 2


def test_nothing_is_kept_without_room():
  held = Held(10, 0)
  held.put(picture('a'))
  assert len(held) == 0 and held.nbytes == 0
