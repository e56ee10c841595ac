"""Files and folders are whole or not there, errors name what the user asked for, and one process writes at a time."""

from __future__ import annotations

import ast
import errno
import os
import shutil
import threading
from pathlib import Path

import pytest

from vild_jax.runtime import files, locks

ROOT = Path(__file__).resolve().parents[2]


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_and_leaves_nothing_half_done(tmp_path):
  path = tmp_path / 'file'
  assert files.write(path, 'one') == path
  files.write(str(path), b'two')
  assert path.read_bytes() == b'two' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
  'writes',
  [
    lambda path: files.new_folder(path).__enter__(),
    lambda path: files.temporary_folder(path).__enter__(),
  ],
)
def test_an_address_is_not_taken_for_a_path(tmp_path, monkeypatch, writes):
  monkeypatch.chdir(tmp_path)
  for address in ('gs://bucket/run', Path('gs://bucket/run'), 's3://b/c'):
    with pytest.raises(
      ValueError, match=r'^(gs|s3):/.* is an address, and nothing is read or written there by this option; expected'
    ):
      writes(address)
  assert not list(tmp_path.iterdir()) and files.local('C:/data') == Path('C:/data')


@pytest.mark.parametrize(
  'writes',
  [
    lambda path: files.write(path, 'x'),
    lambda path: files.new_folder(path, marker='m').__enter__(),
    lambda path: locks.locked(path).__enter__(),
    files.path,
    files.absolute,
    files.fetched,
  ],
)
def test_an_address_of_another_kind_is_refused(tmp_path, monkeypatch, writes):
  monkeypatch.chdir(tmp_path)
  for address in ('s3://b/c', Path('s3://b/c'), 'https://x.org/a'):
    with pytest.raises(ValueError, match=r'^[a-z3]+:/.* is an address of a kind that is not supported; expected gs://'):
      writes(address)
  with pytest.raises(ValueError, match=r'^gs://B/c is not an address in a bucket; expected gs://BUCKET/NAME$'):
    writes('gs://B/c')
  assert not list(tmp_path.iterdir()) and files.local('C:/data') == Path('C:/data')


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


def test_an_error_of_a_write_or_a_flush_names_a_file_too(tmp_path, monkeypatch):
  """The system's own error has none, and `No space left on device` alone says nothing."""

  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  for context in (files.new_folder, files.temporary_folder):
    with pytest.raises(OSError, match='No space left') as error, context(tmp_path / 'a'):
      full()
    assert Path(error.value.filename) in (tmp_path / 'a', tmp_path)
  (tmp_path / 'file').touch()
  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space left') as error:
    files.move(tmp_path / 'file', tmp_path / 'other')
  assert error.value.filename == str(tmp_path / 'file')


def test_an_error_in_words_keeps_them(tmp_path):
  with (
    pytest.raises(OSError, match=r'^the shard could not be written whole$'),
    files.replacing(tmp_path / 'file') as temporary,
  ):
    temporary.write_text('half')
    raise OSError('the shard could not be written whole')
  assert not list(tmp_path.iterdir())


@pytest.fixture
def events(monkeypatch) -> list[str]:
  """What is flushed, by its path at that time, and 'rename' for each rename."""
  events = []
  fsync, replace, rename = os.fsync, os.replace, os.rename
  monkeypatch.setattr(
    os, 'fsync', lambda handle: (events.append(os.readlink(f'/proc/self/fd/{handle}')), fsync(handle))
  )
  monkeypatch.setattr(os, 'replace', lambda a, b: (events.append('rename'), replace(a, b)))
  monkeypatch.setattr(os, 'rename', lambda a, b: (events.append('rename'), rename(a, b)))
  return events


def test_the_content_is_flushed_before_the_rename_and_the_folder_after_it(tmp_path, events):
  files.write(tmp_path / 'file', 'x')
  assert len(events) == 3 and events[0].endswith('.tmp') and events[1:] == ['rename', str(tmp_path)]


def test_so_are_all_files_of_a_new_folder_and_what_is_moved(tmp_path, events):
  with files.new_folder(tmp_path / 'folder') as folder:
    (folder / 'below').mkdir()
    (folder / 'below' / 'file').write_text('x')
  assert sorted(events[:3]) == [str(folder), str(folder / 'below'), str(folder / 'below' / 'file')]
  assert events[3:] == ['rename', str(tmp_path)]
  (tmp_path / 'to').mkdir()
  for name, flushed in (('folder/below', 2), ('folder', 1), ('to/below/file', 1)):
    events.clear()
    source = tmp_path / name
    files.move(source, tmp_path / 'to' / source.name)
    assert len(events) == flushed + 2 and events[0] in (str(source), str(source / 'file'))
    assert events[-2:] == ['rename', str(tmp_path / 'to')]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
  (tmp_path / 'elsewhere').write_text('precious')
  (tmp_path / 'link').symlink_to(tmp_path / 'elsewhere')
  files.write(tmp_path / 'link', 'new')
  assert (tmp_path / 'elsewhere').read_text() == 'precious' and not (tmp_path / 'link').is_symlink()
  (tmp_path / 'old').mkdir()
  (tmp_path / 'old' / 'file').write_text('precious')
  (tmp_path / 'folder').symlink_to(tmp_path / 'old')
  with files.new_folder(tmp_path / 'folder', may_replace=lambda path: True) as folder:
    (folder / 'file').write_text('new')
  assert (tmp_path / 'old' / 'file').read_text() == 'precious' and (tmp_path / 'folder' / 'file').read_text() == 'new'


