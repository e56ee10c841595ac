"""Finds a font for each class name and draws it: DejaVu Sans, a font of the system, or the one in OpenCV 5.

DejaVu Sans comes with matplotlib and covers Latin, Greek, Cyrillic, Arabic, Hebrew, Georgian and more; the font of
OpenCV 5 covers Chinese, Japanese and Korean. A font is taken only if it has every character of the name, so that no
picture shows boxes in the place of letters, and if the letters can be put in their order and shape: scripts from Hebrew
to Burmese, and Khmer, need Pillow with Raqm and FriBiDi for that, which without them draws Arabic backwards.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib import ft2font
from PIL import Image, ImageDraw, ImageFont, features

_DEJAVU = Path(matplotlib.get_data_path()) / 'fonts/ttf/DejaVuSans.ttf'
_OF_EVERY_LABEL = '#0123456789 '  # a number, a score
_OPENCV = 'uni'  # what OpenCV 5 calls its font of many scripts
# Fonts with a picture or a hexadecimal number for every character.
_OF_LAST_RESORT = ('LastResort', 'Unifont Upper', 'Blank')


def one_line(name: str) -> str:
  """Returns a class name as a label shows it: neither underscores nor line ends, which a label has no room for."""
  return ' '.join(re.sub(r'[_\x00-\x1f\x7f-\x9f]', ' ', name).split())


@functools.lru_cache(maxsize=4096)
def covers(name: str) -> bool:
  """Tells whether some font here has all characters of a class name."""
  return _font_of(name) is not None


def label(name: str, number: int, title: str | None = None) -> str:
  """Returns what a label shows for a class: its title if there is one, else its name, or '#3' for the third one.

  What no font covers is passed over.
  """
  lines = [one_line(text) for text in (title, name) if text is not None]
  return next(filter(covers, lines), f'#{number + 1}')


@functools.lru_cache(maxsize=512)
def line(text: str, size: int) -> Image.Image:
  """Draws a line of text, grey levels ('L') of the height `round(1.45 size)`; ink is 255.

  The text is in the middle of the height. Characters that no font covers appear as the font's own sign for that.
  """
  height = round(size * 1.45)
  font = _font_of(text)
  if font == _OPENCV:
    return _opencv_line(text, size, height)
  pillow = _pillow(font or str(_DEJAVU), size)
  shown = ''.join(c for c in text if not _is_invisible(c) or ord(c) in _characters(font or str(_DEJAVU)))
  picture = Image.new('L', (max(round(pillow.getlength(shown)), 1), height))
  ImageDraw.Draw(picture).text((0, height / 2), shown, font=pillow, fill=255, anchor='lm')
  return picture


@functools.lru_cache(maxsize=4096)
def _font_of(text: str) -> str | None:
  """The path of the first font that has all characters of a text, or `_OPENCV`, or None."""
  needed = {ord(c) for c in text + _OF_EVERY_LABEL if not _is_invisible(c)}
  laid_out = any(0x590 <= c < 0x10A0 or 0x1780 <= c < 0x1800 for c in needed)
  if laid_out and not _has_layout():
    return None
  fonts = (path for paths in (lambda: [str(_DEJAVU)], _system_fonts) for path in paths())
  found = next((path for path in fonts if needed <= _characters(path)), None)
  # OpenCV draws from left to right whatever the script.
  return found or (_OPENCV if not laid_out and all(map(_in_opencv, map(chr, needed))) else None)


def _has_layout() -> bool:
  """Whether Pillow orders and shapes letters; FriBiDi is a library of the system that it may not find."""
  return features.check('raqm') and features.check('fribidi')


def _is_invisible(character: str) -> bool:
  """Whether a character only tells how others look: joiners, marks of direction, variants."""
  return unicodedata.category(character) == 'Cf' or 0xFE00 <= ord(character) <= 0xFE0F


@functools.cache
def _system_fonts() -> list[str]:
  """The fonts of the system, plain ones first: a bold or slanted one only if no other covers a name."""
  from matplotlib import font_manager  # makes a list of fonts when it is imported first, which takes seconds

  slanted = lambda path: bool(re.search('bold|italic|oblique|black|heavy|thin|light|condensed|mono', path.lower()))
  paths = [path for path in font_manager.findSystemFonts() if not any(word in path for word in _OF_LAST_RESORT)]
  return sorted(paths, key=lambda path: (slanted(Path(path).name), path))


@functools.lru_cache(maxsize=1024)
def _characters(path: str) -> frozenset[int]:
  try:
    return frozenset(ft2font.FT2Font(path).get_charmap())
  except (OSError, RuntimeError, ValueError):  # damaged, or in a format that FreeType does not scale
    return frozenset()


@functools.lru_cache(maxsize=64)
def _pillow(path: str, size: int) -> Any:
  return ImageFont.truetype(path, size)


# --- the font in OpenCV ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def _in_opencv(character: str) -> bool:
  """Whether the font in OpenCV has a character: it draws a question mark in the place of one that it lacks."""
  if not hasattr(cv2, 'FontFace'):  # OpenCV 4
    return False
  drawn = _opencv_line(character, 20, 29)
  return character in ' ?' or drawn.tobytes() != _opencv_line('?', 20, 29).tobytes()


def _opencv_line(text: str, size: int, height: int) -> Image.Image:
  face = cv2.FontFace(_OPENCV)
  x1, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), face, size)
  canvas = np.zeros((height, max(x1 + width, 1) + 1, 3), np.uint8)
  cv2.putText(canvas, text, (0, round(height / 2 + 0.36 * size)), (255, 255, 255), face, size)
  return Image.fromarray(canvas[..., 0])
