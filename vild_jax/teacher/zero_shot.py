"""Classifies pictures zero-shot: tells which of the given names a picture shows, by the teacher's two towers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vild_jax.teacher import checkpoint
from vild_jax.teacher.image import ImageTower, Picture
from vild_jax.teacher.text import TextTower


@dataclass(frozen=True)
class Scores:
  """Holds the scores of N pictures for C names, float32 [N, C] each.

  Attributes:
    cosine: of the embeddings of picture and name.
    probability: the teacher's own: with CLIP a softmax over the names, with SigLIP a sigmoid for each name.
  """

  cosine: np.ndarray
  probability: np.ndarray


def classify(
  teacher: checkpoint.Teacher, pictures: Sequence[Picture], names: Sequence[str], templates: Sequence[str]
) -> Scores:
  """Scores pictures (PIL, or uint8 arrays [H, W, 3]) by names in templates (see `prompts.load_templates`)."""
  cosine = ImageTower(teacher).embed_images(pictures) @ TextTower(teacher).embed(names, templates).T
  logits = cosine * np.exp(np.float32(teacher.params['logit_scale']))
  if teacher.config.sigmoid:
    return Scores(cosine, 1 / (1 + np.exp(-logits - np.float32(teacher.params['logit_bias']))))
  powers = np.exp(logits - logits.max(axis=1, keepdims=True))
  return Scores(cosine, powers / powers.sum(axis=1, keepdims=True))


def is_right(
  teacher: checkpoint.Teacher,
  pictures: Sequence[Picture],
  labels: Sequence[int],
  names: Sequence[str],
  templates: Sequence[str],
) -> np.ndarray:
  """Returns bool [N]: whether the best name of each picture is that of its label, an index into `names`."""
  return classify(teacher, pictures, names, templates).cosine.argmax(axis=1) == np.asarray(labels)
