from __future__ import annotations

import json
import os

import numpy as np
import pytest

from tests.helpers import bpe
from vild_jax.teacher.tokenizer import Tokenizer, clean_text, parse
from vild_jax.vocabulary import clean_name

OTHER = {'version': '1.0', 'added_tokens': [], 'model': {'type': 'WordLevel', 'vocab': {'a': 0}, 'unk_token': 'a'}}
REPLACE = {'type': 'Replace', 'pattern': {'String': 'a'}, 'content': ' '}


@pytest.fixture(scope='module')
def tokenizer(shared):
  return Tokenizer(bpe.tokenizer_json(shared / 'data/clip/bpe_simple_vocab_16e6.txt.gz'), 77)


def test_start_end_and_zeros_around_every_golden_text(tokenizer, shared):
  golden = json.loads((shared / 'data/clip/token_golden.json').read_text(encoding='utf-8'))
  rows = tokenizer(list(golden))
  assert rows.shape == (len(golden), 77) and rows.dtype == np.int32
  for row, (text, ids) in zip(rows, golden.items(), strict=True):
    assert row.tolist() == [49406, *ids, 49407] + [0] * (75 - len(ids)), text


def test_every_lvis_name(tokenizer, shared):
  categories = json.loads((shared / 'data/categories/lvis_v1_train_cat_info.json').read_text())
  names = [c['name'] for c in sorted(categories, key=lambda c: c['id'])]
  with np.load(shared / 'data/clip/lvis_v1_tokens.npz') as golden:
    np.testing.assert_array_equal(tokenizer([f'a {name}' for name in names]), golden['a_rawname'])
    np.testing.assert_array_equal(tokenizer([f'a {clean_name(n)}' for n in names]), golden['a_processedname'])


def test_a_long_text_keeps_its_end_and_is_named(tokenizer):
  text = ' '.join(['cat'] * 90)
  with pytest.warns(UserWarning, match=r"'cat cat.*has 90 tokens; only the first 75 are used"):
    (row,) = tokenizer([text])
  assert row.tolist() == [49406] + [2368] * 75 + [49407]


def test_cleaning():
  assert clean_text('  A\n\tCafe\u0301 &amp;lt;B&amp;gt; “x” ') == 'a café <b> "x"'
  assert clean_text('schÃ¶n') == 'schön'


def test_a_tokenizer_of_another_kind_is_one_line():
  with pytest.raises(ValueError, match=r'lacks <\|startoftext\|>; expected a tokenizer of CLIP'):
    Tokenizer(json.dumps(OTHER), 77)


@pytest.mark.parametrize(
  ('normalizer', 'grows'),
  [
    (None, False),
    ({'type': 'Sequence', 'normalizers': [{'type': 'NFC'}, REPLACE | {'pattern': {'Regex': ' +'}}]}, False),
    (REPLACE | {'content': 'a' * 5000, 'pattern': {'String': 'a' * 50}}, False),
    (REPLACE | {'content': 'a' * 5000}, True),
    (REPLACE | {'content': 'a' * 5000, 'pattern': {'Regex': 'a*'}}, True),
    ({'type': 'Sequence', 'normalizers': [REPLACE | {'content': 'a' * 50}] * 4}, True),
    ({'type': 'Sequence', 'normalizers': [{'type': 'Prepend', 'prepend': 'a' * 50}] * 2}, True),
  ],
)
def test_a_normalizer_that_makes_gigabytes_of_a_word_is_one_line(normalizer, grows):
  text = json.dumps(OTHER | {'normalizer': normalizer})
  if not grows:
    assert parse(text).get_vocab_size() == 1
    return
  with pytest.raises(ValueError, match=r'^x has a normalizer that can make a text .* times as long; expected at most'):
    parse(text, 'x')


def test_what_others_write_to_stderr_meanwhile_is_not_lost(tokenizer, monkeypatch, capfd):
  clean = tokenizer._clean

  def of_another_thread(text):
    os.write(2, b'a warning\n')
    return clean(text)

  monkeypatch.setattr(tokenizer, '_clean', of_another_thread)
  tokenizer(['cat'])
  assert capfd.readouterr().err == 'a warning\n'
