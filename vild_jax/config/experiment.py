"""Defines the configuration of one experiment: frozen dataclasses, dotted overrides, saving and reading.

A config file (`configs/*.py`) defines `get_config() -> Config`; the command line overrides single values as
`--model.backbone.depth=18`. Every default is the value of the paper's LVIS training (docs/method.md, 2 and 3).
Nothing here imports jax, so a config can be read anywhere.
"""

from __future__ import annotations

import dataclasses
import json
import runpy
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from vild_jax.config import defaults
from vild_jax.config.model import Model
from vild_jax.config.settings import (
  ConfigError,
  from_tree,
  override,
  require,
  require_at_most,
  require_fraction,
  require_positive,
)
from vild_jax.config.training import Optimizer, Train
from vild_jax.runtime import reading
from vild_jax.runtime.messages import shown


@dataclass(frozen=True)
class Assignment:
  """Configures how ground truth becomes training targets (docs/method.md, 3).

  `rpn_targets_plus_one` and `novel_logits_zero` can restore the reference (docs/departures.md, 5 and 6).
  `novel_labels=True` trains on base and novel labels: the supervised baseline. Otherwise novel labels are never seen.
  """

  rpn_positive_iou: float = 0.7
  rpn_negative_iou: float = 0.3
  rpn_samples: int = 256
  rpn_positive_fraction: float = 0.5
  roi_samples: int = 512
  roi_positive_fraction: float = 0.25
  roi_positive_iou: float = 0.5
  mask_samples: int = 128
  rpn_targets_plus_one: bool = True  # False: the reference's anchor targets, without the +1 convention
  novel_logits_zero: bool = False  # True: novel logits are multiplied by 0 instead of left out of the softmax
  novel_labels: bool = False

  def __post_init__(self):
    require_positive(self, 'assignment', 'rpn_samples', 'roi_samples', 'mask_samples')
    require_fraction(
      self,
      'assignment',
      'rpn_positive_iou',
      'rpn_negative_iou',
      'rpn_positive_fraction',
      'roi_positive_fraction',
      'roi_positive_iou',
    )
    require(
      self.rpn_negative_iou <= self.rpn_positive_iou,
      'assignment.rpn_negative_iou',
      self.rpn_negative_iou,
      f'at most rpn_positive_iou, {self.rpn_positive_iou}',
    )


@dataclass(frozen=True)
class Distillation:
  """Configures the distillation of the teacher's embeddings: L = L_text + `weight` · L_image; 0 is ViLD-text.

  L_image trains the image head (`model.image_head`, ViLD-ensemble), or else the one region head (ViLD). With
  `model.background=False` that one head learns only L_image and its boxes: L = `weight` · L_image (ViLD-image).
  `store` is the folder that `vild-jax embed-regions` wrote for the pictures of `data.train`. In each step
  `regions_per_image` regions of a picture are drawn among those of which at least the fraction `min_visible` of the
  area is inside the crop.
  """

  weight: float = 0.0
  store: str = ''
  regions_per_image: int = defaults.MAX_REGIONS
  min_visible: float = 0.5

  def __post_init__(self):
    require_positive(self, 'distillation', 'regions_per_image', zero=('weight',))
    require_fraction(self, 'distillation', 'min_visible')


