"""A folder of a bucket is copied once, file by file, whole."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vild_jax.runtime import buckets, copies, files


@pytest.fixture
def folder(bucket, request):
  return files.path(f'{bucket}/{request.node.name}/data')


def write(folder, **contents: str) -> None:
  for name, content in contents.items():
    buckets.write(folder / name.replace('_', '/'), content.encode())


def content(of: Path) -> dict[str, str]:
  return {path.relative_to(of).as_posix(): path.read_text() for path in of.rglob('*') if path.is_file()}


def test_a_path_needs_no_copy_and_an_address_a_place_for_one(tmp_path):
  assert copies.cached(tmp_path / 'x', '') == tmp_path / 'x'
  with pytest.raises(ValueError, match=r'^gs://a-bucket/x is in a bucket, .* expected data.cache=DIR'):
    copies.cached('gs://a-bucket/x', '')


def test_what_has_changed_or_is_not_whole_is_copied_again_and_nothing_else(folder, tmp_path, monkeypatch):
  write(folder, a='one', sub_b='two', sub_c='three')
  copy = copies.cached(folder, str(tmp_path))
  assert copy.name == 'data' and content(copy) == {'a': 'one', 'sub/b': 'two', 'sub/c': 'three'}
  download, seen = buckets.download, []
  monkeypatch.setattr(buckets, 'download', lambda source, target: (seen.append(source.name), download(source, target)))
  assert copies.cached(str(folder), str(tmp_path)) == copy and not seen
  write(folder, a='ONE')  # of equal length
  (copy / 'sub' / 'b').write_text('half of two')
  (folder / 'sub' / 'c').unlink()
  assert content(copies.cached(folder, str(tmp_path))) == {'a': 'ONE', 'sub/b': 'two'} and sorted(seen) == ['a', 'b']
  with pytest.raises(ValueError, match=r'/nothing holds no files; expected the folder of a prepared data set'):
    copies.cached(folder / 'nothing', str(tmp_path))


def test_a_file_that_comes_damaged_stops_it_and_the_whole_ones_stay(folder, tmp_path, monkeypatch):
  write(folder, a='one', b='two')
  download, seen = buckets.download, []

  def damaged(source, target):
    seen.append(source.name)
    download(source, target)
    if source.name == 'b':
      target.write_text('tvo')

  with monkeypatch.context() as patch:
    patch.setattr(buckets, 'download', damaged)
    with pytest.raises(OSError, match=r'/data/b came as .* and the bucket says .*; expected a whole file'):
      copies.cached(folder, str(tmp_path))
  (copy,) = tmp_path.glob('*/data')
  assert content(copy) == {'a': 'one'}
  seen.clear()
  monkeypatch.setattr(buckets, 'download', lambda source, target: (seen.append(source.name), download(source, target)))
  assert content(copies.cached(folder, str(tmp_path))) == {'a': 'one', 'b': 'two'} and seen == ['b']


def test_the_processes_of_a_machine_share_a_copy(folder, tmp_path, monkeypatch):
  write(folder, a='one', b='two')
  download, seen = buckets.download, []
  monkeypatch.setattr(buckets, 'download', lambda source, target: (seen.append(source.name), download(source, target)))
  threads = [threading.Thread(target=copies.cached, args=(folder, str(tmp_path))) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(seen) == ['a', 'b']
