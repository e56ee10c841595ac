"""Turns class names into prompts (docs/method.md, 5)."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from vild_jax import vocabulary
from vild_jax.teacher import templates as published

_PUBLISHED = ('vild', 'imagenet', 'single')
_WITH_SYNONYMS = ' + synonyms'  # after the prompts of a vocabulary: says what was averaged; new classes do not need it


def article(cleaned: str) -> str:
  """Returns "an" for a name that starts with one of aeiou, else "a"."""
  return 'an' if cleaned[0] in 'aeiou' else 'a'


def fill(name: str, templates: Sequence[str]) -> list[str]:
  """Returns one prompt per template, with the cleaned name."""
  cleaned = vocabulary.clean_name(name)
  return [template.format(cleaned, article=article(cleaned)) for template in templates]


def load_templates(which: str | Path) -> tuple[str, ...]:
  """Returns the templates 'vild' (63), 'imagenet' (80), 'single' ("a photo of a {}"), or those of a file.

  A file is UTF-8 with one template per line. `which` may also be the lines themselves. ViLD's templates that start with
  "a" or "the" get "This is " before them; all others are used as they are written. Raises ValueError, one line, for
  anything else.
  """
  which = str(which)
  path = Path(which)
  if which in _PUBLISHED or '{' in which:
    return recorded(which)
  if not path.is_file():
    raise ValueError(f'no prompts {which!r}; expected {", ".join(_PUBLISHED)} or a file with one template a line')
  try:
    lines = path.read_text(encoding='utf-8-sig').splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8 text: {error}') from error
  return _checked(lines, path)


def recorded(text: str) -> tuple[str, ...]:
  """Returns the templates that a vocabulary records, as `as_text` wrote them. No file is read, whatever `text` is.

  Raises ValueError, one line, if they are none.
  """
  text = text.removesuffix(_WITH_SYNONYMS)
  if text == 'vild':
    return tuple('This is ' + t if t.startswith(('a', 'the')) else t for t in published.VILD)
  if text == 'imagenet':
    return tuple(published.IMAGENET)
  if text == 'single':
    return ('a photo of a {}',)
  if '{' not in text:
    raise ValueError(
      f'the vocabulary records the prompts {text[:80]!r}, from which no class can be added; expected '
      f'{", ".join(_PUBLISHED)} or templates with {{}} for the class name'
    )
  return _checked(text.splitlines(), 'the prompts of the vocabulary')


def _checked(lines: Sequence[str], path: str | Path) -> tuple[str, ...]:
  templates = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    if _fields(line) not in ([''], ['', 'article'], ['article', '']):
      raise ValueError(
        f'{path}:{number}: {line.strip()[:200]!r} is not a template; expected one {{}} for the class name'
      )
    templates.append(line.strip())
  if not templates:
    raise ValueError(f'{path} holds no template; expected one a line')
  return tuple(templates)


def as_text(which: str | Path, synonyms: bool = False) -> str:
  """Returns what a vocabulary records of its prompts: a published name, or the templates themselves, one per line.

  A class that is added later, on a machine without the file, needs the same templates. `synonyms` says whether synonyms
  were averaged too, which is added to the text.
  """
  text = str(which) if which in _PUBLISHED else '\n'.join(load_templates(which))
  return text + _WITH_SYNONYMS if synonyms else text


def _fields(template: str) -> list[str] | None:
  try:
    return [field + spec for _, field, spec, _ in string.Formatter().parse(template) if field is not None]
  except ValueError:
    return None
