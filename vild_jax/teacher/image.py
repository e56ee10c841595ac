"""Embeds pictures with the teacher's image tower, preprocessed as its own preprocessor_config.json says."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vild_jax.nn import clip
from vild_jax.runtime import compiler, progress
from vild_jax.teacher import checkpoint

Picture = Image.Image | np.ndarray  # an array is uint8 [H, W, 3]

_BATCH = 32
_BATCHES_WITHOUT_BAR = 8
_LARGEST_SIDE = 4096  # pixels; every picture is resized to what the file says
_SQUARE, _SHORT_SIDE = 'square', 'short side'
# For each processor of transformers: what a size of one number means, and whether it crops if the file does not say.
_PROCESSORS = {
  'CLIPImageProcessor': (_SHORT_SIDE, True),
  'CLIPFeatureExtractor': (_SHORT_SIDE, True),
  'SiglipImageProcessor': (_SQUARE, False),
  'Siglip2ImageProcessor': (_SQUARE, False),
}
_STEPS = ('do_resize', 'do_center_crop', 'do_rescale', 'do_normalize', 'do_convert_rgb')


@dataclass(frozen=True)
class Preprocessing:
  """Preprocesses pictures: resize, central crop, factor, mean and deviation, as transformers' slow (PIL) path does.

  Attributes:
    size: (height, width) to resize to; or one number, the length of the short side; or None, no resizing.
    resample: PIL's code of the filter.
    crop: (height, width) of the central part to keep, zeros outside the picture; None keeps all.
    factor: multiplies the values 0..255.
    mean, std: three numbers each, for the last step, (x - mean) / std.
  """

  size: tuple[int, int] | int | None
  resample: Image.Resampling
  crop: tuple[int, int] | None
  factor: float
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def resized(self, height: int, width: int) -> tuple[int, int]:
    """Returns (height, width) of a picture of the given size after the resize and before the crop."""
    if self.size is None:
      return height, width
    if isinstance(self.size, tuple):
      return self.size
    short = min(height, width)
    # The fraction of the long side is cut off, not rounded.
    return tuple(self.size if side == short else int(self.size * side / short) for side in (height, width))

  def __call__(self, picture: Picture) -> np.ndarray:
    """Returns float32 [S, S, 3] of one picture; a PIL picture may have any colour model."""
    if isinstance(picture, np.ndarray):
      if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise ValueError(f'a picture is {picture.dtype} {picture.shape}; expected uint8 [height, width, 3]')
      picture = Image.fromarray(picture)
    picture = picture.convert('RGB')
    if self.size is not None:
      height, width = self.resized(picture.height, picture.width)
      picture = picture.resize((width, height), self.resample)
    if self.crop is not None:
      left, top = ((whole - part) // 2 for whole, part in zip(picture.size, self.crop[::-1], strict=True))
      picture = picture.crop((left, top, left + self.crop[1], top + self.crop[0]))
    # The factor is in double precision, the rest in single: this gives the published values to the last bit.
    pixels = (np.asarray(picture) * self.factor).astype(np.float32)
    return (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


def parse_preprocessing(tree: Mapping[str, Any], image_size: int) -> Preprocessing:
  """Reads what a preprocessor_config.json asks for, for an image tower that takes pictures of side `image_size`.

  What the file does not say is as in CLIP, at the tower's own size. SigLIP 2's processor for any resolution keeps the
  proportions of a picture; here it stretches the picture to a square, since its towers are loaded at one resolution.

  Raises:
    ValueError: one line that names the field; the processor or a step is unknown, or the tower cannot take the size.
  """

  def refuse(field: str, expected: str) -> None:
    raise ValueError(f'preprocessor_config.json: {field} is {json.dumps(tree.get(field))[:200]}; expected {expected}')

  kind = tree.get('image_processor_type') or tree.get('feature_extractor_type') or 'CLIPImageProcessor'
  if not isinstance(kind, str) or kind.removesuffix('Fast') not in _PROCESSORS:
    raise ValueError(
      f'preprocessor_config.json: image_processor_type is {reprlib.repr(kind)}; expected one of '
      f'{", ".join(_PROCESSORS)}'
    )
  of_number, crops = _PROCESSORS[kind.removesuffix('Fast')]
  for field, value in tree.items():
    if field.startswith('do_') and value and field not in _STEPS:
      refuse(field, f'only the steps {", ".join(_STEPS)}')

  def sides(field: str) -> tuple[int, int] | int:
    value = image_size if tree.get(field) is None else tree[field]
    if isinstance(value, Mapping) and set(value) == {'shortest_edge'}:
      value, pair = value['shortest_edge'], False
    elif isinstance(value, Mapping) and set(value) == {'height', 'width'}:
      value, pair = (value['height'], value['width']), True
    else:
      value, pair = (value, value), field == 'crop_size' or of_number == _SQUARE
      value = value if pair else value[0]
    if not all(type(v) is int and 0 < v <= _LARGEST_SIDE for v in (value if pair else (value,))):
      refuse(
        field,
        f'pixels, at most {_LARGEST_SIDE}: a number such as {image_size}, {{"shortest_edge": n}} or '
        '{"height": n, "width": n}',
      )
    return value

  def numbers(field: str, default: tuple[float, ...]) -> tuple[float, ...]:
    value = tree.get(field) or default
    if (
      not isinstance(value, Sequence)
      or len(value) != 3
      or not all(_is_number(v) for v in value)
      or (field == 'image_std' and not all(value))
    ):
      refuse(field, 'three numbers')
    return tuple(float(v) for v in value)

  size = sides('size') if tree.get('do_resize', True) else None
  crop = sides('crop_size') if tree.get('do_center_crop', crops) else None
  if crop is not None and not isinstance(crop, tuple):
    refuse('crop_size', 'a height and a width')
  if (crop or size) != (image_size,) * 2:
    refuse('crop_size' if crop else 'size', f'a square of {image_size}, which is what the image tower takes')
  resample = tree.get('resample', 3)
  if type(resample) is not int or not 0 <= resample <= 5:
    refuse('resample', 'a code of PIL from 0 to 5, such as 3, bicubic')
  factor = tree.get('rescale_factor', 1 / 255) if tree.get('do_rescale', True) else 1.0
  if not _is_number(factor):
    refuse('rescale_factor', 'a number such as 0.00392')
  mean, std = (0.0,) * 3, (1.0,) * 3
  if tree.get('do_normalize', True):
    missing = [field for field in ('image_mean', 'image_std') if not tree.get(field)]
    if missing:
      refuse(missing[0], 'three numbers')
    mean, std = numbers('image_mean', mean), numbers('image_std', std)
  return Preprocessing(size, Image.Resampling(resample), crop, float(factor), mean, std)


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and abs(value) < 1e15


def unit_rows(config: clip.ClipConfig, dtype: Any) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns a function: (parameters of the image tower, pixels [B, S, S, 3]) -> unit rows [B, D], made in `dtype`."""
  tower = clip.ImageTower(config, dtype)
  return lambda params, pixels: clip.normalize(tower.apply({'params': params}, pixels))


