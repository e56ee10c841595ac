"""The model card tells what is known, in the form that the hub reads, and says of the rest that it is unknown."""

from __future__ import annotations

import dataclasses

import numpy as np
import yaml

from tests.helpers import tiny
from vild_jax.inference import model_card
from vild_jax.vocabulary import VocabularyFile

WORDS = VocabularyFile(np.eye(3, 16), ('a | b', 'tree', 'ant'), np.array([True, True, False]), 'clip:01', 'vild')
BARE = {'name': 'mine', 'teacher': 'clip:01', 'masks': False, 'training': {}, 'metrics': [], 'license': None}


def parts(about, config=None, towers=()):
  """(the front matter, {left cell: right cell} of the first table, the whole text)."""
  text = model_card.text(about, config or tiny.config(), WORDS, towers)
  _, front, body = text.split('---\n', 2)
  rows = (line.strip('| ').split(' | ', 1) for line in body.split('\n## ')[0].splitlines() if line.startswith('| '))
  return yaml.safe_load(front), {row[0]: row[1] for row in rows if len(row) == 2}, text


def test_what_is_not_known_is_not_made_up():
  front, rows, text = parts(BARE)
  assert front == {
    'library_name': 'vild-jax',
    'pipeline_tag': 'zero-shot-object-detection',
    'tags': ['object-detection', 'open-vocabulary', 'vild', 'jax'],
  }
  assert rows['licence'] == 'not stated' and rows['training data'] == rows['steps'] == 'unknown'
  assert rows['teacher'] == 'clip:01 (the folder is unknown)' and rows['any class name'].startswith('no')
  assert 'Unknown: no evaluation' in text and 'finds boxes of classes' in text


def test_what_is_known_stands_there():
  data = {'identity': '0123456789abcdef0123', 'split': 'train', 'examples': 1234}
  config = dataclasses.replace(tiny.config('data.train=data/mine', 'train.init=start'), teacher='hf://openai/clip@v1')
  metrics = {
    'file': 'eval/metrics.json',
    'protocol': 'lvis',
    'images': 7,
    'annotations': {'file': 'val.json'},
    'box': {'AP': 0.5, 'APr': None, 'AP_novel': 0.25},
    'mask': {'AP': 0.4567, 'APr': None, 'AP_novel': None},
    'detector': {},
  }
  about = BARE | {'masks': True, 'license': 'apache-2.0', 'metrics': [metrics], 'training': {'step': 6, 'data': data}}
  front, rows, text = parts(about, config, ('text_tower', 'image_tower'))
  assert front['license'] == rows['licence'] == 'apache-2.0' and front['base_model'] == 'openai/clip'
  assert 'instance-segmentation' in front['tags']
  assert rows['training data'] == '`data/mine`, split train, 1,234 pictures (identity 0123456789abcdef)'
  assert rows['steps'] == '6 of 8' and rows['started from'] == 'init=start'
  assert rows['classes'] == '3, of which 2 are base (annotated in training) and 1 novel'
  assert rows['any class name'].startswith('yes') and rows['example pictures as classes'].startswith('yes')
  assert '|  | AP | AP_novel |\n|---|---|---|\n| box | 50.0 | 25.0 |\n| mask | 45.7 | - |' in text
  assert "classes=['a | b', 'tree', 'ant']" in text and 'does not say' not in text
  del metrics['detector']
  assert 'from `eval/metrics.json`, which does not say which weights it is of' in parts(about, config)[2]
