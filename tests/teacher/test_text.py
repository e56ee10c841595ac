"""Names are embedded part by part, whatever their number, and each prompt counts once."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import small_teacher
from vild_jax.teacher import text

NAMES = ('red mug', 'toy', 'elephant', 'mug', 'toy elephant')
SYNONYMS = (('mug',), (), ('Toy', 'red'), (), ())
TEMPLATES = ('a photo of a {}', 'a {}', 'the {}')


@pytest.fixture(scope='module')
def tower():
  return text.TextTower(small_teacher.make())


@pytest.mark.parametrize('together, sizes', [(1, [1] * 5), (9, [2, 1, 2]), (1000, [5])])
def test_parts_are_the_rows_of_the_whole(tower, monkeypatch, together, sizes):
  monkeypatch.setattr(text, '_TEXTS_TOGETHER', together)
  parts = list(tower.embed_in_parts(NAMES, TEMPLATES, SYNONYMS))
  assert [len(part) for part in parts] == sizes
  expected = []
  for name, others in zip(NAMES, SYNONYMS, strict=True):
    prompts = [template.format(word.lower()) for word in (name, *others) for template in TEMPLATES]
    mean = tower.embed_texts(prompts).astype(np.float64).mean(axis=0)
    expected.append(mean / np.linalg.norm(mean))
  np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-6)
  np.testing.assert_array_equal(tower.embed(NAMES, TEMPLATES, SYNONYMS), np.concatenate(parts))


def test_no_names(tower):
  with pytest.raises(ValueError, match='the list of classes is empty'):
    tower.embed([], TEMPLATES)
