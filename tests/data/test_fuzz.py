"""Annotation files changed at random: what is accepted can be used, and all else is refused in one line.

`launch/test.sh -m soak tests/data/test_fuzz.py --files 20000` tries more of them than the suite does.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.helpers import examples, small_set
from vild_jax.data import batch, contents, pictures, prepare, rle, smells, sources
from vild_jax.data.schema import DataError, Example
from vild_jax.data.tfds_builders import detection
from vild_jax.eval import coco, lvis, truth
from vild_jax.workflows import inspect_pictures, inspecting

SIZES = {5: (24, 20), 9: (16, 16), 12: (1, 30)}  # image id -> height, width
ODD = [
  *(None, True, False, 0, 1, -1, 0.5, 7.0, 1e-300, 1e-9, 3.5e8, 1e15, 1e300, -1e300, float('nan'), float('inf')),
  *(2**31, 2**32, 2**53 + 1, 2**62 - 1, 2**62, 2**63, 2**64, 10**400, -(2**63), 70_000, 1e18),
  *(
    '',
    ' ',
    'x',
    'r',
    '5',
    '\u00e9.png',
    'e\u0301.png',
    '\ud800',
    '\0',
    'a\nb',
    ' mug ',
    'a\u2028b',
    'a' * 5000,
    'sub/7.png',
    'sub\\7.png',
  ),
  *('../5.png', '/5.png', 'C:\\5.png', './/5.png', '..', '.', '5.PNG', 'http://x/sub/7.png', 'P04o', 'pppp'),
  *([], [[]], [[], []], {}, [0], [None], ['a'], [1, 2, 3, 4], [[1, 2, 3, 4]], [[1, 1, 9, 1, 9, 9]], {'size': [1, 1]}),
  *([[0, 0, 3.5e8, 0, 9, 9]], [[1] * 6], [[1, 1, 5, 1, 5, 5], [2, 2]], {'size': [16.0, 16.0], 'counts': [256]}),
  *({'size': [24, 20], 'counts': 'o' * 40}, {'size': [24, 20], 'counts': [480]}, {'size': [24, 20], 'counts': []}),
]


NESTED = 'nested'  # stands for lists in lists, which are made in the text: Python follows them only so far


def _tree() -> dict[str, Any]:
  """A valid file in which every field that is read stands at least once."""
  ring = np.zeros((24, 20), bool)
  ring[3:20, 4:15] = True
  ring[8:12, 7:9] = False
  categories = [
    {'id': 3, 'name': 'mug', 'frequency': 'f', 'synset': 'mug.n.01', 'synonyms': ['mug', 'cup'], 'supercategory': ''},
    {'id': 1, 'name': 'ant', 'frequency': 'r', 'synset': 'ant.n.01', 'synonyms': []},
    {'id': 8, 'name': 'tree'},
  ]
  lists = {'neg_category_ids': [3], 'not_exhaustive_category_ids': [8]}
  images = [
    {'id': 5, 'height': 24, 'width': 20, 'file_name': '5.png', 'license': 1, **lists},
    {'id': 9, 'height': 16, 'width': 16, 'coco_url': 'http://x/val2017/9.png'},
    {'id': 12, 'height': 1, 'width': 30, 'file_name': 'e\u0301.png', 'coco_url': ''},
  ]
  objects = [
    (20, 5, 3, [4, 3, 11, 17], rle.encode_mask(ring)),
    (21, 5, 8, [1, 1, 8, 8], [[1, 1, 9, 1, 9, 9], [2, 3, 4.5, 3.5, 2, 8]]),
    (4, 9, 1, [0, 0, 16, 8], {'size': [16, 16], 'counts': [0, 128, 128]}),
    (7, 9, 1, [2.5, 2, 1, 1], []),
    (6, 12, 8, [3, 0, 20, 1], [[3, 0, 23, 0, 23, 1, 3, 1]]),
  ]
  keys = ('id', 'image_id', 'category_id', 'bbox', 'segmentation')
  annotations = [
    dict(zip(keys, o, strict=True)) | {'area': o[3][2] * o[3][3], 'iscrowd': int(o[0] == 4)} for o in objects
  ]
  return {
    'info': {'year': 2026, 'by': ['x']},
    'licenses': [],
    'categories': categories,
    'images': images,
    'annotations': annotations,
  }


def _pictures(folder: Path) -> Path:
  for name, size in (('5.png', 5), ('val2017/9.png', 9), ('\u00e9.png', 12), ('sub/7.png', 9)):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(small_set.picture(*SIZES[size], kind='.png'))
  return folder


# --- changes --------------------------------------------------------------------------------------------------------


def _places(tree: Any) -> list[tuple[Any, Any]]:
  """(list or dictionary, index or key) of every value below."""
  keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
  return [place for key in keys for place in [(tree, key), *_places(tree[key])]]


def _change(tree: dict[str, Any], rng: random.Random) -> None:
  # A place of the top is as likely as one deep in a polygon, of which there are many more.
  holder, key = rng.choice(rng.choice([_places(part) for part in tree.values() if _places(part)] + [_places(tree)]))
  value = holder[key]
  number = type(value) in (int, float)
  kind = rng.choice(('odd', 'odd', 'drop', 'again', 'order', 'borrow', 'type', 'number', 'nest'))
  if kind == 'odd':
    holder[key] = copy.deepcopy(rng.choice(ODD))
  elif kind == 'drop':
    del holder[key]
  elif kind == 'again' and isinstance(holder, list):
    again = copy.deepcopy(value)
    if isinstance(again, dict) and rng.random() < 0.5:
      again['id'] = rng.choice((None, 0, 77, again.get('id')))
    holder.insert(rng.randrange(len(holder) + 1), again)
  elif kind == 'order' and isinstance(value, list):
    rng.shuffle(value)
  elif kind == 'borrow':
    other, place = rng.choice(_places(tree))
    holder[key] = copy.deepcopy(other[place])
  elif kind == 'type':
    holder[key] = rng.choice(
      (str, lambda v: [v], lambda v: {'x': v}, lambda v: float(v) if number and abs(v) < 1e9 else v)
    )(value)
  elif kind == 'number' and number:
    holder[key] = rng.choice((value + 1, -value, value * 1e6, value * 1e-12, value + 0.5, value * 2, value // 3))
  elif kind == 'nest':
    holder[key] = NESTED


def _text(rng: random.Random) -> bytes:
  """A file with a few changes, now and then also of its bytes."""
  tree = _tree()
  for _ in range(min(1 + int(rng.expovariate(0.8)), 6)):
    if _places(tree):
      _change(tree, rng)
  before, after = rng.choice((('[', ']'), ('{"x": ', '}')))
  depth = rng.choice((1, 5, 90, 110, 850, 920, 990, 5000))
  text = json.dumps(tree).replace(f'"{NESTED}"', before * depth + '1' + after * depth).encode()
  kind = rng.randrange(40)
  at = rng.randrange(len(text))
  if kind == 0:
    text = text[:at]
  elif kind == 1:
    text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
  elif kind == 2:
    text = b'\xef\xbb\xbf' + text
  elif kind == 3:
    text = text.replace(b'16', b'9' * 5000, 1)
  return text


# --- uses -----------------------------------------------------------------------------------------------------------


class _Stored:
  """A source as it is after its examples were written and read again, without files."""

  def __init__(self, source: sources.JsonSource):
    features = detection.features()
    write = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info()).serialize_example
    read = lambda data: features.deserialize_example_np(data, decoders={'image': tfds.decode.SkipDecoding()})
    self.categories, self.info = source.categories, json.loads(json.dumps(source.info))
    self._examples = [
      detection.from_features(read(write(features.encode_example(detection.to_features(source[i])))))
      for i in range(len(source))
    ]

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]

  def labels(self) -> list[Example]:
    return self._examples


def _trains(dataset: Any) -> None:
  """Two steps' worth of examples, drawn as a stream of batches draws them."""
  labels = batch.LabelMap({c.id: row for row, c in enumerate(dataset.categories)})
  data, rng = dataclasses.replace(examples.TINY, max_instances=3), np.random.default_rng(0)
  for _ in range(2):
    made = [batch.train_example(example, labels, data, rng) for example in map(dataset.__getitem__, (0, 1, -1))]
    for arrays in (np.stack([item[key] for item in made]) for key in made[0]):
      assert np.isfinite(arrays).all()