def test_a_device_is_written_to_and_stays_a_device(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  reader = threading.Thread(target=lambda: found.append((tmp_path / 'pipe').read_bytes()))
  found: list[bytes] = []
  reader.start()
  files.write(tmp_path / 'pipe', 'x')
  reader.join()
  assert found == [b'x'] and (tmp_path / 'pipe').is_fifo()


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_appears_when_it_is_whole_and_replaces_the_old_one(tmp_path):
  for content in ('one', 'two'):
    with files.new_folder(tmp_path / 'a' / 'folder', may_replace=lambda path: True) as folder:
      (folder / content).write_text(content)
      assert not (tmp_path / 'a' / 'folder' / content).exists()
    assert [path.name for path in (tmp_path / 'a' / 'folder').iterdir()] == [content]
  with (
    pytest.raises(KeyError),
    files.new_folder(tmp_path / 'a' / 'folder', may_replace=lambda path: True) as folder,
  ):
    (folder / 'three').write_text('half')
    raise KeyError
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['folder']
  assert [path.name for path in (tmp_path / 'a' / 'folder').iterdir()] == ['two']


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
  with files.new_folder(tmp_path / 'folder') as folder:
    (folder / 'good').write_text('good')
  rename, seen = os.rename, []

  def second_fails(source, target):
    seen.append(source)
    if len(seen) == 2:
      raise OSError(28, 'No space left on device')
    rename(source, target)

  monkeypatch.setattr(os, 'rename', second_fails)
  with (
    pytest.raises(OSError, match='No space left'),
    files.new_folder(tmp_path / 'folder', may_replace=lambda path: True) as folder,
  ):
    (folder / 'new').write_text('new')
  assert len(seen) == 3
  assert [path.name for path in tmp_path.iterdir()] == ['folder'] and (tmp_path / 'folder' / 'good').exists()


def test_the_old_folder_is_not_lost_where_it_cannot_come_back_either(tmp_path, monkeypatch):
  with files.new_folder(tmp_path / 'folder') as folder:
    (folder / 'good').write_text('good')
  rename, seen = os.rename, []

  def only_the_first_works(source, target):
    seen.append(source)
    if len(seen) > 1:
      raise OSError(28, 'No space left on device')
    rename(source, target)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'rename', only_the_first_works)
    with (
      pytest.raises(OSError, match='what stood there is in ') as error,
      files.new_folder(tmp_path / 'folder', may_replace=lambda path: True) as folder,
    ):
      (folder / 'new').write_text('new')
  kept = Path(str(error.value).rpartition('what stood there is in ')[2])
  assert (kept / 'good').read_text() == 'good'


def test_ctrl_c_between_the_two_renames_brings_the_old_folder_back(tmp_path, monkeypatch):
  with files.new_folder(tmp_path / 'folder') as folder:
    (folder / 'good').write_text('good')
  rename, seen = os.rename, []

  def interrupted_after_the_first(source, target):
    rename(source, target)
    seen.append(source)
    if len(seen) == 1:
      raise KeyboardInterrupt

  monkeypatch.setattr(os, 'rename', interrupted_after_the_first)
  with (
    pytest.raises(KeyboardInterrupt),
    files.new_folder(tmp_path / 'folder', may_replace=lambda path: True) as folder,
  ):
    (folder / 'new').write_text('new')
  assert [path.name for path in tmp_path.iterdir()] == ['folder'] and (tmp_path / 'folder' / 'good').exists()


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path):
  with pytest.raises(ValueError, match='folder exists; expected a new folder'), files.new_folder(tmp_path / 'folder'):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'of another process').write_text('precious')
  assert [path.name for path in (tmp_path / 'folder').iterdir()] == ['of another process']
  assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_made_for_nothing_goes_again(tmp_path):
  with pytest.raises(KeyError), files.temporary_folder(tmp_path / 'a' / 'b' / 'c') as folder:
    (folder / 'half').write_text('x')
    raise KeyError
  assert not list(tmp_path.iterdir())


