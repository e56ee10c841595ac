"""Pictures of every format and orientation in a prepared data set."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import small_set
from tests.helpers.encoded import LOSSLESS, encode, oriented
from vild_jax.data import pictures, prepare, sources
from vild_jax.data.schema import DataError

_ROOT = Path(__file__).resolve().parents[2]


def _pixels(height: int, width: int) -> np.ndarray:
  return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _write(folder: Path, data: dict[int, bytes]) -> tuple[Path, Path]:
  """The small set with some pictures replaced."""
  path, images = small_set.write(folder)
  for key, content in data.items():
    (images / 'train2017' / f'{key:012d}.jpg').write_bytes(content)
  return path, images


def _stored(version: Path) -> dict[int, sources.Example]:
  dataset = sources.open_dataset(version, 'train')
  return {example.image_id: example for example in map(dataset.__getitem__, range(len(dataset)))}


def test_webp_bmp_and_tiff_are_stored_without_loss_and_the_same_everywhere(tmp_path):
  given = {key: _pixels(*small_set.SIZES[key]) for key in (5, 7, 11)}
  kinds = dict(zip(given, LOSSLESS, strict=True))
  data = {key: encode(given[key], kind, **LOSSLESS[kind]) for key, kind in kinds.items()}
  path, images = _write(tmp_path, data)
  version = prepare.prepare(path, images, tmp_path / 'a')
  stored = _stored(version)
  for key, pixels in given.items():
    with Image.open(io.BytesIO(stored[key].image)) as picture:
      assert picture.format == 'PNG'
      np.testing.assert_array_equal(np.asarray(picture), pixels)
  dataset = sources.open_dataset(version, 'train')
  assert dataset.notes == ('3 WebP, BMP or TIFF pictures stored as PNG, without loss',)
  code = 'import sys; from vild_jax.data.prepare import prepare; prepare(*sys.argv[1:])'
  subprocess.run([sys.executable, '-c', code, path, images, tmp_path / 'b'], check=True, cwd=_ROOT)
  assert sources.open_dataset(tmp_path / 'b', 'train').identity == dataset.identity
  files = [{p.name: p.read_bytes() for p in (tmp_path / where / 'small' / '1.0.0').iterdir()} for where in 'ab']
  assert files[0] == files[1]


def test_tfds_reads_the_pixels_that_training_does(tmp_path):
  import tensorflow_datasets as tfds

  turned = encode(_pixels(60, 40), exif=oriented(8))
  version = prepare.prepare(*_write(tmp_path, {11: turned}), tmp_path / 'out')
  read = {r['image/id']: r['image'] for r in tfds.builder_from_directory(version).as_data_source('train')}
  np.testing.assert_array_equal(read[11], np.rot90(_pixels(60, 40)))
  np.testing.assert_array_equal(pictures.decode_example(_stored(version)[11]), read[11])


def test_turned_where_only_the_upright_size_fits_and_the_boxes_lie_inside(tmp_path, capfd):
  # Picture 11 is annotated 60 wide and 40 high; the file holds 40 x 60 and says how to turn it.
  path, images = _write(tmp_path, {11: encode(_pixels(60, 40), exif=oriented(6))})
  version = prepare.prepare(path, images, tmp_path / 'out')
  assert pictures.decode_example(_stored(version)[11]).shape == (40, 60, 3)
  err = capfd.readouterr().err
  assert 'small/train: 1 picture turned as the EXIF orientation says, to fit the annotations (stored as PNG' in err
  tree = small_set.annotations()
  tree['annotations'][0]['bbox'] = [5, 5, 30, 50]  # inside the stored picture, not the annotated one
  path, _ = small_set.write(tmp_path / 'second', tree)
  with pytest.raises(
    DataError, match=r'000000000011.jpg has the annotated size, .* boxes of its annotations reach beyond'
  ):
    prepare.prepare(path, images, tmp_path / 'second' / 'out')


def test_what_fits_both_ways_is_turned_if_all_that_fits_one_way_is(tmp_path, capfd):
  square, half = (encode(_pixels(*size), exif=oriented(n)) for size, n in (((64, 64), 6), ((20, 30), 3)))
  upright, as_stored = encode(_pixels(60, 40), exif=oriented(6)), encode(_pixels(33, 21), exif=oriented(6))
  both_ways = {7: square, 300: half}

  def turned(name: str, given: dict[int, bytes], *notes: str) -> list[bool]:
    version = prepare.prepare(*_write(tmp_path / name, given), tmp_path / name / 'out')
    stored, err = _stored(version), capfd.readouterr().err
    assert all(f'small/train: {note}' in err for note in notes), err
    return [stored[key].image != both_ways[key] for key in both_ways]

  left = '2 pictures with an EXIF orientation left as stored, whose size is the annotated one; look with vild-jax insp'
  both = 'pictures with an EXIF orientation that fit the annotations both ways are turned too: all 1 that fit one way'
  assert turned('upright', {**both_ways, 11: upright}, both, '3 pictures turned') == [True, True]
  assert turned('no_proof', both_ways, left) == [False, False]
  mixed = {**both_ways, 11: upright, 5: as_stored}
  assert turned('mixed', mixed, '1 picture turned', left.replace('2', '3', 1)) == [False, False]
  stored = _stored(tmp_path / 'upright' / 'out' / 'small' / '1.0.0')
  np.testing.assert_array_equal(pictures.decode_example(stored[7]), np.rot90(_pixels(64, 64), -1))
  np.testing.assert_array_equal(pictures.decode_example(stored[300]), _pixels(20, 30)[::-1, ::-1])


def test_dark_16_bit_grey_is_named(tmp_path, capfd):
  ramp = np.linspace(0, 4095, 40 * 60).reshape(40, 60).astype(np.uint16)  # 12 bits
  path, images = _write(tmp_path, {11: encode(ramp), 300: encode(np.full((20, 30), 8192, np.uint16))})
  prepare.prepare(path, images, tmp_path / 'out')
  err = capfd.readouterr().err
  assert 'small/train: 1 picture of 16-bit grey: the upper 8 bits are used' in err
  assert (
    'small/train: 1 picture of 16-bit grey almost black, such as ' in err and '000000000011.jpg: no value rea' in err
  )


def test_turning_changes_the_identity(tmp_path):
  path, images = _write(tmp_path, {7: encode(_pixels(64, 64), exif=oriented(6))})
  source = sources.JsonSource(path, images)
  stored = prepare.store(source, tmp_path / 'stored', 'small', 'train')
  source.upright = True
  turned = prepare.store(source, tmp_path / 'turned', 'small', 'train')
  assert sources.open_dataset(stored, 'train').identity != sources.open_dataset(turned, 'train').identity


def test_large_pictures_need_the_option_and_are_read_without_it(tmp_path, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10**6 // 2)
  monkeypatch.setattr(pictures, 'MAX_PIXELS', 10**6)
  tree = small_set.annotations()
  next(image for image in tree['images'] if image['id'] == 300).update(height=1000, width=1500)
  path, images = small_set.write(tmp_path, tree)
  (images / 'train2017' / '000000000300.jpg').write_bytes(encode(Image.new('1', (1500, 1000))))
  with pytest.raises(
    DataError, match=r'000000000300.jpg has more than 1 megapixels; .*unless prepare --max-megapixels'
  ):
    prepare.prepare(path, images, tmp_path / 'out', max_megapixels=1)
  version = prepare.prepare(path, images, tmp_path / 'out', max_megapixels=2)
  assert pictures.decode_example(_stored(version)[300]).shape == (1000, 1500, 3)
