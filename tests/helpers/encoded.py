"""Pictures as files, in any format and orientation."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

LOSSLESS = {'WEBP': {'lossless': True}, 'BMP': {}, 'TIFF': {'compression': 'tiff_lzw'}}  # format -> options of Pillow


def encode(image: np.ndarray | Image.Image, kind: str = 'PNG', **options) -> bytes:
  buffer = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
  return buffer.getvalue()


def oriented(orientation: int) -> Image.Exif:
  exif = Image.Exif()
  exif[0x0112] = orientation
  return exif
