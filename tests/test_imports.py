"""Imports point one way: who may import what of ours, parsed from the source of every file.

A room is a folder or a single file of vild_jax; a file in a folder may have a row of its own. Every file belongs to one
row of the table, so that a new room has to be given its place here before it can land.
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

# Room -> what it may import of ours beside itself and two leaves: `progress` draws bars, `files` writes whole files.
_MODEL = {'structs', 'config', 'core', 'nn', 'detector', 'objective'}
_WITHOUT_COMMANDS = _MODEL | {'teacher', 'train', 'data', 'eval', 'interop', 'inference', 'viz', 'evaluation'}
MAY_IMPORT = {
  'structs': set(),
  'settings': set(),
  'config_model': {'settings'},
  'config': {'settings', 'config_model'},
  'progress': set(),
  'files': set(),
  'processes': set(),                     # who is who among several, before JAX is imported
  'core': {'structs'},
  'nn': {'core', 'structs'},
  'detector': {'nn', 'core', 'structs', 'config'},
  'objective': {'detector', 'core', 'structs', 'config'},
  'teacher': {'nn.clip', 'interop.hf_clip', 'structs', 'config'},
  'train': _MODEL | {'teacher', 'viz', 'processes'},   # no data: the caller hands the batches in
  'data': {'config'},
  'eval': {'config', 'data.schema'},
  'interop': {'nn', 'config', 'structs', 'train.checkpoint'},
  # Two leaves in numpy, so that a picture is prepared and a mask is pasted in one way only.
  'inference': {'detector', 'teacher', 'interop', 'train.checkpoint', 'viz', 'structs', 'config',
                'data.transforms', 'data.schema', 'eval.paste'},
  'viz': {'structs'},
  'evaluation': _WITHOUT_COMMANDS,
  'offline': _WITHOUT_COMMANDS,           # what is computed once for a data set, before training: proposals
  'embedding': _WITHOUT_COMMANDS | {'offline'},   # their embeddings
  'conversion': _WITHOUT_COMMANDS,        # `convert`: interop's weights, data's class names, teacher's vocabulary
  'alignment': _WITHOUT_COMMANDS,         # the student's embeddings beside the teacher's: detector, batches, stores
  'baselines': _WITHOUT_COMMANDS,         # `evaluation` with the teacher's crops in the place of the model's scores
  'plan': _MODEL | {'train'},             # the train step on devices that are not here: no data, no files of ours
  # What `cli` calls, `demo` strings together.
  'commands': _WITHOUT_COMMANDS | {'alignment', 'baselines', 'offline', 'embedding'},
  'demo': _WITHOUT_COMMANDS | {'commands', 'offline', 'embedding', '__init__'},   # its report states the version
  # Scenic's front door beside `cli`: nobody imports it.
  'interop.scenic_project': _WITHOUT_COMMANDS | {'commands', 'processes'},
  'cli': _WITHOUT_COMMANDS | {'commands', 'conversion', 'demo', 'plan', 'offline', 'embedding', 'arguments',
                              'processes'},
  'arguments': {'processes'},             # the words of `cli`
  '__init__': set(),                      # lazy: names are looked up when they are asked for
  '__main__': {'cli'},
}
_JAX = {'jax', 'jaxlib', 'flax', 'optax', 'orbax'}
# Room -> libraries that no file of it may import, not even inside a function.
MAY_NOT_IMPORT = {
  'core': {'flax', 'optax', 'orbax'},
  'nn': {'optax', 'orbax'},
  'data': _JAX,
  'eval': _JAX,
  'config': _JAX,
  'config_model': _JAX,
  'settings': _JAX,
  'progress': _JAX,
  'files': _JAX,
  '__init__': _JAX,
}
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


def within(module: str, places: set[str]) -> bool:
  return any(module == place or module.startswith(place + '.') for place in places)


@pytest.mark.parametrize('module', MODULES)
def test_imports_point_one_way(module):
  room = module.partition('.')[0]
  assert room in MAY_IMPORT, f'vild_jax/{room} is no room of the table; expected one of {", ".join(MAY_IMPORT)}'
  allowed = MAY_IMPORT.get(module, MAY_IMPORT[room] | {room}) | {module, 'progress', 'files'}
  wrong = sorted(name for name in ours(MODULES[module]) if not within(name, allowed))
  assert not wrong, f'vild_jax.{module} imports {", ".join(wrong)}; {room} may import {", ".join(sorted(allowed))}'


@pytest.mark.parametrize('module', MODULES)
def test_libraries_stay_in_their_rooms(module):
  libraries = {name.partition('.')[0] for name, _ in imports(MODULES[module])}
  wrong = libraries & MAY_NOT_IMPORT.get(module.partition('.')[0], set())
  assert not wrong, f'vild_jax.{module} imports {", ".join(sorted(wrong))}'
  at_the_top = {name.partition('.')[0] for statement in MODULES[module].body
                if isinstance(statement, ast.Import | ast.ImportFrom) for name, _ in imports(statement)}
  wrong = at_the_top & ONLY_INSIDE_FUNCTIONS
  assert not wrong, f'vild_jax.{module} imports {", ".join(sorted(wrong))} outside the function that needs it'


def test_cli_imports_ours_inside_its_functions_only():
  top = ast.Module([node for node in MODULES['cli'].body if isinstance(node, ast.Import | ast.ImportFrom)], [])
  assert not ours(top), 'each command imports what it needs, so that --help answers at once'


def test_no_cycles():
  graph = {module: ours(tree) - {module} for module, tree in MODULES.items()}
  graphlib.TopologicalSorter(graph).prepare()   # raises CycleError, which names the modules of the cycle


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').glob('*.py')), ids=lambda path: path.stem)
def test_configs_import_config_alone(path):
  found = {(module, name) for module, name in imports(ast.parse(path.read_text(encoding='utf-8')))}
  wrong = sorted(module for module, name in found
                 if module != 'vild_jax.config' and (module, name) != ('vild_jax', 'config')
                 and module.partition('.')[0] not in sys.stdlib_module_names)
  assert not wrong, f'{path.name} imports {", ".join(wrong)}; expected vild_jax.config alone'


@pytest.mark.parametrize('names', [
  pytest.param(['vild_jax'], id='vild_jax'),
  pytest.param(['vild_jax.config'], id='config'),
  pytest.param([f'vild_jax.{name}' for name in MODULES if within(name, {'eval'})], id='eval'),
])
def test_imports_without_jax(names):
  program = f'import sys, {", ".join(names)}; print(*sorted({{n.partition(".")[0] for n in sys.modules}}))'
  result = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=False)
  assert result.returncode == 0, result.stderr
  assert not _JAX & set(result.stdout.split())
