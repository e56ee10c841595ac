"""What a converted checkpoint's classes are called, and whose text tower embedded them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from vild_jax.vocabulary import VocabularyFile
from vild_jax.workflows import converting

NAMES = tuple(f'class {i}' for i in range(20))


@pytest.fixture
def classes(tmp_path):
  path = tmp_path / 'classes.txt'
  path.write_text('\n'.join(NAMES) + '\n', encoding='utf-8')
  return str(path)


def unit_rows(seed, count=20, dimension=32):
  rows = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def tower(rows):
  """A text tower that embeds every list of names as `rows`."""
  return lambda directory: SimpleNamespace(
    vocabulary=lambda names, is_base, which: VocabularyFile(rows, tuple(names), is_base, 'tower:1', which)
  )


def test_without_a_teacher_the_identity_is_that_of_the_embeddings(classes):
  file = converting.embedded_vocabulary(unit_rows(0), classes, 'model.ckpt-1', None)
  other = converting.embedded_vocabulary(unit_rows(1), classes, 'model.ckpt-1', None)
  assert file.names == NAMES and file.teacher.startswith('tf-vild:') and file.teacher != other.teacher
  np.testing.assert_array_equal(file.embeddings, unit_rows(0))


def test_a_teacher_is_taken_at_its_word_only_if_its_embeddings_agree(classes, monkeypatch):
  rows = unit_rows(0)
  near = rows + 0.05 * unit_rows(2)
  near /= np.linalg.norm(near, axis=1, keepdims=True)
  monkeypatch.setattr(converting.text, 'load_text', tower(near.astype(np.float32)))
  file = converting.embedded_vocabulary(rows, classes, 'c', 'teacher')
  assert (file.teacher, file.prompts) == ('tower:1', 'vild')
  np.testing.assert_array_equal(file.embeddings, rows)  # the checkpoint's own rows stay
  monkeypatch.setattr(converting.text, 'load_text', tower(np.roll(rows, 1, axis=0)))
  with pytest.raises(ValueError, match='teacher is not the teacher of this checkpoint: only 0% of its classes'):
    converting.embedded_vocabulary(rows, classes, 'c', 'teacher')
  monkeypatch.setattr(converting.text, 'load_text', tower(unit_rows(0, dimension=16)))
  with pytest.raises(ValueError, match='embeds texts in 16 dimensions; expected 32'):
    converting.embedded_vocabulary(rows, classes, 'c', 'teacher')


@pytest.mark.parametrize(
  ('count', 'named', 'message'),
  [
    (7, False, 'embeds 7 classes; expected --classes to say which, or the 1203 of LVIS v1'),
    (7, True, 'embeds 7 classes and --classes names 20; expected as many'),
  ],
)
def test_as_many_names_as_embeddings(classes, count, named, message):
  with pytest.raises(ValueError, match=message):
    converting.embedded_vocabulary(unit_rows(0, count), classes if named else None, 'c', None)
