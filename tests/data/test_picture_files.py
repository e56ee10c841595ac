"""Which file a name of an annotation file finds, and which names find none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.helpers import small_set
from vild_jax.data import picture_files, sources
from vild_jax.data.schema import DataError

LINKS = '1 picture name beside another for one file outside the folder: links, kept as pictures of their own'


def _found(folder: Path, *names: str | dict) -> list[str]:
  """The place of each entry's file below the folder, or what is said instead."""
  entries = [name if isinstance(name, dict) else {'file_name': name} for name in names]
  given = [picture_files.picture_name(entry) for entry in entries]
  found = map(picture_files.PictureFolder(folder, given).locate, given)
  return [f if isinstance(f, str) else f.relative_to(folder).as_posix() for f in found]


def _files(folder: Path, *names: str) -> Path:
  for name in names:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b'')
  return folder


def _lvis(split: str, number: int) -> dict:
  return {'coco_url': f'http://images.cocodataset.org/{split}/{number:012d}.jpg'}


def test_a_name_is_a_path_in_the_folder_with_either_separator(tmp_path):
  _files(tmp_path, 'images/a.jpg', 'b.jpg', 'c\\d.jpg', 'c/e.jpg')
  names = ('images/a.jpg', 'images\\a.jpg', './images//a.jpg', 'x/../b.jpg', '.\\b.jpg', 'c\\d.jpg', 'c\\e.jpg')
  assert _found(tmp_path, *names) == [*['images/a.jpg'] * 3, *['b.jpg'] * 2, 'c\\d.jpg', 'c/e.jpg']


@pytest.mark.parametrize(
  'name', ['../a.jpg', 'x/../../a.jpg', '..', '/a.jpg', '//host/a.jpg', 'C:\\a.jpg', 'c:/a.jpg', '..\\a.jpg', '\\a.jpg']
)
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
  tree = small_set.annotations()
  tree['images'][1]['file_name'] = name
  path, images = small_set.write(tmp_path, tree)
  _files(tmp_path, 'a.jpg', 'images/a.jpg')
  with pytest.raises(DataError, match=r'image 5 names the file .*, outside the folder'):
    sources.JsonSource(path, images)


def test_a_name_is_found_by_its_last_folder_as_the_archives_of_objects365_put_it(tmp_path):
  _files(tmp_path, 'patch0/a.jpg', 'patch1/b.jpg', 'patch1/c.jpg', 'c.jpg')
  names = [f'images/v1/patch{i}/{name}.jpg' for i, name in enumerate('ab')]
  assert _found(tmp_path, *names) == ['patch0/a.jpg', 'patch1/b.jpg']
  assert 'it could be' in _found(tmp_path, 'images/v1/patch1/c.jpg')[0]
  assert all('it could be' in found for found in _found(tmp_path, 'v1/patch0/a.jpg', 'v2/patch0/a.jpg'))


def test_a_url_never_leads_out_of_the_folder(tmp_path):
  folder = _files(tmp_path, 'a.jpg', 'in/b.jpg') / 'in'
  assert 'is not in' in _found(folder, {'coco_url': 'http://x/../a.jpg'})[0]


def test_links_are_followed(tmp_path):
  _files(tmp_path, 'store/a.jpg', 'store/b.jpg', 'store/e.jpg')
  (tmp_path / 'images').mkdir()
  os.symlink(tmp_path / 'store', tmp_path / 'images' / 'train2017')
  os.symlink('../store/b.jpg', tmp_path / 'images' / 'c.jpg')
  os.symlink('nowhere', tmp_path / 'images' / 'd.jpg')
  found = _found(
    tmp_path / 'images', 'train2017/a.jpg', 'c.jpg', _lvis('train2017', 1) | {'file_name': 'e.jpg'}, 'd.jpg'
  )
  assert found[:3] == ['train2017/a.jpg', 'c.jpg', 'train2017/e.jpg'] and 'is not in' in found[3]


def test_lvis_finds_pictures_by_url_in_the_folder_above_and_in_the_folder_itself(tmp_path):
  _files(tmp_path, f'train2017/{1:012d}.jpg', f'val2017/{2:012d}.jpg')
  urls = _lvis('train2017', 1), _lvis('val2017', 2)
  assert _found(tmp_path, *urls) == [f'train2017/{1:012d}.jpg', f'val2017/{2:012d}.jpg']
  assert _found(tmp_path / 'train2017', urls[0]) == [f'{1:012d}.jpg']


def test_the_last_part_of_a_name_finds_a_picture_where_it_is_unambiguous(tmp_path):
  _files(tmp_path, '1.jpg', 'train2017/2.jpg', 'cam1/4.jpg')
  assert _found(tmp_path, 'images/1.jpg', '2.jpg', 'cam1/4.jpg') == ['1.jpg', 'train2017/2.jpg', 'cam1/4.jpg']


