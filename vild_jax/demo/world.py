"""The toy world: a drawn, seeded LVIS-format data set, and independent pictures of its vocabulary for the teacher.

A category is a pattern and a shape with a noun of its own, which says nothing of either, as a zebra is not called a
striped horse. Only who has seen the noun beside its object knows what it looks like: the teacher has, and what a
detector knows of novel categories, it has from the teacher. Rare categories are the novel set: half of them combine a
shape and a pattern that base categories have too, half of them have a shape that no base category has. Frequencies
follow a long tail by construction: a plan deals out how often each category appears, then pictures are drawn to it.
Format: LVIS v1 (federated: `neg_category_ids`, `not_exhaustive_category_ids`); file names in `file_name`.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
from faster_coco_eval.core import mask as rle
from PIL import Image
from tqdm import tqdm

from vild_jax.data.schema import Category, DataError
from vild_jax.demo import world_drawing as draw
from vild_jax.runtime import progress

# 1 let objects hide half of others, which nobody could then name; 2 named them by pattern and shape ('striped star'),
# so that text alone told what the unseen combinations look like, and had no novel shape.
GENERATOR_VERSION = 3

_SIDES = (112, 208)  # pixels, of a picture
_OBJECTS = (3, 8)  # a picture
_NEGATIVES = (6, 10)  # categories a picture, verified to be absent
_NOT_EXHAUSTIVE = 0.08  # the share of pictures with one more object of a category, left unannotated
_VAL_INSTANCES = 22  # of each category in a validation set of default size
_RARE_CUTOFF = 0.03  # of the training pictures: at most this many show a rare category, ...
_COMMON_CUTOFF = 0.1  # ... at most this many a common one; a frequent one appears in more
_JPEG_QUALITY = 92
_TEACHER_OBJECTS = (5, 9)  # a scene that the teacher's crops are cut from: more, for the work that a scene is
_WITH_CONTEXT = 0.3  # the share of these crops that show 1.5 times the box
_BOX_ERROR = 0.15  # the greatest error of their centres and sides, as a share of the box's sides
_GROUND = 0.12  # the share that shows none of the objects, but for a rest of one at most
_GROUND_SIDES = (14, 70)  # pixels, of these
# One for each category, in id order: shape by shape, and for each shape pattern by pattern. Invented, so that none is
# taken for more than a name.
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
_STREAMS = {'train': 0, 'val': 1, 'teacher': 2}


def categories() -> tuple[Category, ...]:
  """All categories in id order (ids from 1): 12 rare, 16 common, 20 frequent, the same for every seed."""
  table = []
  for s in range(len(draw.SHAPES)):
    for p in range(len(draw.PATTERNS)):
      # Walking along the diagonals of the other shapes spreads each frequency over all shapes and patterns.
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
  """The names in id order; the index of a name is its category id minus 1."""
  return tuple(c.name for c in categories())


def caption_names() -> tuple[str, ...]:
  """What the labels of `captioned_crops` are called: the categories in id order, and last what lies around them."""
  return (*category_names(), 'ground')


def looks() -> tuple[str, ...]:
  """What the categories look like, 'striped star' for one, in id order; no caption says it."""
  return tuple(f'{pattern} {shape}' for shape in draw.SHAPES for pattern in draw.PATTERNS)


def generate(out: Path, *, seed: int = 0, train_images: int = 1000, val_images: int = 250) -> dict:
  """Writes OUT/train/*.jpg, OUT/val/*.jpg, OUT/annotations/toy_train.json and toy_val.json; returns the statistics.

  The same arguments give the same bytes. A world with the same arguments that is already there is kept. Guarantees on
  counts (module constants, `statistics` in the JSON's info) hold from about 40 training and 200 validation pictures.

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
  partial = out.parent / f'.{out.name}.partial'
  shutil.rmtree(partial, ignore_errors=True)
  (partial / 'annotations').mkdir(parents=True)
  sets = {}
  with progress.bar(train_images + val_images, 'toy world', unit='picture') as bar:
    for split, count, first in (('train', train_images, 1), ('val', val_images, train_images + 1)):
      (partial / split).mkdir()
      sets[split] = _render(partial / split, seed, split, count, first, bar)
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
    (partial / 'annotations' / f'toy_{split}.json').write_text(text, encoding='utf-8')
  os.replace(partial, out)
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


def _rng(seed: int, stream: str, number: int = 0) -> np.random.Generator:
  # Always four words: numpy pads shorter keys with zeros, and two keys that differ in trailing zeros are one.
  return np.random.default_rng([seed % 2**32, seed // 2**32 % 2**32, _STREAMS[stream], number])


def _cutoffs(train_images: int) -> dict[str, int]:
  """The greatest number of training pictures with a rare, and with a common, category."""
  return {'r': max(1, int(_RARE_CUTOFF * train_images)), 'c': max(2, int(_COMMON_CUTOFF * train_images))}


def _plan(rng: np.random.Generator, split: str, count: int) -> list[list[tuple[int, bool]]]:
  """Deals categories to pictures: for each picture (category index, annotated), back to front."""
  frequency = np.array([c.frequency for c in categories()])
  capacity = rng.integers(_OBJECTS[0], _OBJECTS[1] + 1, count)
  quota = np.zeros(len(frequency), int)
  for kind, low, high in (('r', 0.02, 0.028), ('c', 0.04, 0.085)):
    members = rng.permutation(np.flatnonzero(frequency == kind))
    quota[members] = np.maximum(1, np.rint(np.linspace(low, high, len(members)) * count))
  frequent = rng.permutation(np.flatnonzero(frequency == 'f'))
  share = np.linspace(0.75, 1.25, len(frequent))
  # A part is left for the repetitions below.
  quota[frequent] = np.rint(0.88 * share / share.sum() * max(0, capacity.sum() - quota.sum()))
  if split == 'val':
    # Stratified, and what is left follows the training frequencies.
    least = min(_VAL_INSTANCES, int(0.85 * capacity.sum() / len(quota)))
    quota = least + (quota / quota.sum() * (capacity.sum() - least * len(quota))).astype(int)
  pictures: list[list[tuple[int, bool]]] = [[] for _ in range(count)]
  # The rarest first, while there is room to give each picture of a category its own place.
  for index in np.argsort(quota, kind='stable'):
    room = np.flatnonzero(capacity)
    if not room.size:  # a set too small for all categories
      break
    distinct = min(quota[index], len(room))
    chosen = list(rng.choice(room, distinct, replace=False, p=capacity[room] / capacity[room].sum()))
    for picture in chosen:
      capacity[picture] -= 1
      pictures[picture].append((int(index), True))
  for picture, left in enumerate(capacity):
    # A second one of a category that the picture shows anyway leaves the numbers of pictures as planned.
    again = [i for i, _ in pictures[picture] if frequency[i] == 'f'] or list(frequent)
    pictures[picture] += [(int(rng.choice(again)), True) for _ in range(left)]
  for objects in pictures:
    if len(objects) < _OBJECTS[1] and rng.random() < _NOT_EXHAUSTIVE * 1.15:
      objects.append((objects[rng.integers(len(objects))][0], False))
    rng.shuffle(objects)
  return pictures


def _render(folder: Path, seed: int, split: str, count: int, first: int, bar: tqdm) -> tuple[list, list, int]:
  """Draws and writes one set; returns LVIS's images and annotations, and how many objects were left unannotated."""
  table = categories()
  images, annotations, unannotated = [], [], 0
  for number, objects in enumerate(_plan(_rng(seed, split), split, count)):
    image_id = first + number
    rng = _rng(seed, split, image_id)
    height, width = (int(v) for v in rng.integers(_SIDES[0], _SIDES[1] + 1, 2))
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
  """The visible part of an object as LVIS fields, exact to the pixel; `visible` is its share of the whole."""
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
  # At twice the size a contour through pixel centres tells the two sides of every pixel apart, so that its points
  # can be moved onto the edges between pixels.
  double = np.repeat(np.repeat(mask[y : y + height, x : x + width].astype(np.uint8), 2, 0), 2, 1)
  contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
  if (hierarchy[0, :, 3] >= 0).any():
    # A polygon of COCO's kind cannot have a hole.
    code = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': [int(v) for v in code['size']], 'counts': code['counts'].decode('ascii')}
  return [((c[:, 0] + 1) // 2 + (x, y)).ravel().tolist() for c in contours]


def captioned_crops(seed: int, count: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
  """Pictures of single objects of the whole vocabulary, in equal parts, and some of none: what the toy teacher sees.

  They are cut out of scenes like those of the data set, but from a random stream of their own. A cut is the box of an
  object's visible part, or 1.5 times that, a little off, stretched to the square; or a box where no object is, since
  the web that CLIP learned from shows such things too. For any seed the first n do not depend on count.

  Returns:
    uint8 [count, size, size, 3] and the index into `caption_names` int32 [count].
  """
  rng = _rng(seed, 'teacher')
  images = np.empty((count, size, size, 3), np.uint8)
  labels = np.empty(count, np.int32)
  done, waiting = 0, np.zeros(0, np.int64)
  while done < count:
    height, width = (int(v) for v in rng.integers(_SIDES[0], _SIDES[1] + 1, 2))
    number = int(rng.integers(_TEACHER_OBJECTS[0], _TEACHER_OBJECTS[1] + 1))
    if len(waiting) < number:
      waiting = np.append(waiting, rng.permutation(len(categories())))
    shown, waiting = waiting[:number], waiting[number:]
    picture, owner, _ = draw.scene(rng, height, width, [divmod(int(i), len(draw.PATTERNS)) for i in shown])
    crops = [(_crop(rng, picture, owner == position), shown[position]) for position in range(number)]
    if rng.random() < number * _GROUND / (1 - _GROUND) and (ground := _ground(rng, picture, owner >= 0)) is not None:
      crops.append((ground, len(categories())))
    for crop, label in crops[: count - done]:
      images[done] = Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC)
      labels[done] = label
      done += 1
  return images, labels


def _ground(rng: np.random.Generator, picture: np.ndarray, objects: np.ndarray) -> np.ndarray | None:
  """A part of the picture that is at most a tenth object; None where a few tries find none."""
  for _ in range(20):
    height, width = (int(v) for v in rng.integers(_GROUND_SIDES[0], _GROUND_SIDES[1] + 1, 2))
    y, x = (int(rng.integers(0, limit - side + 1)) for limit, side in zip(objects.shape, (height, width), strict=True))
    part = slice(y, y + height), slice(x, x + width)
    if objects[part].mean() <= 0.1:
      return picture[part]
  return None


def _crop(rng: np.random.Generator, picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """The part of the picture around a mask, as a region proposal would show it."""
  context = 1.5 if rng.random() < _WITH_CONTEXT else 1.0
  off = _BOX_ERROR * rng.random()
  spans = []
  for axis, limit in ((1, mask.shape[0]), (0, mask.shape[1])):
    seen = np.flatnonzero(mask.any(axis))
    extent = seen[-1] + 1 - seen[0]
    centre = seen[0] + extent * (0.5 + off * rng.uniform(-1, 1))
    half = 0.5 * context * extent * math.exp(off * rng.uniform(-1, 1))
    start = max(0, math.floor(centre - half))
    spans.append(slice(start, min(limit, max(math.ceil(centre + half), start + 3))))
  return picture[tuple(spans)]


def _category_table(train: tuple[list, list, int]) -> list[dict]:
  """LVIS's category entries; the counts are of the training set in both files, as in LVIS."""
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
  """What a set holds, counted on what was drawn; fractions are of annotated objects or of pictures."""
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
