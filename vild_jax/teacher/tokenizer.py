"""Texts -> token ids: cleaned as OpenAI's CLIP does, cut up by the teacher's own tokenizer.json."""

from __future__ import annotations

import html
import warnings
from collections.abc import Sequence

import ftfy
import numpy as np
import tokenizers

START, END = '<|startoftext|>', '<|endoftext|>'


def clean_text(text: str) -> str:
  """Repairs broken encodings, resolves HTML entities (twice: `&amp;lt;`), collapses white space, lower case."""
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return ' '.join(text.split()).lower()


class Tokenizer:
  """CLIP's tokenizer. `context_length` counts start and end."""

  def __init__(self, tokenizer_json: str, context_length: int):
    self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    self._tokenizer.no_padding()
    self._tokenizer.no_truncation()
    self.context_length = context_length
    start, end = (self._tokenizer.token_to_id(token) for token in (START, END))
    if start is None or end is None:
      raise ValueError(f'tokenizer.json lacks {START if start is None else END}; expected a tokenizer of CLIP')
    self.start, self.end = start, end

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """int32 [N, context_length]: start, text, end, then zeros, on which no embedding depends.

    A text that is too long keeps its first tokens and the end; a warning names it.
    """
    rows = np.zeros((len(texts), self.context_length), np.int32)
    encoded = self._tokenizer.encode_batch([clean_text(text) for text in texts], add_special_tokens=False)
    room = self.context_length - 2
    for row, text, encoding in zip(rows, texts, encoded, strict=True):
      if len(encoding.ids) > room:
        warnings.warn(f'{text!r} has {len(encoding.ids)} tokens; only the first {room} are used', stacklevel=2)
      ids = [self.start, *encoding.ids[:room], self.end]
      row[: len(ids)] = ids
    return rows
