"""PASCAL VOC's XML, against boxes computed by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vild_jax.data import formats, sources
from vild_jax.data.schema import DataError

BOX = '<bndbox><xmin>3</xmin><ymin>1.0</ymin><xmax>12</xmax><ymax>20</ymax></bndbox>'
SIZE = '<size><width>40</width><height>20</height><depth>3</depth></size>'


def entry(name: str, more: str = '', box: str = BOX) -> str:
  return f'<object><name>{name}</name>{box}{more}</object>'


def xml(*entries: str, filename: str = '<filename>a.jpg</filename>', size: str = SIZE) -> str:
  return f'<annotation>\n{filename}{size}\n' + '\n'.join(entries) + '\n</annotation>'


def write(folder: Path, files: dict[str, str], pictures: tuple[str, ...] = ('a.jpg',)) -> tuple[Path, Path]:
  for name in pictures:
    (folder / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (40, 20)).save(folder / 'images' / name, 'JPEG')
  (folder / 'images').mkdir(parents=True, exist_ok=True)
  for name, text in files.items():
    (folder / 'xml' / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / 'xml' / name).write_text(text)
  return folder / 'xml', folder / 'images'


def test_boxes_count_from_one_and_include_their_end(tmp_path):
  part = f'<part><name>head</name>{BOX}</part>'
  text = xml(entry('dog', '<difficult>1</difficult>' + part), entry('cat', '<difficult>0</difficult>'))
  read = formats.read('voc', *write(tmp_path, {'1.xml': text}))
  assert read.tree['categories'] == [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]
  assert read.tree['images'] == [{'id': 1, 'file_name': 'a.jpg', 'height': 20, 'width': 40}]
  assert [(a['category_id'], a['bbox'], a['iscrowd'], a['segmentation']) for a in read.tree['annotations']] == [
    (2, [2, 0, 10, 20], 0, []),
    (1, [2, 0, 10, 20], 0, []),
  ]
  assert read.notes == ('1 object marked difficult kept as ordinary ones', '1 part of objects left out')
  assert not read.upright and read.where(2) == '1.xml, line 4'


def test_names_give_the_categories_and_their_order(tmp_path):
  arguments = write(tmp_path, {'1.xml': xml(entry('cat'))})
  (tmp_path / 'names').write_text('dog\ncat\n')
  read = formats.read('voc', *arguments, tmp_path / 'names')
  assert [c['name'] for c in read.tree['categories']] == ['dog', 'cat']
  assert read.tree['annotations'][0]['category_id'] == 2
  (tmp_path / 'names').write_text('dog\n')
  with pytest.raises(
    DataError, match=r"1.xml, line 3: the object 'cat' is of no known class; expected one of the 1 names"
  ):
    formats.read('voc', *arguments, tmp_path / 'names')


@pytest.mark.parametrize(
  ('filename', 'pictures', 'found'),
  [
    ('<filename>p.jpg</filename>', ('x/p.jpg', 'p.jpg'), 'x/p.jpg'),
    ('<filename>p.jpg</filename>', ('p.jpg',), 'p.jpg'),
    ('<filename>p</filename>', ('x/1.JPEG',), 'x/1.JPEG'),
    (r'<filename>C:\pictures\p.png</filename>', ('x/1.jpg',), 'x/1.jpg'),
    ('', ('x/1.png',), 'x/1.png'),
  ],
)
def test_the_picture_is_named_or_has_the_name_of_the_xml(tmp_path, filename, pictures, found):
  read = formats.read('voc', *write(tmp_path, {'x/1.xml': xml(entry('cat'), filename=filename)}, pictures))
  assert read.tree['images'][0]['file_name'] == found


def test_pictures_without_an_xml_file_are_counted(tmp_path):
  names = ('x/1.jpg', 'x/2.jpg', 'y/1.jpg', 'y/a\u0308.png', 'z/3.jpg')
  texts = {
    'x/1.xml': xml(entry('cat'), filename='<filename>1.jpg</filename>'),
    'y/5.xml': xml(entry('cat'), filename='<filename>\xe4.png</filename>'),
    '3.xml': xml(entry('cat'), filename='<filename>3.jpg</filename>'),
  }
  read = formats.read('voc', *write(tmp_path, texts, names))
  assert read.notes == ('2 pictures without an XML file left out',)  # x/2.jpg and y/1.jpg


def test_either_form_of_an_accent_finds_the_picture_and_its_size(tmp_path):
  text = xml(entry('cat'), filename='<filename>\u00e4.jpg</filename>', size='')
  read = formats.read('voc', *write(tmp_path, {'\u00e4.xml': text}, ('a\u0308.jpg',)))
  assert [(i['height'], i['width']) for i in read.tree['images']] == [(20, 40)]


def test_whole_sizes_may_be_written_as_fractions(tmp_path):
  read = formats.read('voc', *write(tmp_path, {'1.xml': xml(entry('cat'), size=SIZE.replace('40', '40.0'))}))
  assert read.tree['images'] == [{'id': 1, 'file_name': 'a.jpg', 'height': 20, 'width': 40}]


def test_files_that_count_from_0_are_noted(tmp_path):
  text = xml(entry('cat', box=BOX.replace('1.0', '0')), entry('cat'))
  read = formats.read('voc', *write(tmp_path, {'1.xml': text}))
  assert read.notes == (
    '1 box with a corner at 0: the files look 0-based; VOC counts from 1, and so all boxes are read',
  )


def test_objects_that_cannot_be_read_and_reversed_boxes_are_dropped_on_demand(tmp_path):
  reversed_box = BOX.replace('>3<', '>30<')
  text = xml(entry('cat'), entry('cat', box=''), entry('cat', box=reversed_box))
  arguments = write(tmp_path, {'1.xml': text})
  with pytest.raises(
    DataError, match=r"1.xml, line 4: the object 'cat' has xmin ''.*, or --drop-unusable to leave such"
  ):
    formats.read('voc', *arguments)
  read = formats.read('voc', *arguments, drop_unusable=True)
  assert read.notes == ('1 object that cannot be read dropped',)
  with pytest.raises(DataError, match=r'1.xml, line 5 has the box \[29.0, 0.0, -17.0, 20.0\] of no size'):
    sources.JsonSource(*arguments, converted=read)
  source = sources.JsonSource(*arguments, converted=read, drop_unusable=True)
  assert '1 annotation with a box of no size or outside the picture dropped' in source.notes
  assert source[0].objects.areas.tolist() == [200]


@pytest.mark.parametrize('size', ['', '<size><width>0</width><height>0</height></size>'])
def test_a_size_that_is_not_there_is_that_of_the_picture(tmp_path, size):
  read = formats.read('voc', *write(tmp_path, {'1.xml': xml(entry('cat'), size=size)}))
  assert (read.tree['images'][0]['height'], read.tree['images'][0]['width']) == (20, 40)
  assert read.notes == ('1 picture without a size in the XML: that of the file taken',)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('<annotation>', 'xml: 1.xml is not XML'),
    ('', 'xml: 1.xml is not XML'),
    (
      '<annotations></annotations>',
      'has the root <annotations>; expected an annotation of PASCAL VOC, with <annotation>',
    ),
    ('<!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;">]>\n<annotation>&y;</annotation>', r'line 1: a document type'),
    ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation></annotation>', 'a document type'),
    (xml(entry('cat'), size='<size><width>w</width></size>'), '1.xml: <size> has .* expected whole numbers'),
    (xml(entry('cat'), size=SIZE.replace('40', '40.5')), '1.xml: <size> has 20 and 40.5; expected whole numbers'),
    (xml(entry('cat'), size=SIZE.replace('40', 'inf')), '1.xml: <size> has 20 and inf; expected whole numbers'),
    (xml(entry('cat', box='')), r"1.xml, line 3: the object 'cat' has xmin ''; expected a <bndbox> of numbers"),
    (xml(entry('cat', box=BOX.replace('12', 'nan'))), "the object 'cat' has xmax 'nan'"),
    (xml(entry('')), "the object '' is of no known class"),
    (xml(entry('cat'), filename=''), r'1.xml: names no file, and .*images holds no picture 1; expected <filename>'),
  ],
)
def test_bad_files_are_one_line(tmp_path, text, message):
  with pytest.raises(DataError, match=message) as error:
    formats.read('voc', *write(tmp_path, {'1.xml': text}))
  assert '\n' not in str(error.value)


def test_a_folder_without_xml_is_refused(tmp_path):
  with pytest.raises(DataError, match=r'images holds no XML files; expected one for each picture'):
    formats.read('voc', tmp_path / 'images', write(tmp_path, {})[1])
