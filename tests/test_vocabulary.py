from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from vild_jax import vocabulary


def example(count=3, dim=4):
  rows = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  return vocabulary.VocabularyFile(
    rows, ('red mug', 'Bär_(toy)', 'cat')[:count], np.array([True, False, True])[:count], 'clip:0123', 'vild (63)'
  )


def test_save_and_load_give_the_same_file(tmp_path):
  file = example()
  vocabulary.save(tmp_path / 'v.npz', file)
  back = vocabulary.load(tmp_path / 'v.npz')
  np.testing.assert_array_equal(back.embeddings, file.embeddings)
  np.testing.assert_array_equal(back.is_base, file.is_base)
  assert (back.names, back.teacher, back.prompts) == (file.names, file.teacher, file.prompts)
  assert [p.name for p in tmp_path.iterdir()] == ['v.npz']


def test_a_background_row_is_kept_and_goes_into_the_forward_pass(tmp_path):
  plain = example()
  fixed = dataclasses.replace(plain, background=np.array([0.6, 0, 0.8, 0]))
  vocabulary.save(tmp_path / 'v.npz', fixed)
  back = vocabulary.load(tmp_path / 'v.npz')
  assert back.background.dtype == np.float32
  np.testing.assert_array_equal(back.background, np.array([0.6, 0, 0.8, 0], np.float32))
  np.testing.assert_array_equal(vocabulary.to_struct(back, pad_to=5).background, back.background)
  vocabulary.save(tmp_path / 'v.npz', plain)
  assert vocabulary.load(tmp_path / 'v.npz').background is None and vocabulary.to_struct(plain).background is None


def test_a_vocabulary_without_background_takes_that_of_the_training():
  plain = example()
  one, other = (dataclasses.replace(plain, background=row) for row in np.eye(4)[:2])
  assert vocabulary.background_of(plain, plain) is None
  np.testing.assert_array_equal(vocabulary.background_of(plain, other), [0, 1, 0, 0])
  np.testing.assert_array_equal(vocabulary.background_of(one, other), [1, 0, 0, 0])


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
  vocabulary.save(tmp_path / 'v.npz', example())
  before = (tmp_path / 'v.npz').read_bytes()

  def full_disk(f, **arrays):
    f.write(b'half')
    raise OSError('No space left on device')

  monkeypatch.setattr(np, 'savez', full_disk)
  with pytest.raises(OSError):
    vocabulary.save(tmp_path / 'v.npz', example(2))
  assert (tmp_path / 'v.npz').read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ['v.npz']


BAD = {
  'missing embeddings': ('embeddings', None, 'it has no array'),
  'missing teacher': ('teacher', None, 'it has no array'),
  'rank': ('embeddings', np.ones(3, np.float32), r'\(3,\)'),
  'whole numbers': ('embeddings', np.eye(3, dtype=np.int32), 'int32'),
  'not unit': ('embeddings', np.ones((3, 4), np.float32), 'unit length in 3 of 3 rows'),
  'nan': ('embeddings', np.full((3, 4), np.nan, np.float32), 'not finite'),
  'empty': ('embeddings', np.zeros((0, 4), np.float32), 'at least one class'),
  'duplicates': ('names', np.array(['a', 'b', 'a']), r"\['a'\] more than once"),
  'count': ('names', np.array(['a', 'b']), '2 names'),
  'blank': ('names', np.array(['a', ' ', 'b']), 'an empty name'),
  'numbers as names': ('names', np.arange(3), 'int64'),
  'pickled names': ('names', np.array(['a', 'b', 'c'], dtype=object), 'Python objects'),
  'flags': ('is_base', np.array([1, 0, 1]), 'int64'),
  'flag count': ('is_base', np.array([True]), r'\(1,\)'),
  'no teacher': ('teacher', np.array(''), 'empty'),
  'rank of the background': ('background', np.eye(4, dtype=np.float32), r'float32 \(4, 4\); expected float32 \(4,\)'),
  'length of the background': ('background', np.ones(3, np.float32), r'\(3,\); expected float32 \(4,\)'),
  'whole background': ('background', np.array([1, 0, 0, 0]), r'int64 \(4,\)'),
  'long background': ('background', np.array([0, 3, 4, 0], np.float32), 'of length 5; expected unit length'),
  'nan in the background': ('background', np.array([1, 0, np.nan, 0]), 'not finite'),
  'pickled background': (
    'background',
    np.array([1.0, 0.0, 0.0, None], dtype=object),
    'Python objects, which are never read',
  ),
}


