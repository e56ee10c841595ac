"""Texts -> token ids: cleaned as the teacher's family does, cut up by the teacher's own tokenizer.json."""

from __future__ import annotations

import html
import string
import warnings
from collections.abc import Callable, Sequence

import ftfy
import numpy as np
import tokenizers

START, END = '<|startoftext|>', '<|endoftext|>'
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)


def clean_text(text: str) -> str:
  """As OpenAI's CLIP does: broken encodings repaired, HTML entities resolved (twice: `&amp;lt;`), lower case.

  White space is collapsed.
  """
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return ' '.join(text.split()).lower()


def canonical_text(text: str) -> str:
  """As SigLIP does: lower case, no ASCII punctuation (a hyphen goes without a space), white space collapsed."""
  return ' '.join(text.lower().translate(_NO_PUNCTUATION).split())


# End token -> (start token, padding token, cleaning). SigLIP pads with its end token; SigLIP 2 has Gemma's tokenizer,
# which drops nothing. CLIP pads with 0, whatever that is: no embedding depends on it.
_FAMILIES: dict[str, tuple[str | None, str | None, Callable[[str], str]]] = {
  END: (START, None, clean_text),
  '</s>': (None, '</s>', canonical_text),
  '<eos>': (None, '<pad>', str.lower),
}


class Tokenizer:
  """The tokenizer of CLIP, SigLIP or SigLIP 2, told apart by their end tokens.

  Attributes:
    context_length: of every row, start and end included.
    start: id of the start token; None where the family has none.
    end: id of the end token.
    pad: id that fills a row; SigLIP's towers attend to it.
  """

  def __init__(self, tokenizer_json: str, context_length: int):
    self._tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
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
    """int32 [N, context_length]: start if there is one, text, end, padding.

    A text that is too long keeps its first tokens and the end; a warning names it.
    """
    rows = np.full((len(texts), self.context_length), self.pad, np.int32)
    encoded = self._tokenizer.encode_batch([self._clean(text) for text in texts], add_special_tokens=False)
    start = [] if self.start is None else [self.start]
    room = self.context_length - len(start) - 1
    for row, text, encoding in zip(rows, texts, encoded, strict=True):
      if len(encoding.ids) > room:
        warnings.warn(f'{text!r} has {len(encoding.ids)} tokens; only the first {room} are used', stacklevel=2)
      ids = [*start, *encoding.ids[:room], self.end]
      row[: len(ids)] = ids
    return rows
