from __future__ import annotations

import json

import pytest

from tests.helpers import small_set
from vild_jax.data import class_lists, prepare
from vild_jax.data.class_lists import ClassList, class_list
from vild_jax.data.schema import DataError


@pytest.mark.parametrize(
  ('spec', 'count', 'base', 'first', 'last'),
  [
    ('lvis', 1203, 866, (1, 'aerosol_can'), (1203, 'zucchini')),
    ('coco', 80, 0, (1, 'person'), (90, 'toothbrush')),
    ('coco-ovd', 65, 48, (1, 'person'), (90, 'toothbrush')),
    ('voc', 20, 0, (1, 'aeroplane'), (20, 'tvmonitor')),
    ('objects365', 365, 0, (1, 'Person'), (365, 'Table Tennis')),
  ],
)
def test_the_lists_that_come_with_it(spec, count, base, first, last):
  classes = class_list(spec)
  assert len(classes) == len(classes.names) == len(classes.ids) == len(classes.is_base) == count
  assert sum(classes.is_base) == base
  assert (classes.ids[0], classes.names[0]) == first
  assert (classes.ids[-1], classes.names[-1]) == last
  assert list(classes.ids) == sorted(set(classes.ids))
  assert len(set(classes.names)) == count


def test_the_tables_agree_with_their_source(shared):
  folder = shared / 'data' / 'categories'
  given = json.loads((folder / 'lvis_v1_train_cat_info.json').read_text())
  assert [(c.id, c.name, c.frequency, c.synset, list(c.synonyms)) for c in class_lists.lvis_categories()] == [
    (c['id'], c['name'], c['frequency'], c['synset'], c['synonyms']) for c in given
  ]
  base = json.loads((folder / 'lvis_v1_base_novel.json').read_text())['base_ids']
  lvis = class_list('lvis')
  assert [i for i, b in zip(lvis.ids, lvis.is_base, strict=True) if b] == base
  split = json.loads((folder / 'coco_ovd_48_17.json').read_text())
  coco = class_list('coco-ovd')
  for role, is_base in (('base', True), ('novel', False)):
    assert {(c['id'], c['name']) for c in split[role]} == {
      (i, n) for i, n, b in zip(coco.ids, coco.names, coco.is_base, strict=True) if b is is_base
    }


def test_what_the_official_files_of_objects365_misspell_is_known_by_the_corrected_name(shared):
  given = json.loads((shared / 'data' / 'categories' / 'objects365_v2_detic_fixed.json').read_text())
  names = class_list('objects365').names
  assert [class_lists.known_as(c['name'], names) for c in given] == [c['name_fixed'] for c in given] == list(names)
  misspelt = {c['name'] for c in given if c['name'] != c['name_fixed']}
  assert len(misspelt) == 13 and all(class_lists.known_as(name, (name, 'Basket')) == name for name in misspelt)
  assert class_lists.known_as('Bakset', ('Chair',)) is None and class_lists.known_as('gnu', names) is None


def test_a_text_file_is_one_name_a_line(tmp_path):
  path = tmp_path / 'names.txt'
  path.write_bytes('\ufeffred mug\r\n\r\n  toy elephant \r\nBäcker\r\n'.encode())
  assert class_list(path) == ClassList(('red mug', 'toy elephant', 'Bäcker'), (False,) * 3, (1, 2, 3))
  assert class_list(str(path)) == class_list(path)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'names no class'),
    (b'\n \n', 'names no class'),
    (b'a\n\nb\n a \n', "line 4 names 'a' again, after line 1"),
    (b'\xe9t\xe9\n', r'is not UTF-8 text \(byte 0\)'),
  ],
)
def test_bad_text_files_are_one_line(tmp_path, content, message):
  (tmp_path / 'names.txt').write_bytes(content)
  with pytest.raises(DataError, match=message) as error:
    class_list(tmp_path / 'names.txt')
  assert '\n' not in str(error.value)