def _is_evaluated(dataset: Any) -> None:
  """The ground truth is read, and finds itself."""
  tree, _ = sources.ground_truth(dataset, quiet=True)
  found = [
    {key: a[key] for key in ('image_id', 'category_id', 'bbox')} | {'score': 0.5} for a in truth.read(tree).annotations
  ]
  for a, one in zip(tree['annotations'], found, strict=True):
    if 'segmentation' in a:
      height, width = next((i['height'], i['width']) for i in tree['images'] if i['id'] == a['image_id'])
      one['segmentation'] = rle.encode_mask(rle.decode_mask(a['segmentation'], height, width))
  protocol = lvis if truth.is_federated(tree['images'], tree['categories']) else coco
  whole = all('segmentation' in d for d in found)
  protocol.evaluate(tree, found if whole else [{k: d[k] for k in d if k != 'segmentation'} for d in found])


def _is_inspected(dataset: Any) -> None:
  """The page of a data set on disk; of one in memory, what it counts, warns of and draws."""
  if isinstance(dataset, sources.PreparedDataset):
    inspecting.inspect(dataset.folder, dataset.folder.with_suffix('.html'), split=dataset.split, pictures=2)
    return
  found = contents.count(dataset.categories, dataset.labels())
  contents.summary(found, None, ())
  contents.histograms(found)
  smells.of_contents(found, None, 64)
  inspect_pictures.view(dataset[0], 0, dataset.categories, found.kinds(None), None)


