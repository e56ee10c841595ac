from __future__ import annotations

import json

import pytest

from vild_jax.teacher import prompts


def test_the_tables_are_the_published_ones(shared):
  vild = json.loads((shared / 'data/clip/vild_63_templates.json').read_text())
  imagenet = json.loads((shared / 'data/clip/openai_imagenet_80_templates.json').read_text())
  loaded = prompts.load_templates('vild')
  assert [t.removeprefix('This is ') for t in loaded] == vild and len(loaded) == 63
  assert sum(t.startswith('This is ') for t in loaded) == 58
  assert list(prompts.load_templates('imagenet')) == imagenet and len(imagenet) == 80
  assert prompts.load_templates('single') == ('a photo of a {}',)


def test_articles_follow_the_name():
  templates = ('There is {article} {} in the scene.', 'a {}')
  assert prompts.fill('Apple_pie', templates) == ['There is an apple pie in the scene.', 'a apple pie']
  assert prompts.fill('hair_dryer', templates[:1]) == ['There is a hair dryer in the scene.']
  assert 'This is a photo of an owl.' in prompts.fill('owl', prompts.load_templates('vild'))


def test_templates_of_a_file(tmp_path):
  path = tmp_path / 'p.txt'
  path.write_text('\ufeffa drawing of {article} {}\n\n  {} – klein \n', encoding='utf-8')
  assert prompts.load_templates(path) == ('a drawing of {article} {}', '{} – klein')


@pytest.mark.parametrize(
  'content, found',
  [
    (b'a photo\n', "p.txt:1: 'a photo' is not a template"),
    (b'{}\n{name}\n', 'p.txt:2'),
    (b'{} and {}\n', 'p.txt:1'),
    (b'a {\n', 'p.txt:1'),
    (b'{:d}\n', 'p.txt:1'),
    (b'\n\n', 'holds no template'),
    (b'\xff\xfe{}', 'not UTF-8'),
  ],
)
def test_a_bad_file_is_one_line(tmp_path, content, found):
  (tmp_path / 'p.txt').write_bytes(content)
  with pytest.raises(ValueError, match=found) as error:
    prompts.load_templates(tmp_path / 'p.txt')
  assert '\n' not in str(error.value)


def test_unknown_prompts():
  with pytest.raises(ValueError, match="no prompts 'wild'; expected vild, imagenet, single or a file"):
    prompts.load_templates('wild')


def test_what_a_vocabulary_records_is_never_a_file(tmp_path):
  (tmp_path / 'secret').write_text('hunter2 {}:0')
  for text in (str(tmp_path / 'secret'), f'{tmp_path / "secret"} + synonyms', ''):
    with pytest.raises(
      ValueError, match=r'records the prompts .*; expected vild, imagenet, single or templates'
    ) as error:
      prompts.recorded(text)
    assert 'hunter2' not in str(error.value)
  assert prompts.recorded('vild + synonyms') == prompts.load_templates('vild')


def test_what_a_vocabulary_keeps_of_its_prompts_fills_the_same_templates(tmp_path):
  path = tmp_path / 'mine.txt'
  path.write_text('a drawing of {article} {}\n\na {} in the fog\n', encoding='utf-8')
  kept = prompts.as_text(path)
  path.unlink()
  assert prompts.load_templates(kept) == ('a drawing of {article} {}', 'a {} in the fog')
  assert prompts.load_templates(prompts.as_text('vild')) == prompts.load_templates('vild')