def test_a_guess_drops_no_folder_that_may_tell_pictures_apart(tmp_path):
  _files(tmp_path, '1.jpg', 'val2017/7.jpg')
  text = f'is not in {tmp_path}; expected it there. By the last part of its name alone it could be '
  assert _found(tmp_path, 'cam2/1.jpg', 'train2017/7.jpg') == [
    f"{text}'{tmp_path}/1.jpg'",
    f"{text}'{tmp_path}/val2017/7.jpg'",
  ]
  assert _found(tmp_path, _lvis('val2017', 1) | {'file_name': '1.jpg'}) == ['1.jpg']


def test_nor_is_one_made_where_the_tree_has_a_second_file_of_the_name(tmp_path):
  _files(tmp_path, '1.jpg', 'deep/er/1.jpg', '2.jpg', *(f'{i}/3.jpg' for i in range(5)))
  found = _found(tmp_path, 'images/1.jpg', 'images/2.jpg', '3.jpg')
  assert found[0].endswith(f"it could be '{tmp_path}/1.jpg' or '{tmp_path}/deep/er/1.jpg'") and found[1] == '2.jpg'
  assert found[2].endswith(f"'{tmp_path}/2/3.jpg' or 2 more")


def test_a_path_that_begins_with_the_end_of_the_folder_s_own_is_no_guess(tmp_path):
  folder = _files(tmp_path / 'cam1', '1.jpg')
  names = [picture_files.picture_name({'file_name': f'{where}/1.jpg'}) for where in ('cam1', f'{tmp_path.name}/cam1')]
  for name in names:
    pictures = picture_files.PictureFolder(folder, [name])
    assert pictures.locate(name) == folder / '1.jpg' and pictures.guessed == 0


def test_guesses_are_counted(tmp_path):
  tree = small_set.annotations()
  tree['images'][0]['file_name'] = 'v1/a.jpg'
  path, images = small_set.write(tmp_path, tree)
  (images / 'train2017' / '000000000011.jpg').rename(images / 'a.jpg')
  assert sources.JsonSource(path, images).notes == ('1 picture found by the last part of the name alone',)


@pytest.mark.parametrize(
  'name',
  ['images/a%20b.jpg', 'a%20b.jpg?x=1#y', 'https://s3.x.com/bucket/a%20b.jpg?X-Amz=1/2', 's3://bucket/images/a b.jpg'],
)
def test_percent_codes_and_urls_are_understood(tmp_path, name):
  _files(tmp_path, 'a b.jpg', 'x%20y.jpg')
  assert _found(tmp_path, name, 'x%20y.jpg') == ['a b.jpg', 'x%20y.jpg']


def test_percent_codes_do_not_lead_out_of_the_folder(tmp_path):
  folder = _files(tmp_path, 'a.jpg', 'in/b.jpg') / 'in'
  assert all(
    'is not in' in found for found in _found(folder, '%2e%2e/a.jpg', '..%2fa.jpg', f'%2f{folder.parent}/a.jpg')
  )


def test_it_does_not_where_another_name_ends_alike(tmp_path):
  folder = _files(tmp_path, '1.jpg', 'cam1/1.jpg')
  both = f"'{folder}/1.jpg' or '{folder}/cam1/1.jpg'"
  text = f'is not in {folder}; expected it there. By the last part of its name alone it could be {both}'
  assert _found(folder, 'cam1/1.jpg', 'cam2/1.jpg') == [
    'cam1/1.jpg',
    f'{text}, and 1 other name in the file ends alike',
  ]
  both = _found(folder, 'cam2/1.jpg', 'cam3/1.jpg', 'cam4\\1.jpg')
  assert both == [f'{text}, and 2 other names in the file end alike'] * 3


def test_nor_where_two_files_have_it(tmp_path):
  folder = _files(tmp_path, '1.jpg', 'val2017/1.jpg', 'train2017/1.jpg')
  places = ' or '.join(f"'{folder}/{p}1.jpg'" for p in ('', 'train2017/', 'val2017/'))
  assert _found(folder, 'cam/1.jpg')[0].endswith(f'it could be {places}')
  assert _found(folder, '1.jpg', 'val2017/1.jpg') == ['1.jpg', 'val2017/1.jpg']


def test_two_folders_that_are_one_are_no_ambiguity(tmp_path):
  _files(tmp_path, '1.jpg')
  os.symlink('.', tmp_path / 'train2017')
  assert _found(tmp_path, 'images/1.jpg') == ['1.jpg']


def test_both_ways_to_write_an_accent_find_the_file(tmp_path):
  apart, composed = 'caffe\u0300/u\u0308.jpg', 'caff\u00e8/\u00fc.jpg'
  _files(tmp_path / 'apart', apart)
  _files(tmp_path / 'composed', composed)
  _files(tmp_path / 'both', 'u\u0308.jpg', '\u00fc.jpg')
  assert _found(tmp_path / 'apart', apart, composed) == [apart] * 2
  assert _found(tmp_path / 'composed', apart, composed) == [composed] * 2
  assert _found(tmp_path / 'both', 'u\u0308.jpg', '\u00fc.jpg') == ['u\u0308.jpg', '\u00fc.jpg']


