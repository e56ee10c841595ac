"""Keeps the last pictures, with what the network made of them, so that new words need no image forward."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class HeldPicture:
  """Holds a picture.

  Attributes:
    id: SHA-256 of `encoded`, in hexadecimal digits.
    encoded: the file, from which crops of examples are taken.
    size: (height, width), upright.
    looked: what `Detector.look` returned.
  """

  id: str
  encoded: bytes
  size: tuple[int, int]
  looked: Any

  @property
  def nbytes(self) -> int:
    """Returns the bytes that it takes, on the host and on the device together."""
    return len(self.encoded) + self.looked.nbytes


class Held:
  """Holds pictures up to a number of them and of bytes; the one that was asked for the longest time ago goes first."""

  def __init__(self, most: int, most_bytes: int):
    self._most, self._most_bytes = most, most_bytes
    self._pictures: OrderedDict[str, HeldPicture] = OrderedDict()
    self._lock = threading.Lock()
    self.nbytes = 0

  def __len__(self) -> int:
    """Returns the number of pictures."""
    return len(self._pictures)

  def get(self, id: str) -> HeldPicture | None:
    """Returns a picture; None if it is not held."""
    with self._lock:
      if id not in self._pictures:
        return None
      self._pictures.move_to_end(id)
      return self._pictures[id]

  def put(self, picture: HeldPicture) -> None:
    """Keeps a picture, unless it is larger than all of them together may be."""
    if picture.nbytes > self._most_bytes:
      return
    with self._lock:
      if picture.id in self._pictures:
        return
      self._pictures[picture.id] = picture
      self.nbytes += picture.nbytes
      while len(self._pictures) > self._most or self.nbytes > self._most_bytes:
        self.nbytes -= self._pictures.popitem(last=False)[1].nbytes