@dataclass(frozen=True)
class Data:
  """Configures the prepared data sets (`vild-jax prepare`) and the input pipeline.

  `train` and `val` are folders of prepared data sets. Pictures are resized to fit `image_size` x `image_size` pixels,
  in training times a random factor of `scale_range` (large-scale jitter), flipped with probability one half, cropped
  and padded. `batch_size` is global. `workers` is the number of processes that decode; 0 decodes in the training
  process. `repeat_threshold` is for repeat-factor sampling (LVIS: 0.001): pictures of categories that occur in a
  smaller fraction of the pictures are repeated; 0 shows each picture once in an epoch. `only_with_objects` leaves out
  pictures that show no object of a class that training may use, as open-vocabulary COCO is trained. `transfer` is the
  type of the pictures that training sends to the devices: 'float32', or 'uint8', which the devices normalise: a fifth
  of the bytes and a third of the hosts' work, with an error of half a level of 255 (docs/data.md). Evaluation sends
  float32. `order` is 'global', in which a batch is drawn from the whole data set, or 'per_process', in which each
  process draws its part of a batch from its part of the data set (docs/scale.md). `cache` is a folder of each machine
  for copies of data sets and region stores in buckets.
  """

  train: str = ''
  train_split: str = 'train'
  val: str = ''
  val_split: str = 'val'
  image_size: int = 1024
  scale_range: tuple[float, float] = (0.1, 2.0)
  flip: bool = True
  max_instances: int = defaults.MAX_INSTANCES
  batch_size: int = 256
  workers: int = 8
  repeat_threshold: float = 0.0
  only_with_objects: bool = False
  transfer: str = 'float32'
  order: str = 'global'
  cache: str = ''

  def __post_init__(self):
    low, high = self.scale_range
    require(0 < low <= high, 'data.scale_range', self.scale_range, 'two positive numbers, the smaller first')
    require(self.transfer in ('float32', 'uint8'), 'data.transfer', self.transfer, "'float32' or 'uint8'")
    require(self.order in ('global', 'per_process'), 'data.order', self.order, "'global' or 'per_process'")
    require_positive(self, 'data', 'image_size', 'batch_size', 'max_instances', zero=('workers',))
    require_at_most(self, 'data', defaults.MAX_IMAGE_SIZE, 'image_size')
    require_fraction(self, 'data', 'repeat_threshold')


@dataclass(frozen=True)
class Mesh:
  """Configures the number of devices along each axis of the mesh; `data` = -1 takes all devices that remain.

  `data` and `fsdp` split the pictures of a batch, and `fsdp` also splits parameters and momentum. `spatial` splits the
  height of every picture, for more devices than pictures. The rules are in `train.sharding`.
  """

  data: int = -1
  fsdp: int = 1
  spatial: int = 1

  def __post_init__(self):
    require(self.data == -1 or self.data > 0, 'mesh.data', self.data, '-1 or a positive number of devices')
    require_positive(self, 'mesh', 'fsdp', 'spatial')


@dataclass(frozen=True)
class Evaluation:
  """Configures how `evaluate` runs the model; `batch_size` is global.

  `protocol` is one of lvis, lvis-fixed, coco, coco-ovd, voc and objects365 (docs/evaluation.md).

  Ground truth smaller than `min_area` square pixels is ignored, and categories with fewer than `min_instances`
  instances are left out of the averages; the values of both protocols are 0 and 1. `only_with_objects` leaves out
  pictures that show no object of a scored category, as open-vocabulary COCO is scored.
  """

  batch_size: int = 8
  protocol: str = 'lvis'
  min_area: float = 0.0
  min_instances: int = 1
  only_with_objects: bool = False

  def __post_init__(self):
    known = defaults.EVALUATION_PROTOCOLS
    require(self.protocol in known, 'evaluation.protocol', self.protocol, f'one of {", ".join(known)}')
    plain = (self.min_area, self.min_instances) == (0, 1)
    what = 'evaluation.min_area and min_instances'
    require(plain or self.protocol not in ('voc', 'coco-ovd'), what, 'set', f'0 and 1 with protocol {self.protocol}')
    require_positive(self, 'evaluation', 'batch_size', zero=('min_area', 'min_instances'))


@dataclass(frozen=True)
class Config:
  """Configures one experiment.

  `vocabulary` is the file that `vild-jax embed-text` wrote; `teacher` is the folder of the teacher whose text tower a
  bundle contains, or its name on the Hugging Face hub, `hf://owner/name`.
  """

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
    require(
      self.model.background or not self.train.retention,
      'train.retention',
      self.train.retention,
      '0 with model.background=False (ViLD-image), which learns no classes',
    )
    require(0 <= self.seed < 2**32, 'seed', self.seed, 'a number from 0 to below 2**32')
    stride = 2**self.model.pyramid.max_level
    require(
      self.data.image_size % stride == 0,
      'data.image_size',
      self.data.image_size,
      f'a multiple of {stride}, the stride of the top level of model.pyramid',
    )
    # With one row of the top level on each device, XLA (jax 0.10.2) computes wrong gradients: it sums them over `data`.
    rows, spatial = 2 * stride * self.mesh.spatial, self.mesh.spatial
    require(
      spatial == 1 or self.data.image_size % rows == 0,
      'data.image_size',
      self.data.image_size,
      f'a multiple of {rows}, so that each of mesh.spatial = {spatial} devices has two rows of the top level',
    )


