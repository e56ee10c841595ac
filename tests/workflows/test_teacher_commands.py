"""`classify` and `embed-text` end to end with a teacher of random weights, and one clear line for each bad input."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.helpers import bad_input, small_teacher
from tests.helpers.bad_input import BadInput
from tests.helpers.small_experiment import run
from vild_jax import vocabulary
from vild_jax.data import class_lists
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import prompts, text, zero_shot
from vild_jax.workflows import classifying


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A teacher directory, two pictures and a list of classes."""
  folder = tmp_path_factory.mktemp('made')
  teacher_checkpoint.save_teacher(folder / 'teacher', small_teacher.make())
  rng = np.random.default_rng(0)
  for name in ('a', 'b'):
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / f'{name}.png')
  (folder / 'names.txt').write_text('red mug\n\ntoy elephant\n toy\n', encoding='utf-8')
  return folder


def test_classify_prints_the_best_names_of_each_picture(made, tmp_path, capsys):
  assert (
    run(
      'classify',
      made / 'a.png',
      made / 'b.png',
      '--teacher',
      made / 'teacher',
      '--classes',
      'red mug, toy elephant, toy',
      '--top',
      2,
      '--prompts',
      'single',
      '--json',
      tmp_path / 'out.json',
    )
    == 0
  )
  found = json.loads((tmp_path / 'out.json').read_text())
  teacher = teacher_checkpoint.load_teacher(made / 'teacher')
  assert (found['teacher'], found['image_tower'], found['prompts']) == (
    teacher.text_identity,
    teacher.image_identity,
    'single',
  )
  pictures = [Image.open(made / f'{name}.png') for name in ('a', 'b')]
  names = ('red mug', 'toy elephant', 'toy')
  scores = zero_shot.classify(teacher, pictures, names, prompts.load_templates('single'))
  for image, cosine, probability in zip(found['images'], scores.cosine, scores.probability, strict=True):
    order = np.argsort(-cosine)[:2]
    assert [s['class'] for s in image['scores']] == [names[i] for i in order]
    np.testing.assert_allclose([s['cosine'] for s in image['scores']], cosine[order], atol=1e-6)
    np.testing.assert_allclose([s['probability'] for s in image['scores']], probability[order], atol=1e-6)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == str(made / 'a.png') and lines[1].split() == ['class', 'probability', 'cosine']
  assert lines[2].startswith(f'  {found["images"][0]["scores"][0]["class"]} ') and len(lines) == 8


def test_classify_sees_a_picture_as_viewers_show_it(made, tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  picture = Image.open(made / 'a.png')
  picture.save(tmp_path / 'a.png', exif=exif)
  picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / 'b.png')
  find = lambda name: classifying.classify(
    str(made / 'teacher'), [name], 'red mug, toy elephant', which='single', top=2
  )['images'][0]['scores']
  assert find(tmp_path / 'a.png') == find(tmp_path / 'b.png') != find(made / 'a.png')


def test_classify_takes_the_lists_that_embed_text_takes(made, tmp_path):
  for classes, count in ((made / 'names.txt', 3), ('voc', 20)):
    assert (
      run(
        'classify',
        made / 'a.png',
        '--teacher',
        made / 'teacher',
        '--classes',
        classes,
        '--top',
        99,
        '--prompts',
        'single',
        '--json',
        tmp_path / 'o.json',
      )
      == 0
    )
    assert len(json.loads((tmp_path / 'o.json').read_text())['images'][0]['scores']) == count


@pytest.mark.parametrize(
  ('classes', 'count', 'base'),
  [('coco', 80, 0), ('coco-ovd', 65, 48), ('voc', 20, 0), ('objects365', 365, 0), ('names.txt', 3, 0)],
)
def test_embed_text_writes_a_vocabulary_with_its_origin(made, tmp_path, classes, count, base):
  classes = made / classes if classes.endswith('.txt') else classes
  assert (
    run(
      'embed-text',
      '--teacher',
      made / 'teacher',
      '--classes',
      classes,
      '--out',
      tmp_path / 'v.npz',
      '--prompts',
      'single',
    )
    == 0
  )
  file = vocabulary.load(tmp_path / 'v.npz')
  assert (len(file.names), file.is_base.sum(), file.prompts) == (count, base, 'single')
  assert file.teacher == teacher_checkpoint.load_text_tower(made / 'teacher').text_identity


def test_synonyms_are_averaged(made, tmp_path):
  assert (
    run(
      'embed-text',
      '--teacher',
      made / 'teacher',
      '--classes',
      'lvis',
      '--out',
      tmp_path / 'v.npz',
      '--prompts',
      'single',
      '--synonyms',
    )
    == 0
  )
  file = vocabulary.load(tmp_path / 'v.npz')
  assert file.prompts == 'single + synonyms' and prompts.recorded(file.prompts) == ('a photo of a {}',)
  tower = text.load_text(made / 'teacher')
  categories = {c.name: c for c in class_lists.lvis_categories()}
  assert categories['bull'].synonyms == ('horned_cow',)  # the name is not among them, and is averaged all the same
  for name, words in (
    ('airplane', ('airplane', 'aeroplane')),
    ('bull', ('bull', 'horned cow')),
    ('zucchini', ('zucchini', 'courgette')),
  ):
    rows = tower.embed_texts([f'a photo of a {word}' for word in words]).astype(np.float64)
    expected = rows.mean(0) / np.linalg.norm(rows.mean(0))
    np.testing.assert_allclose(file.embeddings[file.names.index(name)], expected, atol=1e-5)


