"""The configuration of one experiment: frozen dataclasses, dotted overrides, text that reads back.

A config file (`configs/*.py`) defines `get_config() -> Config`; the command line overrides single values as
`--model.backbone.depth=18`. Every default is the value of the paper's LVIS training (METHOD.md, sections 2 and 3).
Nothing here imports jax, so that a config can be read anywhere.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from vild_jax.settings import (
  ConfigError,
  difference,
  flatten,
  from_tree,
  override,
  require,
  require_fraction,
  require_positive,
)

__all__ = ['Config', 'ConfigError', 'difference', 'flatten', 'from_text', 'load', 'override', 'to_text',
           'with_embedding_dim']


_DEPTHS = (10, 14, 18, 26, 34, 50, 101, 152)


@dataclass(frozen=True)
class Backbone:
  """ResNet v1.5. `depth` is one of 10, 14, 18, 26, 34, 50, 101, 152; `width` the channels of the stem."""

  depth: int = 50
  width: int = 64

  def __post_init__(self):
    require(self.depth in _DEPTHS, 'model.backbone.depth', self.depth, f'one of {", ".join(map(str, _DEPTHS))}')
    require_positive(self, 'model.backbone', 'width')


@dataclass(frozen=True)
class Pyramid:
  """Feature pyramid P`min_level`..P`max_level` of `channels` channels; level l has stride 2**l."""

  min_level: int = 2
  max_level: int = 6
  channels: int = 256

  def __post_init__(self):
    ok = 2 <= self.min_level <= 5 <= self.max_level <= 7
    require(ok, 'model.pyramid', (self.min_level, self.max_level), 'levels from 2..5 to 5..7')
    require_positive(self, 'model.pyramid', 'channels')


@dataclass(frozen=True)
class Anchors:
  """Anchors of side `size`·2**level (pixels), one for each scale and each ratio width / height."""

  size: float = 8.0
  aspect_ratios: tuple[float, ...] = (1.0, 2.0, 0.5)
  num_scales: int = 1

  def __post_init__(self):
    require(min(self.aspect_ratios, default=0) > 0, 'model.anchors.aspect_ratios', self.aspect_ratios,
             'positive ratios')
    require_positive(self, 'model.anchors', 'size', 'num_scales')


@dataclass(frozen=True)
class ProposalNetwork:
  """The region proposal network: shared convolutions, and how its outputs become proposals."""

  num_convs: int = 2
  channels: int = 256
  train_pre_nms_top_k: int = 2000   # a level, before NMS
  test_pre_nms_top_k: int = 1000
  max_per_level: int = 1000         # a level, after NMS
  max_proposals: int = 1000         # of all levels together
  nms_threshold: float = 0.7

  def __post_init__(self):
    require_positive(self, 'model.rpn', 'channels', 'train_pre_nms_top_k', 'test_pre_nms_top_k', 'max_per_level',
                     'max_proposals', zero=('num_convs',))
    require_fraction(self, 'model.rpn', 'nms_threshold')


@dataclass(frozen=True)
class RegionHead:
  """RoI features -> region embedding and class-agnostic box deltas."""

  roi_size: int = 7
  num_convs: int = 4
  conv_channels: int = 256
  num_fcs: int = 2
  fc_channels: int = 1024
  embedding_dim: int = 0            # of the teacher's space; 0 takes the vocabulary's (512 where there is none yet)

  def __post_init__(self):
    require_positive(self, 'model.region_head', 'roi_size', 'conv_channels', 'fc_channels',
                     zero=('num_convs', 'num_fcs', 'embedding_dim'))


@dataclass(frozen=True)
class MaskHead:
  """RoI features -> one class-agnostic mask of 2·roi_size squared."""

  roi_size: int = 14
  num_convs: int = 4
  channels: int = 256

  def __post_init__(self):
    require_positive(self, 'model.mask_head', 'roi_size', 'channels', zero=('num_convs',))


@dataclass(frozen=True)
class Postprocess:
  """Scores -> detections: the two heads' ensemble, class-wise NMS, then the best of all classes.

  `base_weight` is the exponent of the text head's score on base classes and of the image head's on novel ones; the
  other head has the rest. Without an image head it has no effect.
  """

  nms_threshold: float = 0.5
  score_threshold: float = 0.0
  pre_nms_top_k: int = 1000
  max_detections: int = 300
  base_weight: float = 2 / 3

  def __post_init__(self):
    require_positive(self, 'model.postprocess', 'pre_nms_top_k', 'max_detections')
    require_fraction(self, 'model.postprocess', 'nms_threshold', 'score_threshold', 'base_weight')


@dataclass(frozen=True)
class Model:
  """The detector. `dtype` is the type of convolutions and matmuls; boxes, scores and losses are float32 always.

  `image_head` makes it a ViLD-ensemble: a second region head, without boxes, which learns from the teacher alone.
  """

  backbone: Backbone = field(default_factory=Backbone)
  pyramid: Pyramid = field(default_factory=Pyramid)
  anchors: Anchors = field(default_factory=Anchors)
  rpn: ProposalNetwork = field(default_factory=ProposalNetwork)
  region_head: RegionHead = field(default_factory=RegionHead)
  mask_head: MaskHead = field(default_factory=MaskHead)
  image_head: bool = False
  postprocess: Postprocess = field(default_factory=Postprocess)
  temperature: float = 0.01
  batch_norm_momentum: float = 0.997     # of the moving statistics; shorter trainings need a shorter memory
  dtype: str = 'float32'

  def __post_init__(self):
    require(self.dtype in ('float32', 'bfloat16'), 'model.dtype', self.dtype, 'float32 or bfloat16')
    require_positive(self, 'model', 'temperature')
    momentum = self.batch_norm_momentum
    require(0 <= momentum < 1, 'model.batch_norm_momentum', momentum, 'a number from 0 to below 1')

  @property
  def embedding_dim(self) -> int:
    """The student's embedding dimension: CLIP ViT-B/32's where nothing has said another."""
    return self.region_head.embedding_dim or 512


@dataclass(frozen=True)
class Assignment:
  """Ground truth -> training targets (METHOD.md, section 3). The last two restore the reference (section 4.5, 4.6)."""

  rpn_positive_iou: float = 0.7
  rpn_negative_iou: float = 0.3
  rpn_samples: int = 256
  rpn_positive_fraction: float = 0.5
  roi_samples: int = 512
  roi_positive_fraction: float = 0.25
  roi_positive_iou: float = 0.5
  mask_samples: int = 128
  rpn_targets_plus_one: bool = True      # False: the reference's anchor targets without the +1 convention
  novel_logits_zero: bool = False        # True: novel logits times 0 instead of out of the softmax

  def __post_init__(self):
    require_positive(self, 'assignment', 'rpn_samples', 'roi_samples', 'mask_samples')
    require_fraction(self, 'assignment', 'rpn_positive_iou', 'rpn_negative_iou', 'rpn_positive_fraction',
                     'roi_positive_fraction', 'roi_positive_iou')
    require(self.rpn_negative_iou <= self.rpn_positive_iou, 'assignment.rpn_negative_iou', self.rpn_negative_iou,
            f'at most rpn_positive_iou, {self.rpn_positive_iou}')


@dataclass(frozen=True)
class Distillation:
  """Learning from the teacher's embeddings of offline proposals: L = L_text + `weight` · L_image; 0 is ViLD-text.

  The image head learns it (`model.image_head`, ViLD-ensemble), or else the one region head (ViLD).
  """

  weight: float = 0.0

  def __post_init__(self):
    require_positive(self, 'distillation', zero=('weight',))


@dataclass(frozen=True)
class Data:
  """Prepared data sets (`vild-jax prepare`) and what the pipeline makes of them.

  `train` and `val` are folders of prepared data sets. Pictures are resized to fit `image_size` squared, times a random
  factor of `scale_range` in training (large-scale jitter), flipped with probability one half, cropped and padded.
  `batch_size` is global. `workers` are processes that decode; 0 decodes in the training process.
  """

  train: str = ''
  train_split: str = 'train'
  val: str = ''
  val_split: str = 'val'
  image_size: int = 1024
  scale_range: tuple[float, float] = (0.1, 2.0)
  flip: bool = True
  max_instances: int = 300
  batch_size: int = 256
  workers: int = 8

  def __post_init__(self):
    low, high = self.scale_range
    require(0 < low <= high, 'data.scale_range', self.scale_range, 'two positive numbers, the smaller first')
    require_positive(self, 'data', 'image_size', 'batch_size', 'max_instances', zero=('workers',))
    require(self.image_size % 64 == 0, 'data.image_size', self.image_size, 'a multiple of 64')


@dataclass(frozen=True)
class Optimizer:
  """SGD with momentum: linear warm-up, then `decay_factor` at each fraction of training in `decay_at`."""

  learning_rate: float = 0.32
  warmup_learning_rate: float = 0.0032
  warmup_steps: int = 1000
  decay_at: tuple[float, ...] = (0.9, 0.95, 0.975)
  decay_factor: float = 0.1
  momentum: float = 0.9
  weight_decay: float = 4e-5
  drop_last_decay: bool = False          # True: the reference's schedule, which loses its last decay (section 4.7)

  def __post_init__(self):
    require(all(0 < f < 1 for f in self.decay_at) and list(self.decay_at) == sorted(set(self.decay_at)),
             'optimizer.decay_at', self.decay_at, 'increasing fractions of training between 0 and 1')
    require_positive(self, 'optimizer', 'learning_rate',
                     zero=('warmup_learning_rate', 'warmup_steps', 'decay_factor', 'weight_decay'))
    require(0 <= self.momentum < 1, 'optimizer.momentum', self.momentum, 'a number from 0 to below 1')


@dataclass(frozen=True)
class Train:
  """Length and cadence of training, in steps. `keep` checkpoints stay; 0 pictures switches them off.

  `init_backbone` is a folder of `vild-jax convert resnet` whose weights the backbone starts from; empty: from scratch.
  """

  steps: int = 180_000
  log_every: int = 50
  checkpoint_every: int = 1000
  keep: int = 3
  pictures_every: int = 5000
  pictures: int = 4
  init_backbone: str = ''

  def __post_init__(self):
    require_positive(self, 'train', 'steps', 'log_every', 'checkpoint_every', 'keep', 'pictures_every',
                     zero=('pictures',))


@dataclass(frozen=True)
class Mesh:
  """Devices along each axis of the mesh; -1 takes all that are left."""

  data: int = -1

  def __post_init__(self):
    require(self.data == -1 or self.data > 0, 'mesh.data', self.data, '-1 or a positive number of devices')


@dataclass(frozen=True)
class Evaluation:
  """How `evaluate` runs the model; `batch_size` is global, `protocol` is lvis or coco.

  Ground truth under `min_area` pixels squared is ignored, and categories with fewer than `min_instances` stay out of
  the averages; the protocols' own values are 0 and 1.
  """

  batch_size: int = 8
  protocol: str = 'lvis'
  min_area: float = 0.0
  min_instances: int = 1

  def __post_init__(self):
    require(self.protocol in ('lvis', 'coco'), 'evaluation.protocol', self.protocol, 'lvis or coco')
    require_positive(self, 'evaluation', 'batch_size', zero=('min_area', 'min_instances'))


@dataclass(frozen=True)
class Config:
  """One experiment. `vocabulary` is the file of `embed-text`; `teacher` the folder whose text tower a bundle keeps."""

  name: str = 'vild'
  seed: int = 0
  vocabulary: str = ''
  teacher: str = ''
  model: Model = field(default_factory=Model)
  assignment: Assignment = field(default_factory=Assignment)
  distillation: Distillation = field(default_factory=Distillation)
  data: Data = field(default_factory=Data)
  optimizer: Optimizer = field(default_factory=Optimizer)
  train: Train = field(default_factory=Train)
  mesh: Mesh = field(default_factory=Mesh)
  evaluation: Evaluation = field(default_factory=Evaluation)

  def __post_init__(self):
    require(0 <= self.seed < 2**32, 'seed', self.seed, 'a number from 0 to below 2**32')


def with_embedding_dim(config: Config, dim: int) -> Config:
  """The config with `model.region_head.embedding_dim` = `dim` where it leaves that to the vocabulary (0)."""
  if config.model.region_head.embedding_dim:
    return config
  head = dataclasses.replace(config.model.region_head, embedding_dim=dim)
  return dataclasses.replace(config, model=dataclasses.replace(config.model, region_head=head))


def to_text(config: Config) -> str:
  """The whole config as JSON text that `from_text` reads back to an equal object."""
  return json.dumps(dataclasses.asdict(config), indent=2) + '\n'


def from_text(text: str) -> Config:
  """Reads `to_text`'s output. Raises ConfigError on an unknown key or a value of the wrong type."""
  try:
    tree = json.loads(text)
  except json.JSONDecodeError as error:
    raise ConfigError(f'the config is no JSON: {error}') from error
  return from_tree(Config, tree)


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
  """Runs the `get_config()` of a Python file, or reads a saved `config.json`, and applies the overrides."""
  path = Path(path)
  if not path.is_file():
    raise ConfigError(f'{path} is no file; expected a config such as configs/vild_text_r50_lvis.py')
  if path.suffix == '.json':
    return override(from_text(path.read_text(encoding='utf-8')), overrides or [])
  require(path.suffix == '.py', str(path), 'no Python file', 'one that defines get_config()')
  try:
    names = runpy.run_path(str(path))
    make = names.get('get_config')
    config = make() if callable(make) else None
  except ConfigError:
    raise
  except Exception as error:  # whatever a user's file may raise, a misspelt field (TypeError) most of all
    where = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = getattr(error, 'lineno', None) or (where[-1] if where else '?')
    message = ' '.join(str(error).split())
    raise ConfigError(f'{path}, line {line}: {type(error).__name__}: {message}; expected a get_config() -> Config '
                      'that runs') from error
  require(callable(make), str(path), 'without get_config()', 'get_config() -> Config')
  require(isinstance(config, Config), f'{path}: get_config()', type(config).__name__, 'to return a Config')
  return override(config, overrides or [])
