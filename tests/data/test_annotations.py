"""What exports of annotation tools leave out, write in their own way, or get wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.helpers import small_set
from tests.helpers.small_experiment import run
from vild_jax.data import annotations, rle, sources
from vild_jax.data.schema import DataError

NO_MASK = 'object without segmentation: boxes alone are trained and scored'
NOTHING = 'nothing to learn from this split'


def _read(tmp_path, tree, **options):
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(tree))
  return annotations.read_annotations(path, **options)


def _first(**changes):
  """The small set with its first annotation (id 21, in image 11 of 40 x 60 pixels) changed."""
  tree = small_set.annotations()
  tree['annotations'][0] |= changes
  return tree


def _without_area(**changes):
  tree = _first(**changes)
  del tree['annotations'][0]['area']
  return tree


def _refusal(tmp_path, tree, **options):
  with pytest.raises(DataError) as error:
    _read(tmp_path, tree, **options)
  assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 1000
  return str(error.value)


# --- fields that are null, left out, or numbers of another kind -----------------------------------------------------


def test_null_and_none_are_the_same(tmp_path):
  tree = small_set.annotations()
  tree |= {'info': None, 'licenses': None}
  for image in tree['images']:
    image['not_exhaustive_category_ids'] = image['not_exhaustive_category_ids'] or None
  for annotation in tree['annotations']:
    annotation['iscrowd'] = None
  for category in tree['categories']:
    category |= {'frequency': None, 'synonyms': None, 'synset': None}
  read, whole = _read(tmp_path, tree), _read(tmp_path, small_set.annotations())
  assert read.notes == () and read.info == {} and read.pictures == whole.pictures
  assert [(c.id, c.name, c.frequency, c.synset, c.synonyms) for c in read.categories] == [
    (c.id, c.name, '', '', ()) for c in whole.categories
  ]
  assert not any(o.is_crowd.any() for o in read.objects)


def test_whole_numbers_may_be_written_as_fractions(tmp_path):
  as_fraction = lambda value: float(value) if type(value) is int else value
  tree = small_set.annotations()
  for entry in (*tree['images'], *tree['annotations'], *tree['categories']):
    entry |= {k: list(map(as_fraction, v)) if isinstance(v, list) else as_fraction(v) for k, v in entry.items()}
  read, whole = _read(tmp_path, tree), _read(tmp_path, small_set.annotations())
  assert (read.categories, read.pictures, read.notes) == (whole.categories, whole.pictures, ())
  assert all(type(number) is int for p in read.pictures for number in (p.id, p.height, p.width, *p.neg_category_ids))
  for ours, theirs in zip(read.objects, whole.objects, strict=True):
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_array_equal(ours.category_ids, theirs.category_ids)


@pytest.mark.parametrize('value', [7.5, float('inf'), 1e18, True, '7', 2**62])
def test_what_is_no_whole_number_is_no_id(tmp_path, value):
  for key in ('image_id', 'category_id', 'id'):
    assert f'annotation {"entry 0 has id" if key == "id" else 21}' in _refusal(tmp_path, _first(**{key: value}))


@pytest.mark.parametrize(
  ('segmentation', 'area'),
  [
    ([[10, 5, 20, 5, 20, 12, 10, 12]], 70),
    ([[10, 5, 20, 5, 20, 12, 10, 12], [30, 5, 32, 5, 32, 6, 30, 6]], 72),
    ({'size': [40, 60], 'counts': [0, 50, 2350]}, 50),
    (None, 8 * 9),
    ([[]], 8 * 9),
  ],
)
def test_an_area_left_out_is_that_of_the_segmentation_or_of_the_box(tmp_path, segmentation, area):
  for tree in (
    _without_area(segmentation=segmentation, bbox=[1, 2, 8, 9]),
    _first(area=None, segmentation=segmentation),
  ):
    tree['annotations'][0]['bbox'] = [1, 2, 8, 9]
    read = _read(tmp_path, tree)
    assert read.objects[2].areas[1] == area
    assert read.notes[0] == '1 annotation without an area: that of the segmentation taken, or else of the box'


def test_a_crowd_is_no_object_without_segmentation(tmp_path):
  tree = small_set.annotations()
  for entry, crowd in zip(tree['annotations'], (0, 1, 0), strict=False):
    entry |= {'segmentation': [], 'iscrowd': crowd}
  assert _read(tmp_path, tree).notes == ('2 objects without segmentation: boxes alone are trained and scored',)


def test_an_annotation_without_an_id_is_numbered(tmp_path):
  tree = small_set.annotations()
  tree['annotations'][0]['id'] = None
  del tree['annotations'][2]['id']
  read = _read(tmp_path, tree)
  assert [o.ids.tolist() for o in read.objects] == [[22], [9], [20, 21], []]
  assert read.notes == ('2 annotations without an id numbered',)


# --- nothing to learn -----------------------------------------------------------------------------------------------


def test_a_file_with_nothing_to_learn_says_so(tmp_path, capsys):
  tree = small_set.annotations()
  for annotation in tree['annotations']:
    annotation['iscrowd'] = 1
  assert _read(tmp_path, tree).notes == (f'no object but 4 crowds: {NOTHING}',)
  tree['annotations'] = tree['annotations'][:1]
  path, images = small_set.write(tmp_path, tree)
  assert run('prepare', '--annotations', path, '--images', images, '--out', tmp_path / 'out') == 0
  assert f'small/train: no object but 1 crowd: {NOTHING}' in capsys.readouterr().err
  assert _read(tmp_path, tree | {'annotations': []}).notes == (f'no object: {NOTHING}',)
  assert _read(tmp_path, _first(iscrowd=1)).notes == ()


# --- segmentations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('nothing', [[[]], [[], []], [], {}, None])
def test_parts_without_numbers_are_no_segmentation(tmp_path, nothing):
  read = _read(tmp_path, _first(segmentation=nothing))
  assert read.objects[2].segmentations[1] == [] and read.notes == (f'1 {NO_MASK}',)


def test_they_are_left_out_beside_a_polygon(tmp_path):
  polygon = [10, 5, 20, 5, 20, 12]
  read = _read(tmp_path, _first(segmentation=[[], polygon, [1, 2]]))
  assert read.objects[2].segmentations[1] == [polygon]
  assert read.notes == ('2 polygons of fewer than three points left out',)


@pytest.mark.parametrize(
  ('segmentation', 'message'),
  [
    ([[5, 5, 3.5e8, 5, 20, 20]], r'a polygon from \(5, 5\) to \(3.5e\+08, 20\), in a picture 60 wide and 40 high'),
    ([[5, 5, 20, -3.5e8, 20, 20]], 'expected it to reach outside by no more than that width and height'),
    ([[5, 5, 20, 5, 20, 20], [5, 5, 20, 5, 121, 20]], 'to reach outside'),
    ([[5, 5, 20, 5, 20, -41]], 'to reach outside'),
    ([[1e300, 5, 20, 5, 20, 9]], 'not an even number of finite'),
    ([[-60, 5, 120, 5] * 14_000], 'an outline of 5040000 pixels; expected at most 5000000'),
    ({'size': [40, 60], 'counts': 'pppp'}, 'do not add up'),
    ({'size': [40, 60], 'counts': 'PPPPPPPPPPPPPPPPPPPP' * 50_000}, 'do not add up'),
    ({'size': [40, 60], 'counts': None}, 'do not add up'),
    ({'size': [40, 60], 'counts': {'x': 1}}, 'do not add up'),
    ({'size': [40, 60], 'counts': [[2400]]}, 'do not add up'),
    ({'size': 'a\nb' * 999, 'counts': 'P'}, 'an RLE of size'),
    ([[1, 2, 3, 4]], 'no polygon of three points'),
    ([None], 'type list without polygons'),
  ],
)
def test_a_segmentation_that_cannot_be_decoded_is_refused_or_left_out(tmp_path, segmentation, message):
  tree = _first(segmentation=segmentation)
  line = _refusal(tmp_path, tree)
  with pytest.raises(DataError, match=message):
    rle.check_segmentation(segmentation, 40, 60)
  assert line.endswith(', or --drop-unusable to leave such out')
  read = _read(tmp_path, tree, drop_unusable=True)
  assert [o.ids.tolist() for o in read.objects] == [[4], [9], [20], []]
  assert read.notes == ('1 annotation with a segmentation that cannot be decoded dropped',)


def test_polygons_near_the_picture_are_kept_and_decoded_as_cut_off_by_it(tmp_path):
  around = [[-60, -40, 120, -40, 120, 80, -60, 80]]
  long = [[-60, 5, 120, 5] * 13_000]
  for polygons, covered in ((around, 40 * 60), (long, 0)):
    assert _read(tmp_path, _first(segmentation=polygons)).objects[2].segmentations[1] == polygons
    assert rle.decode_mask(polygons, 40, 60).sum() == covered


@pytest.mark.parametrize(
  'segmentation', [[[70, 50, 90, 50, 90, 70]], [[5, 5, 5, 5, 5, 5]], {'size': [40, 60], 'counts': [2400]}]
)
def test_a_segmentation_without_a_pixel_is_counted(tmp_path, segmentation):
  read = _read(tmp_path, _first(segmentation=segmentation, bbox=[5, 5, 20, 20]))
  [note] = read.notes
  assert note.startswith('1 object whose segmentation covers no pixel: boxes alone are trained')
  assert read.objects[2].segmentations[1]  # the scores of masks count it, as those of others do


def test_an_rle_whose_size_is_written_as_fractions_is_decoded(tmp_path):
  for counts in ([0, 50, 2350], rle.encode_mask(np.ones((40, 60), bool))['counts']):
    read = _read(tmp_path, _first(segmentation={'size': [40.0, 60.0], 'counts': counts}))
    assert sources.decode_mask(read.objects[2].segmentations[1], 40, 60).shape == (40, 60)


# --- what tools mark ------------------------------------------------------------------------------------------------


def test_rotated_boxes_of_cvat_are_left_out_and_objects_to_ignore_are_not(tmp_path):
  rotated = {'occluded': False, 'rotation': 45.0}
  read = _read(tmp_path, _first(attributes=rotated, segmentation=[]))
  assert [o.ids.tolist() for o in read.objects] == [[4], [9], [20], []]
  assert read.notes == ('1 rotated box left out',)
  for kept in ({'attributes': rotated}, {'attributes': {'rotation': 45.0}, 'segmentation': []}, {'attributes': [1]}):
    assert [o.ids.tolist() for o in _read(tmp_path, _first(**kept)).objects] == [[4], [9], [20, 21], []]
  upright = _read(tmp_path, _first(attributes=rotated | {'rotation': 0.0}, segmentation=[]))
  assert upright.notes == (f'1 {NO_MASK}',)
  marked = _read(tmp_path, _first(ignore=1))
  assert marked.notes == ('1 object marked ignore kept as ordinary ones',) and len(marked.objects[2].ids) == 2


def test_a_repeated_entry_of_images_is_dropped(tmp_path):
  tree = small_set.annotations()
  tree['images'].append(dict(tree['images'][0]))
  read = _read(tmp_path, tree)
  assert [p.id for p in read.pictures] == [5, 7, 11, 300] and read.notes == ('1 repeated entry of images dropped',)


# --- names of categories --------------------------------------------------------------------------------------------


def _named(*names: str) -> dict:
  tree = small_set.annotations()
  for entry, name in zip(tree['categories'], names, strict=False):
    entry['name'] = name
  return tree


def test_space_around_a_name_is_stripped(tmp_path):
  read = _read(tmp_path, _named(' mug\n', 'ant', '\u3000tree'))
  assert [c.name for c in read.categories] == ['ant', 'mug', 'tree']
  assert read.notes == ('2 category names without the space around',)
  assert "category name 'ant' appears twice" in _refusal(tmp_path, _named('ant ', 'ant'))


@pytest.mark.parametrize('name', ['red\nmug', 'red\tmug', 'red\0mug', 'red\u2028mug', '\x1b[2J'])
def test_control_characters_in_a_name_are_refused(tmp_path, name):
  assert 'has control characters in its name; expected text of one line' in _refusal(tmp_path, _named(name))


def test_of_two_categories_of_one_name_the_one_without_annotations_is_left_out(tmp_path):
  tree = small_set.annotations()
  tree['categories'].insert(0, {'id': 0, 'name': 'tree', 'supercategory': 'none'})
  read = _read(tmp_path, tree)
  assert [c.id for c in read.categories] == [1, 3, 8]
  assert read.notes == ('1 category left out: another has the name, and no annotation this one',)
  assert annotations.read_categories(tmp_path / 'a.json') == read.categories
  tree['annotations'][0]['category_id'] = 0
  assert "category name 'tree' appears twice" in _refusal(tmp_path, tree)
  tree['annotations'][0]['category_id'] = 3
  tree['images'][0]['neg_category_ids'] = [0]
  assert "category name 'tree' appears twice" in _refusal(tmp_path, tree)


# --- boxes and sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('bbox', 'note'),
  [
    ([30, 30, 1e-9, 5], 'box of no size or outside the picture'),  # float32 does not tell its sides apart
    ([1e14, 3, 5, 5], 'box of no size or outside the picture'),
    (None, 'bbox'),
    ([1, 2, float('nan'), 4], 'bbox'),
    ([1, 2, 1e300, 4], 'bbox'),
    ([[1, 2], [3, 4]], 'bbox'),
    ('1,2,3,4' * 1000, 'bbox'),
  ],
)
def test_an_unusable_box_is_refused_or_left_out(tmp_path, bbox, note):
  tree = _first(bbox=bbox)
  assert _refusal(tmp_path, tree).endswith(', or --drop-unusable to leave such out')
  note = note.replace('bbox', 'bbox that is not four finite numbers')
  assert _read(tmp_path, tree, drop_unusable=True).notes == (f'1 annotation with a {note} dropped',)


@pytest.mark.parametrize(
  ('height', 'width'), [(2**31, 2), (2**16, 2**16), (10**30, 1), (40, 1e300), (0, 5), (40.5, 60)]
)
def test_sizes_that_no_picture_has_are_refused(tmp_path, height, width):
  tree = small_set.annotations()
  tree['images'][0] |= {'height': height, 'width': width}
  line = _refusal(tmp_path, tree)
  assert 'image entry 0 has id 11' in line and line.endswith(
    'expected whole numbers, and a positive size below 2^32 pixels'
  )


def test_both_names_of_the_option_leave_out_what_is_unusable(tmp_path, capsys):
  tree = _first(bbox=[1, 1, 0, 5])
  tree['annotations'][1]['segmentation'] = [[1, 1]]
  path, images = small_set.write(tmp_path, tree)
  words = ('prepare', '--annotations', path, '--images', images, '--out', tmp_path / 'out')
  assert run(*words) == 2
  for option in ('--drop-unusable', '--drop-bad-boxes'):
    assert run(*words, option) == 0
    assert 'no size or outside the picture dropped\n' in capsys.readouterr().err
  kept = [key for e in sources.open_dataset(tmp_path / 'out', 'train').labels() for key in e.objects.ids.tolist()]
  assert sorted(kept) == [4, 9]


# --- one problem, one count -----------------------------------------------------------------------------------------


def test_an_annotation_with_several_problems_is_one(tmp_path):
  line = _refusal(tmp_path, _first(image_id=99, category_id=99, area=-1, iscrowd=9, bbox=[], segmentation=[[1]]))
  assert line.endswith('annotation 21 belongs to the unknown image 99; expected one of the 4 ids of "images"')


@pytest.mark.parametrize(
  ('where', 'changes', 'message'),
  [
    ('images', {'height': None}, 'image entry 0 has id 11, height None'),
    ('images', {'id': '11'}, "image entry 0 has id '11'"),
    ('images', {'id': 2**62}, f'image entry 0 has id {2**62} (not below 2^62)'),
    ('images', {'file_name': '../x.jpg'}, 'image 11 names the file'),
    ('categories', {'frequency': 'x'}, "category 'red mug' has frequency 'x'"),
    ('categories', {'name': ''}, "category entry 0 has id 3 and name ''"),
    ('categories', {'name': 'tr\ud800ee'}, "category 'tr\\ud800ee' has half a surrogate pair"),
    ('categories', {'synonyms': ['\udc00']}, "category 'red mug' has half a surrogate pair"),
  ],
)
def test_what_belongs_to_a_refused_entry_is_not_counted_again(tmp_path, where, changes, message):
  tree = small_set.annotations()
  before = tree[where][0]['id']
  tree[where][0] |= changes
  for annotation in tree['annotations']:
    field = 'image_id' if where == 'images' else 'category_id'
    annotation[field] = tree[where][0]['id'] if annotation[field] == before else annotation[field]
  line = _refusal(tmp_path, tree)
  assert message in line and 'more such' not in line and 'other kinds' not in line


# --- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('field', 'depth'), [('info', 150), ('info', 900), ('info', 5000), ('attributes', 5000)])
def test_nesting_that_could_not_be_written_again_is_one_line(tmp_path, field, depth):
  tree = small_set.annotations()
  (tree if field == 'info' else tree['annotations'][0])[field] = {'x': 'HERE'}
  (tmp_path / 'a.json').write_text(json.dumps(tree).replace('"HERE"', '[' * depth + ']' * depth))
  with pytest.raises(DataError, match=r'nests lists and objects too deeply|is not JSON'):
    annotations.read_annotations(tmp_path / 'a.json')


def test_a_number_of_thousands_of_digits_is_one_line(tmp_path):
  (tmp_path / 'a.json').write_text(json.dumps(small_set.annotations()).replace('[3]', f'[{"9" * 5000}]'))
  with pytest.raises(DataError, match=r'is not JSON \(Exceeds the limit'):
    annotations.read_annotations(tmp_path / 'a.json')


def test_a_byte_order_mark_is_no_problem(tmp_path):
  (tmp_path / 'a.json').write_text(json.dumps(small_set.annotations()), encoding='utf-8-sig')
  assert len(annotations.read_annotations(tmp_path / 'a.json').pictures) == 4


@pytest.mark.parametrize(
  ('old', 'new', 'message'),
  [
    ('"categories": [', '"annotations": [], "categories": [', "'annotations' stands twice in the outermost object"),
    ('"iscrowd": 0', '"iscrowd": 0, "iscrowd": 1', r"'iscrowd' stands twice in the object with id \d+"),
  ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, old, new, message):
  tree = small_set.annotations()
  for annotation in tree['annotations']:
    annotation.setdefault('iscrowd', 0)
  path = tmp_path / 'a.json'
  path.write_text(json.dumps(tree))
  annotations.read_annotations(path)
  assert old in path.read_text()
  path.write_text(path.read_text().replace(old, new, 1))
  with pytest.raises(DataError, match=rf'^{path}: {message}; expected each key once$'):
    annotations.read_annotations(path)
