"""Files and folders are whole or not there, and an error names what the user asked for."""

from __future__ import annotations

import pytest

from vild_jax.runtime import files


def test_a_file_is_replaced_and_leaves_nothing_half_done(tmp_path):
  path = tmp_path / 'file'
  assert files.write(path, 'one') == path
  files.write(str(path), b'two')
  assert path.read_bytes() == b'two' and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = files.write(tmp_path / 'file', 'good')
  with pytest.raises(KeyError), files.replacing(path) as temporary:
    temporary.write_text('half')
    raise KeyError
  assert path.read_text() == 'good' and list(tmp_path.iterdir()) == [path]


def test_two_containers_whose_processes_have_one_number_do_not_share_a_temporary_file(tmp_path, monkeypatch):
  monkeypatch.setattr('os.getpid', lambda: 7)
  with files.replacing(tmp_path / 'file') as one:
    one.write_text('one')
    with files.replacing(tmp_path / 'file') as two:
      two.write_text('two')
    assert (tmp_path / 'file').read_text() == 'two' and one.read_text() == 'one'
  assert (tmp_path / 'file').read_text() == 'one' and len(list(tmp_path.iterdir())) == 1


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    files.write(tmp_path / 'none' / 'file', 'x')
  assert error.value.filename == str(tmp_path / 'none' / 'file')
  with pytest.raises(IsADirectoryError) as error:
    files.write(tmp_path, 'x')
  assert error.value.filename == str(tmp_path)


def test_an_error_in_words_keeps_them(tmp_path):
  with (
    pytest.raises(OSError, match=r'^the shard could not be written whole$'),
    files.replacing(tmp_path / 'file') as temporary,
  ):
    temporary.write_text('half')
    raise OSError('the shard could not be written whole')
  assert not list(tmp_path.iterdir())


def test_a_folder_appears_when_it_is_whole_and_replaces_the_old_one(tmp_path):
  for content in ('one', 'two'):
    with files.new_folder(tmp_path / 'a' / 'folder') as folder:
      (folder / content).write_text(content)
      assert not (tmp_path / 'a' / 'folder' / content).exists()
    assert [path.name for path in (tmp_path / 'a' / 'folder').iterdir()] == [content]
  with pytest.raises(KeyError), files.new_folder(tmp_path / 'a' / 'folder') as folder:
    (folder / 'three').write_text('half')
    raise KeyError
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['folder']
  assert [path.name for path in (tmp_path / 'a' / 'folder').iterdir()] == ['two']
