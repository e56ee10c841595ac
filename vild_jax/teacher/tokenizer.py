"""Turns texts into token ids: cleans them as the teacher's family does and splits them by its own tokenizer.json."""

from __future__ import annotations

import contextlib
import html
import json
import math
import string
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import tokenizers

from vild_jax.runtime import messages, reading

START, END = '<|startoftext|>', '<|endoftext|>'
TOKENIZER_FILE = 'tokenizer.json'
_MOST_CHARACTERS = 2**28  # that of SigLIP 2, with 256,000 tokens, has 34 million
_MOST_GROWTH = 1000  # of a text, by what replaces parts of it; SigLIP's makes 2 characters of one at most
_SHOWN = 80  # characters of a text in a warning
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)


def clean_text(text: str) -> str:
  """Cleans a text as OpenAI's CLIP does.

  Broken encodings are repaired and HTML entities resolved (twice: `&amp;lt;`); the result is lower case, and runs of
  white space become one space.
  """
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return ' '.join(text.split()).lower()


def canonical_text(text: str) -> str:
  """Cleans a text as SigLIP does: lower case, no ASCII punctuation (no space in place of a hyphen), single spaces."""
  return ' '.join(text.lower().translate(_NO_PUNCTUATION).split())


# End token -> (start token, padding token, cleaning). SigLIP pads with its end token. SigLIP 2 has Gemma's tokenizer,
# which keeps punctuation and white space. CLIP pads with 0, whatever token that is: no embedding depends on it.
_FAMILIES: dict[str, tuple[str | None, str | None, Callable[[str], str]]] = {
  END: (START, None, clean_text),
  '</s>': (None, '</s>', canonical_text),
  '<eos>': (None, '<pad>', str.lower),
}


def parse(text: str, path: str | Path = TOKENIZER_FILE) -> tokenizers.Tokenizer:
  """Reads the text of a tokenizer.json. Raises ValueError, one line, if it is not usable; `path` is its name there."""
  if len(text) > _MOST_CHARACTERS:
    raise ValueError(f'{path} has more than {_MOST_CHARACTERS >> 20} Mi characters; expected a tokenizer.json')
  with _library(path):
    found = tokenizers.Tokenizer.from_str(text)
    growth = _growth(json.loads(found.normalizer.__getstate__())) if found.normalizer else 1
  if growth > _MOST_GROWTH:
    raise ValueError(
      f'{path} has a normalizer that can make a text {growth:.3g} times as long; expected at most {_MOST_GROWTH} times'
    )
  return found


def _growth(step: Mapping[str, Any]) -> float:
  """Returns how many characters the replacements of a normalizer, given as JSON, can make of one."""
  if step['type'] == 'Replace':
    added = len(step['content'])
    found = len(step['pattern'].get('String', ''))
    return max(1, added / found) if found else 1 + added  # an expression can match nothing, between two characters
  if step['type'] == 'Prepend':
    return 1 + len(step['prepend'])
  return math.prod(map(_growth, step.get('normalizers', ())))


@contextlib.contextmanager
def _library(path: str | Path) -> Iterator[None]:
  """Turns the errors of the library into one line: it is written in Rust, and panics past Python and on stderr."""
  with (
    reading.parsing(path, 'the tokenizer.json of a teacher', problem='is not a usable tokenizer'),
    messages.stderr_of_libraries() as said,
  ):
    yield
  sys.stderr.write(said[0])  # there was no panic: it is of other threads


class Tokenizer:
  """Turns texts into rows of token ids, for CLIP, SigLIP or SigLIP 2; the end token tells which of them it is.

  Attributes:
    context_length: number of ids in a row, start and end included.
    start: id of the start token; None if the family has none.
    end: id of the end token.
    pad: id that fills up a row; SigLIP's towers attend to it.
  """

  def __init__(self, tokenizer_json: str, context_length: int):
    self._tokenizer = parse(tokenizer_json)
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self.context_length = context_length
    find = self._tokenizer.token_to_id
    end = next((token for token in _FAMILIES if find(token) is not None), END)
    start, pad, self._clean = _FAMILIES[end]
    for token in (start, end, pad):
      if token is not None and find(token) is None:
        raise ValueError(f'tokenizer.json lacks {token}; expected a tokenizer of CLIP, SigLIP or SigLIP 2')
    self.start, self.end = None if start is None else find(start), find(end)
    self.pad = 0 if pad is None else find(pad)

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Returns int32 [N, context_length]: start if there is one, text, end, padding.

    A text that is too long keeps its first tokens and the end; one warning per call names the first such text.
    """
    rows = np.full((len(texts), self.context_length), self.pad, np.int32)
    with _library(TOKENIZER_FILE):
      encoded = self._tokenizer.encode_batch([self._clean(text) for text in texts], add_special_tokens=False)
    start = [] if self.start is None else [self.start]
    room = self.context_length - len(start) - 1
    lengths = [len(encoding.ids) for encoding in encoded]
    long = [(text, count) for text, count in zip(texts, lengths, strict=True) if count > room]
    if long:
      text, count = long[0]
      others = f' (and of {len(long) - 1} more texts)' if len(long) > 1 else ''
      warnings.warn(f'{_shown(text)} has {count} tokens; only the first {room} are used{others}', stacklevel=2)
    for row, encoding in zip(rows, encoded, strict=True):
      ids = [*start, *encoding.ids[:room], self.end]
      row[: len(ids)] = ids
    return rows


def _shown(text: str) -> str:
  return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + '...')
