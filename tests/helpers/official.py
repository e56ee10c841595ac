"""Miniatures of the official layouts of LVIS v1, COCO 2017 and Objects365 v2: folders, fields and known faults."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers import small_set
from vild_jax.data import class_lists
from vild_jax.data.class_lists import ClassList

SIZE = (48, 64)  # height, width of every picture
_BOX = [4.0, 6.0, 20.0, 16.0]  # x, y, width, height
_POLYGON = [4.0, 6.0, 24.0, 6.0, 24.0, 22.0, 4.0, 22.0]


def write(folder: Path) -> None:
  """Writes all three into `folder`, and what stands for a team's own data: `train.json`, `train/` and the like."""
  pictures(folder / 'coco', {'train2017': range(1, 7), 'val2017': range(11, 13)})
  for name in ('train2017', 'val2017'):  # COCO's recipe names these folders, LVIS's the one above
    (folder / name).symlink_to(folder / 'coco' / name)
  lvis = class_lists.lvis_categories()
  categories = [
    {'id': c.id, 'name': c.name, 'frequency': c.frequency, 'synset': c.synset, 'synonyms': list(c.synonyms), 'def': ''}
    for c in lvis
  ]
  base = [c.id for c in lvis if c.frequency != 'r']
  save(folder / 'lvis_v1_train.json', _lvis_images('train2017', range(1, 7)), categories, base)
  val = _lvis_images('train2017', (5, 6)) + _lvis_images('val2017', (11, 12))  # LVIS's validation takes from both
  save(folder / 'lvis_v1_val.json', val, categories, base, flat=0)
  save(folder / 'lvis_v1_style_train.json', _lvis_images('train2017', range(1, 7)), categories, base, flat=0)
  (folder / 'base_without_eight.txt').write_text('\n'.join(c.name for c in lvis if c.id in base[8:]))
  rows(folder / 'lvis_v1_clip_a+cname.npy', class_lists.class_list('lvis'))
  coco = class_lists.coco_categories()
  categories = [{'supercategory': 'thing', 'id': c.id, 'name': c.name} for c in coco]
  for name, ids in (('train2017', range(1, 7)), ('val2017', (11, 12))):
    images = [{'license': 1, 'file_name': f'{i:012d}.jpg', **_size(i)} for i in ids]
    save(folder / f'instances_{name}.json', images, categories, [c.id for c in coco], flat=2, crowds=1)
  _objects365(folder)
  _own(folder)


def pictures(folder: Path, ids: dict[str, Sequence[int]], name: str = '{:012d}.jpg') -> None:
  """Writes a picture for each id of each folder below `folder`."""
  for below, numbers in ids.items():
    (folder / below).mkdir(parents=True, exist_ok=True)
    for i in numbers:
      (folder / below / name.format(i)).write_bytes(small_set.picture(*SIZE, seed=i))


def save(
  path: Path,
  images: list[dict[str, Any]],
  categories: list[dict[str, Any]],
  used: Sequence[int],
  *,
  flat: int = 1,
  crowds: int = 0,
  masks: bool = True,
) -> None:
  """Writes annotations: in each picture an object of each of three categories; `flat` boxes without height."""
  annotations = []
  for i, image in enumerate(images):
    for k in range(3):
      annotations.append(_annotation(len(annotations) + 1, image['id'], used[(3 * i + k) % len(used)], masks))
  for _ in range(flat):
    annotations.append(
      _annotation(len(annotations) + 1, images[0]['id'], used[0], masks) | {'bbox': [4.0, 6.0, 9.0, 0.0]}
    )
  for _ in range(crowds):
    runs = [300, 40, SIZE[0] * SIZE[1] - 340]
    annotations.append(
      _annotation(len(annotations) + 1, images[0]['id'], used[0], masks)
      | {'iscrowd': 1, 'segmentation': {'size': list(SIZE), 'counts': runs}}
    )
  tree = {
    'info': {'year': 2017},
    'licenses': [],
    'images': images,
    'annotations': annotations,
    'categories': categories,
  }
  path.write_text(json.dumps(tree), encoding='utf-8')


