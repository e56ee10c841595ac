"""Pages of documentation and configs: where they are, their code blocks, and the command lines in them."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').glob('*.md')])
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
# Launchers that run a command of vild-jax, by the words before it.
LAUNCHERS = (
  ('launch/cpu_mesh.sh',),
  ('launch/until_done.sh',),
  ('launch/tpu_pod.sh', 'run'),
  ('sbatch', 'launch/slurm.sbatch'),
)
_FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
  return path.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[tuple[str, str]]:
  """(language, content) of each fenced code block."""
  return _FENCE.findall(text)


def prose(text: str) -> str:
  """The text without its fenced code blocks."""
  return _FENCE.sub('', text)


def inline_code(text: str) -> list[str]:
  """What stands in back quotes outside of code blocks, on one line each."""
  return [' '.join(code.split()) for code in re.findall(r'`([^`]+)`', prose(text))]


def command_lines(code: str) -> Iterator[list[str]]:
  """The words after `vild-jax` of each line of a shell, continued lines joined; a launcher's command too."""
  for line in code.replace('\\\n', ' ').splitlines():
    if not re.match(r'\s*(vild-jax|launch/|sbatch )', line):
      continue
    words = shlex.split(line, comments=True)
    prefix = next((p for p in (('vild-jax',), *LAUNCHERS) if tuple(words[: len(p)]) == p), None)
    if prefix:
      yield words[len(prefix) :]
    elif words[0] == 'launch/demo.sh':
      yield ['demo', '--workdir', *(words[1:] if words[1:] and words[1][0] != '-' else ['W', *words[1:]])]


def of_page(text: str) -> Iterator[tuple[list[str], bool]]:
  """(words, whether they may be a mere mention) of all command lines of a page."""
  for language, code in blocks(text):
    if language in ('', 'sh'):
      yield from ((words, False) for words in command_lines(code))
  for code in inline_code(text):
    yield from ((words, True) for words in command_lines(code))


def of_config(path: Path) -> list[list[str]]:
  """The command lines of the docstring of a config."""
  return list(command_lines(docstring(path)))


def docstring(path: Path) -> str:
  """The docstring of a Python file."""
  return ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
