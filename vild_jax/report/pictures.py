"""Turns pictures into text that stands inside the page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def inline(picture: np.ndarray) -> str:
  """Returns a data URL, a JPEG, of a picture, uint8 [H, W, 3]."""
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, 'JPEG', quality=88, subsampling=0)
  return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode('ascii')