USES = (_trains, _is_evaluated, _is_inspected)  # whatever reads a prepared data set goes here


def _outcome(path: Path, images: Path, text: bytes, *, drop: bool) -> str:
  path.write_bytes(text)
  try:
    source = sources.JsonSource(path, images, drop_unusable=drop)
    for i in range(len(source)):
      pictures.stored(source[i], source.where(i))  # `prepare` compares the size of the picture
  except DataError as error:
    assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000, str(error)
    return 'refused'
  assert all(len(note.splitlines()) == 1 for note in source.notes)
  dataset = _Stored(source)
  for use in USES:
    use(dataset)
  return 'accepted'


def _try(tmp_path: Path, seeds: range) -> collections.Counter[str]:
  images, path, outcomes = _pictures(tmp_path / 'images'), tmp_path / 'a.json', collections.Counter()
  for seed in seeds:
    rng = random.Random(seed)
    text, drop = _text(rng), rng.random() < 0.5
    try:
      outcome = _outcome(path, images, text, drop=drop)
      if outcome == 'accepted' and seed % 50 == 0:  # the files of a data set too
        prepare.prepare(path, images, tmp_path / 'out', name='a', split='train', drop_unusable=drop)
        dataset = sources.open_dataset(tmp_path / 'out', 'train')
        for use in USES:
          use(dataset)
        labels = batch.LabelMap({c.id: row for row, c in enumerate(dataset.categories)})
        assert len(examples.take(batch.train_batches(dataset, labels, examples.configured()), 2)) == 2
        shutil.rmtree(tmp_path / 'out')
    except Exception as error:
      pytest.fail(f'file {seed} (drop_unusable={drop}): {type(error).__name__}: {error}\n{text[:3000]!r}')
    outcomes[outcome] += 1
  return outcomes


def test_what_is_accepted_can_be_used(tmp_path):
  outcomes = _try(tmp_path, range(250))
  assert min(outcomes['accepted'], outcomes['refused']) > 50, outcomes  # both are tried


@pytest.mark.soak
def test_many_more(tmp_path, pytestconfig):
  print(_try(tmp_path, range(1000, 1000 + pytestconfig.getoption('files'))))
