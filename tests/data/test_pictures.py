"""What is opened as a picture, what its pixels are, and which way up it is used."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from tests.helpers.encoded import LOSSLESS, encode, oriented
from vild_jax.data import pictures
from vild_jax.data.annotations import make_objects
from vild_jax.data.schema import DataError, Example


def example(data: bytes, height: int, width: int) -> Example:
  return Example(17, data, height, width, make_objects([]))


@pytest.fixture
def picture() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)


def grey_tiff(values: np.ndarray, *, bits: int, white_is_zero: bool = False) -> bytes:
  """A TIFF of one strip, little-endian: for kinds that Pillow reads and does not write."""
  height, width = values.shape
  if bits == 12:  # two values in three bytes, high bits first
    even, odd = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    strip = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], -1).astype(np.uint8).tobytes()
  else:
    strip = values.astype('<u2').tobytes()
  tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero), 277: 1, 278: height, 279: len(strip)}
  start = 8 + 2 + 12 * (len(tags) + 1) + 4
  rows = sorted({**tags, 273: start}.items())
  directory = struct.pack('<H', len(rows)) + b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in rows)
  return b'II*\0' + struct.pack('<I', 8) + directory + struct.pack('<I', 0) + strip


# --- pixels ---------------------------------------------------------------------------------------------------------


def test_a_pil_picture_is_seen_as_its_file(picture):
  turned = Image.fromarray(picture)
  files = [encode(picture), encode(picture[:, :, 0].astype(np.uint16) * 257), encode(picture, exif=oriented(6))]
  files += [encode(turned.convert(mode)) for mode in ('1', 'L', 'LA', 'P', 'RGBA')]
  files += [encode(turned, 'TIFF', exif=oriented(8)), encode(turned.convert('CMYK'), 'JPEG', exif=oriented(3))]
  for data in files:
    with Image.open(io.BytesIO(data)) as opened:
      np.testing.assert_array_equal(pictures.as_rgb(opened), pictures.decode(data, upright=True))
  assert pictures.as_rgb(picture) is picture
  np.testing.assert_array_equal(pictures.as_rgb(turned), picture)
  for bad, what in (
    (Image.new('F', (3, 3)), '32-bit grey'),
    (Image.new('RGB', (0, 3)), 'the RGB picture is 0 wide and 3 high'),
    (Image.open(io.BytesIO(files[0][:-60])), 'the RGB picture: .*expected one that PIL converts'),
  ):
    with pytest.raises(DataError, match=what):
      pictures.as_rgb(bad)


def test_decode_every_colour_model(picture):
  np.testing.assert_array_equal(pictures.decode(encode(picture)), picture)
  grey = picture[:, :, 0]
  np.testing.assert_array_equal(pictures.decode(encode(grey)), np.repeat(grey[:, :, None], 3, 2))
  deep = pictures.decode(encode(grey.astype(np.uint16) * 257))
  np.testing.assert_array_equal(deep, np.repeat(grey[:, :, None], 3, 2))
  with_alpha = np.concatenate([picture, grey[:, :, None]], axis=2)
  np.testing.assert_array_equal(pictures.decode(encode(with_alpha)), picture)
  grey_alpha = Image.merge('LA', [Image.fromarray(grey), Image.fromarray(picture[:, :, 1])])
  np.testing.assert_array_equal(pictures.decode(encode(grey_alpha)), np.repeat(grey[:, :, None], 3, 2))
  palette = Image.fromarray(picture).convert('P')
  np.testing.assert_array_equal(pictures.decode(encode(palette)), np.asarray(palette.convert('RGB')))
  flat = Image.new('RGB', (32, 32), (200, 30, 90)).convert('CMYK')
  decoded = pictures.decode(encode(flat, 'JPEG', quality=95))
  assert decoded.shape == (32, 32, 3) and abs(decoded.mean((0, 1)) - [200, 30, 90]).max() < 6
  two = Image.fromarray(picture[:, :, 0] > 127)
  assert two.mode == '1'
  expected = np.where(picture[:, :, :1] > 127, 255, 0).repeat(3, 2)
  for kind in ('PNG', 'TIFF', 'BMP'):
    np.testing.assert_array_equal(pictures.decode(encode(two, kind)), expected)


@pytest.mark.parametrize('kind', LOSSLESS)
def test_other_formats_have_the_same_pixels(picture, kind):
  np.testing.assert_array_equal(pictures.decode(encode(picture, kind, **LOSSLESS[kind])), picture)


def test_of_16_bits_the_upper_8_are_used(picture):
  import cv2

  deep = np.random.default_rng(1).integers(0, 2**16, picture.shape, dtype=np.uint16)
  deep[0, 0], deep[0, 1] = 65535, 255
  for kind in ('.png', '.tiff'):
    colour = cv2.imencode(kind, deep[:, :, ::-1])[1].tobytes()
    np.testing.assert_array_equal(pictures.decode(colour), deep >> 8)
    grey = cv2.imencode(kind, deep[:, :, 0])[1].tobytes()
    np.testing.assert_array_equal(pictures.decode(grey), (deep[:, :, :1] >> 8).repeat(3, 2))
  grey = deep[:, :, 0]
  for values, bits in ((grey, 16), (grey >> 4, 12)):
    np.testing.assert_array_equal(pictures.decode(grey_tiff(values, bits=bits))[:, :, 2], grey >> 8)
  inverted = pictures.decode(grey_tiff(grey, bits=16, white_is_zero=True))
  np.testing.assert_array_equal(inverted[:, :, 0], 255 - (grey >> 8))


@pytest.mark.parametrize(('dtype', 'kind'), [(np.int32, 'whole'), (np.float32, 'floating-point')])
def test_32_bit_grey_is_refused(dtype, kind):
  data = encode(Image.fromarray(np.full((4, 6), 200, dtype)), 'TIFF')
  with pytest.raises(
    DataError, match=rf'^image 17 is 32-bit grey, {kind} numbers of no known range; expected 8 or 16 bits'
  ):
    pictures.decode(data, 'image 17')


def test_of_several_frames_the_first_is_used_and_counted(picture):
  frames = [Image.fromarray(frame) for frame in (picture, 255 - picture)]
  for kind in ('TIFF', 'PNG', 'WEBP'):
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **LOSSLESS.get(kind, {}))
    np.testing.assert_array_equal(pictures.decode(data), picture)
    _, remarks = pictures.stored(example(data, *picture.shape[:2]), 'x')
    assert pictures.FIRST_OF_SEVERAL in remarks
  assert pictures.stored(example(encode(picture, 'TIFF'), *picture.shape[:2]), 'x')[1] == (pictures.CONVERTED,)


def test_the_pages_of_a_tiff_are_not_walked_through(picture):
  """A second page that is no page would be noticed."""
  pages = [Image.fromarray(picture)] * 2
  data = bytearray(encode(pages[0], 'TIFF', save_all=True, append_images=pages[1:]))
  (first,) = struct.unpack_from('<I', data, 4)
  (entries,) = struct.unpack_from('<H', data, first)
  (second,) = struct.unpack_from('<I', data, first + 2 + 12 * entries)
  data[second:] = bytes(len(data) - second)
  np.testing.assert_array_equal(pictures.decode(bytes(data)), picture)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('broken', 'word'),
  [
    (lambda data: b'', 'unknown format'),
    (lambda data: b'no picture', 'unknown format'),
    (lambda data: data[: len(data) // 2], 'truncated'),
  ],
)
def test_broken_pictures_give_one_line(picture, broken, word):
  with pytest.raises(DataError, match='image 17') as caught:
    pictures.decode(broken(encode(np.tile(picture, (3, 3, 1)), 'JPEG')), 'image 17')
  assert word in str(caught.value) and '\n' not in str(caught.value)


def test_missing_file_names_the_path(tmp_path):
  for read in (pictures.decode, pictures.size):
    with pytest.raises(DataError, match=r'gone\.jpg'):
      read(tmp_path / 'gone.jpg')


def test_an_eps_under_another_name_starts_no_ghostscript(picture, tmp_path, monkeypatch):
  started = []
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: started.append(1))
  path = tmp_path / 'a.jpg'
  path.write_bytes(encode(picture, 'EPS'))
  for read in (pictures.decode, pictures.size):
    with pytest.raises(
      DataError, match=r'a\.jpg: no readable picture \(unknown format\); expected a whole JPEG, PNG, '
    ):
      read(path)
  assert not started


def huge(height: int, width: int, kind: str = 'PNG') -> bytes:
  return encode(Image.new('1', (width, height)), kind)


def test_more_pixels_than_allowed_are_refused_with_the_option(monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 500)  # refuses above 1000, as it does above 179 million
  monkeypatch.setattr(pictures, 'MAX_PIXELS', 1000)
  data = huge(40, 30)
  with pytest.raises(
    DataError, match=r'^x has more than 0.001 megapixels; expected at most that, unless prepare --max-m'
  ):
    pictures.decode(data, 'x', max_pixels=1000)
  with pytest.raises(DataError, match=r'^x has more than 0.0011 megapixels'):
    pictures.decode(data, 'x', max_pixels=1100)
  for kind in ('PNG', 'TIFF', 'WEBP', 'BMP', 'JPEG'):
    assert pictures.decode(huge(40, 30, kind), 'x', max_pixels=1200).shape == (40, 30, 3)
  assert pictures.size(data) == (40, 30)
  assert pictures.decode_example(example(data, 40, 30)).shape == (40, 30, 3)
  assert Image.MAX_IMAGE_PIXELS == 500


def test_the_limit_is_that_of_pillow_to_a_megapixel():
  assert 0 <= pictures.MAX_PIXELS - 2 * Image.MAX_IMAGE_PIXELS < 10**6


# --- which way up ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_a_jpeg_of_a_data_set_has_the_pixels_that_pillow_decodes(picture, mode):
  for subsampling in range(3):
    options = {'quality': 80, 'subsampling': subsampling, 'progressive': subsampling == 1, 'exif': oriented(6)}
    data = encode(Image.fromarray(picture).convert(mode), 'JPEG', **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
    np.testing.assert_array_equal(pictures.decode_example(example(data, 21, 34), fast=True), expected)


def test_a_jpeg_of_a_data_set_that_is_not_whole_is_refused(picture):
  whole = encode(picture, 'JPEG')
  for broken in (whole[: len(whole) // 2], whole[:-2], whole[:40] + whole[-2:]):
    with pytest.raises(DataError, match='image 17: no readable picture'):
      pictures.decode_example(example(broken, 21, 34), fast=True)


def test_decode_ignores_exif_orientation(picture, tmp_path):
  path = tmp_path / 'turned.jpg'
  path.write_bytes(encode(picture, 'JPEG', exif=oriented(6)))  # "rotate by 90 degrees to show"
  assert pictures.decode(path).shape == picture.shape


@pytest.mark.parametrize('orientation', range(10))
def test_upright_is_what_viewers_show(picture, orientation, tmp_path):
  data = encode(picture, exif=oriented(orientation))
  with Image.open(io.BytesIO(data)) as opened:
    expected = np.asarray(ImageOps.exif_transpose(opened))
  np.testing.assert_array_equal(pictures.decode(data, upright=True), expected)
  (tmp_path / 'a.png').write_bytes(data)
  assert pictures.size(tmp_path / 'a.png', upright=True) == expected.shape[:2]
  assert pictures.size(tmp_path / 'a.png') == picture.shape[:2]


def test_a_tiff_is_turned_once(picture):
  data = encode(picture, 'TIFF', tiffinfo={0x0112: 6})
  for upright in (False, True):
    np.testing.assert_array_equal(pictures.decode(data, upright=upright), np.rot90(picture, -1))
    assert pictures.size(data, upright=upright) == (34, 21)


def test_damaged_exif_is_no_reason_to_refuse(picture):
  data = encode(picture, exif=b'Exif\0\0II*\0\xff\xff\xff\xff')
  np.testing.assert_array_equal(pictures.decode(data, upright=True), picture)


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_jpeg_and_png_are_kept_as_they_are(picture, kind):
  data = encode(picture, kind)
  assert pictures.stored(example(data, 21, 34), 'x') == (data, ())
  turned = encode(picture, kind, exif=oriented(6))
  assert pictures.stored(example(turned, 21, 34), 'x') == (turned, (pictures.NOT_TURNED,))
  upside_down = encode(picture, kind, exif=oriented(3))
  assert pictures.stored(example(upside_down, 21, 34), 'x') == (upside_down, (pictures.NOT_TURNED,))


def test_a_phone_s_jpeg_with_a_second_picture_is_kept(picture):
  data = encode(picture, 'MPO', save_all=True, append_images=[Image.fromarray(255 - picture)])
  assert pictures.stored(example(data, 21, 34), 'x') == (data, ())


@pytest.mark.parametrize('kind', LOSSLESS)
def test_other_formats_are_stored_as_png_of_the_same_pixels(picture, kind):
  kept, remarks = pictures.stored(example(encode(picture, kind, **LOSSLESS[kind]), 21, 34), 'x')
  assert remarks == (pictures.CONVERTED,) and kept.startswith(b'\x89PNG')
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(kept))), picture)


def test_a_picture_is_turned_where_only_the_upright_size_fits(picture):
  data = encode(picture, 'JPEG', exif=oriented(6), quality=95)
  expected = np.rot90(np.asarray(Image.open(io.BytesIO(data))), -1)
  kept, remarks = pictures.stored(example(data, 34, 21), 'x')
  assert remarks == (pictures.TURNED,)
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(kept))), expected)
  with pytest.raises(DataError, match=r'^x has the annotated size, 21 wide and 34 high, only as its EXIF orientation'):
    pictures.stored(example(data, 34, 21), 'x', boxes_fit=False)
  wrong = r'^x is 34 wide and 21 high \(21 and 34 as its EXIF orientation turns it\); expected 20 and 34 as the annota'
  with pytest.raises(DataError, match=wrong):
    pictures.stored(example(data, 34, 20), 'x')


def test_of_two_ways_that_fit_the_stored_one_is_meant_unless_said_otherwise(picture):
  square = picture[:, :21]
  data = encode(square, exif=oriented(8))
  assert pictures.stored(example(data, 21, 21), 'x') == (data, (pictures.NOT_TURNED,))
  kept, remarks = pictures.stored(example(data, 21, 21), 'x', prefer_upright=True, boxes_fit=False)
  assert remarks == (pictures.TURNED,)
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(kept))), np.rot90(square))


def test_a_picture_on_disk_is_turned_as_preparation_does(picture, tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(encode(picture, exif=oriented(6)))
  np.testing.assert_array_equal(pictures.decode_annotated(path, 21, 34), picture)
  np.testing.assert_array_equal(pictures.decode_annotated(path, 34, 21), np.rot90(picture, -1))
  with pytest.raises(DataError, match=r'a\.png is 34 wide and 21 high'):
    pictures.decode_annotated(path, 34, 34)
