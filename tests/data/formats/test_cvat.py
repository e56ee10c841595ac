"""CVAT's XML for images, against boxes and masks computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vild_jax.data import formats, prepare, rle, sources
from vild_jax.data.schema import DataError

LABELS = (
  '<meta><task><labels><label><name>cat</name></label><label><name>dog</name></label>'
  '<label><name>tail</name><parent>dog</parent></label></labels></task></meta>'
)
BOX = '<box label="dog" xtl="2.5" ytl="1" xbr="12.5" ybr="11" rotation="0.0" z_order="0"></box>'


def write(folder: Path, *shapes: str, labels: str = LABELS, image: str = 'name="a.png" width="40" height="20"') -> Path:
  path = folder / 'annotations.xml'
  inside = '\n'.join(shapes)
  path.write_text(
    f'<annotations><version>1.1</version>{labels}\n<image id="0" {image}>\n{inside}\n</image></annotations>'
  )
  return path


def read(*arguments: object, **options: str) -> formats.Converted:
  return formats.read('cvat', write(*arguments, **options), 'unused')


def test_boxes_polygons_and_masks(tmp_path):
  polygon = '<polygon label="cat" points="4.0,4.0;20.0,4.0;20.0,12.0"></polygon>'
  mask = '<mask label="cat" rle="1, 2, 2, 1, 3" left="5" top="6" width="3" height="3"></mask>'
  found = read(tmp_path, BOX, polygon, mask)
  assert found.tree['categories'] == [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]
  assert found.tree['images'] == [{'id': 1, 'file_name': 'a.png', 'height': 20, 'width': 40}]
  box, outline, pixels = found.tree['annotations']
  assert (box['category_id'], box['bbox'], box['segmentation']) == (2, [2.5, 1, 10, 10], [])
  assert (outline['category_id'], outline['bbox']) == (1, [4, 4, 16, 8])
  assert outline['segmentation'] == [[4, 4, 20, 4, 20, 12]]
  expected = np.zeros((20, 40), bool)
  expected[6:9, 5:8] = np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]])
  np.testing.assert_array_equal(rle.decode_mask(pixels['segmentation'], 20, 40), expected)
  assert (pixels['bbox'], pixels['iscrowd']) == ([6, 6, 2, 2], 0)
  assert found.upright and found.notes == () and found.where(3) == 'line 5'


def test_a_mask_at_the_corners_is_right(tmp_path):
  runs = np.random.default_rng(0).integers(0, 2, (20, 40)).astype(bool)
  runs[0, 0] = runs[-1, -1] = True
  flat = np.concatenate([[False], runs.reshape(-1)])
  changes = np.flatnonzero(np.diff(flat))
  lengths = np.diff(np.concatenate([[0], changes, [runs.size]]))
  assert lengths[0] == 0
  code = ', '.join(map(str, lengths))
  found = read(tmp_path, f'<mask label="cat" rle="{code}" left="0" top="0" width="40" height="20"/>')
  np.testing.assert_array_equal(rle.decode_mask(found.tree['annotations'][0]['segmentation'], 20, 40), runs)


def test_what_is_left_out_is_counted(tmp_path):
  found = read(
    tmp_path,
    BOX.replace('0.0', '30.0'),
    BOX,
    '<polyline label="cat" points="1,1;2,2"/>',
    '<points label="cat" points="1,1"/>',
    '<points label="cat" points="1,1"/>',
    '<tag label="cat"><attribute name="x">y</attribute></tag>',
    '<mask label="cat" rle="4" left="0" top="0" width="2" height="2"/>',
  )
  assert len(found.tree['annotations']) == 1
  assert found.notes == (
    '1 rotated box left out',
    '1 shape <polyline> left out',
    '2 shapes <points> left out',
    '1 shape <tag> left out',
    '1 mask without a pixel left out',
  )


@pytest.mark.parametrize(
  ('shape', 'message'),
  [
    (BOX.replace('dog', 'cow'), "the label 'cow' is unknown; expected one of the 2"),
    (BOX.replace('dog', 'tail'), "the label 'tail' is unknown"),
    (BOX.replace('12.5', 'inf'), "the coordinates '2.5, 1, inf, 11'; expected finite numbers"),
    (BOX.replace('xtl="2.5"', ''), "the coordinates ', 1, 12.5, 11'"),
    ('<polygon label="cat" points="4.0,4.0;20.0,4.0"/>', 'a polygon of 2 points'),
    ('<polygon label="cat" points="4,4;20,4;20"/>', 'a polygon of 3 points; expected "x,y;x,y;x,y"'),
    ('<polygon label="cat"/>', "the coordinates ''"),
    ('<mask label="cat" rle="1, 2" left="0" top="0" width="2" height="2"/>', 'rle does not add up; .* the sum 4'),
    ('<mask label="cat" rle="-1, 5" left="0" top="0" width="2" height="2"/>', 'rle does not add up'),
    ('<mask label="cat" rle="x" left="0" top="0" width="2" height="2"/>', 'expected whole numbers'),
    (
      '<mask label="cat" rle="0, 4" left="39" top="0" width="2" height="2"/>',
      'expected a box inside the picture, 40 wide',
    ),
    ('<hexagon label="cat"/>', 'an unknown shape <hexagon>'),
  ],
)
def test_a_bad_shape_is_named_by_its_line(tmp_path, shape, message):
  with pytest.raises(DataError, match=rf'annotations.xml: line 4: .*{message}') as error:
    read(tmp_path, BOX, shape)
  assert '\n' not in str(error.value)


def test_shapes_that_cannot_be_read_and_reversed_boxes_are_dropped_on_demand(tmp_path):
  polygon, mask = '<polygon label="cat" points="4,4;20,4"/>', '<mask label="cat" rle="1" left="0" top="0"/>'
  path = write(tmp_path, BOX, polygon, mask, BOX.replace('2.5', '22.5', 1))
  with pytest.raises(
    DataError, match=r'line 4: a polygon of 2 points; .*, or --drop-unusable to leave such out \(1 mo'
  ):
    formats.read('cvat', path, 'unused')
  found = formats.read('cvat', path, 'unused', drop_unusable=True)
  assert found.notes == ('2 objects that cannot be read dropped',)
  (tmp_path / 'images').mkdir()
  Image.new('RGB', (40, 20)).save(tmp_path / 'images' / 'a.png')
  with pytest.raises(DataError, match=r'line 6 has the box \[22.5, 1.0, -10.0, 10.0\] of no size'):
    sources.JsonSource(path, tmp_path / 'images', converted=found)
  source = sources.JsonSource(path, tmp_path / 'images', converted=found, drop_unusable=True)
  assert source[0].objects.areas.tolist() == [100]
  with pytest.raises(DataError, match=r"the label 'cow' is unknown; expected one of the 2 of <meta>$"):
    formats.read('cvat', write(tmp_path, BOX.replace('dog', 'cow')), 'unused', drop_unusable=True)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'labels': ''}, 'annotations.xml has no labels'),
    ({'image': 'name="a.png" width="40"'}, "line 2: <image> has name 'a.png', width '40', height None"),
    ({'image': 'name="a.png" width="40" height="0"'}, "height '0'; expected the name of a file and its size"),
    ({'labels': LABELS + '<track id="0"></track>'}, "line 1 is a <track> of a video; expected .*'CVAT for images 1.1'"),
  ],
)
def test_a_bad_file_is_one_line(tmp_path, options, message):
  with pytest.raises(DataError, match=message):
    read(tmp_path, BOX, **options)


def test_it_is_prepared_and_its_bad_boxes_have_lines(tmp_path):
  (tmp_path / 'images').mkdir()
  Image.new('RGB', (40, 20)).save(tmp_path / 'images' / 'a.png')
  path = write(tmp_path, BOX)
  version = prepare.prepare(path, tmp_path / 'images', tmp_path / 'out', format='cvat')
  example = sources.open_dataset(version, 'train')[0]
  np.testing.assert_array_equal(example.objects.boxes, [[1, 2.5, 11, 12.5]])
  assert example.objects.category_ids.tolist() == [2]
  path = write(tmp_path, BOX, BOX.replace('12.5', '2.5'))
  with pytest.raises(DataError, match=r'annotations.xml: line 4 has the box \[2.5, 1.0, 0.0, 10.0\] of no size'):
    prepare.prepare(path, tmp_path / 'images', tmp_path / 'out', format='cvat')


def test_other_formats_hold_their_names(tmp_path):
  for format in ('cvat', 'coco'):
    with pytest.raises(DataError, match=f'--names x: the format {format} holds its names'):
      formats.read(format, tmp_path, tmp_path, 'x')
  with pytest.raises(DataError, match="the format 'kitti' is unknown; expected one of coco, yolo, voc, cvat"):
    formats.read('kitti', tmp_path, tmp_path)
  assert formats.read('coco', tmp_path, tmp_path) is None
