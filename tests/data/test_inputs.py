"""What the arguments of a command name, and that no two of them share a name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vild_jax.data import inputs as inputs_lib
from vild_jax.data.schema import DataError

ENDINGS = ('_found.png',)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
  """The working directory, with files of no content: names alone count."""
  monkeypatch.chdir(tmp_path)
  for name in (
    'a/x.jpg', 'a/b/x.PNG', 'a/b/y.webp', 'a/notes.txt', 'a/.hidden.png', 'a/.cache/z.png', 'a/clip.mp4', 'x.jpg',
    'photo[1].png', 'clip.MP4', 'odd', 'c/x.png', 'c/X.jpeg', 'empty/notes.txt',
  ):  # fmt: skip
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  return tmp_path


def named(*arguments: str, out: str = 'out', endings: tuple[str, ...] = ENDINGS) -> dict[str, str]:
  """{name: path} of the inputs."""
  found = inputs_lib.inputs(arguments, Path(out), endings)
  assert len({item.name for item in found}) == len(found)
  return {item.name: str(item.path) for item in found}


def test_files_folders_and_globs(folder):
  assert named('x.jpg') == {'x': 'x.jpg'}
  assert named('odd', 'photo[1].png', 'clip.MP4') == {'odd': 'odd', 'photo[1]': 'photo[1].png', 'clip': 'clip.MP4'}
  below = {'b_x': 'a/b/x.PNG', 'b_y': 'a/b/y.webp', 'x': 'a/x.jpg'}
  assert named('a') == named('a/') == below
  assert list(named('a')) == ['b_x', 'b_y', 'x']
  assert named('a/*') == {'clip': 'a/clip.mp4', 'x': 'a/x.jpg', 'x_2': 'a/b/x.PNG', 'y': 'a/b/y.webp'}
  assert named('a/**/*') == {'x': 'a/b/x.PNG', 'y': 'a/b/y.webp', 'clip': 'a/clip.mp4', 'x_2': 'a/x.jpg'}
  assert [item.is_video for item in inputs_lib.inputs(['x.jpg', 'clip.MP4'], Path('out'))] == [False, True]


def test_inputs_of_one_name_get_a_number_whatever_the_case(folder):
  assert named('a/x.jpg', 'x.jpg', 'c/X.jpeg', 'c/x.png') == {
    'x': 'a/x.jpg', 'x_2': 'x.jpg', 'X_3': 'c/X.jpeg', 'x_4': 'c/x.png'
  }  # fmt: skip
  for name in ('x_2.jpg', 'caf\u00e9.jpg', 'cafe\u0301.jpg'):
    (folder / 'c' / name).touch()
  found = named('a/x.jpg', 'x.jpg', 'c/x_2.jpg', 'c/caf\u00e9.jpg', 'c/cafe\u0301.jpg')
  assert list(found) == ['x', 'x_2', 'x_2_2', 'caf\u00e9', 'cafe\u0301_2']


def test_one_file_counts_once(folder):
  (folder / 'link.jpg').symlink_to('x.jpg')
  assert named('x.jpg', './x.jpg', str(folder / 'x.jpg'), 'link.jpg', '*.jpg') == {'x': 'x.jpg'}


def test_no_result_takes_the_place_of_an_input(folder):
  (folder / 'x_found.png').touch()
  assert named('x.jpg', 'x_found.png', out='.') == {'x_2': 'x.jpg', 'x_found': 'x_found.png'}
  (folder / 'X_2_found.png').touch()
  assert named('x.jpg', 'X_2_found.png', 'x_found.png', out='.')['x_3'] == 'x.jpg'


def test_results_in_a_folder_of_pictures_are_no_inputs(folder):
  (folder / 'a' / 'out').mkdir()
  (folder / 'a' / 'out' / 'x_found.png').touch()
  (folder / 'a' / 'outer.png').touch()
  assert set(named('a', out='a/out')) == {'b_x', 'b_y', 'x', 'outer'}
  for out in ('a', 'a/b/..'):
    with pytest.raises(
      DataError, match=r'^a is the folder of the pictures and of the results; expected another --out$'
    ):
      named('a', out=out)


def test_results_are_no_matches_when_a_glob_is_asked_again(folder):
  globs = ('*.*', '*', '**/*.*', 'c/*')
  (folder / 'c' / 'x_found.png').touch()  # of somebody else
  before = [[named(of, out=out) for of in globs] for out in ('out', '.')]
  assert 'x_found' in before[0][3]
  for out, expected in zip(('out', '.'), before, strict=True):
    (folder / out).mkdir(exist_ok=True)
    result = folder / out / 'x_found.png'
    result.touch()
    assert [named(of, out=out) for of in globs] == expected
    assert named('x_found.png' if out == '.' else 'out/x_found.png', out=out) != {}  # a file that is named counts
    result.unlink()


def test_long_names_are_shortened_and_differ(folder):
  for last in 'ab':
    (folder / 'c' / ('\u00e9' * 100 + last + '.jpg')).touch()
  names = [item.name for item in inputs_lib.inputs(['c'], Path('out'))]
  assert len(set(names)) == len(names) == 4 and max(len(os.fsencode(name)) for name in names) == 162


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('none.jpg', 'none.jpg does not exist; expected a picture, a video, a folder of pictures or a glob'),
    ('empty', 'empty holds no picture; expected files that end with .jpg '),
    ('*.gif', r'\*.gif matches no picture and no video; expected a glob such as'),
    ('empty/*', r'empty/\* matches no picture and no video'),
  ],
)
def test_what_names_nothing_is_said_in_one_line(folder, argument, message):
  with pytest.raises(DataError, match=f'^{message}') as error:
    named('x.jpg', argument)
  assert '\n' not in str(error.value)