def rows(path: Path, classes: ClassList, dim: int = 512) -> Path:
  """Writes embeddings at random for the classes, as another system would; returns the path."""
  np.save(path, np.random.default_rng(0).normal(size=(len(classes), dim)).astype(np.float32))
  return path


def _lvis_images(folder: str, ids: Sequence[int]) -> list[dict[str, Any]]:
  """LVIS v1 names no file, but COCO's address."""
  return [
    {
      'license': 1,
      'coco_url': f'http://images.cocodataset.org/{folder}/{i:012d}.jpg',
      'neg_category_ids': [1, 2],
      'not_exhaustive_category_ids': [],
      **_size(i),
    }
    for i in ids
  ]


def _size(image_id: int) -> dict[str, int]:
  return {'id': image_id, 'height': SIZE[0], 'width': SIZE[1]}


def _annotation(key: int, image: int, category: int, masks: bool) -> dict[str, Any]:
  found = {'id': key, 'image_id': image, 'category_id': category, 'bbox': _BOX, 'area': _BOX[2] * _BOX[3], 'iscrowd': 0}
  return found | ({'segmentation': [_POLYGON]} if masks else {})


def _objects365(folder: Path) -> None:
  """Its pictures lie in patches, which file_name puts below images/v1/; it has boxes alone."""
  classes = class_lists.class_list('objects365')
  categories = [{'id': key, 'name': name} for key, name in zip(classes.ids, classes.names, strict=True)]
  for split, first in (('train', 1), ('val', 5)):
    ids = range(first, first + 4)
    patches = {f'patch{p}': [i for i in ids if i % 2 == p] for p in (0, 1)}
    pictures(folder / 'objects365' / split, patches, 'objects365_v1_{:08d}.jpg')
    images = [{'file_name': f'images/v1/patch{i % 2}/objects365_v1_{i:08d}.jpg', 'license': 5, **_size(i)} for i in ids]
    save(folder / f'zhiyuan_objv2_{split}.json', images, categories, list(classes.ids), masks=False)


def _own(folder: Path) -> None:
  """A team's own LVIS-format data, and embeddings that it has: the names that the pages use for them."""
  names = {'cat': 'f', 'dog': 'c', 'cow': 'r'}
  categories = [{'id': i, 'name': name, 'frequency': names[name]} for i, name in enumerate(names, 1)]
  for split, ids in (('train', range(1, 7)), ('val', (11, 12))):
    pictures(folder, {split: ids})
    images = [{'file_name': f'{i:012d}.jpg', **_size(i)} for i in ids]
    save(folder / f'{split}.json', images, categories, [1, 2, 3], flat=0)
  (folder / 'base.txt').write_text('cat\ndog\n')
  (folder / 'names.txt').write_text('cat\ndog\ncow\n')
  rows(folder / 'rows.npy', class_lists.class_list(folder / 'names.txt'))
  _annotation_tools(folder)


def _annotation_tools(folder: Path) -> None:
  """One picture as annotated for YOLO, PASCAL VOC and CVAT."""
  x, y, w, h = _BOX
  height, width = SIZE
  pictures(folder, {'images/train': [1], 'JPEGImages': [1]})
  for name in ('labels/train', 'Annotations'):
    (folder / name).mkdir(parents=True)
  (folder / 'data.yaml').write_text('names: [cat, dog, cow]\n')
  row = [0, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
  (folder / 'labels' / 'train' / '000000000001.txt').write_text(' '.join(map(str, row)) + '\n')
  corners = f'<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>'
  (folder / 'Annotations' / '000000000001.xml').write_text(
    f'<annotation><filename>000000000001.jpg</filename><size><width>{width}</width><height>{height}</height></size>'
    f'<object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>'
  )
  box = f'<box label="cat" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}" occluded="0" z_order="0"/>'
  (folder / 'annotations.xml').write_text(
    '<annotations><version>1.1</version><meta><task><labels><label><name>cat</name></label></labels></task></meta>'
    f'<image id="0" name="train/000000000001.jpg" width="{width}" height="{height}">{box}</image></annotations>'
  )
