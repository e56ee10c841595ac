"""A list of checksums finds what is missing, cut or changed, and a sealed text every change of itself."""

from __future__ import annotations

import hashlib
import json

import pytest

from vild_jax.runtime import digests


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'd').mkdir()
  (tmp_path / 'a').write_bytes(b'one')
  (tmp_path / 'd' / 'b').write_bytes(bytes(3 * 2**20))  # several parts
  return tmp_path


def test_a_file_is_hashed_in_parts_that_are_told(folder):
  counts = []
  assert digests.sha256(folder / 'd' / 'b', counts.append) == hashlib.sha256(bytes(3 * 2**20)).hexdigest()
  assert sum(counts) == 3 * 2**20 and len(counts) > 1


def test_differences_name_every_file_that_is_not_as_listed(folder):
  names = sorted(digests.below(folder))
  listed = digests.of_files(folder, names)
  assert names == ['a', 'd/b'] and not list(digests.differences(folder, listed, 'list'))
  (folder / 'a').write_bytes(b'two')
  (folder / 'd' / 'b').write_bytes(b'')
  assert list(digests.differences(folder, listed, 'list')) == [
    f'{folder}/d/b has 0 bytes, list lists {3 * 2**20}',
    f'{folder}/a is damaged: it is not as it was written (list)',
  ]
  (folder / 'a').unlink()
  assert next(digests.differences(folder, listed, 'list')) == f'{folder}/a is missing, which list lists'


def test_a_sealed_text_shows_every_flipped_bit_and_can_be_sealed_again():
  content = digests.sealed({'a': [1, 'x'], 'b': None})
  assert digests.is_whole(content) and list(json.loads(content)) == ['a', 'b', 'sha256']
  for bit in range(8 * len(content)):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    assert not digests.is_whole(bytes(changed))
  tree = {**json.loads(content), 'c': 2}  # the older checksum is not the last entry
  assert digests.is_whole(digests.sealed(tree)) and json.loads(digests.sealed(tree))['c'] == 2
