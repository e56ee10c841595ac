"""What the documents say exists: links, cited files, paths, and every command line by the real parser."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from tests.helpers.pages import CONFIGS, PAGES, ROOT, blocks, docstring, inline_code, name, of_config, of_page, prose
from vild_jax import cli
from vild_jax import config as config_lib

FOLDERS = ('.ci', 'benchmarks', 'configs', 'constraints', 'docs', 'launch', 'tests', 'vild_jax')
SOURCES = sorted(
  path
  for path in (*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob('*')))
  if path.is_file() and '__pycache__' not in path.parts and path.suffix not in ('.npz', '.png')
)
README_WORDS = 700
# Documents that users do not have. In two parts, so that this file does not cite them.
MD = '.' + 'md'
FORBIDDEN = tuple(stem + MD for stem in ('METHOD', 'SURFACE', 'HOUSE', 'STACK'))
FORBIDDEN_WORDS = ('QUI' + 'RKS',)
_PLACEHOLDER = re.compile(r'[A-Z]+')
_PATH = re.compile(r'(?:vild_jax|tests|configs|launch|benchmarks|docs|constraints)/[\w./-]*')


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
  """The anchors of the headings of a page, as GitHub makes them."""
  headings = re.findall(r'^#+ (.*)$', prose(text), re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
  """The relative links of a page that lead to no file of the repository, or to no heading of it."""
  broken = []
  for target in re.findall(r'\]\(([^)\s]+)\)', prose(text)):
    if re.match(r'[a-z]+:', target):
      continue
    file, _, anchor = target.partition('#')
    found = (page.parent / file).resolve() if file else page
    exists = found.is_relative_to(ROOT) and found.exists()
    if exists and anchor:
      exists = anchor in anchors(found.read_text(encoding='utf-8') if file else text)
    if not exists:
      broken.append(target)
  return broken


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_links_lead_somewhere(page):
  assert not broken_links(page, page.read_text(encoding='utf-8'))


def test_a_broken_link_is_found():
  text = (
    f'# A page: one, two\n[a](absent{MD}) [b](docs/method.md#no)\n[c](#a-page-one-two) [d](docs/method.md) [e](#no)'
  )
  text += (
    f' [f](https://example.org/absent{MD}) ![g\nh](docs/absent.png) [i](../LICENSE)\n```sh\n[j](absent{MD})\n```\n'
  )
  found = broken_links(ROOT / 'README.md', text)
  assert found == ['absent' + MD, 'docs/method.md#no', '#no', 'docs/absent.png', '../LICENSE']


# --- citations --------------------------------------------------------------------------------------------------------


def absent_citations(path: Path, text: str) -> list[str]:
  """Names of .md files that a file mentions and the repository does not have, and words that name one."""
  absent = [word for word in FORBIDDEN_WORDS if word in text]
  for cited in re.findall(r'[\w./-]*\w\.md\b', text):
    places = (ROOT / cited, path.parent / cited, ROOT / 'docs' / cited)
    if Path(cited).name in FORBIDDEN or not any(place.is_file() for place in places):
      absent.append(cited)
  return absent


@pytest.mark.parametrize('path', SOURCES, ids=name)
def test_only_documents_of_the_repository_are_cited(path):
  found = absent_citations(path, path.read_text(encoding='utf-8', errors='replace'))
  assert not found, f'{name(path)} cites {", ".join(sorted(set(found)))}'


def test_a_citation_of_an_absent_document_is_found():
  wrong = [*FORBIDDEN, '../notes/' + FORBIDDEN[0], 'absent' + MD]
  text = f'{", ".join(wrong)}; {FORBIDDEN_WORDS[0]} 12; docs/method.md, 3; [scale](scale.md), README.md.'
  assert absent_citations(ROOT / 'docs' / 'data.md', text) == [*FORBIDDEN_WORDS, *wrong]
  assert ROOT / 'vild_jax' / 'cli.py' in SOURCES and ROOT / 'README.md' in SOURCES


# --- command lines ----------------------------------------------------------------------------------------------------


def problem(words: list[str], mention: bool = False) -> str:
  """What is wrong with the words after `vild-jax`; empty for a line that runs, up to the files that it names.

  A pattern of use, `vild-jax COMMAND --help`, is right; so is a mention, a command alone or with placeholders in
  capitals, where there may be one.
  """
  if words[:1] and _PLACEHOLDER.fullmatch(words[0]):
    return '' if words[1:] == ['--help'] else f'{words[0]} is a placeholder'
  if mention and words[:1] and all(_PLACEHOLDER.fullmatch(word) for word in words[1:]):
    return '' if words[0] in cli.COMMANDS else f'{words[0]} is not a command'
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
      args = cli.parse(words)
  except SystemExit as end:
    return said.getvalue().strip() if end.code else ''
  if getattr(args, 'config', None) is None:
    return ''
  path = ROOT / args.config
  if args.config.startswith('configs/') and not path.is_file():
    return f'{args.config} is not a file'
  try:
    if args.config.startswith('configs/'):
      config_lib.load(path, args.overrides)
    else:
      config_lib.override(config_lib.Config(), args.overrides)
  except config_lib.ConfigError as error:
    return str(error)
  return ''


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_command_lines_of_pages_parse(page):
  lines = list(of_page(page.read_text(encoding='utf-8')))
  wrong = [f'{shlex.join(words)}: {found}' for words, mention in lines if (found := problem(words, mention))]
  assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('path', CONFIGS, ids=name)
def test_command_lines_of_configs_parse(path):
  lines = of_config(path)
  wrong = [f'{shlex.join(words)}: {found}' for words in lines if (found := problem(words))]
  assert lines or 'vild-jax' not in docstring(path) or path.stem == 'vild_text_toy'
  assert not wrong, '\n'.join(wrong)


def test_every_command_is_in_the_readme():
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  assert {words[0] for words, _ in of_page(text) if words} >= set(cli.COMMANDS)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('vild-jax trian configs/vild_r50_lvis.py --workdir W', 'trian'),
    ('vild-jax train configs/absent.py --workdir W', 'configs/absent.py'),
    ('vild-jax train configs/vild_r50_lvis.py', '--workdir'),
    ('vild-jax train configs/vild_r50_lvis.py \\\n  --workdir W --model.depht=18', 'model.depht'),
    ('vild-jax train CONFIG --workdir W --data.batch_size=many', 'data.batch_size'),
    ('vild-jax demo --workdir W --seed S', '--seed'),
    ('vild-jax COMMAND --workdir W', 'COMMAND'),
    ('launch/cpu_mesh.sh train configs/vild_r50_lvis.py --workdir W --setp 3', '--setp'),
    ('launch/tpu_pod.sh run export CONFIG --checkpoint W', '--out'),
    ('sbatch launch/slurm.sbatch trian CONFIG', 'trian'),
    ('launch/demo.sh W --sed 0', '--sed'),
  ],
)
def test_a_wrong_command_line_is_found(line, message):
  ((words, mention),) = of_page(f'# Title\n\n```sh\n{line}   # a comment\n```\n')
  assert message in problem(words, mention)


def test_mentions_name_real_commands():
  text = (
    'Use `vild-jax plan CONFIG`, `vild-jax export`, `vild-jax COMMAND --help`, `vild-jax serv` and\n`vild-jax\ntrain`.'
  )
  found = [problem(words, mention) for words, mention in of_page(text)]
  assert found == ['', '', '', 'serv is not a command', '']
  ((words, mention),) = of_page('```sh\nvild-jax train CONFIG\n```')
  assert '--workdir' in problem(words, mention)


# --- words and paths --------------------------------------------------------------------------------------------------


def count_words(text: str) -> int:
  """Words of a page outside of tables and code blocks; the target of a link is not one."""
  lines = [line for line in prose(text).splitlines() if not line.startswith('|')]
  text = re.sub(r'\]\([^)]*\)', ']', '\n'.join(lines))
  return sum(bool(re.search(r'\w', word)) for word in text.split())


def test_the_readme_is_short():
  found = count_words((ROOT / 'README.md').read_text(encoding='utf-8'))
  assert found <= README_WORDS, f'README.md has {found} words; expected at most {README_WORDS}'


def test_words_outside_of_tables_and_code_are_counted():
  text = '# One\n\ntwo - [three four](docs/five.png) `six`\n\n| a | b |\n|---|---|\n\n```sh\nseven eight\n```\nnine\n'
  assert count_words(text) == 6


def absent_paths(text: str) -> list[str]:
  """Paths of the repository, in back quotes or in code blocks, that do not exist. NAME stands for any name."""
  words = [word for code in inline_code(text) for word in code.split()]
  words += [word for _, code in blocks(text) for word in code.split()]
  paths = [word for word in words if _PATH.fullmatch(word) and 'NAME' not in word]
  return [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_paths_exist(page):
  assert not absent_paths(page.read_text(encoding='utf-8'))


def test_a_path_that_does_not_exist_is_found():
  text = (
    'See `vild_jax/core/absent.py`, `tests/core/`, `vild_jax/commands/NAME.py`, `benchmarks/absent.py --boxes 3`.\n'
  )
  text += '```sh\nlaunch/absent.sh train configs/vild_r50_lvis.py\n```\n'
  assert absent_paths(text) == ['vild_jax/core/absent.py', 'benchmarks/absent.py', 'launch/absent.sh']


def absent_names(text: str) -> list[str]:
  """Dotted names of vild_jax, in back quotes or in code blocks, whose module or first name in it does not exist."""
  absent = []
  for dotted in re.findall(
    r'\bvild_jax(?:\.\w+)+', '\n'.join([*inline_code(text), *(code for _, code in blocks(text))])
  ):
    parts, path = dotted.split('.')[1:], ROOT / 'vild_jax'
    while parts and ((path / parts[0]).is_dir() or (path / f'{parts[0]}.py').is_file()):
      path /= parts.pop(0)
    module = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
    if parts and not re.search(rf'\b{parts[0]}\b', module.read_text(encoding='utf-8')):
      absent.append(dotted)
  return absent


@pytest.mark.parametrize('page', [page for page in PAGES if page.name != 'CHANGELOG.md'], ids=name)
def test_names_exist(page):
  text = page.read_text(encoding='utf-8')
  assert not absent_names(text)
  for language, code in blocks(text):
    if language == 'python':
      ast.parse(code)


def test_a_name_that_does_not_exist_is_found():
  text = (
    '`vild_jax.load`, `vild_jax.lode`, `vild_jax.core`, `vild_jax.core.nms.classwise_nms`, `vild_jax.core.nms.nns`\n'
  )
  text += '```sh\npython -m vild_jax.absent.project\n```\n```python\nfrom vild_jax.config import Config\n```\n'
  assert absent_names(text) == ['vild_jax.lode', 'vild_jax.core.nms.nns', 'vild_jax.absent.project']
