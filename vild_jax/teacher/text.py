"""Embeds class names with the teacher's text tower and makes vocabularies of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vild_jax.nn import clip
from vild_jax.runtime import progress
from vild_jax.teacher import checkpoint, prompts
from vild_jax.teacher.tokenizer import Tokenizer
from vild_jax.vocabulary import VocabularyFile, clean_name

_BATCH = 64
_LENGTH_STEP = 8  # texts are padded to a multiple of this many tokens, for few compilations and little waste
_TEXTS_WITHOUT_BAR = 512
_TEXTS_TOGETHER = 16_384  # of several classes: what is in memory at a time is about 60 MB for embeddings of 512


class TextTower:
  """Embeds texts and class names with a text tower and its tokenizer.

  Attributes:
    teacher: as given.
    identity: what a vocabulary records of the tower.
    embedding_dim: D.
    dtype: name of the type of its arithmetic.
  """

  def __init__(self, teacher: checkpoint.Teacher, dtype: Any = jnp.float32):
    self.teacher = teacher
    self.identity = teacher.text_identity
    self.embedding_dim = teacher.config.embedding_dim
    self.dtype = jnp.dtype(dtype).name
    self._tokenizer = Tokenizer(teacher.tokenizer_json, teacher.config.context_length)
    self._params = jax.device_put(teacher.params['text'])
    tower = clip.TextTower(teacher.config, dtype)
    self._apply = jax.jit(lambda params, tokens: clip.normalize(tower.apply({'params': params}, tokens)))

  def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
    """Returns float32 [N, D], unit rows: one for each text."""
    with self._bar(len(texts)) as bar:
      return self._rows(texts, bar)

  def embed(
    self, names: Sequence[str], templates: Sequence[str], synonyms: Sequence[Sequence[str]] | None = None
  ) -> np.ndarray:
    """Returns float32 [C, D], unit rows, one for each class name.

    Each prompt is normalised; the mean over templates is normalised again (docs/method.md, 5). `synonyms` are other
    words for each class; the mean is then over all templates of the name and of these words. Raises ValueError if there
    are no names.
    """
    return np.concatenate(list(self.embed_in_parts(names, templates, synonyms)))

  def embed_in_parts(
    self, names: Sequence[str], templates: Sequence[str], synonyms: Sequence[Sequence[str]] | None = None
  ) -> Iterator[np.ndarray]:
    """Yields the rows of `embed` part by part, in order, in memory that does not grow with the number of names."""
    if not names:
      raise ValueError('the list of classes is empty; expected at least one name')
    if synonyms is None:
      synonyms = [()] * len(names)
    words = [_distinct([name, *others]) for name, others in zip(names, synonyms, strict=True)]
    counts = np.array([len(of_class) * len(templates) for of_class in words])
    part_of = (np.cumsum(counts) - 1) // _TEXTS_TOGETHER
    with self._bar(int(counts.sum())) as bar:
      for part in np.unique(part_of):
        chosen = np.flatnonzero(part_of == part)
        texts = [text for i in chosen for word in words[i] for text in prompts.fill(word, templates)]
        rows = np.add.reduceat(self._rows(texts, bar), np.cumsum([0, *counts[chosen[:-1]]]), axis=0)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)

  def _bar(self, texts: int) -> Any:
    return progress.bar(texts, 'text embeddings', unit='text', disable=texts <= _TEXTS_WITHOUT_BAR)

  def _rows(self, texts: Sequence[str], bar: Any) -> np.ndarray:
    tokens = self._tokenizer(texts)
    lengths = np.argmax(tokens == self._tokenizer.end, axis=1) + 1
    if self.teacher.config.sigmoid:
      lengths[:] = tokens.shape[1]  # SigLIP's tower attends to the padding and pools at the last position
    order = np.argsort(lengths, kind='stable')
    rows = np.zeros((len(texts), self.embedding_dim), np.float32)
    for start in range(0, len(texts), _BATCH):
      chosen = order[start : start + _BATCH]
      length = min(-(-lengths[chosen[-1]] // _LENGTH_STEP) * _LENGTH_STEP, tokens.shape[1])
      batch = np.zeros((_BATCH, length), np.int32)
      batch[: len(chosen)] = tokens[chosen, :length]
      rows[chosen] = self._apply(self._params, batch)[: len(chosen)]
      bar.update(len(chosen))
    return rows

  def vocabulary(
    self, names: Sequence[str], is_base: np.ndarray, which: str | Path, synonyms: Sequence[Sequence[str]] | None = None
  ) -> VocabularyFile:
    """Makes the vocabulary of `names` with prompts `which` (see `prompts.load_templates`); `synonyms` as in `embed`."""
    rows = self.embed(names, prompts.load_templates(which), synonyms)
    return VocabularyFile(
      rows, tuple(names), np.asarray(is_base), self.identity, prompts.as_text(which, synonyms is not None)
    )


def _distinct(words: Sequence[str]) -> list[str]:
  """Returns the words that differ after cleaning; LVIS lists most names among their synonyms, but not all."""
  return list({clean_name(word): word for word in words}.values())


def load_text(directory: str | Path, dtype: Any = jnp.float32) -> TextTower:
  """Loads the text tower of a teacher directory or of a bundle's `text_tower/`."""
  return TextTower(checkpoint.load_text_tower(directory), dtype)
