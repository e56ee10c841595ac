"""Keeps what `detect` has found so far, and joins it to the files that it writes in the end, a record at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vild_jax.data import rle
from vild_jax.eval import shards
from vild_jax.inference.detections import PictureDetections
from vild_jax.runtime import files, reading

Record = dict[str, Any]


class Parts:
  """Holds finished parts of the work in a folder, so that a run that was killed goes on where it stopped.

  A part is a file with one record in JSON a line; it is there when it is whole.
  """

  def __init__(self, folder: Path, job: Mapping[str, Any]):
    """Begins the job or goes on with it.

    Raises DataError if the folder has parts of another job, as `shards.begin` does.
    """
    self._folder = folder
    if not any(folder.glob('*.part')):  # what failed at once binds nobody
      self.remove()
    shards.begin(folder, job, 'detection')

  def read(self, *key: int) -> list[Record] | None:
    """Returns the records of a part; None if it is not finished."""
    path = self._path(key)
    if not path.is_file():
      return None
    with reading.parsing(path, 'a part of a detection that was stopped: delete it'):
      return [json.loads(line) for line in path.read_text('ascii').splitlines()]

  def has(self, *key: int) -> bool:
    """Tells whether a part is finished."""
    return self._path(key).is_file()

  def write(self, records: Iterable[Record], *key: int) -> None:
    """Writes a part, which has a number or several."""
    files.write(self._path(key), ''.join(json.dumps(record) + '\n' for record in records))

  def remove(self) -> None:
    """Removes all parts, as `shards.end` does."""
    shards.end(self._folder)

  def _path(self, key: tuple[int, ...]) -> Path:
    return self._folder / f'{"-".join(f"{number:06d}" for number in key)}.part'


def described(found: PictureDetections) -> list[Record]:
  """Returns the detections in a picture as they stand in the files, best first; masks as COCO RLEs."""
  rows = [
    {'class': found.names[label], 'score': score, 'box_yxyx': box}
    for label, score, box in zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
  ]
  if found.attributes is not None:
    rows = [row | {'attributes': found.attributes_of(i)} for i, row in enumerate(rows)]
  return rows if found.rles is None else [row | {'mask': mask} for row, mask in zip(rows, found.rles, strict=True)]


def write_list(path: Path, records: Iterable[Record]) -> None:
  """Writes a JSON list, one record a line."""
  with files.replacing(path) as temporary, open(temporary, 'w', encoding='ascii') as file:
    _write_list(file, records)
    file.write('\n')


def write_lines(path: Path, records: Iterable[Record]) -> None:
  """Writes JSON lines, one record each."""
  with files.replacing(path) as temporary, open(temporary, 'w', encoding='ascii') as file:
    file.writelines(json.dumps(record) + '\n' for record in records)


def write_coco(path: Path, pictures: Callable[[], Iterable[Record]], names: Sequence[str]) -> None:
  """Writes a data set in COCO's format, whose annotations are the detections with their `score`.

  Args:
    path: of the file.
    pictures: returns the records of detections.json, each time that it is called.
    names: of the classes; their ids count from 1, as do those of pictures.
  """
  categories = [{'id': number, 'name': name} for number, name in enumerate(names, start=1)]
  ids = {category['name']: category['id'] for category in categories}
  images = (
    {'id': number, 'file_name': of['image'], 'height': of['height'], 'width': of['width']}
    for number, of in enumerate(pictures(), start=1)
  )
  with files.replacing(path) as temporary, open(temporary, 'w', encoding='ascii') as file:
    for key, records in (
      ('categories', categories),
      ('images', images),
      ('annotations', _annotations(pictures(), ids)),
    ):
      file.write(f'{"{" if key == "categories" else ","}\n"{key}": ')
      _write_list(file, records)
    file.write('\n}\n')


def _annotations(pictures: Iterable[Record], ids: Mapping[str, int]) -> Iterator[Record]:
  number = 0
  for image_id, of in enumerate(pictures, start=1):
    for found in of['detections']:
      number += 1
      top, left, bottom, right = found['box_yxyx']
      mask = found.get('mask')
      area = rle.area(mask, *mask['size']) if mask else (bottom - top) * (right - left)
      yield {
        'id': number,
        'image_id': image_id,
        'category_id': ids[found['class']],
        'bbox': [left, top, right - left, bottom - top],
        'area': area,
        'iscrowd': 0,
        'segmentation': mask or [],
        'score': found['score'],
      }


def _write_list(file: Any, records: Iterable[Record]) -> None:
  before = '[\n'
  for record in records:
    file.write(before + json.dumps(record))
    before = ',\n'
  file.write('[]' if before == '[\n' else '\n]')
