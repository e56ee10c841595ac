"""Classifies pictures with a teacher alone, among any names; a quick test that a teacher works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vild_jax.data import class_lists
from vild_jax.data import pictures as pictures_lib
from vild_jax.teacher import checkpoint as teacher_checkpoint
from vild_jax.teacher import prompts, zero_shot


def classify(teacher: str, images: list[Path], classes: str, *, which: str, top: int) -> dict[str, Any]:
  """Classifies pictures without training and returns the best `top` names of each.

  Args:
    teacher: folder of the teacher, or its name on the Hugging Face hub, `hf://owner/name`.
    images: paths of the pictures.
    classes: names separated by commas, or a list of classes as `class_lists.class_list` takes it.
    which: the prompts; see `prompts.load_templates`.
    top: how many names of each picture to return.

  Returns:
    {'teacher', 'image_tower': identities, 'prompts': text, 'images': a list of {'image': path, 'scores': a list of
    {'class', 'probability', 'cosine'}, best first}}.

  Raises ValueError if an argument, a picture or the teacher cannot be used.
  """
  names, templates = class_lists.names(classes), prompts.load_templates(which)
  if top < 1:
    raise ValueError(f'--top is {top}; expected at least 1')
  pictures = [pictures_lib.decode(image, upright=True) for image in images]
  loaded = teacher_checkpoint.load_teacher(teacher)
  scores = zero_shot.classify(loaded, pictures, names, templates)
  best = np.argsort(-scores.cosine, axis=1, kind='stable')[:, :top]
  return {
    'teacher': loaded.text_identity,
    'image_tower': loaded.image_identity,
    'prompts': prompts.as_text(which),
    'images': [
      {
        'image': str(path),
        'scores': [
          {'class': names[i], 'probability': float(probability[i]), 'cosine': float(cosine[i])} for i in order
        ],
      }
      for path, order, probability, cosine in zip(images, best, scores.probability, scores.cosine, strict=True)
    ],
  }


def scores_table(found: dict[str, Any]) -> str:
  """Returns lines for the console: each picture, and below it its best names with probability and cosine."""
  lines = []
  for image in found['images']:
    width = max(len(score['class']) for score in image['scores'])
    lines += [image['image'], f'  {"class":<{width}}  probability  cosine']
    lines += [
      f'  {score["class"]:<{width}}  {score["probability"]:>11.4f}  {score["cosine"]:>6.3f}'
      for score in image['scores']
    ]
  return '\n'.join(lines)
