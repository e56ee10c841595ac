"""The example pictures of the page."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.helpers.encoded import encode, oriented
from vild_jax.serve import examples


@pytest.fixture
def folder(tmp_path):
  """That of the pictures in the bundle `tmp_path`."""
  (tmp_path / 'examples').mkdir()
  return tmp_path / 'examples'


def test_pictures_of_a_folder(folder, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  (folder / 'b.png').write_bytes(encode(pixels))
  (folder / 'a.jpg').write_bytes(encode(pixels, 'JPEG', exif=oriented(6)))
  (folder / 'c.png').write_bytes(encode(np.zeros((2048, 512, 3), np.uint8)))
  (folder / 'notes.txt').write_text('of people')
  found = examples.read(tmp_path)
  assert [(one.name, one.width, one.height) for one in found] == [('a', 20, 30), ('b', 30, 20), ('c', 256, 1024)]
  for one in found:
    assert Image.open(io.BytesIO(one.png)).size == (one.width, one.height)
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found[1].png))), pixels)
  (folder / 'd.png').write_bytes(b'nothing')
  with pytest.raises(ValueError, match=r'd\.png: no readable picture'):
    examples.read(tmp_path)


def test_pictures_that_differ_in_their_suffix_have_names_of_their_own(folder, tmp_path):
  for name in ('a.jpg', 'a.png', 'b.png'):
    (folder / name).write_bytes(encode(np.zeros((2, 3, 3), np.uint8)))
  assert [one.name for one in examples.read(tmp_path)] == ['a.jpg', 'a.png', 'b']


def test_links_to_pictures_elsewhere_on_the_machine_are_left_out(folder, tmp_path):
  """A bundle is of others, and everybody who reaches the service sees its examples."""
  (folder / 'b.png').write_bytes(encode(np.zeros((2, 3, 3), np.uint8)))
  (folder / 'c.png').symlink_to('b.png')
  (folder / 'a.png').symlink_to(folder / 'b.png')
  assert [one.name for one in examples.read(tmp_path)] == ['a', 'b', 'c']
  elsewhere = tmp_path.with_name(f'{tmp_path.name} private.png')
  elsewhere.write_bytes(encode(np.zeros((9, 9, 3), np.uint8)))
  (folder / 'a.png').unlink()
  (folder / 'a.png').symlink_to(elsewhere)
  assert [one.name for one in examples.read(tmp_path)] == ['b', 'c']


def test_without_a_folder_they_are_drawn(tmp_path):
  found = examples.read(tmp_path / 'none')
  assert len({one.png for one in found}) == 4 and found == examples.drawn()