class ImageTower:
  """Embeds pictures with an image tower and its preprocessing.

  All batches have the same size, so that the tower is compiled once. `dtype` is that of its arithmetic; bfloat16 is
  faster on accelerators.

  Attributes:
    identity: what a region store records of the tower.
    embedding_dim: D.
    image_size: S, the side of the tower's pictures in pixels.
    preprocess: turns a picture into pixels [S, S, 3].
    params: parameters of the tower, on the device.
  """

  def __init__(self, teacher: checkpoint.Teacher, dtype: Any = jnp.float32, *, batch_size: int = _BATCH):
    if teacher.preprocessor is None or 'image' not in teacher.params:
      raise ValueError('the teacher is a text tower alone; expected a teacher directory with an image tower')
    self.identity = teacher.image_identity
    self.embedding_dim, self.image_size = teacher.config.embedding_dim, teacher.config.image_size
    self.preprocess = parse_preprocessing(teacher.preprocessor, self.image_size)
    self._batch_size = batch_size
    self.params = jax.device_put(teacher.params['image'])
    self._apply = compiler.jit(unit_rows(teacher.config, dtype))

  def embed_images(self, images: Sequence[Picture]) -> np.ndarray:
    """Returns float32 [N, D], unit rows: one for each PIL picture or uint8 array [H, W, 3], of any size."""
    return self._embed(images, self.preprocess)

  def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
    """Returns float32 [N, D], unit rows, of pictures that are preprocessed already, float32 [N, S, S, 3]."""
    return self._embed(pixels, lambda row: row)

  def _embed(self, pictures: Any, prepare: Any) -> np.ndarray:
    rows = np.zeros((len(pictures), self.embedding_dim), np.float32)
    batch = np.zeros((self._batch_size, self.image_size, self.image_size, 3), np.float32)
    starts = range(0, len(pictures), self._batch_size)
    long = len(starts) > _BATCHES_WITHOUT_BAR
    for start in progress.track(starts, 'image embeddings', unit='batch') if long else starts:
      chosen = range(start, min(start + self._batch_size, len(pictures)))
      for slot, i in enumerate(chosen):
        batch[slot] = prepare(pictures[i])
      rows[chosen.start : chosen.stop] = self._apply(self.params, batch)[: len(chosen)]
    return rows
