"""House rules that a machine can check: short files, docstrings, no pickles, and a setup.py that tells the truth."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'vild_jax'
SOURCES = [
  path
  for folder in ('vild_jax', 'tests', 'configs', 'benchmarks', 'launch')
  for path in sorted((ROOT / folder).rglob('*'))
  if path.suffix in ('.py', '.sh')
]
MODULES = [path for path in SOURCES if PACKAGE in path.parents]
MAX_LINES = 400


def name(path: Path) -> str:
  return path.relative_to(ROOT).as_posix()


@functools.cache
def parse(path: Path) -> ast.Module:
  return ast.parse(path.read_text(encoding='utf-8'), str(path))


def every(paths: list[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
  """Makes one test of a rule for a file, which names all files that break it; a test for each file costs a minute."""

  def one_test(rule: Callable[[Path], None]) -> Callable[[], None]:
    def test() -> None:
      assert paths
      broken = []
      for path in paths:
        try:
          rule(path)
        except AssertionError as error:
          broken.append(f'{name(path)}: {error}')
      assert not broken, '\n'.join(broken)

    test.__name__, test.__doc__ = rule.__name__, rule.__doc__
    return test

  return one_test


@every(SOURCES)
def test_files_are_short(path):
  lines = len(path.read_text(encoding='utf-8').splitlines())
  assert lines <= MAX_LINES, f'{name(path)} has {lines} lines; expected at most {MAX_LINES}: split it by what it does'
  assert path.stem not in ('utils', 'util', 'helpers', 'misc', 'common'), f'{name(path)}: name it by what it does'


@every(MODULES)
def test_public_functions_and_classes_have_docstrings(path):
  tree = parse(path)
  assert ast.get_docstring(tree) or not tree.body, f'{name(path)} says nowhere what it is for'
  bare = [
    node.name
    for node in tree.body
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    and not node.name.startswith('_')
    and not ast.get_docstring(node)
  ]
  assert not bare, f'{name(path)}: no docstring in {", ".join(bare)}'


@every(MODULES)
def test_docstrings_of_public_functions_begin_with_a_verb(path):
  """In the third person: "Returns ...", "Writes ...". A noun ("The ...", "A ...") does not say what happens."""
  wrong = [
    f'{node.name}: {first[:40]!r}'
    for node in ast.walk(parse(path))
    if isinstance(node, ast.FunctionDef) and not node.name.startswith('_')
    if (first := (ast.get_docstring(node) or 'Has no docstring.').split('\n')[0])
    and not re.match(r'[A-Z][a-z]+s\b', first)
  ]
  assert not wrong, f'{name(path)}: {"; ".join(wrong)}; expected a verb in the third person first'


@every(MODULES)
def test_nothing_is_unpickled(path):
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.Import | ast.ImportFrom):
      modules = {alias.name for alias in node.names} | {getattr(node, 'module', None)}
      assert not modules & {'pickle', 'dill', 'cloudpickle', 'joblib', 'shelve'}, f'{name(path)}:{node.lineno}'
    if isinstance(node, ast.keyword) and node.arg == 'allow_pickle':
      assert isinstance(node.value, ast.Constant) and node.value.value is False, f'{name(path)}:{node.value.lineno}'


@every([path for path in SOURCES if ROOT / 'tests' in path.parents])
def test_tests_share_through_helpers_alone(path):
  imported = set()
  for node in ast.walk(parse(path)):
    if isinstance(node, ast.Import):
      imported |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      imported |= {f'{node.module}.{alias.name}' for alias in node.names}
  wrong = {module for module in imported if re.match(r'tests(\.|$)', module)}
  wrong = {module for module in wrong if not module.startswith('tests.helpers.')}
  assert not wrong, f'{name(path)} imports {", ".join(sorted(wrong))}; expected tests.helpers alone'
  is_helper = path.parent == ROOT / 'tests' / 'helpers'
  assert is_helper or path.stem in ('conftest', '__init__') or path.stem.startswith('test_'), (
    f'{name(path)} is not a test; expected it in tests/helpers/'
  )


@functools.cache
def setup_arguments() -> dict[str, object]:
  """The literal arguments of the call of setup()."""
  call = next(
    node
    for node in ast.walk(parse(ROOT / 'setup.py'))
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'setup'
  )
  return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg != 'packages'}


def distribution(requirement: str) -> str:
  """The normalised name of a requirement or a pinned line."""
  return re.sub(r'[-_.]+', '-', re.match(r'[\w.-]+', requirement).group()).lower()


def of_an_extra(path: Path) -> str | None:
  """The extra that a whole room needs: its files may import that at their top, and others import them in functions."""
  room = path.relative_to(PACKAGE).parts[0]
  return room if room == 'serve' else None


@every(MODULES)
def test_rooms_of_an_extra_are_imported_inside_functions(path):
  if of_an_extra(path):
    return
  for node in parse(path).body:
    if isinstance(node, ast.Import | ast.ImportFrom):
      assert 'serve' not in re.split(r'[.,\s]+', ast.unparse(node)), f'{name(path)}:{node.lineno} needs vild_jax[serve]'


@functools.cache
def installed() -> Mapping[str, list[str]]:
  """{top name of a module: distributions that hold it}, of all that is installed; takes a tenth of a second."""
  return importlib.metadata.packages_distributions()


@every(MODULES)
def test_imported_libraries_are_declared(path):
  arguments = setup_arguments()
  extras = arguments['extras_require']
  required = {distribution(line) for line in [*arguments['install_requires'], *extras.get(of_an_extra(path), [])]}
  optional = {distribution(line) for lines in extras.values() for line in lines}
  homes = installed()
  tree = parse(path)
  for node in ast.walk(tree):
    if not isinstance(node, ast.Import | ast.ImportFrom):
      continue
    declared = required if node in tree.body else required | optional
    for module in [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]:
      top = module.partition('.')[0]
      if top != 'vild_jax' and top not in sys.stdlib_module_names:
        homes_of_it = {distribution(home) for home in homes.get(top, [top])}
        assert homes_of_it & declared, f'{name(path)}:{node.lineno} imports {module}; setup.py does not declare it'


@every(sorted((ROOT / 'constraints').glob('*.txt')))
def test_constraints_pin_every_requirement(path):
  pinned = {
    distribution(line)
    for line in path.read_text(encoding='utf-8').splitlines()
    if re.fullmatch(r'[\w.-]+==[\w.]+', line)
  }
  arguments = setup_arguments()
  required = {distribution(line) for line in arguments['install_requires'] + arguments['extras_require']['test']}
  assert required <= pinned, f'{name(path)} does not pin {", ".join(sorted(required - pinned))}'


def test_the_package_ships_every_file_it_holds():
  patterns = setup_arguments()['package_data']['vild_jax']
  data = [
    path.relative_to(PACKAGE)
    for path in sorted(PACKAGE.rglob('*'))
    if path.is_file() and path.suffix not in ('.py', '.pyc')
  ]
  left_out = [str(path) for path in data if not any(path.match(pattern) for pattern in patterns)]
  assert not left_out, f'setup.py: package_data leaves out {", ".join(left_out)}'
  folders = {path.parent for path in MODULES}
  assert all((folder / '__init__.py').is_file() for folder in folders), 'a folder of modules without __init__.py'


@every([path for path in SOURCES if path.suffix == '.sh'])
def test_launchers_parse_and_stop_at_the_first_error(path):
  text = path.read_text(encoding='utf-8')
  assert text.startswith('#!/usr/bin/env bash\n') and '\nset -euo pipefail\n' in text
  subprocess.run(['bash', '-n', str(path)], check=True)