def test_an_annotation_file_and_the_data_set_made_of_it(tmp_path):
  path, images = small_set.write(tmp_path)
  expected = ClassList(
    ('ant', 'red mug', 'tree'), (False, True, True), (1, 3, 8), (('ant',), ('mug', 'red_mug'), ('tree',))
  )
  assert class_list(path) == expected
  assert class_list(prepare.prepare(path, images, tmp_path / 'out')) == expected
  assert class_list(tmp_path / 'out') == expected
  assert class_list(path.rename(tmp_path / 'UPPER.JSON')) == expected


def test_base_classes_from_a_file(tmp_path):
  (tmp_path / 'base.txt').write_text('cat\ndog\n')
  classes = class_list('coco', base=tmp_path / 'base.txt')
  assert {n for n, b in zip(classes.names, classes.is_base, strict=True) if b} == {'cat', 'dog'}
  (tmp_path / 'base.txt').write_text('cat\ntrafic light\n')
  with pytest.raises(DataError, match=r"'trafic light' is not among the 80 .*; the nearest is 'traffic light'"):
    class_list('coco', base=tmp_path / 'base.txt')
  with pytest.raises(DataError, match='is not a file'):
    class_list('coco', base=tmp_path / 'none.txt')


def test_what_is_no_list_is_one_line_that_names_those_there_are():
  with pytest.raises(DataError, match='lvis_v1 is not a list of classes; expected one of lvis, coco, coco-ovd, voc'):
    class_list('lvis_v1')
  with pytest.raises(DataError, match='is not a file'):
    class_list('nowhere.json')


def test_synonyms_come_with_the_lists_that_have_them():
  lvis = class_list('lvis')
  assert len(lvis.synonyms) == 1203 and lvis.synonyms[lvis.names.index('airplane')] == ('airplane', 'aeroplane')
  assert class_list('coco').synonyms is None


def test_names_of_an_option_are_words_or_any_file(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'list').write_text('tree\nred mug, blue\n', encoding='utf-8')
  (tmp_path / 'a, b.tsv').write_text('кружка\n', encoding='utf-8')
  assert class_lists.names('tree, red mug ,tree house') == ['tree', 'red mug', 'tree house']
  assert class_lists.names('list') == ['tree', 'red mug, blue'] and class_lists.names('a, b.tsv') == ['кружка']
  assert len(class_lists.names('coco')) == 80
  assert class_lists.names('TV/monitor,') == ['TV/monitor'] and class_lists.names('a/b, c') == ['a/b', 'c']
  assert class_lists.names('x' * 5000 + ',b')[1] == 'b'


@pytest.mark.parametrize(
  ('classes', 'message'),
  [
    ('lsit.txt', r"^--classes 'lsit.txt' looks like a path, but there is no such file$"),
    ('V.NPZ', "^--classes 'V.NPZ' looks like a path"),
    ('lists/mine', "^--classes 'lists/mine' .*; a class of this name is 'lists/mine,'$"),
    ('lists/there', "^--classes 'lists/there' .*; a folder with a data set is 'lists/there/'$"),
    ('tree, red\nmug', r"^--classes: the name 'red\\nmug' holds '\\n'; expected one line of text"),
    ('red\x07mug', r"holds '\\x07'"),
    ('red\u2028mug', r"holds '\\u2028'"),
    ('red\udcffmug', r"holds '\\udcff'"),
    ('tree,tree', 'more than once'),
    (' , ', 'expected names separated by commas'),
    ('with tab', r"^with tab: the name 'red\\tmug' holds '\\t'"),
  ],
)
def test_names_of_an_option_that_are_none_are_one_line(tmp_path, monkeypatch, classes, message):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'with tab').write_text('tree\nred\tmug\n')
  (tmp_path / 'lists' / 'there').mkdir(parents=True)
  with pytest.raises(ValueError, match=message) as error:
    class_lists.names(classes)
  assert len(str(error.value).splitlines()) == 1
  with pytest.raises(ValueError) as other:
    class_lists.names(classes, '--others')
  assert str(other.value) == str(error.value).replace('--classes', '--others')
