"""A detector small enough to compile in seconds, and batches made up for it."""

from __future__ import annotations

import jax
import numpy as np

from vild_jax import config as config_lib
from vild_jax import detector
from vild_jax.config import Config
from vild_jax.data import transforms
from vild_jax.structs import Batch, MaskBits, RegionTargets, Vocabulary

CLASSES = 6  # the last two are novel
BASE = 4
SHALLOW = (  # one level of the pyramid and no convolutions in the heads: for what is tested around the model
  'model.pyramid.min_level=5',
  'model.pyramid.max_level=5',
  'model.anchors.size=1',
  'model.rpn.num_convs=0',
  'model.region_head.num_convs=0',
  'model.mask_head.num_convs=0',
)


def config(*overrides: str) -> Config:
  """ResNet-10 with 8 channels at 64 px, one convolution a head, 16-dimensional embeddings."""
  return config_lib.override(
    Config(),
    [
      'model.backbone.depth=10',
      'model.backbone.width=8',
      'model.pyramid.channels=16',
      'model.anchors.size=4',
      'model.rpn.num_convs=1',
      'model.rpn.channels=16',
      'model.rpn.train_pre_nms_top_k=40',
      'model.rpn.test_pre_nms_top_k=40',
      'model.rpn.max_per_level=30',
      'model.rpn.max_proposals=30',
      'model.region_head.num_convs=1',
      'model.region_head.conv_channels=16',
      'model.region_head.num_fcs=1',
      'model.region_head.fc_channels=32',
      'model.region_head.embedding_dim=16',
      'model.mask_head.num_convs=1',
      'model.mask_head.channels=8',
      'model.postprocess.max_detections=10',
      'assignment.rpn_samples=64',
      'assignment.roi_samples=16',
      'assignment.mask_samples=4',
      'data.image_size=64',
      'data.batch_size=8',
      'data.max_instances=5',
      'data.workers=0',
      'optimizer.warmup_steps=2',
      'optimizer.learning_rate=0.01',
      'train.steps=8',
      'train.log_every=2',
      'train.checkpoint_every=2',
      'train.pictures=0',
      'evaluation.batch_size=8',
      *overrides,
    ],
  )


def variables(of: Config, seed: int = 0, *, deltas: float = 1.0) -> dict:
  """Plausible weights drawn by NumPy: compiling the initialisers would take longer than most tests.

  `deltas` scales what predicts boxes: as drawn, most proposals are as large as the picture, and NMS leaves one.
  """
  rng = np.random.default_rng(seed)

  def draw(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
    leaf, noise = path[-1].key, rng.normal(size=shape.shape)
    values = {
      'scale': 1 + 0.1 * noise,
      'var': np.exp(0.3 * noise),
      'bias': 0.05 * noise,
      'mean': 0.1 * noise,
      'background': 0.01 * noise,
    }
    fan_in = np.prod(shape.shape[:-1]) if len(shape.shape) > 1 else 1
    scale = deltas if any('box' in part.key for part in path) else 1.0
    return jax.numpy.asarray(scale * values.get(leaf, noise * np.sqrt(2 / fan_in)), shape.dtype)

  shapes = jax.eval_shape(lambda: detector.init(of, jax.random.PRNGKey(0)))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def vocabulary(seed: int = 0) -> Vocabulary:
  rows = np.random.default_rng(seed).normal(size=(CLASSES, 16)).astype(np.float32)
  rows /= np.linalg.norm(rows, axis=1, keepdims=True)
  return Vocabulary(embeddings=rows, is_base=np.arange(CLASSES) < BASE, valid=np.ones(CLASSES, bool))


def batch(seed: int = 0, *, size: int = 8, side: int = 64, instances: int = 5, empty: tuple[int, ...] = (0,)) -> Batch:
  """Noise with boxes of base classes; the pictures of `empty` have none."""
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, 0.6 * side, (size, instances, 2))
  boxes = np.concatenate([corner, np.minimum(corner + rng.uniform(8, 0.5 * side, corner.shape), side - 1)], axis=-1)
  valid = np.arange(instances)[None] < rng.integers(1, instances + 1, (size, 1))
  valid[list(empty)] = False
  return Batch(
    image=rng.normal(size=(size, side, side, 3)).astype(np.float32),
    image_size=np.full((size, 2), side, np.float32),
    boxes=(boxes * valid[..., None]).astype(np.float32),
    labels=(rng.integers(0, BASE, (size, instances)) * valid).astype(np.int32),
    masks=(rng.uniform(size=(size, instances, 112, 112)) > 0.3).astype(np.uint8) * np.uint8(255),
    valid=valid,
    has_mask=valid,
  )


def distilled_batch(seed=0, *, padding=0.0):
  """A batch with six regions an image to distil, the last two of them padding filled with `padding`."""
  rng = np.random.default_rng(seed)
  boxes = np.sort(rng.uniform(0, 60, (8, 6, 2, 2)), axis=2).reshape(8, 6, 4) + np.array([0, 0, 3, 3])
  embeddings = rng.normal(size=(8, 6, 16))
  valid = np.tile(np.arange(6) < 4, (8, 1))
  keep = lambda x: np.where(valid[..., None], x, padding).astype(np.float32)
  return batch(seed).replace(regions=RegionTargets(keep(boxes), keep(embeddings), valid))


def small_batch(of: Batch, seed: int = 0) -> tuple[Batch, Batch]:
  """`of` with other pictures and masks, as `data.transfer='uint8'` sends it, and as float32 of the same values."""
  rng, (count, instances) = np.random.default_rng(seed), of.valid.shape
  image, sizes = rng.integers(0, 256, of.image.shape, np.uint8), rng.integers(9, of.image.shape[1] + 1, (count, 2))
  plain = np.zeros(image.shape, np.float32)
  for one, picture, (height, width) in zip(plain, image, sizes, strict=True):
    one[:height, :width] = transforms.normalize(picture)[:height, :width]
  bits = rng.integers(0, 256, (count, instances, *transforms.MASK_BITS), np.uint8)
  weights = rng.random((count, instances, 2, transforms.MASK_SIZE), np.float32)
  soft = np.array(
    [[transforms.soft_mask(*of) for of in zip(*each, strict=True)] for each in zip(bits, weights, strict=True)]
  )
  of = of.replace(image_size=sizes.astype(np.float32))
  small = of.replace(image=image, masks=MaskBits(bits, weights))
  if of.regions is not None:
    rows = of.regions.embeddings.astype(np.float16)
    small = small.replace(regions=of.regions.replace(embeddings=rows))
    of = of.replace(regions=of.regions.replace(embeddings=rows.astype(np.float32)))
  return small, of.replace(image=plain, masks=soft)