def test_a_name_that_differs_in_case_alone_is_named(tmp_path):
  folder = _files(tmp_path, 'Cam/A.JPG')
  text = f"is not in {folder}; expected it there. There is '{folder}/Cam/A.JPG', which differs in case alone"
  assert _found(folder, 'cam/a.jpg', 'x.jpg') == [text, f'is not in {folder}; expected it there']


@pytest.mark.parametrize('name', ['\0', 'a\nb.jpg', 'a' * 5000, '\ud800.jpg', 'folder', 'a.jpg/b.jpg'])
def test_names_that_no_file_can_have_are_one_line(tmp_path, name):
  tree = small_set.annotations()
  tree['images'][1] |= {'file_name': name, 'coco_url': None}
  path, images = small_set.write(tmp_path, tree)
  (images / 'folder').mkdir()
  _files(images, 'a.jpg')
  with pytest.raises(DataError, match=r'image 5 \(.*\) is not in') as error:
    sources.JsonSource(path, images)
  assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000


@pytest.mark.parametrize('changes', [{'file_name': None}, {'file_name': ''}, {'file_name': 3}, {'file_name': '.'}])
def test_an_entry_without_a_name_is_refused(tmp_path, changes):
  tree = small_set.annotations()
  tree['images'][1] |= {'coco_url': None} | changes
  with pytest.raises(DataError, match='image 5 names no file; expected "file_name" or "coco_url"'):
    sources.JsonSource(*small_set.write(tmp_path, tree))


def _same(tmp_path: Path, first: str, second: str) -> DataError:
  tree = small_set.annotations()
  tree['images'][0] |= {'file_name': first, 'coco_url': None}  # image 11
  tree['images'][2] |= {'file_name': second, 'coco_url': None}  # image 7
  path, images = small_set.write(tmp_path, tree)
  _files(images, '0001.jpg', 'a/0001.jpg')
  os.symlink('a', images / 'b')
  os.symlink('0001.jpg', images / 'c.jpg')
  with pytest.raises(DataError) as error:
    sources.JsonSource(path, images)
  assert '\n' not in str(error.value)
  return error.value


@pytest.mark.parametrize('names', [('0001.jpg', './0001.jpg'), ('a/0001.jpg', 'b/0001.jpg'), ('0001.jpg', 'c.jpg')])
def test_two_entries_with_one_file_are_refused(tmp_path, names):
  text = f"image 11 ('{names[0]}') and image 7 ('{names[1]}') are one file, '{tmp_path}/images/{names[0]}'"
  assert f'{text}; expected one entry of "images" for each' in str(_same(tmp_path, *names))


def test_pictures_of_two_cameras_are_not_one_by_their_number(tmp_path):
  error = str(_same(tmp_path, 'cam1/0001.jpg', 'cam2/0001.jpg'))
  assert "image 7 ('cam2/0001.jpg') is not in" in error and error.endswith('ends alike (1 more such problem)')


def test_links_of_two_names_to_one_file_outside_are_two_pictures(tmp_path):
  tree = small_set.annotations()
  for entry, name in zip(tree['images'], ('a.jpg', 'b.jpg', 'c.jpg', 'd.jpg'), strict=True):
    entry |= {'file_name': name, 'coco_url': None}
  path, images = small_set.write(tmp_path, tree)
  _files(tmp_path, 'cache/1', 'cache/2', 'cache/3', 'images/in.jpg')
  for name, number in zip('abcd', (1, 1, 2, 3), strict=True):
    os.symlink(tmp_path / 'cache' / str(number), images / f'{name}.jpg')
  assert sources.JsonSource(path, images).notes == (LINKS,)
  for name in ('c.jpg', 'd.jpg'):
    (images / name).unlink()
    os.symlink('in.jpg', images / name)
  with pytest.raises(DataError, match='are one file'):
    sources.JsonSource(path, images)


def test_a_size_that_is_not_there_is_that_of_the_file(tmp_path):
  tree = small_set.annotations()
  tree['images'][0] |= {'height': None, 'width': None}
  del tree['images'][1]['height'], tree['images'][1]['width']
  source = sources.JsonSource(*small_set.write(tmp_path, tree))
  assert [(source[i].height, source[i].width) for i in (0, 2)] == [small_set.SIZES[5], small_set.SIZES[11]]
  assert source.notes == ('2 pictures without a size in the annotations: that of the file taken',)
  tree['images'][0]['coco_url'] = 'x/nowhere.jpg'
  (tmp_path / 'small_train.json').write_text(json.dumps(tree))
  with pytest.raises(DataError, match='image entry 0 has id 11, height None and width None'):
    sources.JsonSource(tmp_path / 'small_train.json', tmp_path / 'images')
