"""A portable model of the tiny detector, and one whose program is a function of a test."""

from __future__ import annotations

from pathlib import Path

from tests.helpers import tiny
from vild_jax import vocabulary as vocabulary_lib
from vild_jax.inference import bundle as bundle_lib
from vild_jax.portable import folder, program
from vild_jax.runtime import files

NAMES = ('ant', 'fire_hydrant', 'red mug', 'tree', 'vase', 'zebra')  # the last two are novel
TEACHER = 'tiny:0123456789abcdef'


def vocabulary(path: Path, teacher: str = TEACHER, names: tuple[str, ...] = NAMES) -> Path:
  words = tiny.vocabulary()
  count = len(names)
  file = vocabulary_lib.VocabularyFile(words.embeddings[:count], names, words.is_base[:count], teacher, 'vild')
  vocabulary_lib.save(path, file)
  return path


def bundle(out: Path, *overrides: str) -> Path:
  """Writes a bundle of the tiny detector with drawn weights."""
  config = tiny.config(*overrides)
  words = vocabulary(out.parent / f'{out.name}.npz')
  return bundle_lib.export_bundle(out, config, tiny.variables(config, deltas=0.1), words, vocabulary_teacher=TEACHER)


def empty_program(where: Path, of: program.Source) -> dict[str, str]:
  """Writes files in the place of programs, which only checksums look at."""
  named = {'model': 'model.stablehlo'} | ({} if of.suppress else {'masks': 'masks.stablehlo'})
  for name in named.values():
    files.write(where / name, f'content of {name}')
  return named


def write(out: Path, *overrides: str, suppress: bool = True) -> Path:
  """Writes a portable model whose programs are empty."""
  config = tiny.config(*overrides)
  words = vocabulary(out.parent / f'{out.name}.npz')
  return folder.write(
    out, 'stablehlo', program.Source(config, None, None, suppress), words, empty_program, license='mit'
  )