def test_a_folder_in_which_a_thread_of_a_library_writes_on_is_removed_a_moment_later(tmp_path, monkeypatch):
  """As TensorStore does after one of its writes has failed: what was removed is made again."""
  remove, attempts = shutil.rmtree, []

  def and_made_again(path, **how):
    attempts.append(path)
    remove(path, **how)
    if len(attempts) < 3:
      (path / 'new').mkdir(parents=True)

  monkeypatch.setattr(shutil, 'rmtree', and_made_again)
  with pytest.raises(KeyError), files.new_folder(tmp_path / 'a' / 'b'):
    raise KeyError
  assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said_before_the_work(tmp_path):
  files.require_writable(files.write(tmp_path / 'file', 'good'))
  files.require_writable('/dev/null')
  assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [('file', 'good')]
  for path in (tmp_path, tmp_path / 'file' / 'below', tmp_path / 'none' / 'file'):
    with pytest.raises(OSError, match='directory') as error:
      files.require_writable(path)
    assert error.value.filename == str(path)


# --- no other way ---------------------------------------------------------------------------------------------------

_WRITES = {'write_text', 'write_bytes', 'save', 'savez', 'savez_compressed', 'savefig', 'imwrite', 'copyfile'}
_WRITES |= {'copytree', 'rename', 'renames', 'move', 'mkdtemp', 'mkstemp', 'NamedTemporaryFile', 'symlink_to'}
# Function -> why it may: it writes below a temporary path that its caller made, into memory, or through a library that
# makes files whole itself.
MAY_WRITE = {
  'runtime/files.py': 'the way itself',
  'runtime/buckets.py': 'the way itself in buckets; temporary folders of this machine',
  'data/regions/locks.py': 'makes lock files, which hold nothing',
  'runtime/locks.py': 'makes lock files, which say who holds them',
  'demo/world.py:_render': 'below the new folder of `generate`',
  'data/regions/writer.py:StoreWriter.finish': 'into memory',
  'eval/results.py:ResultsWriter.__enter__': 'the temporary file of `files.replacing`, open until the block ends',
  'eval/summary.py:_png': 'into memory',
  'portable/savedmodel.py:_save': 'TensorFlow; below the new folder of `portable.folder.write`',
  'portable/run.py:main': 'runs without this package: drawings for whoever asked for them',
  'report/pictures.py:inline': 'into memory',
  'teacher/checkpoint.py:_save': 'into memory',
  'train/bundle_files.py:keep_others': 'below the new folder of its callers',
  'train/checkpoint.py:Checkpoints.save': 'Orbax makes checkpoints whole',
  'train/weights.py:save': 'Orbax; below the new folder of its callers',
  'train/writers.py:WorkdirWriter.__init__': 'opens the log that grows line by line; a half-written line is left out',
}


def writes(source: str) -> list[tuple[str, int]]:
  """(function, line) of each call that writes, renames or makes a temporary file outside of a block of `files`."""
  found: list[tuple[str, int]] = []

  def visit(node: ast.AST, function: str, safe: bool) -> None:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      function = f'{function}.{node.name}'.strip('.')
    if isinstance(node, ast.With):
      safe = safe or any('files.' in ast.unparse(item.context_expr) for item in node.items)
    if isinstance(node, ast.Call):
      name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, 'id', '')
      on = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ''
      modes = [a.value for a in [*node.args, *(k.value for k in node.keywords if k.arg == 'mode')]
               if isinstance(a, ast.Constant) and isinstance(a.value, str)]  # fmt: skip
      opens = name == 'open' and any(set(mode) <= set('rwaxbt+') and set(mode) & set('wax+') for mode in modes)
      ours = on in ('files', 'vocabulary_lib', 'vocabulary', 'checkpoint', 'checkpoints', 'weights') or 'files.' in on
      renames = name == 'replace' and on == 'os'
      if (opens or renames or (name in _WRITES and not ours)) and not safe:
        found.append((function, node.lineno))
    for child in ast.iter_child_nodes(node):
      visit(child, function, safe)

  visit(ast.parse(source), '', False)
  return found


@pytest.mark.parametrize(
  'path', sorted((ROOT / 'vild_jax').rglob('*.py')), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_there_is_no_other_way_to_write(path):
  name = path.relative_to(ROOT / 'vild_jax').as_posix()
  wrong = [
    f'{name}:{line} ({function})'
    for function, line in writes(path.read_text(encoding='utf-8'))
    if name not in MAY_WRITE and f'{name}:{function}' not in MAY_WRITE
  ]
  assert not wrong, f'{", ".join(wrong)} write otherwise than by runtime.files; expected one way to write'


@pytest.mark.parametrize(
  'line',
  [
    "open(p, 'w')",
    "p.open('ab')",
    "open(p, mode='x')",
    'p.write_text(x)',
    'os.replace(a, b)',
    'a.rename(b)',
    'np.savez(p, a=1)',
    'image.save(p)',
    'shutil.copyfile(a, b)',
    'tempfile.mkdtemp()',
  ],
)
def test_other_ways_to_write_are_found(line):
  assert writes(f'def f():\n  {line}\n') == [('f', 2)]
  assert writes(f'def f():\n  with files.replacing(p) as t:\n    {line}\n') == []


@pytest.mark.parametrize('line', ['open(p)', "open(p, 'rb')", 'p.read_text()', "text.replace('a', 'b')"])
def test_reading_is_no_writing(line):
  assert not writes(line)
