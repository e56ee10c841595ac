"""Defines the settings of the detector: one frozen dataclass for each part of the network.

Every default is the value of the paper's LVIS training (docs/method.md, 2). Import the classes from `vild_jax.config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vild_jax.config import defaults
from vild_jax.config.settings import require, require_at_most, require_fraction, require_positive

_DEPTHS = (10, 14, 18, 26, 34, 50, 101, 152)


@dataclass(frozen=True)
class Backbone:
  """Configures the ResNet v1.5.

  `depth` is one of 10, 14, 18, 26, 34, 50, 101, 152; `width` is the number of channels of the stem. With `remat` only
  the input of each residual block is kept for the backward pass, which computes the rest again.
  """

  depth: int = 50
  width: int = 64
  remat: bool = False

  def __post_init__(self):
    require(self.depth in _DEPTHS, 'model.backbone.depth', self.depth, f'one of {", ".join(map(str, _DEPTHS))}')
    require_positive(self, 'model.backbone', 'width')


@dataclass(frozen=True)
class Pyramid:
  """Configures the feature pyramid P`min_level`..P`max_level` of `channels` channels; level l has stride 2**l."""

  min_level: int = 2
  max_level: int = 6
  channels: int = 256

  def __post_init__(self):
    ok = 2 <= self.min_level <= 5 <= self.max_level <= 7
    require(ok, 'model.pyramid', (self.min_level, self.max_level), 'levels from 2..5 to 5..7')
    require_positive(self, 'model.pyramid', 'channels')


@dataclass(frozen=True)
class Anchors:
  """Configures the anchors: side `size`·2**level (pixels), one for each scale and each ratio width / height."""

  size: float = 8.0
  aspect_ratios: tuple[float, ...] = (1.0, 2.0, 0.5)
  num_scales: int = 1

  def __post_init__(self):
    require(
      min(self.aspect_ratios, default=0) > 0, 'model.anchors.aspect_ratios', self.aspect_ratios, 'positive ratios'
    )
    require_positive(self, 'model.anchors', 'size', 'num_scales')
    require_at_most(self, 'model.anchors', defaults.MAX_LAYERS, 'num_scales')
    require(len(self.aspect_ratios) <= 100, 'model.anchors.aspect_ratios', len(self.aspect_ratios), 'at most 100')


@dataclass(frozen=True)
class ProposalNetwork:
  """Configures the region proposal network: its convolutions, and how its outputs become proposals."""

  num_convs: int = 2
  channels: int = 256
  train_pre_nms_top_k: int = 2000  # for each level, before NMS
  test_pre_nms_top_k: int = 1000
  max_per_level: int = 1000  # for each level, after NMS
  max_proposals: int = 1000  # of all levels together
  nms_threshold: float = 0.7

  def __post_init__(self):
    require_positive(
      self,
      'model.rpn',
      'channels',
      'train_pre_nms_top_k',
      'test_pre_nms_top_k',
      'max_per_level',
      'max_proposals',
      zero=('num_convs',),
    )
    require_at_most(self, 'model.rpn', defaults.MAX_LAYERS, 'num_convs')
    require_fraction(self, 'model.rpn', 'nms_threshold')


@dataclass(frozen=True)
class RegionHead:
  """Configures the head that turns RoI features into a region embedding and class-agnostic box deltas."""

  roi_size: int = 7
  num_convs: int = 4
  conv_channels: int = 256
  num_fcs: int = 2
  fc_channels: int = 1024
  embedding_dim: int = 0  # dimension of the teacher's space; 0: that of the vocabulary (512 without a vocabulary)

  def __post_init__(self):
    require_positive(
      self,
      'model.region_head',
      'roi_size',
      'conv_channels',
      'fc_channels',
      zero=('num_convs', 'num_fcs', 'embedding_dim'),
    )
    require_at_most(self, 'model.region_head', defaults.MAX_LAYERS, 'num_convs', 'num_fcs')


@dataclass(frozen=True)
class MaskHead:
  """Configures the head that turns RoI features into one class-agnostic mask of 2·roi_size x 2·roi_size."""

  roi_size: int = 14
  num_convs: int = 4
  channels: int = 256

  def __post_init__(self):
    require_positive(self, 'model.mask_head', 'roi_size', 'channels', zero=('num_convs',))
    require_at_most(self, 'model.mask_head', defaults.MAX_LAYERS, 'num_convs')


@dataclass(frozen=True)
class Postprocess:
  """Configures how scores become detections: ensemble of both heads, class-wise NMS, the best of all classes.

  A checkpoint may be used with other values than it was trained with; `vild-jax calibrate` searches them.
  `base_weight` is the exponent of the text head's score on base classes, and `novel_weight` that of the image head's on
  novel ones (null: `base_weight`, as in the paper); the other head has what is left to 1. Without an image head they
  have no effect. `temperature` divides the cosines at inference (null: `model.temperature`, that of training), and
  `objectness_weight` is the exponent of the proposal's objectness in every score (0 leaves it out, as the paper does);
  the baselines that crop take neither of these two.
  """

  nms_threshold: float = 0.5
  score_threshold: float = 0.0
  pre_nms_top_k: int = 1000
  max_detections: int = defaults.MAX_DETECTIONS
  base_weight: float = 2 / 3
  novel_weight: float | None = None
  temperature: float | None = None
  objectness_weight: float = 0.0

  def __post_init__(self):
    require_positive(self, 'model.postprocess', 'pre_nms_top_k', 'max_detections', zero=('objectness_weight',))
    fractions = ('nms_threshold', 'score_threshold', 'base_weight')
    require_fraction(
      self, 'model.postprocess', *fractions, *(('novel_weight',) if self.novel_weight is not None else ())
    )
    if self.temperature is not None:
      require_positive(self, 'model.postprocess', 'temperature')


@dataclass(frozen=True)
class Model:
  """Configures the detector.

  `dtype` is the type of convolutions and matmuls; boxes, scores and losses are always float32. `precision` is that of
  float32 products on accelerators, where 'default' rounds them to bfloat16 (TPU) or TF32 (GPU) and 'highest' does not;
  a checkpoint may be evaluated with another one than it was trained with.
  `image_head=True` makes it a ViLD-ensemble: a second region head, without boxes, learns from the teacher alone.
  `masks=False` learns boxes alone and gives no masks; `vild-jax train` sets it where no object of its data has a mask.
  `background=False` makes it a ViLD-image: its one head learns classes from the teacher alone, no background is
  learned, and the scores are a softmax over the classes without the background. The parameter of the background still
  exists, unused, so that all variants without a second head have the same variables and can start from the same ones.
  """

  backbone: Backbone = field(default_factory=Backbone)
  pyramid: Pyramid = field(default_factory=Pyramid)
  anchors: Anchors = field(default_factory=Anchors)
  rpn: ProposalNetwork = field(default_factory=ProposalNetwork)
  region_head: RegionHead = field(default_factory=RegionHead)
  mask_head: MaskHead = field(default_factory=MaskHead)
  masks: bool = True
  image_head: bool = False
  background: bool = True
  postprocess: Postprocess = field(default_factory=Postprocess)
  temperature: float = 0.01
  batch_norm_momentum: float = 0.997  # of the moving statistics; short trainings need a lower value
  dtype: str = 'float32'
  precision: str = 'default'

  def __post_init__(self):
    precisions = ('default', 'high', 'highest')
    require(self.precision in precisions, 'model.precision', self.precision, 'default, high or highest')
    require(self.dtype in ('float32', 'bfloat16'), 'model.dtype', self.dtype, 'float32 or bfloat16')
    require_positive(self, 'model', 'temperature')
    require(
      self.background or not self.image_head,
      'model.background',
      self.background,
      'true if model.image_head is true, because the text head of an ensemble learns with the background',
    )
    momentum = self.batch_norm_momentum
    require(0 <= momentum < 1, 'model.batch_norm_momentum', momentum, 'a number from 0 to below 1')

  @property
  def sharpness(self) -> float:
    """Returns the factor of logits at inference: the temperature of training over that of inference."""
    return 1.0 if self.postprocess.temperature is None else self.temperature / self.postprocess.temperature

  @property
  def embedding_dim(self) -> int:
    """Returns the dimension of the student's embeddings; 512, that of CLIP ViT-B/32, if none is set."""
    return self.region_head.embedding_dim or defaults.EMBEDDING_DIM
