"""Imports point one way: a room imports only from rooms below it.

A room is a folder or a single file directly below `vild_jax/`. `FLOORS` lists them from the top down, several on one
floor where none needs another. There is no list of exceptions: a new room has to be given its floor here.
"""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'vild_jax'

# The top floor first. A room may import from itself and from every floor below its own.
FLOORS = (
  {'__main__'},
  {'cli'},
  {'commands', 'scenic'},
  {'workflows', 'serve'},
  {'inference', 'distill', 'plan', 'portable'},
  {'interop', 'demo'},
  {'train'},
  {'objective'},
  {'targets'},
  {'detector', 'teacher'},
  {'report', 'eval'},
  {'nn', 'data', 'vocabulary'},
  {'core'},
  {'config', 'structs'},
  {'runtime', '__init__'},
)
# The rooms that others build on may import less than what is below them.
MAY_IMPORT = {
  # Traced also where Orbax is too old for us (docs/export.md), so nothing that reads checkpoints.
  'portable': {'train', 'detector', 'vocabulary', 'data', 'core', 'config', 'structs', 'runtime'},
  'core': {'structs'},
  'nn': {'core', 'structs'},
  'data': {'config', 'runtime'},
  'eval': {'config', 'data', 'runtime'},
  'report': {'config', 'runtime'},
  'config': {'runtime'},
  'structs': set(),
  'runtime': set(),
}
_JAX = {'jax', 'jaxlib', 'flax', 'optax', 'orbax'}
# Room -> libraries that no file of it may import, not even inside a function.
MAY_NOT_IMPORT = {
  'core': {'flax', 'optax', 'orbax'},
  'nn': {'optax', 'orbax'},
  'data': _JAX,
  'eval': _JAX,
  'report': _JAX,
  'config': _JAX,
  'commands': _JAX,
  'cli': _JAX,
  '__init__': _JAX,
}
# Rooms that start before anybody knows whether JAX is needed: none of the rooms that import it, at their top.
WITHOUT_JAX = ('vild_jax', 'vild_jax.config', 'vild_jax.config.defaults', 'vild_jax.eval', 'vild_jax.report')
# Slow or optional: only inside the function that needs it.
ONLY_INSIDE_FUNCTIONS = {'tensorflow', 'torch', 'scenic', 'apache_beam', 'tensorboard'}


def modules() -> dict[str, ast.Module]:
  """{dotted name below vild_jax: parsed file}; a package goes by its own name, vild_jax itself by '__init__'."""
  trees = {}
  for path in sorted(PACKAGE.rglob('*.py')):
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    if parts[-1] == '__init__' and len(parts) > 1:
      parts = parts[:-1]
    trees['.'.join(parts)] = ast.parse(path.read_text(encoding='utf-8'), str(path))
  return trees


MODULES = modules()
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
  """(module, name or None) of each `import module` and `from module import name`, at any depth."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'line {node.lineno}: a relative import; write it out, so that this test can follow it'
      yield from ((node.module, alias.name) for alias in node.names)


def ours(tree: ast.AST) -> set[str]:
  """The modules of ours that a file imports, by their dotted name below vild_jax."""
  found = set()
  for module, name in imports(tree):
    top, _, below = module.partition('.')
    if top == 'vild_jax':
      longer = f'{below}.{name}'.strip('.') if name else below
      found.add(longer if longer in MODULES else below or '__init__')
  return found


def room_of(module: str) -> str:
  return module.partition('.')[0]


def misplaced(module: str, imported: set[str]) -> list[str]:
  """What a module may not import: rooms on its own floor or above, and what MAY_IMPORT does not name for its room."""
  room = room_of(module)
  below = {other for other, floor in FLOOR_OF.items() if floor > FLOOR_OF[room]}
  return sorted(other for other in imported if room_of(other) not in MAY_IMPORT.get(room, below) | {room})


@pytest.mark.parametrize('module', MODULES)
def test_a_room_imports_only_from_rooms_below_it(module):
  assert room_of(module) in FLOOR_OF, f'vild_jax/{room_of(module)} is not a room of FLOORS; expected a floor for it'
  wrong = misplaced(module, ours(MODULES[module]))
  assert not wrong, f'vild_jax.{module} imports {", ".join(wrong)}; expected imports from floors below its own'


def test_every_room_of_the_table_exists():
  assert set(FLOOR_OF) == {room_of(module) for module in MODULES}


def test_an_import_that_runs_up_is_found():
  assert misplaced('core.boxes', {'core.nms', 'structs', 'train.step', 'config.model'}) == [
    'config.model',
    'train.step',
  ]
  assert misplaced('train.loop', {'core.nms', 'train.step', 'workflows.demo'}) == ['workflows.demo']


@pytest.mark.parametrize('module', MODULES)
def test_libraries_stay_in_their_rooms(module):
  libraries = {name.partition('.')[0] for name, _ in imports(MODULES[module])}
  wrong = libraries & MAY_NOT_IMPORT.get(room_of(module), set())
  assert not wrong, f'vild_jax.{module} imports {", ".join(sorted(wrong))}'
  at_the_top = {
    name.partition('.')[0]
    for statement in MODULES[module].body
    if isinstance(statement, ast.Import | ast.ImportFrom)
    for name, _ in imports(statement)
  }
  wrong = at_the_top & ONLY_INSIDE_FUNCTIONS
  assert not wrong, f'vild_jax.{module} imports {", ".join(sorted(wrong))} outside the function that needs it'


def test_no_cycles():
  graph = {module: ours(tree) - {module} for module, tree in MODULES.items()}
  graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules of the cycle


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_configs_import_config_alone(path):
  found = set(imports(ast.parse(path.read_text(encoding='utf-8'))))
  wrong = sorted(
    module
    for module, name in found
    if module != 'vild_jax.config'
    and (module, name) != ('vild_jax', 'config')
    and module.partition('.')[0] not in sys.stdlib_module_names
  )
  assert not wrong, f'{path.name} imports {", ".join(wrong)}; expected vild_jax.config alone'


def loaded_by(program: str) -> set[str]:
  """The top names of all modules that a program has loaded at its end."""
  program += '\nimport sys; print(*sorted({name.partition(".")[0] for name in sys.modules}))'
  done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize('start', WITHOUT_JAX)
def test_imports_without_jax(start):
  below = start.removeprefix('vild_jax').removeprefix('.')
  names = [start, *(f'vild_jax.{name}' for name in MODULES if below and name.startswith(f'{below}.'))]
  assert not _JAX & loaded_by(f'import {", ".join(names)}')


def test_help_of_the_program_and_of_every_command_loads_neither_jax_nor_tfds():
  program = """
from vild_jax import cli
for words in [], *([name] for name in cli.COMMANDS):
  try:
    cli.main([*words, '--help'])
  except SystemExit as end:
    assert end.code == 0
"""
  assert not (_JAX | {'tensorflow_datasets', 'numpy', 'tensorflow'}) & loaded_by(program)