def test_a_text_that_is_too_long_is_one_warning_that_names_it(made, tmp_path, capsys):
  (tmp_path / 'c.txt').write_text('toy\n' + 'red mug ' * 10 + '\n' + 'mug ' * 30)
  assert (
    run(
      'embed-text',
      '--teacher',
      made / 'teacher',
      '--classes',
      tmp_path / 'c.txt',
      '--out',
      tmp_path / 'v.npz',
      '--prompts',
      'single',
    )
    == 0
  )
  (warning,) = capsys.readouterr().err.splitlines()
  assert warning.startswith("vild-jax embed-text: warning: 'a photo of a red mug red mug")
  assert warning.endswith('has 24 tokens; only the first 12 are used (and of 1 more texts)')
  file = vocabulary.load(tmp_path / 'v.npz')
  cut = text.load_text(made / 'teacher').embed(['red mug ' * 4], ('a photo of a {}',))
  np.testing.assert_allclose(file.embeddings[1], cut[0], atol=1e-5)


EMBED = 'embed-text --teacher {teacher} --out {tmp}/v.npz --classes'
EMBED_SPOILED = 'embed-text --teacher {tmp}/t --out {tmp}/v.npz --classes'
CLASSIFY = 'classify {picture} --teacher {teacher} --classes'
CLASSIFY_SPOILED = 'classify {picture} --teacher {tmp}/t --classes'


def spoiled_teacher(spoil):
  """Copies the teacher directory and hands the copy to `spoil`."""
  return lambda made, tmp_path: spoil(shutil.copytree(made / 'teacher', tmp_path / 't'))


def cut_weights(teacher):
  content = (teacher / 'model.safetensors').read_bytes()
  (teacher / 'model.safetensors').write_bytes(content[: len(content) // 2])


def other_tokenizer(teacher):
  (teacher / 'tokenizer.json').write_text(small_teacher.make('more words').tokenizer_json)


def unsupported_preprocessing(teacher):
  (teacher / 'preprocessor_config.json').write_text('{"size": {"longest_edge": 16}, "image_mean": [1, 1, 1]}')


def list_of(text):
  """Writes a list of classes."""
  return lambda made, tmp_path: (tmp_path / 'c.txt').write_text(text)


@bad_input.each(
  BadInput(
    'no teacher', 'classify {picture} --teacher {made} --classes toy', '{made} is not a teacher directory: it has no'
  ),
  BadInput(
    'no weights',
    f'{EMBED_SPOILED} voc',
    'it has no model.safetensors',
    spoiled_teacher(lambda teacher: (teacher / 'model.safetensors').unlink()),
  ),
  BadInput(
    'cut weights',
    f"{CLASSIFY_SPOILED} 'toy, mug'",
    'model.safetensors is not a complete safetensors file',
    spoiled_teacher(cut_weights),
  ),
  BadInput(
    'other tokenizer', f'{EMBED_SPOILED} voc', 'the vocab_size of config.json', spoiled_teacher(other_tokenizer)
  ),
  BadInput(
    'unsupported preprocessing',
    f"{CLASSIFY_SPOILED} 'toy, mug'",
    'preprocessor_config.json: size is {{"longest_edge": 16}}; expected',
    spoiled_teacher(unsupported_preprocessing),
  ),
  BadInput('empty list', f'{EMBED} {{tmp}}/c.txt', 'c.txt names no class; expected one name a line', list_of('\n \n')),
  BadInput(
    'a name twice', f'{EMBED} {{tmp}}/c.txt', "line 3 names 'toy' again, after line 1", list_of('toy\nmug\ntoy\n')
  ),
  BadInput('a word twice', f"{CLASSIFY} 'toy, mug,toy'", "--classes has 'toy' more than once"),
  BadInput('no word', f"{CLASSIFY} ' , '", 'expected names separated by commas'),
  BadInput('no synonyms', f'{EMBED} {{made}}/names.txt --synonyms', 'names.txt has none'),
  BadInput(
    'no prompts',
    f"{CLASSIFY} 'toy, mug' --prompts wild",
    "no prompts 'wild'; expected vild, imagenet, single or a file",
  ),
  BadInput('none at the top', f"{CLASSIFY} 'toy, mug' --top 0", '--top is 0; expected at least 1'),
  BadInput(
    'no picture',
    'classify {tmp}/p.jpg --teacher {teacher} --classes toy',
    'p.jpg: no readable picture',
    lambda made, tmp_path: (tmp_path / 'p.jpg').write_bytes(b'no picture'),
  ),
)
def test_bad_input_gets_one_line_and_exit_code_2(made, tmp_path, capsys, case):
  if case.spoil:
    case.spoil(made, tmp_path)
  paths = {'made': made, 'teacher': made / 'teacher', 'picture': made / 'a.png', 'tmp': tmp_path}
  bad_input.assert_one_line(capsys, case, paths)
  assert not (tmp_path / 'v.npz').exists()


def test_classify_has_help_with_an_example(capsys):
  with pytest.raises(SystemExit):
    run('classify', '--help')
  text_ = ' '.join(capsys.readouterr().out.split())
  assert 'example: vild-jax classify cup.jpg --teacher' in text_ and '(default: vild)' in text_
