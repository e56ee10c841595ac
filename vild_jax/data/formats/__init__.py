"""Reads annotations of YOLO, PASCAL VOC and CVAT as content of a COCO-format file, which then is checked as such.

hotcoco has readers for the three too, but they lose what a training needs: polygons of YOLO, masks of CVAT, names, and
the difference between a difficult object and a crowd.
"""

from __future__ import annotations

from pathlib import Path

from vild_jax.config import defaults
from vild_jax.data.formats import cvat, voc, yolo
from vild_jax.data.formats.converted import Converted
from vild_jax.data.formats.names import read_names
from vild_jax.data.schema import DataError


def read(
  format: str,
  annotations: str | Path,
  images: str | Path,
  names: str | Path | None = None,
  *,
  drop_unusable: bool = False,
) -> Converted | None:
  """Returns converted annotations, or None for COCO's own format.

  Args:
    format: one of `defaults.FORMATS`.
    annotations: yolo: the folder of label files; voc: the folder of XML files; cvat: the XML file.
    images: the folder of the pictures.
    names: the classes' names: YOLO's data.yaml or a text file with one name a line. YOLO needs it; for VOC it gives the
      categories and their order, else they are the names that occur, sorted. The other formats hold their names.
    drop_unusable: whether to leave out and count objects that cannot be read, instead of refusing all.

  Raises:
    DataError: one line with the first problem and the number of others, after everything was read.
  """
  if names is not None and format not in (defaults.YOLO, defaults.VOC):
    raise DataError(f'--names {names}: the format {format} holds its names; expected --format yolo or voc')
  if format == defaults.YOLO:
    if names is None:
      raise DataError('the format yolo needs --names; expected data.yaml or a text file with one name a line')
    return yolo.read(Path(annotations), Path(images), Path(names), drop_unusable=drop_unusable)
  if format == defaults.VOC:
    listed = None if names is None else read_names(Path(names))[0]
    return voc.read(Path(annotations), Path(images), listed, drop_unusable=drop_unusable)
  if format == defaults.CVAT:
    return cvat.read(Path(annotations), drop_unusable=drop_unusable)
  if format != defaults.COCO:
    raise DataError(f'the format {format!r} is unknown; expected one of ' + ', '.join(defaults.FORMATS))
  return None
