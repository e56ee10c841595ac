"""Which settings of a config are read while something runs."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from vild_jax import config as config_lib
from vild_jax.train import step

# The files of the settings themselves and of what copies them: they read every field of any config.
_OWN = {'dataclasses.py', 'copy.py', '<string>', '<stdin>'}
_CONFIG = Path(config_lib.__file__).parent


def sections(kind: type) -> list[type]:
  """A settings class and all below it."""
  inner = [k for k in typing.get_type_hints(kind).values() if dataclasses.is_dataclass(k)]
  return [kind, *(section for k in inner for section in sections(k))]


def all_settings() -> set[tuple[str, str]]:
  """{(class, field)} of every setting that is a value, not a section."""
  return {
    (section.__name__, name)
    for section in sections(config_lib.Config)
    for name, kind in typing.get_type_hints(section).items()
    if not dataclasses.is_dataclass(kind)
  }


@contextlib.contextmanager
def recorded() -> Iterator[set[tuple[str, str]]]:
  """Yields {(class, field)} that code other than the settings' own reads of any config within the block."""
  read: set[tuple[str, str]] = set()

  def getattribute(self, name):
    code = sys._getframe(1).f_code
    own = Path(code.co_filename).name in _OWN or _CONFIG in Path(code.co_filename).parents
    is_property = isinstance(getattr(config_lib.Model, code.co_name, None), property)
    if (not own or is_property) and name in type(self).__dataclass_fields__:
      read.add((type(self).__name__, name))
    return object.__getattribute__(self, name)

  step._train_step.cache_clear()  # a program that another test has compiled would read nothing again
  step._predict_step.cache_clear()
  with pytest.MonkeyPatch.context() as patch:
    for section in sections(config_lib.Config):
      patch.setattr(section, '__getattribute__', getattribute, raising=False)
    yield read