@pytest.mark.parametrize('case', BAD)
def test_each_malformed_field_is_one_line_that_names_file_and_field(tmp_path, case):
  key, value, found = BAD[case]
  file = example()
  fields = {
    'embeddings': file.embeddings,
    'names': np.array(file.names),
    'is_base': file.is_base,
    'teacher': np.array(file.teacher),
    'prompts': np.array(file.prompts),
  }
  fields.pop(key, None)
  if value is not None:
    fields[key] = value
  np.savez(tmp_path / 'v.npz', **fields)
  with pytest.raises(ValueError, match=found) as error:
    vocabulary.load(tmp_path / 'v.npz')
  assert 'v.npz' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('content', [b'', b'hello', b'PK\x03\x04half'])
def test_a_file_that_is_no_npz(tmp_path, content):
  (tmp_path / 'v.npz').write_bytes(content)
  with pytest.raises(ValueError, match=r'v\.npz cannot be read \(it is not a complete') as error:
    vocabulary.load(tmp_path / 'v.npz')
  assert '\n' not in str(error.value)


def test_a_single_array_and_no_file(tmp_path):
  np.save(tmp_path / 'v.npy', np.eye(3, dtype=np.float32))
  with pytest.raises(ValueError, match=r'not a complete \.npz'):
    vocabulary.load(tmp_path / 'v.npy')
  with pytest.raises(ValueError, match='is not a file'):
    vocabulary.load(tmp_path / 'absent.npz')


def test_to_struct_pads_with_rows_that_are_not_valid():
  file = example()
  struct = vocabulary.to_struct(file, pad_to=5)
  np.testing.assert_array_equal(struct.embeddings[:3], file.embeddings)
  np.testing.assert_array_equal(struct.embeddings[3:], np.zeros((2, 4)))
  np.testing.assert_array_equal(struct.is_base, [True, False, True, False, False])
  np.testing.assert_array_equal(struct.valid, [True, True, True, False, False])
  assert struct.embeddings.dtype == np.float32 and struct.is_base.dtype == struct.valid.dtype == np.bool_
  assert vocabulary.to_struct(file).valid.all()
  with pytest.raises(ValueError, match='3 classes; expected at most 2'):
    vocabulary.to_struct(file, pad_to=2)


def test_from_npy_normalises_and_names_the_array(tmp_path):
  rows = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float16)
  np.save(tmp_path / 'e.npy', rows)
  flags = np.array([True, False, False])
  file = vocabulary.from_npy(tmp_path / 'e.npy', ['a', 'b', 'c'], 'openai-b32', flags)
  expected = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
  np.testing.assert_allclose(file.embeddings, expected, atol=1e-6)
  assert file.teacher.startswith('openai-b32:') and len(file.teacher) == len('openai-b32:') + 16
  rows[0, 0] += 1
  np.save(tmp_path / 'other.npy', rows)
  other = vocabulary.from_npy(tmp_path / 'other.npy', ['a', 'b', 'c'], 'openai-b32', flags)
  assert other.teacher != file.teacher


@pytest.mark.parametrize(
  'rows, found',
  [
    (np.ones((2, 4), np.float32), '2 rows; expected 3'),
    (np.array([[1, 1], [0, 0], [1, 0]], np.float32), r'zero in 1 of 3 rows \(first: 1\)'),
    (np.array([[1, 1], [1, 0], [np.nan, 0]], np.float32), r'not finite in 1 of 3 rows \(first: 2\)'),
    (np.ones(3, np.float32), r'float32 \(3,\)'),
    (np.ones((3, 2), np.int64), 'int64'),
  ],
)
def test_from_npy_refuses(tmp_path, rows, found):
  np.save(tmp_path / 'e.npy', rows)
  with pytest.raises(ValueError, match=found) as error:
    vocabulary.from_npy(tmp_path / 'e.npy', ['a', 'b', 'c'], 'x', np.ones(3, bool))
  assert 'e.npy' in str(error.value)


def test_real_lvis_embeddings(shared):
  categories = json.loads((shared / 'data/categories/lvis_v1_train_cat_info.json').read_text())
  names = [c['name'] for c in sorted(categories, key=lambda c: c['id'])]
  base = np.array([c['frequency'] != 'r' for c in sorted(categories, key=lambda c: c['id'])])
  file = vocabulary.from_npy(shared / 'data/clip_text/lvis_v1_clip_a+cname.npy', names, 'ViT-B/32', base)
  assert file.embeddings.shape == (1203, 512) and file.is_base.sum() == 866
  similarity = file.embeddings @ file.embeddings[names.index('dog')]
  assert names[int(np.argsort(similarity)[-1])] == 'dog' and similarity[names.index('cat')] > similarity.mean()


