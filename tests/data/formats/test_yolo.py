"""YOLO label files, against boxes computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.encoded import oriented
from tests.helpers.small_experiment import run
from vild_jax.data import formats, pictures, prepare, sources
from vild_jax.data.schema import DataError

NAMES = 'names: [cat, dog]\n'


def write(folder: Path, labels: dict[str, str], names: str = NAMES, files: tuple[str, ...] = ('a.jpg', 'b.png')):
  """Pictures, 40 wide and 20 high, labels and data.yaml; returns the arguments of `formats.read` after the format."""
  for name in files:
    (folder / 'images' / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (40, 20), (200, 30, 90)).save(folder / 'images' / name)
  (folder / 'labels').mkdir(exist_ok=True)
  for name, text in labels.items():
    (folder / 'labels' / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / 'labels' / name).write_text(text)
  (folder / 'data.yaml').write_text(names)
  return folder / 'labels', folder / 'images', folder / 'data.yaml'


def objects(read: formats.Converted) -> list[tuple]:
  return [
    (a['image_id'], a['category_id'], pytest.approx(a['bbox']), a['segmentation']) for a in read.tree['annotations']
  ]


def test_boxes_and_polygons_of_pictures_in_folders(tmp_path):
  text = '1 0.5 0.5 0.25 0.5\r\n\r\n0.0 0.1 0.2 0.5 0.2 0.5 0.6\r\n'
  read = formats.read('yolo', *write(tmp_path, {'x/c.d.txt': text}, files=('b.jpg', 'a.png', 'x/c.d.JPG')))
  assert read.tree['categories'] == [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]
  assert [(i['id'], i['file_name'], i['height'], i['width']) for i in read.tree['images']] == [
    (1, 'a.png', 20, 40),
    (2, 'b.jpg', 20, 40),
    (3, 'x/c.d.JPG', 20, 40),
  ]
  assert objects(read) == [
    (3, 2, [15, 5, 10, 10], []),  # centre (20, 10), 10 wide and high
    (3, 1, [4, 4, 16, 8], [pytest.approx([4, 4, 20, 4, 20, 12])]),  # a triangle
  ]
  assert read.notes == ('2 pictures without a label file: taken to show no object',)
  assert read.upright and read.where(2) == 'x/c.d.txt, line 3'


@pytest.mark.parametrize(
  ('names', 'found'),
  [
    ('names:\n  1: dog\n  0: cat\n', ['cat', 'dog']),
    ('nc: 2\nnames: ["no", 7]\n', ['no', '7']),
    ('names: [010, 1:30, 0x1f, 1_000]\n', ['010', '1:30', '0x1f', '1_000']),  # not 8, 90, 31 and 1000
  ],
)
def test_names_of_data_yaml(tmp_path, names, found):
  read = formats.read('yolo', *write(tmp_path, {'a.txt': ''}, names))
  assert [c['name'] for c in read.tree['categories']] == found


def test_names_of_a_text_file_beside_the_labels(tmp_path):
  labels, images, _ = write(tmp_path, {'a.txt': '1 .5 .5 .5 .5', 'classes.txt': 'x', 'mine.txt': 'red mug\r\nant\n\n'})
  read = formats.read('yolo', labels, images, labels / 'mine.txt')
  assert [c['name'] for c in read.tree['categories']] == ['red mug', 'ant']
  assert len(read.tree['annotations']) == 1


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    ('path: x', r'data.yaml has no list "names"'),
    ('names: {0: a, 2: b}', r"names for the indices \['0', '2'\] ...; expected 0, 1, 2"),
    ('names: [a, no]', 'the name of class 1 is False; expected text'),
    ('names: [a, ""]', "the name of class 1 is ''"),
    ('names: [a', 'data.yaml is not YAML'),
    # Lists of lists, each ten times in the next: a message would be gigabytes long.
    ('a: &a [x]\nb: &b [*a, *a]\nnames: [*b, *b]', r'data.yaml is not YAML \(an alias \(\*name\); expected none'),
    ('a: &a {x: 1}\nb: {<<: [*a, *a]}\nnames: [a]', r'data.yaml is not YAML \(an alias'),
    ('names: !!python/object/apply:os.getcwd []', 'data.yaml is not YAML'),
    ('names: [a]\nkpt_shape: 17', r'kpt_shape 17; expected \[keypoints'),
  ],
)
def test_bad_names_are_one_line(tmp_path, names, message):
  with pytest.raises(DataError, match=message) as error:
    formats.read('yolo', *write(tmp_path, {'a.txt': ''}, names))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ('0 0.5 0.5 0.5', '4 columns; expected 5'),
    ('0 0.5 0.5 0.5 0.5 0.9', '6 columns; expected 5'),
    ('0 0.1 0.1 0.2 0.2 0.3 0.3 0.4', '8 columns; expected 5'),
    ('2 0.5 0.5 0.5 0.5', 'the class is 2; expected a whole number from 0 to 1'),
    ('-1 0.5 0.5 0.5 0.5', 'the class is -1'),
    ('0.5 0.5 0.5 0.5 0.5', 'the class is 0.5'),
    ('cat 0.5 0.5 0.5 0.5', "'cat 0.5 0.5 0.5 0.5' are not all numbers"),
    ('0 0.5 nan 0.5 0.5', 'are not all numbers'),
    ('0 20 10 10 10', r'the coordinate 20 is not in \[0, 1\]'),
    ('0 0.5 0.5 0.5 0.5 0.1 -0.2', r'the coordinate -0.2 is not in \[0, 1\]'),
  ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
  arguments = write(tmp_path, {'a.txt': f'0 0.5 0.5 0.5 0.5\n{row}\n', 'b.txt': '9 9 9'})
  with pytest.raises(DataError, match=rf'labels: a.txt, line 2: .*{message}.*\(1 more such problem\)$') as error:
    formats.read('yolo', *arguments)
  assert '\n' not in str(error.value)


def test_labels_and_pictures_must_match(tmp_path):
  with pytest.raises(DataError, match=r'labels: c.txt belongs to no picture; expected .*images/c with .jpg'):
    formats.read('yolo', *write(tmp_path / '1', {'a.txt': '', 'c.txt': ''}))
  with pytest.raises(DataError, match=r'labels: a.txt belongs to two pictures, a.jpg and a.png'):
    formats.read('yolo', *write(tmp_path / '2', {'a.txt': ''}, files=('a.jpg', 'a.png')))
  with pytest.raises(DataError, match=r'labels holds no label files for the pictures in .*images'):
    formats.read('yolo', *write(tmp_path / '3', {}))
  with pytest.raises(DataError, match=r'the format yolo needs --names'):
    formats.read('yolo', *write(tmp_path / '4', {'a.txt': ''})[:2])
  with pytest.raises(DataError, match=r'nowhere is not a folder'):
    formats.read('yolo', tmp_path / 'nowhere', *write(tmp_path / '5', {})[1:])


def test_what_is_left_out_is_counted(tmp_path):
  row = '0 0.5 0.5 0.5 0.5'
  read = formats.read('yolo', *write(tmp_path / '1', {'a.txt': f'{row}\n{row}\n', 'b.txt': row}))
  assert len(read.tree['annotations']) == 2 and read.notes == ('1 repeated line left out',)
  pose = 'names: [cat]\nkpt_shape: [2, 3]\n'
  rows = f'{row} 0.1 0.1 2 0.2 0.2 1'
  read = formats.read('yolo', *write(tmp_path / '2', {'a.txt': rows, 'b.txt': ''}, pose))
  assert objects(read) == [(1, 1, [10, 5, 20, 10], [])]
  assert read.notes == ('1 object whose keypoints are left out',)
  with pytest.raises(DataError, match='5 columns; expected 11: class x y width height and the keypoints'):
    formats.read('yolo', *write(tmp_path / '3', {'a.txt': row}, pose))


def test_it_is_prepared_upright(tmp_path, capfd):
  labels, images, names = write(tmp_path, {'a.txt': '0 0.25 0.5 0.5 1.0', 'b.txt': ''})
  stored = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
  Image.fromarray(stored).save(images / 'a.jpg', 'PNG', exif=oriented(6))
  version = prepare.prepare(labels, images, tmp_path / 'out', format='yolo', names=names, name='pets', split='train')
  dataset = sources.open_dataset(version, 'train')
  example = next(dataset[i] for i in range(2) if dataset[i].image_id == 1)
  assert (example.height, example.width) == (40, 20)
  np.testing.assert_array_equal(example.objects.boxes, [[0, 0, 40, 10]])
  np.testing.assert_array_equal(pictures.decode_example(example), np.rot90(stored, -1))
  assert 'pets/train: 1 picture turned as the EXIF orientation says' in capfd.readouterr().err


def test_a_box_without_size_is_named_by_file_and_line_or_dropped(tmp_path):
  labels, images, names = write(tmp_path, {'a.txt': '0 0.5 0.5 0.5 0.5\n1 0.5 0.5 0 0.5\n', 'b.txt': ''})
  options = {'format': 'yolo', 'names': names, 'name': 'pets'}
  with pytest.raises(DataError, match=r'labels: a.txt, line 2 has the box \[20.0, 5.0, 0.0, 10.0\] of no size'):
    prepare.prepare(labels, images, tmp_path / 'out', **options)
  version = prepare.prepare(labels, images, tmp_path / 'out', drop_unusable=True, **options)
  assert '1 annotation with a box of no size' in ' '.join(sources.open_dataset(version, 'train').notes)


def test_areas_are_those_of_what_lies_inside_the_picture(tmp_path):
  labels, images, names = write(tmp_path, {'a.txt': '0 0.9 0.5 0.4 0.5\n0 0.1 0.2 0.5 0.2 0.5 0.6\n', 'b.txt': ''})
  version = prepare.prepare(labels, images, tmp_path / 'out', format='yolo', names=names)
  dataset = sources.open_dataset(version, 'train')
  [(box, triangle)] = [dataset[i].objects.areas for i in range(2) if len(dataset[i].objects.areas)]
  assert box == 12 * 10 and abs(triangle - 64) < 8  # half of 16 x 8, in whole pixels
  assert dataset.notes == (
    '1 box partly outside the picture clipped',
    '1 object without segmentation: boxes alone are trained and scored',
  )


@pytest.mark.parametrize('row', ['0 0.5 0.5 0.5', '0 0.5 0.5 1.2 0.5', '0 0.1 0.1 0.2 0.2 0.3', '0 0.5 nan 0.5 0.5'])
def test_lines_that_cannot_be_read_are_dropped_on_demand(tmp_path, row):
  arguments = write(tmp_path, {'a.txt': f'0 0.5 0.5 0.5 0.5\n{row}\n', 'b.txt': ''})
  with pytest.raises(DataError, match=r'a.txt, line 2: .*, or --drop-unusable to leave such out$'):
    formats.read('yolo', *arguments)
  read = formats.read('yolo', *arguments, drop_unusable=True)
  assert len(read.tree['annotations']) == 1 and read.notes == ('1 object that cannot be read dropped',)


def test_a_class_without_a_name_is_never_dropped(tmp_path):
  with pytest.raises(DataError, match=r'the class is 9; expected a whole number from 0 to 1, as there are names$'):
    formats.read('yolo', *write(tmp_path, {'a.txt': '9 0.5 0.5 0.5 0.5'}), drop_unusable=True)


def _rows(points: np.ndarray) -> str:
  return '\n'.join('0 ' + ' '.join(f'{v:.5f}' for v in row) for row in points)


def test_keypoints_that_data_yaml_does_not_announce_are_refused(tmp_path):
  rng = np.random.default_rng(0)
  boxes = np.concatenate([rng.uniform(0.3, 0.7, (20, 2)), rng.uniform(0.05, 0.5, (20, 2))], axis=1)
  inside = boxes[:, None, :2] + rng.uniform(-0.5, 0.5, (20, 3, 2)) * boxes[:, None, 2:]
  inside[3, 1] = 0  # not seen
  lines = np.concatenate([boxes, inside.reshape(20, 6)], axis=1)
  expected = r'all 20 lines have 11 columns, a box and 3 points inside it, .* "kpt_shape: \[3, 2\]" in .*data.yaml'
  with pytest.raises(DataError, match=expected):
    formats.read('yolo', *write(tmp_path / '1', {'a.txt': _rows(lines), 'b.txt': ''}))
  note = 'lines, all with 11 columns, read as polygons; keypoints would need kpt_shape in data.yaml'
  few = formats.read('yolo', *write(tmp_path / '2', {'a.txt': _rows(lines[:19]), 'b.txt': ''}))
  assert few.notes == (f'19 {note}',)
  angles = np.linspace(0, 2 * np.pi, 5, endpoint=False)
  around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  polygons = boxes[:, None, :2] + 0.2 * around * rng.uniform(0.5, 1, (20, 1, 1))
  read = formats.read('yolo', *write(tmp_path / '3', {'a.txt': _rows(polygons.reshape(20, 10)), 'b.txt': ''}))
  assert read.notes == (f'20 {note}',) and len(read.tree['annotations']) == 20
  mixed = _rows(polygons.reshape(20, 10)) + '\n0 .5 .5 .5 .5'
  assert formats.read('yolo', *write(tmp_path / '4', {'a.txt': mixed, 'b.txt': ''})).notes == ()


def test_oriented_boxes_are_read_as_their_outline_and_counted(tmp_path):
  text = '0 0.2 0.2 0.6 0.3 0.5 0.8 0.1 0.7\n1 0.1 0.1 0.5 0.1 0.5 0.3 0.1 0.3\n'
  read = formats.read('yolo', *write(tmp_path / '1', {'a.txt': text, 'b.txt': ''}))
  assert read.notes == ('2 oriented boxes read as polygons: boxes stand upright around them',)
  assert objects(read)[0] == (1, 1, [4, 4, 20, 12], [pytest.approx([8, 4, 24, 6, 20, 16, 4, 14])])
  quadrilateral = formats.read('yolo', *write(tmp_path / '2', {'a.txt': text.replace('0.8', '0.9'), 'b.txt': ''}))
  assert quadrilateral.notes[0].startswith('2 lines, all with 9 columns, read as polygons')


def test_the_command_takes_format_and_names(tmp_path, capsys):
  labels, images, names = write(tmp_path, {'a.txt': '0 0.5 0.5 0.5 0.5', 'b.txt': ''})
  words = ('prepare', '--annotations', labels, '--images', images, '--out', tmp_path / 'out', '--format', 'yolo')
  assert run(*words) == 2
  assert 'the format yolo needs --names' in capsys.readouterr().err
  assert run(*words, '--names', names, '--max-megapixels', 0) == 2
  assert '--max-megapixels is 0; expected 1 or more' in capsys.readouterr().err
  assert run(*words, '--names', names) == 0
  assert [c.name for c in sources.open_dataset(tmp_path / 'out', 'train').categories] == ['cat', 'dog']