def with_embedding_dim(config: Config, dim: int) -> Config:
  """Returns the config with `model.region_head.embedding_dim` = `dim` if it is 0, else the config itself."""
  if config.model.region_head.embedding_dim:
    return config
  head = dataclasses.replace(config.model.region_head, embedding_dim=dim)
  return dataclasses.replace(config, model=dataclasses.replace(config.model, region_head=head))


def with_masks(config: Config, masks: bool) -> Config:
  """Returns the config with `model.masks` off if `masks` is False, else the config itself."""
  return config if masks else dataclasses.replace(config, model=dataclasses.replace(config.model, masks=False))


def with_frozen(config: Config, *patterns: str) -> Config:
  """Returns the config with these patterns in `train.freeze`, after those that are there."""
  freeze = tuple(dict.fromkeys((*config.train.freeze, *patterns)))
  return dataclasses.replace(config, train=dataclasses.replace(config.train, freeze=freeze))


def to_text(config: Config) -> str:
  """Returns the whole config as JSON text, from which `from_text` makes an equal object."""
  return json.dumps(dataclasses.asdict(config), indent=2) + '\n'


def from_text(text: str) -> Config:
  """Makes a config from the text of `to_text`; raises ConfigError for an unknown key or a value of the wrong type."""
  try:
    tree = reading.json_text(text)
  except ValueError as error:
    raise ConfigError(f'the config is not JSON: {error}') from error
  return from_tree(Config, tree)


def read(path: str | Path) -> Config:
  """Reads a saved `config.json`; raises ConfigError, which names the file, for whatever is wrong with it."""
  expected = 'a config.json as vild-jax writes it'
  tree = reading.json_file(path, expected, error=ConfigError)
  with reading.parsing(path, expected, error=ConfigError, problem='cannot be used'):
    return from_tree(Config, tree)


def calibrated(path: str | Path) -> list[str]:
  """Returns the overrides in a file of `vild-jax calibrate`; raises ConfigError if it is none."""
  section = 'model.postprocess.'
  expected = f'settings of {section[:-1]} that `vild-jax calibrate` has written'
  tree = reading.json_file(path, expected, error=ConfigError)
  settings = tree.get('settings') if isinstance(tree, dict) else None
  require(isinstance(settings, dict), f'{path}: settings', type(settings).__name__, expected)
  for key in settings:
    require(key.startswith(section), f'{path}: settings', shown(key), expected)
  return [f'--{key}={json.dumps(value)}' for key, value in settings.items()]


def load(path: str | Path, overrides: list[str] | None = None) -> Config:
  """Runs the `get_config()` of a Python file, or reads a saved `config.json`, and applies the overrides.

  Args:
    path: a .py or a .json file.
    overrides: `--key.path=value`; the dashes may be left out.

  Raises:
    ConfigError: if the file or an override cannot be used; one line.
  """
  path = Path(path)
  if not path.is_file():
    raise ConfigError(f'{path} is not a file; expected a config such as configs/vild_text_r50_lvis.py')
  if path.suffix == '.json':
    return override(read(path), overrides or [])
  require(path.suffix == '.py', str(path), 'not a Python file', 'one that defines get_config()')
  try:
    names = runpy.run_path(str(path))
    make = names.get('get_config')
    config = make() if callable(make) else None
  except ConfigError:
    raise
  except Exception as error:  # a user's file may raise anything; most often a misspelt field (TypeError)
    where = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = getattr(error, 'lineno', None) or (where[-1] if where else '?')
    message = ' '.join(str(error).split())
    raise ConfigError(
      f'{path}, line {line}: {type(error).__name__}: {message}; expected a get_config() -> Config that runs'
    ) from error
  require(callable(make), str(path), 'without get_config()', 'get_config() -> Config')
  require(isinstance(config, Config), f'{path}: get_config()', type(config).__name__, 'to return a Config')
  return override(config, overrides or [])