def test_embeddings_of_regions_belong_with_the_vocabulary_of_their_teacher(tmp_path):
  np.save(tmp_path / 'rows.npy', np.eye(2, 4, dtype=np.float32))
  tower, other = 'vit_b32:' + 'a' * 16, 'vit_b32:' + 'b' * 16
  of_tower, of_other = (dataclasses.replace(example(), teacher=name, prompts='vild') for name in (tower, other))
  by_array = [
    vocabulary.from_npy(tmp_path / 'rows.npy', ('a', 'b'), name, np.zeros(2, bool))
    for name in ('ours', 'ours:v2', tower)
  ]
  same = vocabulary.is_same_teacher
  assert same(tower, of_tower)
  assert same('ours', by_array[0]) and same('ours:v2', by_array[1]) and same(tower, by_array[2])
  assert same(by_array[0].teacher, by_array[0])
  assert not same(tower, of_other) and not same(other, by_array[2])
  assert not same('theirs', by_array[0]) and not same('ours', by_array[1]) and not same(tower, by_array[0])
  assert not same('', of_tower) and not same('', dataclasses.replace(by_array[0], teacher=':' + 'a' * 16))
  assert not same('ours', dataclasses.replace(by_array[0], teacher='ours:v2'))
  # The name alone says nothing of weights, where nobody gave it: an architecture's is before the hash of each.
  assert not same('vit_b32', of_tower) and not same('vit_b32', of_other)
  vocabulary.check_regions('STORE', tower, of_tower)
  with pytest.raises(
    ValueError,
    match=f"STORE has embeddings of teacher 'vit_b32', and the vocabulary of '{tower}'; "
    'expected the image and the text tower of one teacher',
  ):
    vocabulary.check_regions('STORE', 'vit_b32', of_tower)


@pytest.mark.parametrize(
  'name, cleaned',
  [
    ('aerosol_can', 'aerosol can'),
    ('Red Mug', 'red mug'),
    ('cup/mug', 'cup or mug'),
    ('Dr._Pepper.', 'dr. pepper'),
    ('monitor_(computer_equipment) computer_monitor', 'monitor (computer equipment) computer monitor'),
    ('etc...', 'etc'),
    (' a  b ', 'a b'),
  ],
)
def test_clean_name(name, cleaned):
  assert vocabulary.clean_name(name) == cleaned


@pytest.mark.parametrize('name', ['', '  ', '_', '...'])
def test_a_name_without_a_word_is_refused(name):
  with pytest.raises(ValueError, match='is empty; expected a word'):
    vocabulary.clean_name(name)


def test_every_flipped_bit_that_changes_a_value_is_found(tmp_path):
  """Also those of the names in the archive: without its background a vocabulary is another one."""
  path = tmp_path / 'v.npz'
  vocabulary.save(path, dataclasses.replace(example(), background=np.array([0.6, 0, 0.8, 0])))
  digest, content = vocabulary.digest(vocabulary.load(path)), path.read_bytes()
  found = 0
  size = 8 * len(content)
  for bit in (*range(0, size, 17), *range(size - 8 * 22, size)):  # the last 22 bytes say where the directory is
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    try:
      assert vocabulary.digest(vocabulary.load(path)) == digest, bit
    except ValueError:
      found += 1
  assert found > 300
  place = content.rindex(b'background.npy')  # in the directory of the archive
  path.write_bytes(content[:place] + b'c' + content[place + 1 :])
  with pytest.raises(ValueError, match=r'`sha256` is .*: it is damaged'):
    vocabulary.load(path)


def test_a_file_of_an_older_version_has_no_hash(tmp_path):
  file = example()
  fields = {key: getattr(file, key) for key in ('embeddings', 'names', 'is_base', 'teacher', 'prompts')}
  np.savez(tmp_path / 'v.npz', **fields)
  assert vocabulary.digest(vocabulary.load(tmp_path / 'v.npz')) == vocabulary.digest(file)


def test_names_of_an_array_are_saved_and_read(tmp_path):
  names, flags = tuple(np.array(['cat', 'dog'])), np.array([True, False])
  file = vocabulary.VocabularyFile(np.eye(2, dtype=np.float32), names, flags, np.str_('t'), 'single')
  vocabulary.save(tmp_path / 'v.npz', file)
  assert vocabulary.load(tmp_path / 'v.npz').names == ('cat', 'dog')
