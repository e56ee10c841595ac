"""Writes the model card of a bundle, `README.md` in the form of the Hugging Face hub: what is known of the weights.

What is not known is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from vild_jax.config import Config
from vild_jax.runtime import hub
from vild_jax.train.bundle_files import IMAGE_TOWER, TEXT_TOWER
from vild_jax.vocabulary import VocabularyFile

UNKNOWN = 'unknown'
_SCORES = ('AP', 'AP50', 'AP75', 'APr', 'APc', 'APf', 'AP_base', 'AP_novel', 'AP50_base', 'AP50_novel')
_SHOWN_NAMES = 3


def text(about: Mapping[str, Any], config: Config, vocabulary: VocabularyFile, towers: Sequence[str]) -> str:
  """Returns the model card.

  Args:
    about: the contents of bundle.json: name, teacher, masks, training, metrics, license.
    config: the experiment.
    vocabulary: the training vocabulary.
    towers: which towers of the teacher the bundle holds, `TEXT_TOWER`, `IMAGE_TOWER` or both.
  """
  rates = config.optimizer.of_batch(config.data.batch_size)
  training, data = about['training'], about['training'].get('data') or {}
  base = int(vocabulary.is_base.sum())
  step = training.get('step')
  found = 'boxes and masks' if about['masks'] else 'boxes'
  names = list(vocabulary.names[:_SHOWN_NAMES])
  rows = {
    'training data': _data(config, data),
    'classes': f'{len(vocabulary.names):,}, of which {base:,} are base (annotated in training) and '
    f'{len(vocabulary.names) - base:,} novel',
    'steps': UNKNOWN if step is None else f'{step:,} of {config.train.steps:,}',
    'batch': f'{config.data.batch_size} pictures of {config.data.image_size} x {config.data.image_size}',
    'optimiser': f'{config.optimizer.rule}, learning rate {rates.learning_rate:g}',
    'distillation weight': f'{config.distillation.weight:g}',
    'backbone': f'ResNet-{config.model.backbone.depth}, width {config.model.backbone.width}',
    'separate image head (ViLD-ensemble)': 'yes' if config.model.image_head else 'no',
    'started from': next(
      (
        f'{key}={value}'
        for key in ('init', 'init_first_stage', 'init_backbone')
        if (value := getattr(config.train, key))
      ),
      'scratch',
    ),
    'teacher': f'{about["teacher"]} ({config.teacher or "the folder is " + UNKNOWN})',
    'prompts': vocabulary.prompts or UNKNOWN,
    'any class name': 'yes, by the text tower in it' if TEXT_TOWER in towers else 'no: only those of its vocabulary',
    'example pictures as classes': 'yes, by the image tower in it' if IMAGE_TOWER in towers else 'no',
    'licence': about['license'] or 'not stated',
  }
  return f"""---
{yaml.safe_dump(_front_matter(about, config), sort_keys=False, allow_unicode=True)}---

# {about['name']}

An open-vocabulary object detector (ViLD) of vild_jax: it finds {found} of classes that are given as text.

| | |
|---|---|
{_rows(rows)}

All settings are in `config.json`.

## Metrics

{_metrics(about['metrics'])}

## How to use

```python
import vild_jax

detector = vild_jax.load('.')  # this folder, or hf://owner/name if it lies on the Hugging Face hub
found = detector.detect('photo.jpg', classes={names!r})
found.boxes, found.scores, found.labels
```

`bundle.json` holds the checksums of all files here but this one; a damaged file is refused.
"""


def _front_matter(about: Mapping[str, Any], config: Config) -> dict[str, Any]:
  """What the hub reads. It would link `datasets` to data sets there, and a folder of this machine is none."""
  masks = ['instance-segmentation'] if about['masks'] else []
  return {
    **({'license': about['license']} if about['license'] else {}),
    'library_name': 'vild-jax',
    'pipeline_tag': 'zero-shot-object-detection',
    'tags': ['object-detection', *masks, 'open-vocabulary', 'vild', 'jax'],
    **({'base_model': hub.repository(config.teacher)} if hub.is_name(config.teacher) else {}),
  }


def _data(config: Config, data: Mapping[str, Any]) -> str:
  if not config.data.train:
    return UNKNOWN
  told = f'`{config.data.train}`, split {config.data.train_split}'
  if data:
    told += f', {data["examples"]:,} pictures (identity {data["identity"][:16]})'
  return told


def _metrics(found: Sequence[Mapping[str, Any]]) -> str:
  if not found:
    return f'{UNKNOWN.capitalize()}: no evaluation of these weights was found when they were exported.'
  return '\n\n'.join(map(_one_evaluation, found))


def _one_evaluation(metrics: Mapping[str, Any]) -> str:
  kinds = [kind for kind in ('box', 'mask') if metrics.get(kind)]
  keys = [key for key in _SCORES if any(metrics[kind].get(key) is not None for kind in kinds)]
  percent = lambda value: '-' if value is None else f'{100 * value:.1f}'
  lines = [
    f'{metrics.get("images", UNKNOWN)} pictures of `{metrics.get("annotations", {}).get("file", UNKNOWN)}`, protocol '
    f'{metrics.get("protocol", UNKNOWN)}, in per cent (from `{metrics["file"]}`'
    f'{"" if "detector" in metrics else ", which does not say which weights it is of"}):',
    '',
    _row(('', *keys)),
    '|' + '---|' * (len(keys) + 1),
    *(_row((kind, *(percent(metrics[kind].get(key)) for key in keys))) for kind in kinds),
  ]
  return '\n'.join(lines)


def _rows(rows: Mapping[str, str]) -> str:
  return '\n'.join(map(_row, rows.items()))


def _row(cells: Iterable[str]) -> str:
  return '| ' + ' | '.join(str(cell).replace('|', '\\|').replace('\n', ' ') for cell in cells) + ' |'
