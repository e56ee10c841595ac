"""Draws the toy world: a data set in LVIS format, made from a seed.

A category is a pattern and a shape. Its name is an invented noun that says nothing about either, as "zebra" does not
say "striped horse": what a category looks like can only be learned from pictures with the noun. The teacher has seen
such pictures of all categories, so that a detector can learn from the teacher what novel categories look like. The rare
categories are the novel ones: half of them combine a shape and a pattern that base categories have too, half of them
have a shape that no base category has. Frequencies have a long tail: a plan sets how often each category appears, then
pictures are drawn by the plan. Format: LVIS v1 (federated: `neg_category_ids`, `not_exhaustive_category_ids`); file
names in `file_name`.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from vild_jax.data import rle
from vild_jax.data.schema import Category, DataError
from vild_jax.demo import world_drawing as draw
from vild_jax.runtime import files, progress

# In version 1 objects hid half of others, which could then not be recognised. Version 2 had names of pattern and shape
# ('striped star'), so that the text alone described the unseen combinations, and it had no novel shape.
GENERATOR_VERSION = 3

SIDES = (112, 208)  # pixels, of a picture
_OBJECTS = (3, 8)  # per picture
_NEGATIVES = (6, 10)  # categories per picture that are listed as absent
_NOT_EXHAUSTIVE = 0.08  # the share of pictures with one more object of a category, left unannotated
_VAL_INSTANCES = 22  # of each category in a validation set of default size
_RARE_CUTOFF = 0.03  # of the training pictures: at most this share shows a rare category, ...
_COMMON_CUTOFF = 0.1  # ... at most this share a common one; a frequent one appears in more
_JPEG_QUALITY = 92
# One for each category, in id order: shape by shape, and for each shape pattern by pattern. They are invented, so that
# none has a meaning.
_NOUNS = (
  'bakru',
  'colmi',
  'denta',
  'farlo',
  'gimbo',
  'halsu',
  'javeno',
  'kirba',
  'lomeg',
  'mulda',
  'nerpi',
  'ostak',
  'pirmo',
  'quenta',
  'rabbo',
  'seldi',
  'torpa',
  'umbik',
  'vaskol',
  'wenda',
  'yarlu',
  'zobri',
  'abmok',
  'birtu',
  'cando',
  'dulge',
  'emsal',
  'forbi',
  'gantu',
  'hirmo',
  'isbel',
  'jukla',
  'kesto',
  'lurda',
  'marbi',
  'nolgu',
  'orvik',
  'pelta',
  'quibo',
  'rolsa',
  'sunte',
  'tiglo',
  'urbam',
  'velko',
  'wimba',
  'yosti',
  'zarnu',
  'alfeb',
)
_NOVEL_SHAPE = 'crescent'
_STREAMS = {'train': 0, 'val': 1, 'teacher': 2, 'cards': 3}


def categories() -> tuple[Category, ...]:
  """Returns all categories in id order (ids from 1): 12 rare, 16 common, 20 frequent, the same for every seed."""
  table = []
  for s in range(len(draw.SHAPES)):
    for p in range(len(draw.PATTERNS)):
      # Diagonals of (shape, pattern) spread each frequency over all shapes and patterns, except the novel shape.
      diagonal = (s - p) % (len(draw.SHAPES) - 1)
      frequency = 'f'
      if draw.SHAPES[s] == _NOVEL_SHAPE or diagonal == 0:
        frequency = 'r'
      elif diagonal in (2, 5) or (diagonal == 1 and p < 4):
        frequency = 'c'
      name = _NOUNS[len(table)]
      table.append(Category(len(table) + 1, name, frequency, f'{name}.n.01', (name,)))
  return tuple(table)


def category_names() -> tuple[str, ...]:
  """Returns the names in id order; the index of a name is its category id minus 1."""
  return tuple(c.name for c in categories())


def caption_names() -> tuple[str, ...]:
  """Returns the names of the labels of `crops.captioned_crops`: the categories in id order, then the background."""
  return (*category_names(), 'ground')


def looks() -> tuple[str, ...]:
  """Returns what the categories look like in id order, such as 'striped star'; no caption says this."""
  return tuple(f'{pattern} {shape}' for shape in draw.SHAPES for pattern in draw.PATTERNS)


def generate(out: Path, *, seed: int = 0, train_images: int = 1000, val_images: int = 250) -> dict:
  """Writes OUT/train/*.jpg, OUT/val/*.jpg, OUT/annotations/toy_train.json and toy_val.json; returns the statistics.

  The same arguments give the same bytes. A world with the same arguments that is already there is kept. With about 40
  training and 200 validation pictures or more, the counts are as this file's constants say (`statistics` in the info of
  the JSON has them).

  Raises:
    DataError: OUT holds something else, a world of other arguments, or a number of pictures is not positive.
  """
  out = Path(out)
  parameters = {
    'generator_version': GENERATOR_VERSION,
    'seed': seed,
    'train_images': train_images,
    'val_images': val_images,
  }
  for name in ('train_images', 'val_images'):
    if parameters[name] < 1:
      raise DataError(f'{name} is {parameters[name]}; expected at least 1')
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    return _reuse(out, parameters)
  sets = {}
  with (
    files.new_folder(out) as folder,
    progress.bar(train_images + val_images, 'toy world', unit='picture') as bar,
  ):
    (folder / 'annotations').mkdir()
    for split, count, first in (('train', train_images, 1), ('val', val_images, train_images + 1)):
      (folder / split).mkdir()
      sets[split] = _render(folder / split, seed, split, count, first, bar)
    table = _category_table(sets['train'])
    summary = {
      **parameters,
      'frequency_cutoffs': _cutoffs(train_images),
      'categories': {f: sum(c['frequency'] == f for c in table) for f in 'rcf'},
      **{split: _statistics(*sets[split]) for split in sets},
    }
    for split, (images, objects, _) in sets.items():
      info = {
        'description': f'vild_jax toy world, {split}',
        'version': str(GENERATOR_VERSION),
        'parameters': parameters,
        'frequency_cutoffs': summary['frequency_cutoffs'],
        'statistics': summary[split],
        'summary': summary,
      }
      content = {'info': info, 'licenses': [], 'categories': table, 'images': images, 'annotations': objects}
      text = json.dumps(content, separators=(',', ':'))
      (folder / 'annotations' / f'toy_{split}.json').write_text(text, encoding='utf-8')
  return summary


def _reuse(out: Path, parameters: dict) -> dict:
  path = out / 'annotations' / 'toy_val.json'
  try:
    info = json.loads(path.read_text(encoding='utf-8'))['info']
    found = info['parameters']
  except (OSError, ValueError, KeyError, TypeError):
    raise DataError(f'{out} holds no toy world; expected a new or empty folder') from None
  if found != parameters:
    raise DataError(f'{out} holds the toy world {found}; expected {parameters}')
  return info['summary']


def random_stream(seed: int, stream: str, number: int = 0) -> np.random.Generator:
  """Returns the generator of a stream (one of `_STREAMS`) and a number in it, such as an image id."""
  # Always four words: NumPy pads shorter keys with zeros, so that keys that differ in trailing zeros are equal.
  return np.random.default_rng([seed % 2**32, seed // 2**32 % 2**32, _STREAMS[stream], number])


def _cutoffs(train_images: int) -> dict[str, int]:
  """Returns the largest number of training pictures with a rare category, and with a common one."""
  return {'r': max(1, int(_RARE_CUTOFF * train_images)), 'c': max(2, int(_COMMON_CUTOFF * train_images))}


def _plan(rng: np.random.Generator, split: str, count: int) -> list[list[tuple[int, bool]]]:
  """Plans which categories each picture shows: (category index, annotated) from back to front."""
  frequency = np.array([c.frequency for c in categories()])
  capacity = rng.integers(_OBJECTS[0], _OBJECTS[1] + 1, count)
  quota = np.zeros(len(frequency), int)
  for kind, low, high in (('r', 0.02, 0.028), ('c', 0.04, 0.085)):
    members = rng.permutation(np.flatnonzero(frequency == kind))
    quota[members] = np.maximum(1, np.rint(np.linspace(low, high, len(members)) * count))
  frequent = rng.permutation(np.flatnonzero(frequency == 'f'))
  share = np.linspace(0.75, 1.25, len(frequent))
  # The rest is left for the repetitions below.
  quota[frequent] = np.rint(0.88 * share / share.sum() * max(0, capacity.sum() - quota.sum()))
  if split == 'val':
    # Every category gets the same minimum; the rest follows the training frequencies.
    least = min(_VAL_INSTANCES, int(0.85 * capacity.sum() / len(quota)))
    quota = least + (quota / quota.sum() * (capacity.sum() - least * len(quota))).astype(int)
  pictures: list[list[tuple[int, bool]]] = [[] for _ in range(count)]
  # The rarest come first, while there are enough pictures to show each instance in a different one.
  for index in np.argsort(quota, kind='stable'):
    room = np.flatnonzero(capacity)
    if not room.size:  # the set is too small for all categories
      break
    distinct = min(quota[index], len(room))
    chosen = list(rng.choice(room, distinct, replace=False, p=capacity[room] / capacity[room].sum()))
    for picture in chosen:
      capacity[picture] -= 1
      pictures[picture].append((int(index), True))
  for picture, left in enumerate(capacity):
    # Another object of a category that the picture shows anyway does not change the planned numbers of pictures.
    again = [i for i, _ in pictures[picture] if frequency[i] == 'f'] or list(frequent)
    pictures[picture] += [(int(rng.choice(again)), True) for _ in range(left)]
  for objects in pictures:
    if len(objects) < _OBJECTS[1] and rng.random() < _NOT_EXHAUSTIVE * 1.15:
      objects.append((objects[rng.integers(len(objects))][0], False))
    rng.shuffle(objects)
  return pictures


def _render(folder: Path, seed: int, split: str, count: int, first: int, bar: tqdm) -> tuple[list, list, int]:
  """Draws and writes one set; returns LVIS's images and annotations, and the number of objects left unannotated."""
  table = categories()
  images, annotations, unannotated = [], [], 0
  for number, objects in enumerate(_plan(random_stream(seed, split), split, count)):
    image_id = first + number
    rng = random_stream(seed, split, image_id)
    height, width = (int(v) for v in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    kinds = [divmod(index, len(draw.PATTERNS)) for index, _ in objects]
    picture, owner, full = draw.scene(rng, height, width, kinds)
    present = {index for index, _ in objects}
    absent = [i for i in range(len(table)) if i not in present]
    negatives = rng.choice(absent, rng.integers(_NEGATIVES[0], _NEGATIVES[1] + 1), replace=False)
    partly = sorted({table[index].id for index, annotated in objects if not annotated})
    unannotated += sum(not annotated for _, annotated in objects)
    images.append(
      {
        'id': image_id,
        'file_name': f'{image_id:06d}.jpg',
        'height': height,
        'width': width,
        'neg_category_ids': sorted(table[i].id for i in negatives),
        'not_exhaustive_category_ids': partly,
      }
    )
    for position, (index, annotated) in enumerate(objects):
      if annotated:
        annotations.append(
          {
            'id': 1000 * image_id + position,
            'image_id': image_id,
            'category_id': table[index].id,
            **_region(owner == position, int(full[position])),
          }
        )
    encoded = cv2.imencode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    (folder / f'{image_id:06d}.jpg').write_bytes(encoded.tobytes())
    bar.update()
  return images, annotations, unannotated


def _region(mask: np.ndarray, full: int) -> dict:
  """Returns the visible part of an object as LVIS fields, exact to the pixel; `visible` is its share of the whole."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
  area = int(mask.sum())
  return {
    'bbox': [float(v) for v in box],
    'area': area,
    'segmentation': _segmentation(mask, box),
    'iscrowd': 0,
    'visible': round(area / full, 3),
  }


def _segmentation(mask: np.ndarray, box: list[int]) -> list[list[int]] | dict:
  x, y, width, height = box
  polygons, has_holes = rle.outlines(mask[y : y + height, x : x + width], y, x)
  return rle.encode_mask(mask) if has_holes else polygons


def _category_table(train: tuple[list, list, int]) -> list[dict]:
  """Returns LVIS's category entries; both files have the counts of the training set, as in LVIS."""
  images, instances = _per_category(train[1])
  return [
    {
      'id': c.id,
      'name': c.name,
      'synset': c.synset,
      'synonyms': list(c.synonyms),
      'def': looks()[c.id - 1],
      'frequency': c.frequency,
      'image_count': int(images[c.id - 1]),
      'instance_count': int(instances[c.id - 1]),
    }
    for c in categories()
  ]


def _per_category(annotations: list[dict]) -> tuple[np.ndarray, np.ndarray]:
  size = len(categories())
  pairs = {(a['image_id'], a['category_id']) for a in annotations}
  return (
    np.bincount([c - 1 for _, c in pairs], minlength=size),
    np.bincount([a['category_id'] - 1 for a in annotations], minlength=size),
  )


def _statistics(images: list[dict], annotations: list[dict], unannotated: int) -> dict:
  """Counts what a set holds, from what was drawn; fractions are of annotated objects or of pictures."""
  frequency = {c.id: c.frequency for c in categories()}
  visible = np.array([a['visible'] for a in annotations])
  area = np.array([a['area'] for a in annotations])
  novel = {a['image_id'] for a in annotations if frequency[a['category_id']] == 'r'}
  per_image = np.bincount([a['image_id'] - images[0]['id'] for a in annotations], minlength=len(images))
  images_of, instances_of = _per_category(annotations)
  return {
    'images': len(images),
    'annotations': len(annotations),
    'unannotated_objects': unannotated,
    'annotations_per_frequency': {f: sum(frequency[a['category_id']] == f for a in annotations) for f in 'rcf'},
    'annotations_per_image': [int(per_image.min()), round(float(per_image.mean()), 2), int(per_image.max())],
    'occluded_fraction': round(float((visible < 0.95).mean()), 4),
    'small_fraction': round(float((area < 32**2).mean()), 4),
    'novel_image_fraction': round(len(novel) / len(images), 4),
    'least_images_of_a_category': int(images_of.min()),
    'least_annotations_of_a_category': int(instances_of.min()),
    'negatives_per_image': round(float(np.mean([len(i['neg_category_ids']) for i in images])), 2),
    'not_exhaustive_images': sum(bool(i['not_exhaustive_category_ids']) for i in images),
  }
