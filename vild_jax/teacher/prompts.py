"""Class names -> prompts (METHOD.md, section 5)."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path

from vild_jax import vocabulary
from vild_jax.teacher import templates as published

_WITH_SYNONYMS = ' + synonyms'  # behind the prompts of a vocabulary: what was averaged, no matter for a new class


def article(cleaned: str) -> str:
  """ "an" before a name that starts with one of aeiou, else "a"."""
  return 'an' if cleaned[0] in 'aeiou' else 'a'


def fill(name: str, templates: Sequence[str]) -> list[str]:
  """One prompt a template, of the cleaned name."""
  cleaned = vocabulary.clean_name(name)
  return [template.format(cleaned, article=article(cleaned)) for template in templates]


def load_templates(which: str | Path) -> tuple[str, ...]:
  """The templates 'vild' (63), 'imagenet' (80), 'single' ("a photo of a {}"), or those of a UTF-8 file, one a line.

  What `as_text` wrote into a vocabulary is read back: there the lines themselves take the place of the file.

  ViLD's get "This is " before a template that starts with "a" or "the"; all others are used as they are written.
  """
  if str(which).endswith(_WITH_SYNONYMS):
    which = str(which).removesuffix(_WITH_SYNONYMS)
  if which == 'vild':
    return tuple('This is ' + t if t.startswith(('a', 'the')) else t for t in published.VILD)
  if which == 'imagenet':
    return tuple(published.IMAGENET)
  if which == 'single':
    return ('a photo of a {}',)
  path = Path(which)
  if '{' in str(which):
    lines = str(which).splitlines()
  elif not path.is_file():
    raise ValueError(f'no prompts {str(which)!r}; expected vild, imagenet, single or a file with one template a line')
  else:
    try:
      lines = path.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
      raise ValueError(f'{path} is no UTF-8 text: {error}') from error
  templates = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    if _fields(line) not in ([''], ['', 'article'], ['article', '']):
      raise ValueError(f'{path}:{number}: {line.strip()!r} is no template; expected one {{}} for the class name')
    templates.append(line.strip())
  if not templates:
    raise ValueError(f'{path} holds no template; expected one a line')
  return tuple(templates)


def as_text(which: str | Path, synonyms: bool = False) -> str:
  """What a vocabulary keeps of its prompts: a published name, or the templates themselves, one a line.

  Whoever adds a class later, on a machine without the file, has to fill the same templates. `synonyms`: whether these
  were averaged too, which is noted.
  """
  text = str(which) if which in ('vild', 'imagenet', 'single') else '\n'.join(load_templates(which))
  return text + _WITH_SYNONYMS if synonyms else text


def _fields(template: str) -> list[str] | None:
  try:
    return [field + spec for _, field, spec, _ in string.Formatter().parse(template) if field is not None]
  except ValueError:
    return None
