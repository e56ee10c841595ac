"""Opens pictures: the one place that turns an encoded picture into RGB pixels.

Formats are a list, so that no other reader of Pillow ever starts: an EPS file, whatever its name, would run
Ghostscript. Of several pages or frames the first is used. EXIF orientation is ignored unless a function says otherwise,
except in TIFF, where the orientation belongs to the format and Pillow applies it.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from vild_jax.config import defaults
from vild_jax.data.schema import DataError, Example

Picture = np.ndarray | Image.Image | str | Path  # what a user may give, see `as_rgb`
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF')
# Their bytes every reader of TFDS understands. MPO is a JPEG that further pictures follow; Pillow opens it as JPEG.
KEPT_FORMATS = ('JPEG', 'MPO', 'PNG')
SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.mpo', '.png', '.webp', '.bmp', '.tif', '.tiff')
MAX_PIXELS = defaults.MAX_MEGAPIXELS * 10**6

# What `stored` did to a picture; {s} is the plural.
TURNED = 'picture{s} turned as the EXIF orientation says, to fit the annotations (stored as PNG, without loss)'
NOT_TURNED = (
  'picture{s} with an EXIF orientation left as stored, whose size is the annotated one; look with vild-jax inspect '
  'whether the boxes fit'
)
DEEP = 'picture{s} of 16-bit grey: the upper 8 bits are used'
DARK = (
  'picture{s} of 16-bit grey almost black, such as {first}: no value reaches an eighth of the range; expected values '
  'that fill the 16 bits'
)
CONVERTED = 'WebP, BMP or TIFF picture{s} stored as PNG, without loss'
FIRST_OF_SEVERAL = 'picture{s} of several pages or frames: the first is used'
_DARK_PEAK = 1 / 8  # 13 of 16 bits

# PIL warns about pictures that it can read (odd EXIF data, many pixels). The filter is set once for the whole process:
# pictures are decoded in threads, and `catch_warnings` in one thread would disturb the filters of the others.
warnings.filterwarnings('ignore', module=r'PIL\.')
# Pillow's limit on pixels is a global of the process; only one thread at a time lifts it.
_LIFTING = threading.Lock()
_ORIENTATION = 0x0112  # the EXIF tag: 1 as stored, 2 to 4 mirrored or upside down, 5 to 8 on its side


@dataclass(frozen=True)
class _Decoded:
  """Holds what a file contains: uint8 [H, W, 3] pixels as stored, and what else matters for their use."""

  pixels: np.ndarray
  format: str
  orientation: int
  several: bool
  peak: float | None = None  # of 16-bit grey, the share of its range that the largest value reaches

  def upright(self) -> np.ndarray:
    """Returns the pixels as viewers show them."""
    pixels = self.pixels.transpose(1, 0, 2) if self.orientation >= 5 else self.pixels
    down, right = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(
      self.orientation, (1, 1)
    )
    return np.ascontiguousarray(pixels[::down, ::right])

  def as_annotated(
    self, name: str, height: int, width: int, prefer_upright: bool | Callable[[], bool] = False
  ) -> tuple[np.ndarray, bool, bool]:
    """Returns the pixels that annotations of this size refer to, whether they were turned, and if either way fits.

    Where the pixels as stored and as shown both have the size, the stored ones are meant, as in COCO and LVIS, unless
    `prefer_upright`. Raises DataError if neither has it.
    """
    wanted, stored = (height, width), self.pixels.shape[:2]
    shown = _as_shown(*stored, self.orientation)
    either = self.orientation != 1 and shown == stored == wanted
    if either and (prefer_upright() if callable(prefer_upright) else prefer_upright):
      return self.upright(), True, either
    if stored == wanted:
      return self.pixels, False, either
    if shown == wanted:
      return self.upright(), True, either
    exif = '' if shown == stored else f' ({shown[1]} and {shown[0]} as its EXIF orientation turns it)'
    raise DataError(
      f'{name} is {stored[1]} wide and {stored[0]} high{exif}; expected {width} and {height} as the annotations say'
    )


def decode(
  source: bytes | str | Path, name: str = 'the picture', *, upright: bool = False, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
  """Decodes bytes or a file to uint8 [H, W, 3] RGB, from any colour model; an alpha channel is dropped.

  Of 16-bit channels the upper 8 bits are used. EXIF orientation is ignored unless `upright`: a user's own picture
  should appear as viewers show it. `name` is what messages call a picture that is given as bytes. Raises DataError if
  the picture cannot be decoded to its last pixel, is of another format or of 32-bit grey, or larger than `max_pixels`.
  """
  name = name if isinstance(source, bytes) else str(source)
  found = _decoded(_bytes(source), name, max_pixels)
  return found.upright() if upright else found.pixels


def as_rgb(image: Picture) -> np.ndarray:
  """Returns a user's picture as uint8 [H, W, 3] RGB: a path, a PIL picture of any mode, or such an array itself.

  The first two are turned as viewers show them, and without their alpha channel. Raises ValueError for anything else,
  DataError among them for a picture that `decode` refuses.
  """
  if isinstance(image, str | Path):
    return decode(image, upright=True)
  if isinstance(image, Image.Image):
    return _of_pillow(image)
  if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
    found = f'{image.dtype} {list(image.shape)}' if isinstance(image, np.ndarray) else type(image).__name__
    raise ValueError(f'the image is {found}; expected uint8 [H, W, 3] RGB, a PIL picture or a path')
  return image


def _of_pillow(picture: Image.Image) -> np.ndarray:
  name = f'the {picture.mode} picture'
  try:
    pixels, _ = _rgb(picture, name)
  except DataError:
    raise
  except Exception as error:  # a file that PIL reads only now, and modes without a way to RGB
    raise DataError(f'{name}: {" ".join(str(error).split())}; expected one that PIL converts to RGB') from None
  if not pixels.size:
    raise DataError(f'{name} is {picture.width} wide and {picture.height} high; expected one pixel or more')
  return _Decoded(pixels, picture.format or '', _orientation(picture), several=False).upright()


def decode_example(example: Example, *, fast: bool = False) -> np.ndarray:
  """Decodes the picture of a prepared example, uint8 [H, W, 3], of any size that preparation accepted.

  With `fast` OpenCV decodes JPEGs; the pixels are equal where both libraries bring the same libjpeg-turbo. Raises
  DataError if it is not readable or not of the annotated size.
  """
  name = f'image {example.image_id}'
  image = _by_opencv(example) if fast else None
  if image is None:
    image = decode(example.image, name, max_pixels=max(MAX_PIXELS, example.height * example.width))
  if image.shape[:2] != (example.height, example.width):
    raise DataError(
      f'{name}: the picture has {image.shape[0]} x {image.shape[1]} pixels; expected '
      f'{example.height} x {example.width} as annotated (height x width)'
    )
  return image


def _by_opencv(example: Example) -> np.ndarray | None:
  """Returns the pixels of a whole JPEG of grey or RGB of the annotated size; None if that is not what it is.

  OpenCV takes two thirds of Pillow's time, and lets other threads run meanwhile. It does not notice every damage that
  Pillow refuses, but preparation has let Pillow look.
  """
  if not (example.image.startswith(b'\xff\xd8') and example.image.endswith(b'\xff\xd9')):
    return None
  try:
    with Image.open(io.BytesIO(example.image), formats=('JPEG',)) as header:
      if header.mode not in ('L', 'RGB') or (header.height, header.width) != (example.height, example.width):
        return None
  except Exception:  # what is wrong with it is for `decode` to say
    return None
  return cv2.imdecode(np.frombuffer(example.image, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def decode_annotated(path: Path, height: int, width: int) -> np.ndarray:
  """Decodes the file of an annotated picture to uint8 [H, W, 3], turned only if it has the annotated size so."""
  found = _decoded(_bytes(path), str(path), max(MAX_PIXELS, height * width))
  return found.as_annotated(str(path), height, width)[0]


def stored(
  example: Example,
  name: str,
  *,
  prefer_upright: bool | Callable[[], bool] = False,
  boxes_fit: bool = True,
  max_pixels: int = MAX_PIXELS,
) -> tuple[bytes, tuple[str, ...]]:
  """Returns the bytes that a data set keeps of the picture of an example, and what was done to it or must be known.

  JPEG and PNG stay as they are. Other formats, and pictures that must be turned, become a PNG of the same pixels, which
  every reader of TFDS shows alike.

  Args:
    example: its size is that of the annotations; the picture is the file's content.
    name: what messages call the picture.
    prefer_upright: whether the annotations refer to the picture as viewers show it, also where both ways fit; it is
      called only for such a picture.
    boxes_fit: whether all boxes lay inside the annotated size. If not, the annotations may refer to the stored pixels
      and only their size to the upright picture: a picture that fits only turned is refused then.
    max_pixels: larger pictures are refused.

  Raises DataError if the picture is not readable or does not fit the annotations.
  """
  found = _decoded(example.image, name, max_pixels)
  pixels, turned, either = found.as_annotated(name, example.height, example.width, prefer_upright)
  if turned and not (either or boxes_fit):
    raise DataError(
      f'{name} has the annotated size, {example.width} wide and {example.height} high, only as its EXIF orientation '
      'turns it, but boxes of its annotations reach beyond that; expected annotations of the turned picture, or the '
      'size of the stored one'
    )
  remarks = [FIRST_OF_SEVERAL] if found.several else []
  if found.peak is not None:
    remarks.append(DARK if found.peak < _DARK_PEAK else DEEP)
  if turned:
    remarks.append(TURNED)
  elif found.orientation != 1:
    remarks.append(NOT_TURNED)
  if not turned and found.format in KEPT_FORMATS:
    return example.image, tuple(remarks)
  # cv2 lets other threads run meanwhile, which Pillow does not.
  png = cv2.imencode('.png', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
  return png, tuple(remarks if turned else [*remarks, CONVERTED])


def size(source: bytes | Path, name: str = 'the picture', *, upright: bool = False) -> tuple[int, int]:
  """Returns (height, width) of a picture from its header. Arguments and errors are those of `decode`."""
  if isinstance(source, bytes):
    file: BinaryIO = io.BytesIO(source)
  else:
    name = str(source)
    try:
      file = source.open('rb')
    except OSError as error:
      raise _unreadable(source, error) from None
  with file, _opened(file, name, None) as picture:
    return _as_shown(picture.height, picture.width, _orientation(picture) if upright else 1)


def fits_turned(path: Path, height: int, width: int) -> bool | None:
  """Tells from the header whether a picture has a size only as viewers turn it (True) or only as stored (False).

  None is the answer where it has the size both ways or neither, and where the file is not readable.
  """
  try:
    with path.open('rb') as file, _opened(file, str(path), None) as picture:
      stored = picture.height, picture.width
      shown = _as_shown(*stored, _orientation(picture))
  except (DataError, OSError):
    return None
  wanted = height, width
  return None if shown == stored or wanted not in (shown, stored) else wanted == shown


def _as_shown(height: int, width: int, orientation: int) -> tuple[int, int]:
  return (width, height) if orientation >= 5 else (height, width)


def _bytes(source: bytes | str | Path) -> bytes:
  try:
    return source if isinstance(source, bytes) else Path(source).read_bytes()
  except OSError as error:
    raise _unreadable(source, error) from None


def _unreadable(source: object, error: OSError) -> DataError:
  return DataError(f'{source}: cannot be read ({error.strerror}); expected a picture file')


def _decoded(data: bytes, name: str, max_pixels: int) -> _Decoded:
  with _opened(io.BytesIO(data), name, max_pixels) as picture:
    # Not `n_frames`, for which Pillow reads the header of each page of a TIFF: a small file can have a million.
    several = picture.format != 'MPO' and getattr(picture, 'is_animated', False)
    pixels, peak = _rgb(picture, name)
    return _Decoded(pixels, picture.format, _orientation(picture), several, peak)


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str, max_pixels: int | None) -> Iterator[Image.Image]:
  """Yields the picture, of which only the header has been read; all that is wrong with it becomes a DataError."""
  with contextlib.ExitStack() as stack:
    try:
      try:
        picture = Image.open(file, formats=FORMATS)
      except Image.DecompressionBombError:
        if max_pixels is not None and max_pixels <= MAX_PIXELS:
          raise _too_large(name, max_pixels) from None
        stack.enter_context(_without_limit())
        file.seek(0)
        picture = Image.open(file, formats=FORMATS)
      stack.enter_context(picture)
      if max_pixels is not None and picture.width * picture.height > max_pixels:
        raise _too_large(name, max_pixels)
      yield picture
    except DataError:
      raise
    except Exception as error:  # PIL raises many unrelated types for broken files
      unknown = isinstance(error, Image.UnidentifiedImageError)  # its text holds a memory address
      reason = 'unknown format' if unknown else ' '.join(str(error).split())
      raise DataError(
        f'{name}: no readable picture ({reason}); expected a whole JPEG, PNG, WebP, BMP or TIFF file'
      ) from None


def _too_large(name: str, max_pixels: int) -> DataError:
  return DataError(
    f'{name} has more than {max_pixels / 1e6:g} megapixels; expected at most that, unless prepare --max-megapixels '
    '(or that of detect) allows more'
  )


@contextlib.contextmanager
def _without_limit() -> Iterator[None]:
  with _LIFTING:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
      yield
    finally:
      Image.MAX_IMAGE_PIXELS = limit


def _orientation(picture: Image.Image) -> int:
  """Returns the EXIF orientation, 1 to 8; 1 if there is none, if it is not readable, or if Pillow applies it."""
  if picture.format == 'TIFF':
    return 1
  try:
    found = picture.getexif().get(_ORIENTATION, 1)
  except Exception:  # damaged EXIF data raise many types; viewers show such a picture as stored
    return 1
  return found if found in range(1, 9) else 1


def _rgb(picture: Image.Image, name: str) -> tuple[np.ndarray, float | None]:
  """Returns uint8 [H, W, 3] RGB of a picture in any mode, and of 16-bit grey the peak, see `_Decoded`.

  Raises DataError if its values have no known range.
  """
  mode = picture.mode
  tags = getattr(picture, 'tag_v2', {})  # of TIFF
  if mode.startswith('I;16') or (mode == 'I' and picture.format == 'PNG'):  # older Pillow opens 16-bit PNG as I
    bits = (tags.get(258) or (16,))[0]  # Pillow leaves 12 bits as they are
    values = np.asarray(picture)
    grey, peak = (values >> (bits - 8)).astype(np.uint8), float(values.max() / (2**bits - 1))
    grey = 255 - grey if tags.get(262) == 0 else grey  # white is zero: Pillow turns that around for 8 bits only
    return np.repeat(grey[:, :, None], 3, axis=2), peak
  if mode in ('I', 'F'):
    kind = 'whole' if mode == 'I' else 'floating-point'
    raise DataError(f'{name} is 32-bit grey, {kind} numbers of no known range; expected 8 or 16 bits a channel')
  return np.array(picture if mode == 'RGB' else picture.convert('RGB')), None
