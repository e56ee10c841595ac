"""The recipes of README, docs and configs, followed line by line on miniatures of the official layouts.

What needs no training and no real weights runs. A line that does is parsed, and its config, data and vocabulary are
opened as the command would; what it would have written is made up for the lines after it.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.helpers import official, pages, planted_store
from tests.helpers.results import write_results
from vild_jax import cli
from vild_jax import config as config_lib
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.data import class_lists, sources
from vild_jax.eval import truth as truth_lib
from vild_jax.train import checkpoint
from vild_jax.workflows import training

RUN = ('prepare', 'inspect', 'score')
README = pages.ROOT / 'README.md'


def lines_of(path: Path) -> list[list[str]]:
  """The commands of a page or config, in order, without patterns of use."""
  if path.suffix == '.py':
    return pages.of_config(path)
  lines = pages.of_page(path.read_text(encoding='utf-8'))
  return [words for words, mention in lines if not mention and '--help' not in words]


FOLLOWED = [
  path
  for path in (*pages.PAGES, *pages.CONFIGS)
  if any(words[0] in RUN or '--from-npy' in words for words in lines_of(path))
]


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder with all official files, from which the commands run as from a clone."""
  official.write(tmp_path)
  (tmp_path / 'configs').symlink_to(pages.ROOT / 'configs')
  monkeypatch.chdir(tmp_path)
  return tmp_path


def follow(words: list[str]) -> None:
  """Runs a command, or opens what it would open and makes up what it would write."""
  args = cli.parse(words)
  if args.command == 'embed-text' and not args.from_npy:
    classes = class_lists.class_list(args.classes, base=args.base)
    rows = official.rows(Path(f'{Path(args.out).stem}.npy'), classes)
    words = ['embed-text', '--classes', args.classes, '--out', args.out, '--from-npy', str(rows)]
    words += ['--teacher-id', 'clip'] + (['--base', args.base] if args.base else [])
  elif args.command == 'score':
    _results(Path(args.annotations), Path(args.results))
    for other in filter(None, (args.against, args.proposals)):
      _results(Path(args.annotations), Path(other))
  elif args.command == 'inspect' and args.regions:
    _store(Path(args.regions), args.data)
  elif args.command == 'embed-regions':
    _store(Path(args.out), args.data)
    return
  elif args.command == 'train':
    _open(args)
    return
  elif (args.command not in RUN and '--from-npy' not in words) or '--from-tfds' in words:
    return
  assert cli.main(words) == 0, shlex.join(words)


def _results(annotations: Path, results: Path) -> None:
  """Every object is found."""
  truth = truth_lib.read(annotations)
  results.parent.mkdir(parents=True, exist_ok=True)
  write_results(
    results, [{key: a[key] for key in ('image_id', 'category_id', 'bbox')} | {'score': 0.5} for a in truth.annotations]
  )


def _store(out: Path, data: str) -> None:
  """Embeddings at random, of the teacher of the vocabulary with the names of the data set."""
  if out.exists():
    return
  dataset = sources.open_dataset(data, 'train')
  names = {category.name for category in dataset.categories}
  vocabularies = map(vocabulary_lib.load, sorted(Path().glob('**/*.npz')))
  teacher = next(v.teacher for v in vocabularies if v.teacher.startswith('clip:') and set(v.names) <= names)
  out.parent.mkdir(parents=True, exist_ok=True)
  planted_store.write(out, dataset, teacher=teacher, dim=512, each=4)


def _open(args) -> None:
  """Opens what a training would, and keeps its config where later lines look for it."""
  config = config_lib.load(args.config, args.overrides)
  opened = training.open_training(config)
  assert len(opened.shown) and opened.labels.rows
  if config.data.val:
    sources.open_dataset(config.data.val, config.data.val_split)
  Path(args.workdir).mkdir(parents=True, exist_ok=True)
  (Path(args.workdir) / checkpoint.CONFIG_FILE).write_text(config_lib.to_text(config))


@pytest.mark.parametrize('path', FOLLOWED, ids=pages.name)
def test_a_recipe_can_be_followed(path, here, capsys):
  lines = lines_of(path)
  if path.suffix == '.md' and path != README:  # a page goes on from the recipes of the README and of LVIS
    for words in [*lines_of(README), *lines_of(pages.ROOT / 'configs' / 'vild_ensemble_r50_lvis.py')]:
      if words[0] in ('prepare', 'embed-text', 'embed-regions'):
        follow(words)
  for words in lines:
    follow(words)
  assert 'Traceback' not in capsys.readouterr().err


def test_all_recipes_are_followed():
  names = {pages.name(path) for path in FOLLOWED}
  assert {'README.md', 'docs/data.md', 'docs/evaluation.md', 'docs/teachers.md'} <= names
  assert {name for name in names if name.startswith('configs/')} == {
    pages.name(path) for path in pages.CONFIGS if path.stem != 'vild_text_toy'
  }


def test_the_official_files_have_their_faults_dropped_with_a_count(here, capsys):
  for words in lines_of(pages.ROOT / 'configs' / 'vild_ensemble_r50_coco_ovd.py')[:2]:
    follow(words)
  assert capsys.readouterr().err.count('2 annotations with a box of no size or outside the picture dropped') == 2
  for words in lines_of(pages.ROOT / 'configs' / 'vild_r50_lvis.py')[:2]:
    follow(words)
  assert '1 annotation with a box of no size' in capsys.readouterr().err
  assert len(sources.open_dataset('data/lvis_v1', 'val')) == 4


@pytest.mark.parametrize('name', ['yolo', 'voc', 'cvat'])
def test_the_formats_of_annotation_tools_give_the_same_box(here, name):
  (line,) = [words for words in lines_of(pages.ROOT / 'docs' / 'data.md') if words[:3] == ['prepare', '--format', name]]
  follow(line)
  (example,) = sources.open_dataset(f'data/{name}', 'train').labels()
  assert example.objects.boxes.tolist() == [[6, 4, 22, 24]]
